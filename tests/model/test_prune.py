"""Pruning is exact in count, and masks hold under every optimizer while everything else trains."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

from openese.model.prune import (
    Masks,
    density_mask,
    layer_weights,
    quality_mask,
    resolve_weight,
    resolve_weights,
)

# On a busy machine threads that wait for each other cost far more than these sizes gain.
torch.set_num_threads(1)


def make_model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 4))


def step(model, optimizer, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(16, 12, generator=generator)
    y = torch.randint(0, 4, (16,), generator=generator)
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()


@pytest.mark.parametrize("density", [0, 0.001, 0.08, 1 / 3, 0.5, 0.999, 1])
def test_density_is_an_exact_count(density):
    weight = torch.randn(37, 53, generator=torch.Generator().manual_seed(1))
    mask = density_mask(weight, density)
    assert mask.dtype == torch.bool
    assert mask.shape == weight.shape
    assert int(mask.sum()) == round(density * weight.numel())
    if 0 < density < 1 and mask.any():
        assert weight[mask].abs().min() >= weight[~mask].abs().max()


def test_density_breaks_ties_by_position():
    weight = torch.tensor([[1.0, -1.0, 1.0], [-1.0, 2.0, 1.0]])
    assert density_mask(weight, 0.5).tolist() == [[True, True, False], [False, True, False]]


def test_density_never_keeps_a_weight_that_is_zero():
    weight = torch.tensor([[0.0, 3.0, 0.0, -1.0]])
    assert density_mask(weight, 0.75).tolist() == [[False, True, False, True]]
    assert not density_mask(torch.zeros(3, 4), 1.0).any()


def test_quality_is_a_threshold_in_standard_deviations():
    weight = torch.tensor([[3.0, -3.0, 1.0, -1.0]])
    deviation = 5**0.5
    kept = quality_mask(weight, 1.0)
    assert kept.tolist() == [[True, True, False, False]]
    assert quality_mask(weight, 3.01 / deviation).sum() == 0
    assert quality_mask(weight, 0).all()
    # Weights pruned before do not count: the deviation is that of what is left.
    padded = torch.cat((weight, torch.zeros(1, 4)))
    assert quality_mask(padded, 1.0).tolist() == [[True, True, False, False], [False] * 4]
    assert not quality_mask(torch.zeros(2, 2), 0).any()


@pytest.mark.parametrize(("call", "text"), [
    (lambda m: Masks.by_density(m, 1.5), "'0.weight': density must be 0 to 1, not 1.5"),
    (lambda m: Masks.by_density(m, {"2": -1}), "'2.weight': density must be 0 to 1, not -1"),
    (lambda m: Masks.by_quality(m, -0.5), "'0.weight': quality must be 0 or more, not -0.5"),
    (lambda m: Masks.by_density(m, {"fc": 0.5}),
     "no weight 'fc'; its matrices: '0.weight', '2.weight'"),
    (lambda m: Masks.by_density(m, {"0.bias": 0.5}), r"'0.bias' is no matrix: shape \(10,\)"),
    (lambda m: Masks.by_density(nn.ReLU(), 0.5), "no Linear, Conv2d or recurrent layer to prune"),
    (lambda m: Masks(m, {"0": torch.ones(10, 12)}), r"'0.weight' must be bool \(10, 12\)"),
    (lambda m: Masks(m, {"0": torch.ones(2, 2, dtype=torch.bool)}), r"not torch.bool \(2, 2\)"),
])
def test_wrong_arguments_are_named(call, text):
    with pytest.raises(ValueError, match=text):
        call(make_model())


def test_layers_by_path_leave_the_others_alone():
    model = make_model()
    masks = Masks.by_density(model, {"2": 0.25})
    masks.apply()
    assert masks.names == ["2.weight"]
    assert int((model[2].weight != 0).sum()) == 10
    assert (model[0].weight != 0).all()


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "momentum+decay": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.05),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adam+decay": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.05),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("held", [False, True])
def test_masks_hold_across_steps_and_kept_weights_train(name, held):
    model = make_model()
    optimizer = OPTIMIZERS[name](model.parameters())
    # Steps before pruning fill momentum and Adam's moments: those revive pruned weights.
    for seed in range(5):
        step(model, optimizer, seed)
    masks = Masks.by_density(model, 0.3)
    masks.apply()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    if held:
        masks.hold(optimizer)
    for seed in range(30):
        step(model, optimizer, seed)
        if not held:
            masks.apply()
        for path, weight in layer_weights(model).items():
            assert torch.equal(weight != 0, masks[path]), f"step {seed}"
            assert not torch.signbit(weight[~masks[path]]).any()
            assert (weight.grad[~masks[path]] == 0).all()
    for path, parameter in model.named_parameters():
        changed = parameter != before[path]
        assert changed[masks[path] if path in masks.names else ...].any()


def test_without_masks_momentum_revives_pruned_weights():
    """The failure that the test above guards against is real in this very setting."""
    model = make_model()
    optimizer = OPTIMIZERS["momentum"](model.parameters())
    step(model, optimizer, 0)
    masks = Masks.by_density(model, 0.3)
    masks.apply()
    step(model, optimizer, 1)
    assert (model[0].weight[~masks["0.weight"]] != 0).any()


def test_hold_can_be_removed():
    model = make_model()
    optimizer = OPTIMIZERS["adam"](model.parameters())
    handle = Masks.by_density(model, 0.1).hold(optimizer)
    assert int((model[0].weight != 0).sum()) == 12
    handle.remove()
    step(model, optimizer, 0)
    assert int((model[0].weight != 0).sum()) > 12


def test_a_bias_of_zero_trains():
    model = make_model()
    with torch.no_grad():
        model[0].bias.zero_()
    optimizer = OPTIMIZERS["momentum"](model.parameters())
    Masks.by_density(model, 0.3).hold(optimizer)
    step(model, optimizer, 0)
    assert (model[0].bias != 0).any()


def test_all_pruned_and_nothing_pruned():
    model = make_model()
    masks = Masks.by_density(model, {"0": 0.0, "2": 1.0})
    masks.apply()
    assert (model[0].weight == 0).all()
    assert (model[2].weight != 0).all()
    rows = masks.table()
    assert (rows[0].nonzeros, rows[0].threshold, rows[0].rate) == (0, 0.0, float("inf"))
    assert (rows[1].nonzeros, rows[1].density, rows[1].rate) == (40, 1.0, 1.0)


def test_table_counts_and_threshold():
    model = make_model()
    masks = Masks.by_density(model, 0.25)
    masks.apply()
    row = masks.table()[0]
    weight = model[0].weight.detach()
    alive = weight[weight != 0].abs()
    assert (row.name, row.weights, row.nonzeros) == ("0.weight", 120, 30)
    assert row.threshold == float(alive.min())
    assert row.rate == 4


def test_pruning_further_keeps_a_subset():
    model = make_model()
    first = Masks.by_density(model, 0.5)
    first.apply()
    second = Masks.by_density(model, 0.2)
    assert (first["0.weight"] | ~second["0.weight"]).all()
    assert torch.equal(Masks.from_zeros(model)["0.weight"], first["0.weight"])


def test_resumed_training_is_the_same_training(tmp_path):
    def run(model, optimizer, masks, seeds):
        handle = masks.hold(optimizer)
        for seed in seeds:
            step(model, optimizer, seed)
        handle.remove()

    model = make_model()
    optimizer = OPTIMIZERS["momentum+decay"](model.parameters())
    masks = Masks.by_density(model, 0.3)
    run(model, optimizer, masks, range(4))
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(),
                "masks": masks.state_dict()}, tmp_path / "state.pt")
    run(model, optimizer, masks, range(4, 8))

    resumed = make_model(seed=9)
    again = OPTIMIZERS["momentum+decay"](resumed.parameters())
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed.load_state_dict(state["model"])
    again.load_state_dict(state["optimizer"])
    masks = Masks.by_density(resumed, 1.0)
    masks.load_state_dict(state["masks"])
    run(resumed, again, masks, range(4, 8))
    for ours, theirs in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_loading_masks_of_another_model_changes_nothing():
    masks = Masks.by_density(make_model(), 0.5)
    before = masks.state_dict()
    other = Masks.by_density(nn.Sequential(nn.Linear(3, 3)), 0.5).state_dict()
    with pytest.raises(ValueError, match=r"mask of '0.weight' must be bool"):
        masks.load_state_dict(other)
    assert torch.equal(masks["0.weight"], before["0.weight"])


def test_matrices_of_a_recurrent_layer_by_path():
    """A masked LSTM goes on training, and its pruned weights stay 0."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"rnn": nn.LSTM(6, 5), "out": nn.Linear(5, 2)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    masks = Masks.by_density(model, {"rnn.weight_ih_l0": 0.2, "rnn.weight_hh_l0": 0.3, "out": 1})
    masks.hold(optimizer)
    before = model["rnn"].weight_hh_l0.detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        hidden, _ = model["rnn"](torch.randn(7, 4, 6))
        model["out"](hidden).square().mean().backward()
        optimizer.step()
    weight = model["rnn"].weight_hh_l0
    assert int((weight != 0).sum()) == round(0.3 * weight.numel())
    assert (weight != before)[masks["rnn.weight_hh_l0"]].any()


