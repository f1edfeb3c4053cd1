"""A recipe: the whole way from a model to its ``.ese`` file, written down in TOML.

`docs/recipes.md` lists every key. A recipe names the user's model and data by import path, then
stages in the order in which they happen: train, prune, share, round, dsd. `read_recipe` checks all
of it before anything runs; `run_recipe` runs it.
"""

import copy
import importlib.util
import math
import sys
import time
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from openese.model.balance import Balance, load_ratio, pe_counts
from openese.model.compress import (
    compress,
    compress_weights,
    layer_biases,
    load_into,
    share_biases,
)
from openese.model.dsd import Phase, dsd_phases, run_phases
from openese.model.ese_file import load, save
from openese.model.linear_weights import LinearWeights
from openese.model.network import CompressedNetwork
from openese.model.plots import compressed_matrices, plot_balance, plot_gaps, plot_weights
from openese.model.prune import Handle, Masks, gates_of
from openese.model.report import format_report, network_report
from openese.model.schedule import GradualPruning, geometric_densities
from openese.model.share import INITS, SharedWeights
from openese.model.state import CompressedModel
from openese.model.user_code import import_model, import_object, load_weights

__all__ = ["Recipe", "RecipeError", "RecipeResult", "read_recipe", "run_recipe"]


class RecipeError(ValueError):
    """A recipe cannot be run; one line that names the file, the key and what is allowed."""


# -- what may stand where -------------------------------------------------------------------------
#
# A rule takes a value and returns it converted, or raises ValueError with what it must be.

Rule = Callable[[Any], Any]


def _number(low: float, high: float = math.inf) -> Rule:
    text = f"a number from {low:g} to {high:g}" if high < math.inf else f"a number from {low:g} up"

    def rule(value: Any) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool) or not (
                low <= value <= high and math.isfinite(value)):
            raise ValueError(text)
        return float(value)
    return rule


