"""Recipes: each stage does what the functions do by hand, the file is the trained model, equal
seeds give equal files, and every mistake is one line that names the key.
"""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from openese.model.balance import Balance, load_ratio, pe_counts
from openese.model.ese_file import load
from openese.model.network import CompressedNetwork
from openese.model.plots import entry_gaps
from openese.model.recipe import RecipeError, read_recipe, run_recipe
from openese.model.state import CompressedModel

USER = '''
import torch
from torch import nn
import beside

class Sequence(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(6, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.rnn(x.view(-1, 2, 6).transpose(0, 1))[0][-1])

def chain():
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 3))

generator = torch.Generator().manual_seed(1)
x = torch.randn(96, 12, generator=generator)
y = x[:, :3].argmax(dim=1)
batches = [(x[i:i + 32], y[i:i + 32]) for i in range(0, 96, 32)]
once = iter(batches)
triples = [(x, y, y)]
empty = []
number = 3
called = []

def by_epoch(epoch):
    called.append(epoch)
    return iter(batches)

def loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])

def explode(model, batch):
    return loss(model, batch) * torch.inf

def error(model):
    assert not model.training
    return 100 * float((model(x).argmax(dim=1) != y).float().mean())

def named(model):
    return {"error_percent": error(model), "one": 1}

def words(model):
    return "good"

def inputs():
    return x
'''

RECIPE = """
[model]
path = "user.py:chain"
[data]
train = "user.py:batches"
evaluate = "user.py:named"
calibration = "user.py:x"
[training]
seed = 3
threads = 1
rate = 0.01
[[stage]]
kind = "train"
epochs = 4
[[stage]]
kind = "prune"
density = 0.4
steps = 2
epochs = 2
[[stage]]
kind = "share"
code_bits = 3
bias_bits = 2
epochs = 2
[output]
file = "net.ese"
kind = "network"
"""


@pytest.fixture
def folder(tmp_path):
    """A folder with the user's file, and another beside it that it imports."""
    (tmp_path / "user.py").write_text(USER)
    (tmp_path / "beside.py").write_text("")
    yield tmp_path
    sys.modules.pop("beside", None)


def read(folder, text):
    (folder / "r.toml").write_text(text)
    return read_recipe(folder / "r.toml")


def run(folder, text, **options):
    return run_recipe(read(folder, text), **options)


def stages(*lines, kind="weights", model="Sequence", data="", output=""):
    """A recipe for the recurrent model."""
    return (f'[model]\npath = "user.py:{model}"\n[data]\ntrain = "user.py:by_epoch"\n'
            f'evaluate = "user.py:error"\n{data}\n[training]\nrate = 0.01\n'
            + "".join(f"[[stage]]\n{line}\n" for line in lines)
            + f'[output]\nfile = "net.ese"\nkind = "{kind}"\n{output}\n')


def test_a_chain_from_training_to_a_network(folder):
    result = run(folder, RECIPE)
    network = load(folder / "net.ese")
    assert isinstance(network, CompressedNetwork)
    assert [layer.nnz for layer in network.layers] == [round(0.4 * 192), round(0.4 * 48)]
    assert [layer.code_bits for layer in network.layers] == [3, 3]
    assert all(len(np.unique(layer.bias)) <= 4 for layer in network.layers)
    data = result.data
    assert [row["name"] for row in data["stages"]] == ["start", "1 train", "2 prune", "3 share"]
    first, trained, pruned, shared = data["stages"]
    assert first["error_percent"] > trained["error_percent"]
    assert pruned["density"] == pytest.approx(0.4, abs=0.01)
    assert all(row["loss"] > 0 for row in data["stages"][1:])
    assert data["decoded"] == {"error_percent": shared["error_percent"], "one": 1}
    assert (data["seed"], data["bytes"]) == (3, (folder / "net.ese").stat().st_size)
    assert data["output"] == str(folder / "net.ese")
    assert data["plots"] == []
    assert network.meta == {"seed": 3, **data["decoded"]}
    for text in ("1 train", "file, decoded", "true rate", "balance: fullest PE", "seed 3"):
        assert text in result.text


def test_equal_seeds_give_equal_files_and_leave_the_generator_alone(folder):
    state = torch.random.get_rng_state()
    threads = torch.get_num_threads()
    files = []
    for seed, name in ((3, "a.ese"), (3, "b.ese"), (4, "c.ese")):
        run(folder, RECIPE.replace("seed = 3", f"seed = {seed}"), output=folder / name)
        files.append((folder / name).read_bytes())
    assert files[0] == files[1] != files[2]
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.get_num_threads() == threads
    assert not (folder / "net.ese").exists()