def test_resolve_weight_of_a_lone_linear():
    assert resolve_weight(nn.Linear(2, 3), "") == "weight"
    assert list(layer_weights(nn.Linear(2, 3))) == ["weight"]


class Cell(nn.Module):
    """A user's own module, known to nobody."""

    def __init__(self):
        super().__init__()
        self.mixing = nn.Parameter(torch.randn(6, 6))
        self.scale = nn.Parameter(torch.ones(6))

    def forward(self, x):
        return torch.tanh(x @ self.mixing.T) * self.scale


class Recurrent(nn.Module):
    """A recurrent layer behind which everything is reached by name."""

    def __init__(self, layer):
        super().__init__()
        self.rnn = layer

    def forward(self, x):
        return self.rnn(x.unflatten(1, (-1, 6)))[0]


LAYERS = {
    "linear": (lambda: nn.Linear(12, 10), 1),
    "conv": (lambda: nn.Sequential(nn.Unflatten(1, (3, 2, 2)), nn.Conv2d(3, 6, 2)), 1),
    "rnn": (lambda: Recurrent(nn.RNN(6, 5, batch_first=True)), 2),
    "gru": (lambda: Recurrent(nn.GRU(6, 5, num_layers=2, batch_first=True)), 4),
    "lstm": (lambda: Recurrent(nn.LSTM(6, 5, batch_first=True)), 2),
    "deep bidirectional lstm with projection": (
        lambda: Recurrent(nn.LSTM(6, 5, num_layers=2, bidirectional=True, proj_size=3,
                                  batch_first=True)), 12),
    "without biases": (lambda: Recurrent(nn.LSTM(6, 5, bias=False, batch_first=True)), 2),
    "own module": (lambda: nn.Sequential(nn.Unflatten(1, (-1, 6)), Cell()), 0),
}
MORE_OPTIMIZERS = {
    **OPTIMIZERS,
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.005, momentum=0.9, weight_decay=0.05),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.5, max_iter=4),
    "lbfgs+wolfe": lambda p: torch.optim.LBFGS(p, max_iter=4, line_search_fn="strong_wolfe"),
    "sgd with closure": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.05),
}


