"""From a PyTorch module to the chain of layers it computes, or an error that names what it is not.

The model is traced symbolically (``torch.fx``), so that what counts is what ``forward`` does and
not how the modules are nested or named. Nothing is guessed: whatever the trace holds besides the
chain is refused.
"""

import operator
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import fx, nn
from torch.nn import functional

from openese.model.peephole import PeepholeLSTM

__all__ = ["ChainLayer", "UnsupportedModuleError", "extract_chain"]

SUPPORTED = ("supported is one chain of Linear, ReLU, RNN, GRU, LSTM, PeepholeLSTM, Flatten, "
             "Dropout and Identity")
RECURRENT = (nn.RNN, nn.GRU, nn.LSTM, PeepholeLSTM)
STATE = ("states are zero at the start, and others are given to openese at run time: leave it out "
         "of forward")


class UnsupportedModuleError(ValueError):
    """The model computes something that is not supported; names the module's path and why."""


@dataclass(frozen=True)
class ChainLayer:
    """One Linear or recurrent module of the chain.

    Parameters
    ----------
    name
        Path of the module as ``named_modules`` gives it; ``"0"`` where the model itself is the
        module.
    module
        The module itself, not a copy: ``nn.Linear``, ``nn.RNN``, ``nn.GRU``, ``nn.LSTM`` or
        `PeepholeLSTM`. A recurrent one may have several layers and both directions.
    relu
        Whether a ReLU follows; never of a recurrent module.
    last
        Whether of this module's output only the last step goes on.
    """

    name: str
    module: nn.Linear | nn.RNNBase
    relu: bool = False
    last: bool = False

    @property
    def recurrent(self) -> bool:
        """Whether the module keeps a state."""
        return isinstance(self.module, nn.RNNBase)

    @property
    def in_features(self) -> int:
        """Length of an input vector."""
        return self.module.input_size if self.recurrent else self.module.in_features

    @property
    def out_features(self) -> int:
        """Length of an output vector, of both directions together."""
        if not self.recurrent:
            return self.module.out_features
        return ((self.module.proj_size or self.module.hidden_size)
                * (2 if self.module.bidirectional else 1))


class _Tracer(fx.Tracer):
    """Stops at the modules that the chain is made of; everything else is traced into."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return (isinstance(m, nn.Linear | nn.RNNBase)
                or super().is_leaf_module(m, module_qualified_name))


def extract_chain(model: nn.Module) -> list[ChainLayer]:
    """The Linear and recurrent modules of a model in the order they compute.

    Supported are ``nn.Linear``, ``nn.ReLU`` after a Linear, ``nn.Flatten``, ``nn.Dropout``,
    ``nn.Identity``, ``nn.RNN``, ``nn.GRU``, ``nn.LSTM`` and `PeepholeLSTM` with all their options,
    the functions and methods ``relu``, ``dropout``, and ``flatten``, ``view`` and ``reshape`` to
    ``(batch, features)``, in modules nested and named at will. Dropout is taken as in evaluation,
    between the layers of a recurrent module too: it passes.

    Of a recurrent module's results the output goes on (``out, _ = self.lstm(x)``); ``forward`` may
    return final states beside the model's output, or all that a recurrent module at the end gives.
    Linear layers work on every step. After the last recurrent module, ``out[:, -1]`` (batch_first)
    or ``out[-1]`` may take the last step: the field `last` of the layer before it then says so,
    an engine computes the Linear layers that follow at every step all the same, and the user takes
    the last of its outputs.

    Returns
    -------
    At least one layer. The sizes of neighbours agree. The model is left as it was.

    Raises
    ------
    UnsupportedModuleError
        Anything else, in one line: another module or function, a module or weight used twice, a
        branch, a ReLU that follows no Linear, an initial state, a state that is computed with, a
        step selected other than that or a mean over time, modules of different ``batch_first``,
        hooks or parametrizations (which change what a module computes), parameters that are not
        finite float32, no Linear or recurrent module at all.
    """
    if not isinstance(model, nn.Module):
        raise UnsupportedModuleError(f"the model must be a torch.nn.Module, "
                                     f"not {type(model).__name__}")
    if isinstance(model, nn.Linear | nn.RNNBase) or (type(model).__module__.startswith("torch.nn.")
                                        and not isinstance(model, nn.Sequential)):
        # A tracer looks into its root: a root that is a leaf needs something around it.
        model = nn.Sequential(model)
    graph = _trace(model)
    modules = dict(model.named_modules())
    chain = _Chain(modules)
    for node in _chain_nodes(graph, modules):
        chain.add(node)
    return chain.finish()


def _trace(model: nn.Module) -> fx.Graph:
    modes = [(module, module.training) for module in model.modules()]
    for path, module in model.named_modules():
        _check_plain(path, module)
    model.eval()
    try:
        return _Tracer().trace(model)
    except Exception as error:  # user code meets proxies and may raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UnsupportedModuleError(
            f"forward of {type(model).__name__} cannot be traced ({reason}); {SUPPORTED}, "
            f"without control flow that depends on data") from error
    finally:
        for module, mode in modes:
            module.training = mode


def _check_plain(path: str, module: nn.Module) -> None:
    if module._forward_hooks or module._forward_pre_hooks:
        raise UnsupportedModuleError(
            f"module {path!r} ({type(module).__name__}) has forward hooks, which may change what "
            f"it computes; remove them first (torch.nn.utils.prune.remove, remove_weight_norm)")
    if "forward" in vars(module):
        # Tracing follows the class's forward and would miss this one.
        raise UnsupportedModuleError(
            f"module {path!r} ({type(module).__name__}) has a forward of its own, set on the "
            f"object; define it in a class instead")


def _is_shape(node: fx.Node) -> bool:
    """Whether a node only asks for the size of a tensor (``x.size(0)``, ``x.shape[0]``)."""
    if node.op == "call_method":
        return node.target == "size"
    if node.op != "call_function":
        return False
    if node.target is getattr:
        return node.args[1] == "shape"
    return (node.target is operator.getitem and isinstance(node.args[0], fx.Node)
            and _is_shape(node.args[0]))


def _is_batch(value: object) -> bool:
    """Whether a value of the trace is the batch size: ``x.size(0)`` or ``x.shape[0]``."""
    if not isinstance(value, fx.Node) or not _is_shape(value):
        return False
    if value.op == "call_method":
        return value.args[1:] == (0,) or value.kwargs == {"dim": 0}
    return value.target is operator.getitem and value.args[1] == 0


def _owner(node: fx.Node) -> str:
    """The module in whose forward a node of the trace stands, for people."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = stack[-1][0] if stack else ""
    return f"in module {path!r}" if path else "in the model's forward"