def _whole(low: int, high: int | None = None) -> Rule:
    text = (f"a whole number from {low} up" if high is None
            else f"a whole number from {low} to {high}")

    def rule(value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or value < low or (
                high is not None and value > high):
            raise ValueError(text)
        return value
    return rule


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("a text in quotes")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def _one_of(*allowed: str) -> Rule:
    def rule(value: Any) -> str:
        if value not in allowed:
            raise ValueError("one of " + ", ".join(map(repr, allowed)))
        return value
    return rule


def _per_layer(rule: Rule) -> Rule:
    """One value for every layer or a table from paths and patterns."""
    def per_layer(value: Any) -> Any:
        if not isinstance(value, dict):
            try:
                return rule(value)
            except ValueError as error:
                raise ValueError(f"{error}, or a table of such by layer or pattern") from None
        if not value:
            raise ValueError("a table that is not empty")
        return {path: rule(one) for path, one in value.items()}
    return per_layer


def _epochs_of_dsd(value: Any) -> tuple[int, int, int]:
    if not isinstance(value, list) or len(value) != 3:
        raise ValueError("three whole numbers: dense, sparse and last dense epochs")
    return tuple(_whole(0)(one) for one in value)


def _facts(value: Any) -> dict:
    if not isinstance(value, dict) or not all(
            isinstance(v, str | int | float) for v in value.values()):
        raise ValueError("a table of texts and numbers")
    return value


def _balance(value: Any) -> Balance:
    if not isinstance(value, dict) or "n_pes" not in value or value.keys() - {
            "n_pes", "per_column", "group"}:
        raise ValueError("a table with n_pes, and per_column and group if wanted")
    _whole(1)(value["n_pes"])
    _flag(value.get("per_column", False))
    _whole(1)(value.get("group", 1))
    return Balance(**value)


_RATE = {"rate": _number(0), "weight_decay": _number(0), "momentum": _number(0, 1),
         "optimizer": _one_of("sgd", "adam", "adamw"), "schedule": _one_of("cosine", "constant")}
_EPOCHS = {"epochs": _whole(0), **_RATE}
_DENSITY = _per_layer(_number(0, 1))

#: Keys of every table and their rules.
TABLES: dict[str, dict[str, Rule]] = {
    "model": {"path": _text, "weights": _text},
    "data": {"train": _text, "loss": _text, "evaluate": _text, "calibration": _text},
    "training": {"seed": _whole(0), "threads": _whole(1), **_RATE},
    "output": {"file": _text, "kind": _one_of("network", "weights"), "plots": _flag,
               "pes": _whole(1, 256), "headroom": _number(0), "meta": _facts},
}
#: Keys of the stages by their kind, beside `kind` itself.
STAGES: dict[str, dict[str, Rule]] = {
    "train": _EPOCHS,
    "prune": {"density": _DENSITY, "quality": _per_layer(_number(0)), "budget": _number(0, 1),
              "scale": _one_of("std", "norm"), "minimum": _number(0, 1), "balance": _balance,
              "steps": _whole(1), "gradual": _flag, "every": _whole(1), **_EPOCHS},
    "share": {"code_bits": _per_layer(_whole(1, 8)), "init": _one_of(*INITS),
              "bias_bits": _whole(1, 8), **_EPOCHS},
    "round": {"fixed_bits": _per_layer(_whole(2, 16)), "bias_bits": _whole(1, 8), **_EPOCHS},
    "dsd": {"sparsity": _DENSITY, "epochs": _epochs_of_dsd, "iterations": _whole(1),
            "checkpoint": _text, **_RATE},
}
REQUIRED = {"model": ["path"], "output": ["file", "kind"], "dsd": ["epochs"]}
#: Ways to say how much to prune, one per stage.
PRUNE_BY = ("density", "quality", "budget")
#: Where a stage says nothing.
DEFAULTS = {"optimizer": "adamw", "rate": 1e-3, "weight_decay": 0.0, "momentum": 0.9,
            "schedule": "cosine"}


@dataclass(frozen=True)
class Recipe:
    """A checked recipe.

    Parameters
    ----------
    path
        The file; what it names is relative to its folder.
    model, data, training, output
        The tables.
    stages
        Tables of the stages, each with its ``kind``.
    """

    path: Path
    model: dict[str, Any]
    data: dict[str, Any]
    training: dict[str, Any]
    output: dict[str, Any]
    stages: list[dict[str, Any]]

    @property
    def seed(self) -> int:
        """Seed of everything random."""
        return self.training.get("seed", 0)

    @property
    def output_file(self) -> Path:
        """The ``.ese`` file to write."""
        return self.path.parent / self.output["file"]


def read_recipe(path: str | Path) -> Recipe:
    """Read and check a recipe.

    Raises
    ------
    RecipeError
        No such file, not TOML, an unknown or missing key, a value of the wrong type or out of
        range, stages that make no sense in their order. One line, with the path of the key.
    """
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: is not TOML ({error})") from None
    try:
        return _check(path, content)
    except ValueError as error:
        raise RecipeError(f"{path}: {error}") from None


def _check(path: Path, content: dict) -> Recipe:
    _check_keys("", content, [*TABLES, "stage"])
    stages = content.get("stage", [])
    if not isinstance(stages, list) or not all(isinstance(stage, dict) for stage in stages):
        raise ValueError("stage: must be a list of tables, each under [[stage]]")
    tables = {name: _check_table(name, content.get(name, {}), rules, REQUIRED.get(name, []))
              for name, rules in TABLES.items()}
    checked = []
    for number, stage in enumerate(stages, start=1):
        where = f"stage {number}"
        kind = stage.get("kind")
        if kind not in STAGES:
            raise ValueError(f"{where}: kind must be one of {', '.join(map(repr, STAGES))}, "
                             f"not {kind!r}")
        where += f" ({kind})"
        rest = {key: value for key, value in stage.items() if key != "kind"}
        checked.append({"kind": kind, **_check_table(where, rest, STAGES[kind],
                                                     REQUIRED.get(kind, []))})
        _check_stage(where, checked, tables["data"])
    if tables["output"]["kind"] == "network" and "calibration" not in tables["data"]:
        raise ValueError("data.calibration: missing; a network (output.kind) needs inputs to "
                         "choose its binary points by: an import path of an array (n, ...)")
    last = checked[-1]["kind"] if checked else None
    if last not in ("share", "round"):
        raise ValueError("stage: the last must be of kind 'share' or 'round'")
    if last == "round" and tables["output"]["kind"] == "network":
        raise ValueError("output.kind: must be 'weights' after stage round, not 'network'")
    return Recipe(path, stages=checked, **tables)


def _check_keys(where: str, table: dict, allowed: Iterable[str]) -> None:
    for key in table:
        if key not in allowed:
            inside = f"{where}." if where else ""
            raise ValueError(f"{inside}{key}: unknown key; allowed are {', '.join(allowed)}")


def _check_table(where: str, table: Any, rules: dict[str, Rule], required: list[str]) -> dict:
    if not isinstance(table, dict):
        raise ValueError(f"{where}: must be a table, not {table!r}")
    _check_keys(where, table, list(rules))
    for key in required:
        if key not in table:
            raise ValueError(f"{where}.{key}: missing")
    checked = {}
    for key, value in table.items():
        try:
            checked[key] = rules[key](value)
        except ValueError as error:
            raise ValueError(f"{where}.{key}: must be {error}, not {value!r}") from None
    return checked


def _check_stage(where: str, stages: list[dict], data: dict) -> None:
    """What a stage's keys must have to do with each other, and with the stages before."""
    stage, before = stages[-1], [s["kind"] for s in stages[:-1]]
    kind, epochs = stage["kind"], stage.get("epochs", 0)
    last = next((k for k in before if k in ("share", "round")), None)
    if last is not None:
        raise ValueError(f"{where}: nothing can follow {last}, whose weights it would change")
    if (any(epochs) if kind == "dsd" else epochs) and "train" not in data:
        raise ValueError(f"data.train: missing; {where} trains: an import path of batches, or of "
                         "a function that returns them")
    if kind == "prune":
        given = [key for key in PRUNE_BY if key in stage]
        if len(given) != 1:
            raise ValueError(f"{where}: needs one of {', '.join(PRUNE_BY)}, not "
                             f"{' and '.join(given) or 'none'}")
        for key, needed in (("scale", "budget"), ("minimum", "budget"), ("balance", "density"),
                            ("steps", "density"), ("gradual", "density"), ("every", "gradual")):
            if key in stage and needed not in stage:
                raise ValueError(f"{where}.{key}: goes with {needed} only")
        if stage.get("gradual") and (not epochs or "steps" in stage):
            raise ValueError(f"{where}.gradual: needs epochs, and no steps")
    if kind == "dsd" and "prune" in before:
        raise ValueError(f"{where}: restores what was pruned before it; put it first")


# -- running --------------------------------------------------------------------------------------


@dataclass
class RecipeResult:
    """What a recipe made.

    Parameters
    ----------
    data
        Sizes (`network_report`), ``stages`` (a row each), ``decoded``: what ``evaluate`` says of
        the file read back, ``balance`` by matrix, ``plots``, ``seed``, ``seconds``, ``output``.
    text
        The same for people.
    """

    data: dict[str, Any]
    text: str


def run_recipe(recipe: Recipe, *, output: str | Path | None = None,
               progress: bool | None = None) -> RecipeResult:
    """Run a checked recipe and write its file and plots.

    Parameters
    ----------
    output
        Another file than the recipe's.
    progress
        Progress bars on standard error; ``None``: if that is a terminal.

    Raises
    ------
    RecipeError
        Something that the recipe names does not do what it must; the text names the key.
    ValueError
        As the functions of the stages.
    """
    return _Run(recipe, recipe.output_file if output is None else Path(output), progress).run()


class _Run:
    """State of a running recipe."""

    def __init__(self, recipe: Recipe, output: Path, progress: bool | None) -> None:
        self.recipe, self.output = recipe, output
        self.progress = sys.stderr.isatty() if progress is None else progress
        if not output.resolve().parent.is_dir():
            raise RecipeError(f"{output}: folder {output.resolve().parent} does not exist; "
                              "create it first")
        if recipe.output.get("plots") and importlib.util.find_spec("matplotlib") is None:
            raise RecipeError(f"{recipe.path}: output.plots: plots need matplotlib: "
                              "pip install 'openese[plot]'")
        self.rows: list[dict[str, Any]] = []
        self.masks: Masks | None = None
        self.balance: Balance | None = None
        self.options: dict[str, Any] = {}
        self.before_sharing: dict[str, NDArray] = {}

    def fail(self, key: str, text: str) -> RecipeError:
        return RecipeError(f"{self.recipe.path}: {key}: {text}")

    def load(self, table: str, key: str) -> Any:
        """What the user's import path means."""
        spec = getattr(self.recipe, table).get(key)
        if spec is None:
            return None
        function = import_model if (table, key) == ("model", "path") else import_object
        try:
            return function(spec, self.recipe.path.parent)
        except ValueError as error:
            raise self.fail(f"{table}.{key}", str(error)) from error

    def run(self) -> RecipeResult:
        start, recipe = time.perf_counter(), self.recipe
        threads = torch.get_num_threads()
        with torch.random.fork_rng():
            torch.manual_seed(recipe.seed)
            try:
                torch.set_num_threads(recipe.training.get("threads", threads))
                self.prepare()
                for number, stage in enumerate(recipe.stages, start=1):
                    torch.manual_seed(recipe.seed + number)
                    self.stage(number, stage)
                return self.finish(start)
            finally:
                torch.set_num_threads(threads)

    def prepare(self) -> None:
        self.model = self.load("model", "path")
        self.batches, self.loss = self.load("data", "train"), self.load("data", "loss")
        self.evaluate = self.load("data", "evaluate")
        for key, value in (("loss", self.loss), ("evaluate", self.evaluate)):
            if value is not None and not callable(value):
                raise self.fail(f"data.{key}", f"must be a function, not {type(value).__name__}")
        self.calibration = self.load("data", "calibration")
        if callable(self.calibration) and not isinstance(self.calibration, Tensor):
            self.calibration = self.calibration()
        if "weights" in self.recipe.model:
            path = self.recipe.path.parent / self.recipe.model["weights"]
            try:
                load_weights(self.model, path)
            except ValueError as error:
                raise self.fail("model.weights", str(error)) from error
        self.row("start", 0.0, {})

    def row(self, name: str, seconds: float, more: Mapping[str, Any]) -> None:
        self.rows.append({"name": name, "seconds": seconds, **more, **self.measure(self.model)})

    def measure(self, model: nn.Module) -> dict[str, float]:
        """What the user's function says of a model: a number or numbers by name."""
        if self.evaluate is None:
            return {}
        was_training = model.training
        model.eval()
        with torch.no_grad():
            result = self.evaluate(model)
        model.train(was_training)
        try:
            return ({str(k): float(v) for k, v in result.items()} if isinstance(result, Mapping)
                    else {"score": float(result)})
        except (TypeError, ValueError):
            raise self.fail("data.evaluate", "must return a number or a dict of numbers, not "
                            f"{type(result).__name__}") from None

    # -- stages -----------------------------------------------------------------------------------

    def stage(self, number: int, stage: dict[str, Any]) -> None:
        start = time.perf_counter()
        label = f"{number} {stage['kind']}"
        try:
            more = getattr(self, stage["kind"])(stage, label)
        except RecipeError:
            raise
        except ValueError as error:
            raise self.fail(f"stage {number} ({stage['kind']})", str(error)) from error
        self.row(label, time.perf_counter() - start, more)

    def train(self, stage: dict[str, Any], label: str) -> dict:
        optimizer = self.optimizer(stage, self.model.parameters())
        held = [] if self.masks is None else [self.masks.hold(optimizer)]
        return self.fit(stage, optimizer, label, held)

    def prune(self, stage: dict[str, Any], label: str) -> dict:
        self.balance = stage.get("balance", self.balance)
        balance = stage.get("balance")
        if stage.get("gradual"):
            return self.prune_gradually(stage, label)
        if "quality" in stage:
            targets, make = [stage["quality"]], Masks.by_quality
        elif "budget" in stage:
            targets = [stage["budget"]]
            make = partial(Masks.by_budget, scale=stage.get("scale"),
                           minimum=stage.get("minimum", 0.0))
        else:
            density, steps = stage["density"], stage.get("steps", 1)
            targets = [density] if steps == 1 else geometric_densities(density, steps)
            make = partial(Masks.by_density, balance=balance)
        more = {}
        for step, target in enumerate(targets, start=1):
            masks = make(self.model, target)
            self.merge(masks)
            self.masks.apply()
            more = {"density": _density(self.masks)}
            if stage.get("epochs", 0):
                name = label if len(targets) == 1 else f"{label} {step}/{len(targets)}"
                more |= self.train(stage, name)
        return more

    def prune_gradually(self, stage: dict[str, Any], label: str) -> dict:
        optimizer = self.optimizer(stage, self.model.parameters())
        steps = stage["epochs"] * self.batches_per_epoch()
        # The last quarter trains at the final density.
        gradual = GradualPruning(self.model, stage["density"], begin=0, end=max(1, 3 * steps // 4),
                                 every=stage.get("every", max(1, steps // 100)),
                                 balance=stage.get("balance"))
        held = [] if self.masks is None else [self.masks.hold(optimizer)]
        more = self.fit(stage, optimizer, label, [*held, gradual.hold(optimizer)])
        self.merge(gradual.masks)
        return {"density": _density(self.masks), **more}

    def merge(self, masks: Masks) -> None:
        """Masks of another stage add to those there are."""
        old = {} if self.masks is None else self.masks.state_dict()
        self.masks = Masks(self.model, old | masks.state_dict())

    def share(self, stage: dict[str, Any], label: str) -> dict:
        self.before_sharing = {name: parameter.detach().float().cpu().numpy().copy()
                               for name, parameter in self.model.named_parameters()}
        shared = SharedWeights(self.model, stage.get("code_bits", 4), seed=self.recipe.seed,
                               init=stage.get("init", "linear"))
        self.options["code_bits"] = {name: int(shared.centroids(name).numel()).bit_length()
                                     for name in shared.names}
        return self.replaced(stage, shared, label)

    def round(self, stage: dict[str, Any], label: str) -> dict:
        bits = stage.get("fixed_bits", 12)
        rounded = LinearWeights(self.model, bits)
        self.options["fixed_bits"] = bits
        return self.replaced(stage, rounded, label)

    def replaced(self, stage: dict[str, Any], weights: SharedWeights | LinearWeights,
                 label: str) -> dict:
        """Train what stands behind shared or rounded weights; shared biases stay fixed."""
        fixed = set()
        if "bias_bits" in stage:
            share_biases(self.model, stage["bias_bits"], seed=self.recipe.seed)
            self.options["bias_bits"] = stage["bias_bits"]
            fixed = {id(bias) for bias in layer_biases(self.model).values()}
        if not stage.get("epochs", 0):
            return {}
        optimizer = self.optimizer(stage, [p for p in weights.parameters() if id(p) not in fixed])
        return self.fit(stage, optimizer, label, [weights.hold(optimizer)])

    def dsd(self, stage: dict[str, Any], label: str) -> dict:
        phases = dsd_phases(stage["epochs"], stage.get("sparsity", 0.3),
                            iterations=stage.get("iterations", 1))
        checkpoint = stage.get("checkpoint")

        def make_optimizer(phase: Phase) -> torch.optim.Optimizer:
            rate = self.option(stage, "rate") * phase.rate
            return self.optimizer({**stage, "rate": rate}, self.model.parameters())

        def train_epoch(optimizer: torch.optim.Optimizer, epoch: int) -> dict:
            torch.manual_seed(self.recipe.seed + epoch)
            return {"loss": self.epoch(optimizer, epoch, lambda: None)}

        records = run_phases(
            self.model, make_optimizer, train_epoch, phases, label=label, progress=self.progress,
            checkpoint=None if checkpoint is None else self.recipe.path.parent / checkpoint)
        return {"loss": records[-1]["loss"]} if records else {}

    # -- training ---------------------------------------------------------------------------------

    def option(self, stage: dict[str, Any], name: str) -> Any:
        return stage.get(name, self.recipe.training.get(name, DEFAULTS[name]))

    def optimizer(self, stage: dict[str, Any], parameters: Iterable) -> torch.optim.Optimizer:
        options = {"lr": self.option(stage, "rate"),
                   "weight_decay": self.option(stage, "weight_decay")}
        kind = self.option(stage, "optimizer")
        if kind == "sgd":
            return torch.optim.SGD(parameters, momentum=self.option(stage, "momentum"), **options)
        return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[kind](parameters, **options)

    def epoch_batches(self, epoch: int) -> Iterable:
        """The batches of an epoch: the user's iterable, or what their function returns."""
        batches = self.batches
        if callable(batches) and not isinstance(batches, Iterable):
            batches = batches(epoch)
        if not isinstance(batches, Iterable):
            raise self.fail("data.train", "must be batches or a function of the epoch's number "
                            f"that returns them, not {type(batches).__name__}")
        return batches

    def batches_per_epoch(self) -> int:
        batches = self.epoch_batches(0)
        count = len(batches) if hasattr(batches, "__len__") else sum(1 for _ in batches)
        if not count:
            raise self.fail("data.train", "has no batches")
        return count

    def fit(self, stage: dict[str, Any], optimizer: torch.optim.Optimizer, label: str,
            held: Iterable[Handle]) -> dict:
        """Train for the epochs of a stage, then let go what was held; the last mean loss."""
        epochs = stage.get("epochs", 0)
        length = self.batches_per_epoch() if epochs else 0
        cosine = self.option(stage, "schedule") == "cosine"
        steps = epochs * length

        def factor(step: int) -> float:
            return (1 + math.cos(math.pi * min(step, steps) / steps)) / 2 if cosine and steps else 1

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        loss = math.nan
        with tqdm(total=steps, desc=label, disable=not self.progress) as bar:
            def after_step() -> None:
                scheduler.step()
                bar.update()

            for epoch in range(epochs):
                loss = self.epoch(optimizer, epoch, after_step)
                bar.set_postfix(loss=f"{loss:.4f}")
        for handle in held:
            handle.remove()
        return {"loss": loss} if epochs else {}

    def epoch(self, optimizer: torch.optim.Optimizer, epoch: int,
              after_step: Callable[[], None]) -> float:
        total = count = 0
        self.model.train()
        for batch in self.epoch_batches(epoch):
            optimizer.zero_grad()
            loss = self.batch_loss(batch)
            loss.backward()
            optimizer.step()
            after_step()
            total, count = total + float(loss.detach()), count + 1
        self.model.eval()
        if not (count and math.isfinite(total)):
            raise self.fail("training.rate" if count else "data.train",
                            "the loss is not finite; lower the rate" if count else
                            f"has no batches in epoch {epoch + 1}; what can be gone through only "
                            "once must come from a function")
        return total / count

    def batch_loss(self, batch: Any) -> Tensor:
        if self.loss is not None:
            return self.loss(self.model, batch)
        try:
            inputs, targets = batch
        except (TypeError, ValueError):
            raise self.fail("data.train", "batches must be pairs of inputs and targets, or "
                            "data.loss must name a function of model and batch") from None
        return nn.functional.cross_entropy(self.model(inputs), targets)

    # -- the end ----------------------------------------------------------------------------------

    def finish(self, start: float) -> RecipeResult:
        recipe = self.recipe
        scores = {k: v for k, v in self.rows[-1].items()
                  if k not in ("name", "seconds", "loss", "density")}
        meta = {"seed": recipe.seed, **scores, **recipe.output.get("meta", {})}
        options = {"seed": recipe.seed, "meta": meta, **self.options}
        if recipe.output["kind"] == "network":
            network = compress(self.model, calibration=self.calibration,
                               headroom=recipe.output.get("headroom", 1.0), **options)
        else:
            network = compress_weights(self.model, **options)
        save(self.output, network)
        # What counts is the file: it is read back and measured in a model of its own.
        decoded = copy.deepcopy(self.model)
        load_into(decoded, load(self.output))
        self.check_same(decoded)
        measured = self.measure(decoded)
        balance, counts = self.balances(network)
        plots = self.plots(network, counts) if recipe.output.get("plots") else []
        report = network_report(network)
        data = {"output": str(self.output), "seed": recipe.seed, "stages": self.rows,
                "decoded": measured, "balance": balance, "plots": [str(p) for p in plots],
                "seconds": time.perf_counter() - start, **report}
        return RecipeResult(data, self.text(data, report))

    def check_same(self, decoded: nn.Module) -> None:
        state = decoded.state_dict()
        for name, value in self.model.state_dict().items():
            if not torch.equal(value, state[name]):
                raise RuntimeError(f"{self.output}: {name!r} of the file is not that of the model; "
                                   "please report this")

    def parameter(self, name: str) -> str:
        """The parameter behind a compressed matrix: a network names the layer."""
        if isinstance(self.model, nn.Linear):
            return "weight"
        return name if name in dict(self.model.named_parameters()) else f"{name}.weight"

    def balances(self, network: CompressedNetwork | CompressedModel
                 ) -> tuple[dict[str, float], dict[str, NDArray]]:
        """Largest / mean count of each matrix on the PEs the recipe prunes or asks for."""
        balance = self.balance or Balance(8)
        n_pes = self.recipe.output.get("pes", balance.n_pes)
        counts = {}
        for name, matrix in compressed_matrices(network).items():
            group = balance.group or gates_of(self.model, self.parameter(name))
            counts[name] = pe_counts(torch.from_numpy(matrix.dense()), Balance(n_pes, group=group))
        return {name: load_ratio(count) for name, count in counts.items()}, counts

    def plots(self, network: CompressedNetwork | CompressedModel, counts: dict[str, NDArray]
              ) -> list[Path]:
        paths = [self.output.with_suffix(f".{name}.png") for name in ("weights", "gaps", "balance")]
        before = {name: self.before_sharing[self.parameter(name)]
                  for name in compressed_matrices(network) if self.before_sharing}
        plot_weights(network, paths[0], before)
        plot_gaps(network, paths[1])
        plot_balance(counts, paths[2])
        return paths

    def text(self, data: dict, report: dict) -> str:
        names = sorted({key for row in data["stages"] for key in row} - {"name"},
                       key=lambda key: (key not in ("density", "loss"), key == "seconds"))
        table = [["stage", *names]]
        for row in [*data["stages"], {"name": "file, decoded", **data["decoded"]}]:
            table.append([row["name"], *(f"{row[key]:.4g}" if key in row else ""
                                         for key in names)])
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width)
                           in enumerate(zip(cells, widths, strict=True))).rstrip()
                 for cells in table]
        lines.insert(1, "-" * max(map(len, lines)))
        worst = max(data["balance"].values(), default=1.0)
        lines += ["", format_report(report), "",
                  f"balance: fullest PE at most {worst:.2f} x mean",
                  f"seed {data['seed']}, {data['seconds']:.1f} s, written: {data['output']}"]
        lines += [f"plot: {path}" for path in data["plots"]]
        return "\n".join(lines)


def _density(masks: Masks) -> float:
    """Kept weights / weights of all masked matrices."""
    table = masks.table()
    return sum(row.nonzeros for row in table) / sum(row.weights for row in table)