def closure_step(model, optimizer, seed, watch=None):
    """A step in the form that works with every optimizer of PyTorch."""
    x = torch.randn(16, 12, generator=torch.Generator().manual_seed(seed))

    def closure():
        if watch is not None:
            watch()
        optimizer.zero_grad()
        loss = (model(x) - 0.25).square().mean()
        loss.backward()
        return loss

    return float(optimizer.step(closure).detach())


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("optimizer", MORE_OPTIMIZERS)
@pytest.mark.parametrize("layer", LAYERS)
def test_masks_hold_for_every_layer_under_every_optimizer(layer, optimizer):
    make, n_weights = LAYERS[layer]
    torch.manual_seed(0)
    model = make()
    assert len(layer_weights(model)) == n_weights
    optimizer = MORE_OPTIMIZERS[optimizer](model.parameters())
    closure_step(model, optimizer, 0)
    masks = Masks.by_density(model, {"*mixing": 0.3} if layer == "own module" else 0.3)
    # Sparsity after the call, not a promise of it.
    masks.apply()
    for name in masks.names:
        weight = model.get_parameter(name)
        assert int((weight != 0).sum()) == round(0.3 * weight.numel())

    def zeros():
        """Within a step, too: an optimizer must not judge a network that will not be kept."""
        for name in masks.names:
            assert not model.get_parameter(name)[~masks[name]].any()

    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    handle = masks.hold(optimizer)
    first = closure_step(model, optimizer, 1, watch=zeros)
    for _ in range(5):
        last = closure_step(model, optimizer, 1, watch=zeros)
        zeros()
    assert last < first
    for name in masks.names:
        weight = model.get_parameter(name)
        assert (weight != before[name])[masks[name]].any()
        assert (weight != 0)[masks[name]].any()
    handle.remove()
    handle.remove()


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("layer", ["rnn", "gru", "lstm",
                                   "deep bidirectional lstm with projection"])