def test_a_recurrent_model_balanced_and_in_fixed_point(folder):
    result = run(folder, stages(
        'kind = "train"\nepochs = 1\noptimizer = "sgd"\nmomentum = 0.5\nschedule = "constant"',
        'kind = "prune"\ndensity = 0.5\nbalance = { n_pes = 4 }\nepochs = 1\noptimizer = "adam"',
        'kind = "round"\nfixed_bits = { rnn = 6, head = 10 }\nepochs = 1',
        data='loss = "user.py:loss"', output='meta = { note = "a" }'))
    model = load(folder / "net.ese")
    assert isinstance(model, CompressedModel)
    assert model.meta["note"] == "a"
    assert model["rnn.weight_ih_l0"].matrix.bits == 6
    assert model["head.weight"].matrix.bits == 10
    weight = torch.from_numpy(model["rnn.weight_hh_l0"].array())
    counts = pe_counts(weight, Balance(4, group=4))
    assert counts.max() - counts.min() <= 1
    assert result.data["balance"]["rnn.weight_hh_l0"] == load_ratio(counts)
    # One call per epoch and one before each training to learn how many batches there are.
    assert sys.modules[next(n for n in sys.modules if n.startswith("openese_user_")
                            and n.endswith("_user")
                            and sys.modules[n].__file__ == str(folder / "user.py"))
                       ].called == [0] * 6


@pytest.mark.parametrize(("prune", "kept"), [
    ('budget = 0.3\nscale = "std"\nminimum = 0.1', 0.3),
    ('density = 0.25\ngradual = true\nevery = 1\nepochs = 4', 0.25),
    ('density = { "rnn.weight_hh_l0" = 0.5, head = 0.5 }', None),
    ('quality = 1.0', None),
])
def test_every_way_to_prune(folder, prune, kept):
    result = run(folder, stages(f'kind = "prune"\n{prune}', 'kind = "train"\nepochs = 1',
                                'kind = "share"\ncode_bits = 2\ninit = "optimal"'))
    model = load(folder / "net.ese")
    matrices = [model[name].matrix for name in ("rnn.weight_ih_l0", "rnn.weight_hh_l0",
                                                "head.weight")]
    share = sum(m.nnz for m in matrices) / sum(m.rows * m.cols for m in matrices)
    if kept is not None:
        assert share == pytest.approx(kept, abs=0.01)
        assert result.data["stages"][1]["density"] == pytest.approx(share)
    elif "quality" in prune:
        assert 0.2 < share < 0.6
    else:
        assert [m.density for m in matrices] == [1, 0.5, pytest.approx(0.5, abs=0.05)]


def test_stages_without_epochs_change_nothing(folder):
    result = run(folder, stages('kind = "train"\nepochs = 0', 'kind = "share"\ncode_bits = 8'))
    start, trained, _ = result.data["stages"]
    assert trained["score"] == start["score"]
    assert "loss" not in trained


def test_masks_of_several_stages_add_up(folder):
    run(folder, stages('kind = "prune"\ndensity = { head = 0.5 }',
                       'kind = "prune"\ndensity = { rnn = 0.5 }\nepochs = 1',
                       'kind = "share"'))
    model = load(folder / "net.ese")
    assert model["head.weight"].matrix.nnz == 12
    assert model["rnn.weight_ih_l0"].matrix.density == 0.5


def test_dense_sparse_dense_first(folder):
    result = run(folder, stages(
        'kind = "dsd"\nepochs = [1, 1, 1]\nsparsity = 0.5\ncheckpoint = "state"',
        'kind = "share"\ncode_bits = 6'))
    model = load(folder / "net.ese")
    assert model["rnn.weight_ih_l0"].matrix.density > 0.95
    assert result.data["stages"][1]["loss"] > 0
    assert (folder / "state").exists()


def test_plots(folder):
    result = run(folder, RECIPE + "plots = true\npes = 4\n")
    assert [Path(path).name for path in result.data["plots"]] == [
        "net.weights.png", "net.gaps.png", "net.balance.png"]
    for path in result.data["plots"]:
        assert Path(path).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        assert Path(path).stat().st_size > 5000
    for layer in load(folder / "net.ese").layers:
        gap = entry_gaps(layer)
        assert len(gap) == layer.nnz
        assert gap.min() >= 0
        assert gap.sum() + layer.nnz <= layer.rows * layer.cols


def test_plots_of_a_model_with_a_matrix_that_is_pruned_whole(folder):
    run(folder, stages('kind = "prune"\ndensity = { head = 0.0 }', 'kind = "round"',
                       output="plots = true"))
    assert (folder / "net.gaps.png").exists()


def test_without_matplotlib_nothing_starts(folder, monkeypatch):
    find = __import__("importlib.util").util.find_spec
    monkeypatch.setattr("importlib.util.find_spec",
                        lambda name: None if name == "matplotlib" else find(name))
    with pytest.raises(RecipeError, match=r"output\.plots: plots need matplotlib: pip install "
                                          r"'openese\[plot\]'$"):
        run(folder, RECIPE + "plots = true\n")