def _what(node: fx.Node) -> str:
    """An operation of the trace and where it stands, for people."""
    target = node.target
    if node.op == "call_module":
        return f"module {target!r}"
    name = target if isinstance(target, str) else getattr(target, "__name__", str(target))
    return f"{name!r} {_owner(node)}"


def _is_recurrent(value: object, modules: dict[str, nn.Module]) -> bool:
    """Whether a value of the trace is all that a recurrent module gives: output and states."""
    return (isinstance(value, fx.Node) and value.op == "call_module"
            and isinstance(modules[value.target], nn.RNNBase))


def _is_state(value: object, modules: dict[str, nn.Module]) -> bool:
    """Whether a value of the trace is a final state of a recurrent module, or a part of one."""
    if not isinstance(value, fx.Node) or value.target is not operator.getitem:
        return False
    of, item = value.args
    return item != 0 if _is_recurrent(of, modules) else _is_state(of, modules)


def _is_result(value: object, last: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether what forward returns is the value `last`, perhaps with final states after it."""
    if not isinstance(value, tuple | list):
        return value is last
    states = list(value[1:])
    while any(isinstance(state, tuple | list) for state in states):
        states = [part for state in states
                  for part in (state if isinstance(state, tuple | list) else [state])]
    return (bool(value) and value[0] is last and not _is_recurrent(last, modules)
            and all(_is_state(state, modules) for state in states))


def _check_initial_states(graph: fx.Graph, modules: dict[str, nn.Module]) -> None:
    for node in graph.nodes:
        if _is_recurrent(node, modules):
            states = [*node.args[1:], node.kwargs.get("hx")]
            if any(state is not None for state in states):
                raise UnsupportedModuleError(
                    f"module {node.target!r} ({type(modules[node.target]).__name__}) is called "
                    f"with an initial state; {STATE}")


def _chain_nodes(graph: fx.Graph, modules: dict[str, nn.Module]) -> Iterable[fx.Node]:
    """Operations from input to output, each fed by the one before and by nothing else."""
    _check_initial_states(graph, modules)
    nodes = [node for node in graph.nodes if not _is_shape(node) and not _is_state(node, modules)]
    inputs = [n for n in nodes if n.op == "placeholder" and n.users]
    if len(inputs) != 1:
        names = ", ".join(str(n.target) for n in inputs) or "none"
        raise UnsupportedModuleError(
            f"forward must use exactly one input, not {len(inputs)} ({names}); {SUPPORTED}")
    before = inputs[0]
    for node in nodes:
        if node.op == "placeholder":
            continue
        if node.op == "output":
            if not _is_result(node.args[0], before, modules):
                raise UnsupportedModuleError(
                    f"the model must return the output of its last layer and nothing else but "
                    f"final states; {SUPPORTED}")
            continue
        feeding = [n for n in node.all_input_nodes if not _is_shape(n)]
        if any(_is_state(n, modules) for n in feeding):
            raise UnsupportedModuleError(
                f"{_what(node)} computes with the final state of a recurrent module; take the last "
                f"step of its output instead: out[:, -1] with batch_first, out[-1] without")
        if node.op == "get_attr" or not feeding:
            raise UnsupportedModuleError(
                f"{_what(node)} computes with a parameter, buffer or constant of its own; "
                f"{SUPPORTED}")
        if feeding != [before]:
            raise UnsupportedModuleError(
                f"{_what(node)} joins or starts a branch (residual, skip or unused path); "
                f"{SUPPORTED}")
        if not _is_recurrent(before, modules):
            yield node
        elif node.target is not operator.getitem:
            raise UnsupportedModuleError(
                f"{_what(node)} takes all that module {before.target!r} gives; give it the output "
                f"alone: out, _ = module(x)")
        before = node


def _weights(module: nn.Module) -> set[int]:
    """Identities of a module's matrices."""
    return {id(parameter) for parameter in module.parameters() if parameter.ndim > 1}


class _Chain:
    """Collects layers from the operations of a chain."""

    def __init__(self, modules: dict[str, nn.Module]) -> None:
        self._modules = modules
        self._layers: list[ChainLayer] = []
        # Features that a reshape asked for before any layer said how many there are.
        self._features: tuple[int, str] | None = None
        # The first operation that makes vectors of what it gets, before the last step is taken.
        self._reshaped = ""

    @property
    def _sequence(self) -> ChainLayer | None:
        """The first recurrent layer, as long as all steps of its sequence go on."""
        if any(layer.last for layer in self._layers):
            return None
        return next((layer for layer in self._layers if layer.recurrent), None)

    def add(self, node: fx.Node) -> None:
        if node.op == "call_module":
            self._module(node, self._modules[node.target])
        elif node.target in (functional.relu, torch.relu, torch.relu_, "relu", "relu_"):
            self._relu(_what(node))
        elif node.target is functional.dropout:
            # Traced in evaluation mode: dropout that follows the mode is off by now.
            if node.args[2:3] == (True,) or node.kwargs.get("training", len(node.args) < 3):
                raise UnsupportedModuleError(
                    f"{_what(node)} drops in evaluation mode too (training=True); pass "
                    f"training=self.training")
        elif node.target in (torch.flatten, "flatten"):
            self._flatten(node)
        elif node.target in (torch.reshape, "view", "reshape"):
            self._reshape(node)
        elif node.target is operator.getitem and self._sequence is not None:
            self._select(node, self._sequence)
        elif node.target in (torch.mean, "mean") and self._sequence is not None:
            raise UnsupportedModuleError(
                f"{_what(node)} is not supported: an engine has an output for every step; take the "
                f"mean of these outside the model, or the last step in it (out[:, -1])")
        else:
            raise UnsupportedModuleError(f"{_what(node)} is not supported; {SUPPORTED}")

    def _module(self, node: fx.Node, module: nn.Module) -> None:
        path, kind = node.target, type(module)
        # Exact types: a subclass may compute anything.
        if not node.args or (kind not in RECURRENT and (len(node.args) > 1 or node.kwargs)):
            raise UnsupportedModuleError(f"module {path!r} ({kind.__name__}) must be called with "
                                         f"its one input")
        if kind is nn.Linear:
            self._layer(path, module)
        elif kind in RECURRENT:
            self._recurrent(path, module)
        elif kind is nn.ReLU:
            self._relu(f"module {path!r}")
        elif kind is nn.Flatten:
            if module.start_dim != 1 or module.end_dim != -1:
                raise UnsupportedModuleError(
                    f"module {path!r} (Flatten): start_dim={module.start_dim}, "
                    f"end_dim={module.end_dim} are not supported; only 1 and -1 are")
            self._makes_vectors(f"module {path!r} (Flatten)")
        elif kind not in (nn.Dropout, nn.Identity):
            hint = ("remove parametrizations first" if hasattr(module, "parametrizations")
                    else SUPPORTED)
            raise UnsupportedModuleError(
                f"module {path!r} ({kind.__name__}) is not supported; {hint}")

    def _recurrent(self, path: str, module: nn.RNNBase) -> None:
        what = f"module {path!r} ({type(module).__name__})"
        if self._reshaped:
            raise UnsupportedModuleError(
                f"{self._reshaped} takes the steps apart that {what} needs; give the model "
                f"sequences of vectors")
        if any(layer.last for layer in self._layers):
            raise UnsupportedModuleError(
                f"{what} comes after the last step was selected; only Linear layers may follow it")
        first = self._sequence
        if first is not None and first.module.batch_first != module.batch_first:
            raise UnsupportedModuleError(
                f"{what} has batch_first={module.batch_first}, but {first.name!r} before it has "
                f"batch_first={first.module.batch_first}: one of the two takes the batch for time")
        self._layer(path, module)

    def _layer(self, path: str, module: nn.Linear | nn.RNNBase) -> None:
        what = f"module {path!r} ({type(module).__name__})"
        for other, used in [(layer.name, _weights(layer.module)) for layer in self._layers]:
            if used & _weights(module):
                raise UnsupportedModuleError(
                    f"{what} uses the weight of {other!r} again; every layer needs its own")
        if len(_weights(module)) < sum(parameter.ndim > 1 for _, parameter in
                                       module.named_parameters(remove_duplicate=False)):
            raise UnsupportedModuleError(f"{what} uses a weight twice; every layer needs its own")
        for name, value in module.named_parameters():
            if value.is_meta or value.dtype != torch.float32:
                have = "has no data (device meta)" if value.is_meta else f"is {value.dtype}"
                raise UnsupportedModuleError(f"{what}: {name} {have}; only float32 is supported "
                                             f"(model.float())")
            if not bool(torch.isfinite(value).all()):
                raise UnsupportedModuleError(f"{what}: {name} has values that are not finite (NaN "
                                             f"or infinity)")
        layer = ChainLayer(path, module)
        if self._layers and self._layers[-1].out_features != layer.in_features:
            before = self._layers[-1]
            size = "input_size" if layer.recurrent else "in_features"
            raise UnsupportedModuleError(
                f"{what}: {size}={layer.in_features}, but {before.name!r} before it gives "
                f"{before.out_features}")
        self._layers.append(layer)
        self._check_features(layer.in_features)

    def _relu(self, what: str) -> None:
        if not self._layers:
            raise UnsupportedModuleError(
                f"{what} is a ReLU before the first Linear, which is not supported; apply it to "
                f"the inputs instead")
        last = self._layers[-1]
        if last.recurrent:
            raise UnsupportedModuleError(
                f"{what} is a ReLU after the recurrent module {last.name!r}, which is not "
                f"supported; a ReLU may follow a Linear")
        self._layers[-1] = replace(last, relu=True)

    def _select(self, node: fx.Node, sequence: ChainLayer) -> None:
        item = node.args[1]
        item = item if isinstance(item, tuple) else (item,)
        while len(item) > 1 and (item[-1] is Ellipsis or item[-1] == slice(None)):
            item = item[:-1]
        batch_first = sequence.module.batch_first
        if item != ((slice(None), -1) if batch_first else (-1,)):
            raise UnsupportedModuleError(
                f"{_what(node)} selects something else than the last step, which is "
                f"{'out[:, -1]' if batch_first else 'out[-1]'} as {sequence.name!r} has "
                f"batch_first={batch_first}")
        self._layers[-1] = replace(self._layers[-1], last=True)

    def _makes_vectors(self, what: str) -> None:
        if self._sequence is not None:
            raise UnsupportedModuleError(
                f"{what} takes the steps of the sequence apart; Linear layers work on every step "
                f"as it is")
        if not any(layer.last for layer in self._layers):
            self._reshaped = self._reshaped or what

    def _flatten(self, node: fx.Node) -> None:
        args = dict(zip(("start_dim", "end_dim"), node.args[1:], strict=False)) | dict(node.kwargs)
        args.pop("input", None)
        if args.get("start_dim", 0) != 1 or args.get("end_dim", -1) != -1:
            raise UnsupportedModuleError(
                f"{_what(node)} must be flatten(x, 1): the batch has to stay apart")
        self._makes_vectors(_what(node))

    def _reshape(self, node: fx.Node) -> None:
        self._makes_vectors(_what(node))
        shape = node.args[1:]
        if len(shape) == 1 and isinstance(shape[0], tuple | list):
            shape = tuple(shape[0])
        if len(shape) == 2 and _is_batch(shape[0]) and shape[1] == -1:
            return
        if (len(shape) == 2 and isinstance(shape[1], int) and shape[1] > 0
                and (_is_batch(shape[0]) or shape[0] == -1)):
            self._features = (shape[1], _what(node))
            if self._layers:
                self._check_features(self._layers[-1].out_features)
            return
        raise UnsupportedModuleError(
            f"{_what(node)} must give (batch, features), as x.view(x.size(0), -1) or "
            f"x.view(-1, 784) do")

    def _check_features(self, features: int) -> None:
        if self._features is not None and self._features[0] != features:
            wanted, what = self._features
            raise UnsupportedModuleError(
                f"{what} reshapes to {wanted} features where the Linear layer has {features}")
        self._features = None

    def finish(self) -> list[ChainLayer]:
        if not self._layers:
            raise UnsupportedModuleError(f"the model has no Linear or recurrent layer; {SUPPORTED}")
        return self._layers