def test_what_a_recurrent_layer_computes_with_is_what_is_masked(layer):
    """`_flat_weights` are the parameters themselves, and a copy of the model agrees."""
    torch.manual_seed(0)
    model = LAYERS[layer][0]()
    Masks.by_density(model, 0.2).apply()
    for flat, (name, parameter) in zip(model.rnn._flat_weights, model.rnn.named_parameters(),
                                       strict=True):
        assert flat is parameter, name
    other = LAYERS[layer][0]()
    other.load_state_dict(model.state_dict())
    x = torch.randn(3, 12)
    assert torch.equal(model(x), other(x))
    assert not torch.equal(model(x), LAYERS[layer][0]()(x))


def test_masks_hold_in_mixed_precision():
    model = make_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    masks = Masks.by_density(model, 0.3)
    masks.hold(optimizer)
    scaler = torch.amp.GradScaler("cpu")
    x, y = torch.randn(16, 12), torch.randint(0, 4, (16,))
    before = model[0].weight.detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = nn.functional.cross_entropy(model(x), y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    assert torch.equal(model[0].weight != 0, masks["0.weight"])
    assert not torch.equal(model[0].weight, before)


class Net(nn.Module):
    """Names that are awkward, and every way to address them."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.ModuleDict({"rnn": nn.LSTM(6, 5, num_layers=2),
                                      "odd [name]": nn.Linear(5, 4)})
        self.norm = nn.LayerNorm(4)
        self.cell = Cell()
        self.out = nn.Linear(4, 3)


@pytest.mark.parametrize(("path", "names"), [
    ("out", ["out.weight"]),
    ("out.weight", ["out.weight"]),
    ("encoder.odd [name]", ["encoder.odd [name].weight"]),
    ("encoder.rnn", ["encoder.rnn.weight_ih_l0", "encoder.rnn.weight_hh_l0",
                     "encoder.rnn.weight_ih_l1", "encoder.rnn.weight_hh_l1"]),
    ("*.weight_hh_l?", ["encoder.rnn.weight_hh_l0", "encoder.rnn.weight_hh_l1"]),
    ("cell.*", ["cell.mixing"]),
    ("*l[1-9]", ["encoder.rnn.weight_ih_l1", "encoder.rnn.weight_hh_l1"]),
])
def test_paths_and_patterns(path, names):
    assert resolve_weights(Net(), path) == names


def test_a_container_means_all_layers_in_it():
    assert resolve_weights(Net(), "encoder") == [n for n in layer_weights(Net()) if "enc" in n]
    assert resolve_weights(nn.LSTM(2, 3), "") == ["weight_ih_l0", "weight_hh_l0"]


@pytest.mark.parametrize(("path", "text"), [
    ("norm", r"'norm.weight' is no matrix: shape \(4,\)"),
    ("cell", "no weight 'cell'"),
    ("*.bias", "no weight '\\*.bias'; its matrices: 'encoder.rnn.weight_ih_l0'"),
])
def test_what_means_nothing(path, text):
    with pytest.raises(ValueError, match=text):
        resolve_weights(Net(), path)


def test_one_weight_where_several_are_meant():
    with pytest.raises(ValueError, match=r"'encoder.rnn' means several weights: 'encoder.rnn.we"):
        Masks(Net(), {"encoder.rnn": torch.ones(1, 1, dtype=torch.bool)})


def test_the_later_of_two_keys_counts():
    masks = Masks.by_density(Net(), {"*weight_*": 0.5, "encoder.rnn.weight_ih_l0": 0.25})
    assert int(masks["encoder.rnn.weight_ih_l0"].sum()) == 30
    assert int(masks["encoder.rnn.weight_hh_l0"].sum()) == 50


def test_tied_weights_are_pruned_once():
    model = make_model()
    model.append(nn.Linear(10, 4))
    model[3].weight = model[2].weight
    assert list(layer_weights(model)) == ["0.weight", "2.weight"]
    assert Masks.by_density(model, {"*weight": 0.5}).names == ["0.weight", "2.weight"]
    with pytest.raises(ValueError, match=r"'3.weight' and '2.weight' are one and the same tensor"):
        Masks.by_density(model, {"2": 0.5, "3": 0.25})


@pytest.mark.parametrize("make", [
    lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)),
    lambda: torch_prune.l1_unstructured(nn.Linear(3, 2), "weight", 0.5),
])
def test_a_weight_that_is_computed_is_refused(make):
    with pytest.raises(ValueError, match=r"'0' \(\w*Linear\) has no 'weight' of its own"):
        Masks.by_density(nn.Sequential(make()), 0.5)


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_a_lazy_layer_is_refused():
    with pytest.raises(ValueError, match="run a lazy layer once"):
        layer_weights(nn.Sequential(nn.LazyLinear(3)))


def test_weights_that_are_no_numbers_are_refused():
    model = make_model()
    with torch.no_grad():
        model[2].weight[1, 1] = torch.nan
    for make in (Masks.by_density, Masks.by_quality, Masks.by_budget):
        with pytest.raises(ValueError, match=r"'2.weight': its weights are not all finite"):
            make(model, 0.5)


def all_weights(model):
    return torch.cat([p.detach().flatten() for p in layer_weights(model).values()])


@pytest.mark.parametrize("density", [0, 0.01, 0.3, 1])
def test_a_budget_is_one_threshold_and_an_exact_count(density):
    model = make_model()
    masks = Masks.by_budget(model, density)
    kept = torch.cat([masks[name].flatten() for name in masks.names])
    assert int(kept.sum()) == round(density * 160)
    assert torch.equal(kept, density_mask(all_weights(model), density))


def test_a_budget_compares_what_it_is_told_to():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[8.0, -6.0], [2.0, 1.0]]))
        model[1].weight.copy_(torch.tensor([[0.8, -0.7], [0.1, 0.1]]))
    assert Masks.by_budget(model, 0.5)["1.weight"].sum() == 0
    # In units of their deviation (5.17 and 0.53) or norm (10.2 and 1.07) the layers are alike.
    for scale in ("std", "norm"):
        masks = Masks.by_budget(model, 0.5, scale=scale)
        assert masks["0.weight"].tolist() == [[True, True], [False, False]]
        assert masks["1.weight"].tolist() == [[True, True], [False, False]]
    assert Masks.by_budget(model, 0.5, minimum=0.25)["1.weight"].sum() == 1
    only = Masks.by_budget(model, 0.5, weights=["1"])
    assert only.names == ["1.weight"]
    assert only["1.weight"].sum() == 2


def test_a_budget_never_revives():
    model = make_model()
    Masks.by_density(model, {"0": 0.1}).apply()
    masks = Masks.by_budget(model, 1.0, scale="std")
    assert torch.equal(masks["0.weight"], model[0].weight != 0)
    with torch.no_grad():
        model[0].weight.zero_()
    for scale in (None, "std", "norm"):
        assert not Masks.by_budget(model, 1.0, scale=scale)["0.weight"].any()


@pytest.mark.parametrize(("options", "text"), [
    ({"density": 2}, "density must be 0 to 1, not 2"),
    ({"density": 0.1, "scale": "var"}, "scale must be one of None, 'std', 'norm', not 'var'"),
    ({"density": 0.1, "minimum": 0.2}, "minimum must be 0 to the density 0.1, not 0.2"),
    ({"density": 0.1, "weights": ["fc"]}, "no weight 'fc'"),
    ({"density": 0.1, "weights": []}, "no Linear, Conv2d or recurrent layer to prune"),
])
def test_wrong_budgets_are_named(options, text):
    with pytest.raises(ValueError, match=text):
        Masks.by_budget(make_model(), **options)