def test_weights_of_a_file(folder):
    from safetensors.torch import save_file

    torch.manual_seed(0)
    state = torch.nn.Sequential(torch.nn.Linear(12, 16), torch.nn.ReLU(),
                                torch.nn.Linear(16, 3)).state_dict()
    save_file(state, folder / "w.safetensors")
    run(folder, '[model]\npath = "user.py:chain"\nweights = "w.safetensors"\n'
                '[[stage]]\nkind = "share"\ncode_bits = 8\n'
                '[output]\nfile = "net.ese"\nkind = "weights"\n')
    array = load(folder / "net.ese")["0.weight"].array()
    assert np.abs(array - state["0.weight"].numpy()).max() < 0.01


# -- mistakes -------------------------------------------------------------------------------------

RULES = [
    (lambda t: t + "[extra]\n", r"extra: unknown key; allowed are model, data, training, output, "
                                "stage$"),
    (lambda t: t.replace("rate =", "lrate ="),
     r"training\.lrate: unknown key; allowed are seed, threads, rate, weight_decay, momentum, "
     r"optimizer, schedule$"),
    (lambda t: t.replace("density =", "densty ="), r"stage 2 \(prune\)\.densty: unknown key; "
                                                   r"allowed are density, quality, .*epochs"),
    (lambda t: t.replace('kind = "prune"', 'kind = "snip"'),
     r"stage 2: kind must be one of 'train', 'prune', 'share', 'round', 'dsd', not 'snip'$"),
    (lambda t: t.replace('kind = "train"\n', ""), "stage 1: kind must be one of .*, not None$"),
    (lambda t: t.replace("0.4", "1.4"), r"stage 2 \(prune\)\.density: must be a number from 0 to "
                                        r"1, or a table of such by layer or pattern, not 1\.4$"),
    (lambda t: t.replace("0.4", "{ a = true }"), r"stage 2 .*density: must be a number from 0 to "
                                                     "1, not "),
    (lambda t: t.replace("0.4", "{}"), r"stage 2 .*density: must be a table that is not "
                                           r"empty, not \{\}$"),
    (lambda t: t.replace("0.01", '"fast"'), r"training\.rate: must be a number from 0 up, not "
                                            "'fast'$"),
    (lambda t: t.replace("0.01", "nan"), r"training\.rate: must be a number from 0 up, not nan$"),
    (lambda t: t.replace("seed = 3", "seed = 3.0"),
     r"training\.seed: must be a whole number from 0 up, not 3\.0$"),
    (lambda t: t.replace("code_bits = 3", "code_bits = 9"),
     r"stage 3 \(share\)\.code_bits: must be a whole number from 1 to 8, or a table"),
    (lambda t: t.replace('file = "net.ese"', "file = 3"),
     r"output\.file: must be a text in quotes, not 3$"),
    (lambda t: t.replace('file = "net.ese"\n', ""), r"output\.file: missing$"),
    (lambda t: t.replace('path = "user.py:chain"\n', ""), r"model\.path: missing$"),
    (lambda t: t.replace('"network"', '"chain"'), r"output\.kind: must be one of 'network', "
                                                  r"'weights', not 'chain'$"),
    (lambda t: t + "plots = 1\n", r"output\.plots: must be true or false, not 1$"),
    (lambda t: t + "meta = { a = [1] }\n", r"output\.meta: must be a table of texts and numbers"),
    (lambda t: t.replace('calibration = "user.py:x"\n', ""),
     r"data\.calibration: missing; a network \(output\.kind\) needs inputs"),
    (lambda t: t.replace('train = "user.py:batches"\n', ""),
     r"data\.train: missing; stage 1 \(train\) trains: an import path"),
    (lambda t: t.replace("density = 0.4\nsteps = 2\n", ""),
     r"stage 2 \(prune\): needs one of density, quality, budget, not none$"),
    (lambda t: t.replace("density = 0.4", "density = 0.4\nquality = 1"),
     r"stage 2 \(prune\): needs one of density, quality, budget, not density and quality$"),
    (lambda t: t.replace("density = 0.4", "budget = 0.4"),
     r"stage 2 \(prune\)\.steps: goes with density only$"),
    (lambda t: t.replace("steps = 2", "scale = 'std'"),
     r"stage 2 \(prune\)\.scale: goes with budget only$"),
    (lambda t: t.replace("steps = 2", "steps = 2\ngradual = true"),
     r"stage 2 \(prune\)\.gradual: needs epochs, and no steps$"),
    (lambda t: t.replace("steps = 2", "balance = { pes = 3 }"),
     r"stage 2 \(prune\)\.balance: must be a table with n_pes, and per_column and group if wanted"),
    (lambda t: t.replace('kind = "prune"\ndensity = 0.4\nsteps = 2', 'kind = "share"'),
     r"stage 3 \(share\): nothing can follow share, whose weights it would change$"),
    (lambda t: re.sub(r'\[\[stage\]\]\nkind = "share"[^\[]*', "", t),
     r"stage: the last must be of kind 'share' or 'round'$"),
    (lambda t: t.replace('kind = "share"\ncode_bits = 3', 'kind = "round"'),
     r"output\.kind: must be 'weights' after stage round, not 'network'$"),
    (lambda t: t.replace('kind = "share"', 'kind = "dsd"\n').replace(
        "code_bits = 3\nbias_bits = 2\nepochs = 2", "epochs = [1, 1]"),
     r"stage 3 \(dsd\)\.epochs: must be three whole numbers: dense, sparse and last dense epochs"),
    (lambda t: t.replace('kind = "share"', 'kind = "dsd"\n').replace(
        "code_bits = 3\nbias_bits = 2\nepochs = 2", "epochs = [1, 1, 1]"),
     r"stage 3 \(dsd\): restores what was pruned before it; put it first$"),
    (lambda t: t.replace("[[stage]]", "[stage]", 1).split("[[stage]]")[0],
     r"stage: must be a list of tables, each under \[\[stage\]\]$"),
    (lambda t: "model = 3\n", r"model: must be a table, not 3$"),
    (lambda t: t + "=", r"is not TOML \(.*\)$"),
]


@pytest.mark.parametrize(("alter", "text"), RULES, ids=range(len(RULES)))
def test_mistakes_are_named_before_anything_runs(folder, alter, text):
    with pytest.raises(RecipeError, match=rf"^[^\n]*r\.toml: {text}") as caught:
        read(folder, alter(RECIPE))
    assert "\n" not in str(caught.value)
    assert not (folder / "net.ese").exists()


def test_a_recipe_that_is_not_there(tmp_path):
    with pytest.raises(RecipeError, match=r"none\.toml: cannot be read \(.*\); check the path$"):
        read_recipe(tmp_path / "none.toml")


@pytest.mark.parametrize(("old", "new", "text"), [
    ("user.py:chain", "user.py:nothing", r"model\.path: user\.py has no 'nothing'$"),
    ("user.py:chain", "user.py", r"model\.path: user\.py: name it as module:name or file\.py:name"),
    ("user.py:chain", "none.py:chain", r"model\.path: none\.py: no such file$"),
    ("user.py:chain", "none_such:chain", r"model\.path: none_such: cannot be imported \("),
    ("user.py:chain", "user.py:number", r"model\.path: .* must be a torch\.nn\.Module or return"),
    ('"user.py:chain"', '"user.py:chain"\nweights = "w.npz"',
     r"model\.weights: .*w\.npz: no such file$"),
    ('"user.py:chain"', '"user.py:chain"\nweights = "w.pt"',
     r"model\.weights: .*w\.pt: weights must be \.safetensors or \.npz: pickled files"),
    ("user.py:batches", "user.py:number",
     r"data\.train: must be batches or a function of the epoch's number that returns them, "
     r"not int$"),
    ("user.py:batches", "user.py:empty", r"data\.train: has no batches$"),
    ("user.py:batches", "user.py:once",
     r"data\.train: has no batches in epoch 1; what can be gone through only once must come"),
    ("user.py:batches", "user.py:triples", r"data\.train: batches must be pairs of inputs and"),
    ("user.py:named", "user.py:number", r"data\.evaluate: must be a function, not int$"),
    ("user.py:named", "user.py:words", r"data\.evaluate: must return a number or a dict of "
                                       r"numbers, not str$"),
    ("[data]", '[data]\nloss = "user.py:explode"',
     r"training\.rate: the loss is not finite; lower the rate$"),
    ("density = 0.4", "density = { nothing = 0.4 }",
     r"stage 2 \(prune\): the model has no weight 'nothing'; its matrices: "),
    ("density = 0.4", "density = 0.0", r"stage 2 \(prune\): density must be above 0"),
])
def test_mistakes_that_show_only_in_the_run(folder, old, new, text):
    with pytest.raises(RecipeError, match=rf"^[^\n]*r\.toml: {text}"):
        run(folder, RECIPE.replace(old, new))
    assert not (folder / "net.ese").exists()


def test_an_output_folder_that_is_not_there(folder):
    with pytest.raises(RecipeError, match=r"folder .*none does not exist; create it first$"):
        run(folder, RECIPE.replace("net.ese", "none/net.ese"))


def test_progress_goes_to_standard_error(folder, capsys):
    run(folder, RECIPE, progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "1 train" in captured.err
    assert "2 prune 2/2" in captured.err
    run(folder, RECIPE, progress=False)
    assert capsys.readouterr().err == ""
