"""k-means in one dimension is right and fast; zeros stay zeros; centroid gradients are exact."""

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn

from openese.model.prune import Masks
from openese.model.share import SharedWeights, kmeans, share_weights

# On a busy machine threads that wait for each other cost far more than these sizes gain.
torch.set_num_threads(1)

INITS = ["linear", "density", "random", "optimal"]


def make_model(seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 4)).to(dtype)
    Masks.by_density(model, 0.4).apply()
    return model


def loss_of(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    dtype = model[0].weight.dtype
    x = torch.randn(32, 12, generator=generator, dtype=dtype)
    y = torch.randint(0, 4, (32,), generator=generator)
    return nn.functional.cross_entropy(model(x), y)


def cost(values, centroids):
    return float(np.square(values[:, None] - centroids).min(axis=1).sum())


@pytest.mark.parametrize("init", INITS)
def test_kmeans_is_a_fixed_point_of_the_textbook_iteration(init):
    values = np.random.default_rng(3).normal(size=2000)
    centroids = kmeans(values, 15, init=init, seed=4)
    assert len(centroids) == 15
    assert (np.diff(centroids) > 0).all()
    nearest = np.abs(values[:, None] - centroids).argmin(axis=1)
    means = [values[nearest == c].mean() for c in range(15)]
    np.testing.assert_allclose(centroids, means, atol=1e-12)


def test_kmeans_finds_separated_clusters():
    rng = np.random.default_rng(0)
    centres = np.array([-3.0, -1.0, 0.5, 2.0])
    values = (centres[:, None] + rng.normal(scale=0.01, size=(4, 50))).ravel()
    np.testing.assert_allclose(kmeans(values, 4), centres, atol=0.01)
    np.testing.assert_allclose(kmeans(values, 4, init="density"), centres, atol=0.01)


def test_linear_initialisation_starts_at_the_ends():
    values = np.linspace(-1, 2, 1000)
    assert np.array_equal(kmeans(values, 7, max_iterations=0), np.linspace(-1, 2, 7))


def test_density_initialisation_starts_at_the_quantiles():
    values = np.arange(100.0)
    start = kmeans(values, 4, init="density", max_iterations=0)
    assert np.array_equal(start, [12, 37, 62, 87])


def test_random_initialisation_is_seeded():
    values = np.random.default_rng(0).normal(size=500)
    first, again, other = (kmeans(values, 7, init="random", seed=s, max_iterations=0)
                           for s in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert np.isin(first, values).all()


def test_no_centroid_is_wasted_on_a_gap():
    """Linear initialisation puts most centroids where pruning left nothing."""
    values = np.concatenate((np.linspace(-1, -0.9, 40), np.linspace(0.9, 1, 40)))
    centroids = kmeans(values, 8)
    assert len(centroids) == 8
    assert (np.abs(centroids) >= 0.9).all()


def least_cost(values, k):
    """Squared error of the best clusters: the textbook recursion over where the last one begins."""
    values = np.sort(values)
    sums, squares = (np.concatenate(([0.0], np.cumsum(v))) for v in (values, values**2))
    best = np.concatenate(([0.0], np.full(len(values), np.inf)))
    for _ in range(k):
        longer = best.copy()
        for end in range(1, len(values) + 1):
            first = np.arange(end)
            inside = squares[end] - squares[:end] - (sums[end] - sums[:end])**2 / (end - first)
            longer[end] = min(best[end], (best[:end] + inside).min())
        best = longer
    return best[-1]


@settings(deadline=None, max_examples=60)
@given(values=hnp.arrays(np.float64, st.integers(1, 30), elements=st.integers(-50, 50)),
       k=st.integers(1, 8))
def test_optimal_clusters_are_optimal(values, k):
    assert cost(values, kmeans(values, k, init="optimal")) == pytest.approx(
        least_cost(values, k), abs=1e-6)


@pytest.mark.parametrize("bits", [2, 4, 6])
def test_optimal_is_never_worse_than_the_iterations(bits):
    """Pruned weights are two tails; squared error within the clusters, in the order of INITS."""
    values = np.random.default_rng(5).normal(size=20_000)
    values = values[np.abs(values) > 1.6]
    *lloyd, optimal = (cost(values, kmeans(values, (1 << bits) - 1, init=init))
                       for init in INITS)
    assert optimal <= min(lloyd) * (1 + 1e-9)
    assert optimal < max(lloyd) * 0.99


def test_optimal_clusters_of_too_many_values_start_from_a_sample(monkeypatch):
    values = np.random.default_rng(6).normal(size=5000)
    exact = cost(values, kmeans(values, 15, init="optimal"))
    monkeypatch.setattr("openese.model.share.EXACT", 15 * 500)
    centroids = kmeans(values, 15, init="optimal")
    assert len(centroids) == 15
    assert exact < cost(values, centroids) < exact * 1.01


@settings(deadline=None, max_examples=60)
@given(values=hnp.arrays(np.float32, st.integers(1, 60),
                         elements=st.floats(-8, 8, width=32)),
       k=st.integers(1, 20), init=st.sampled_from(INITS))
def test_kmeans_never_does_worse_than_where_it_starts(values, k, init):
    values = values.astype(np.float64)
    distinct = np.unique(values)
    end = kmeans(values, k, init=init)
    assert 1 <= len(end) <= k
    assert (np.diff(end) > 0).all()
    assert end[0] >= values.min() - 1e-9
    assert end[-1] <= values.max() + 1e-9
    if len(distinct) <= k:
        assert np.array_equal(end, distinct)
    else:
        start = kmeans(values, k, init=init, max_iterations=0)
        assert cost(values, end) <= cost(values, start) + 1e-6


@settings(deadline=None, max_examples=60)
@given(weight=hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12),
                         elements=st.floats(-2, 2, width=32)),
       bits=st.integers(1, 8), init=st.sampled_from(INITS))
def test_the_pattern_of_zeros_survives_sharing(weight, bits, init):
    codes, codebook = share_weights(weight, bits, init=init)
    assert codes.dtype == np.uint8
    assert codebook.dtype == np.float32
    assert codebook.shape == (1 << bits,)
    assert codebook[0] == 0
    assert np.array_equal(codes == 0, weight == 0)
    assert np.array_equal(codebook[codes] == 0, weight == 0)
    if len(np.unique(weight[weight != 0])) < 1 << bits:
        assert np.array_equal(codebook[codes], weight)


@pytest.mark.parametrize(("weight", "used"), [
    ([[0.0, 0.0]], []),
    ([[0.5, 0.5]], [0.5]),
    ([[-0.5, 0.0]], [-0.5]),
    ([[3.0, -1.0], [0.0, 2.0]], [-1.0, 2.0, 3.0]),
])
def test_fewer_values_than_centroids_are_kept_as_they_are(weight, used):
    weight = np.array(weight, dtype=np.float32)
    codes, codebook = share_weights(weight, 4)
    assert np.array_equal(codebook[codes], weight)
    assert codebook[1:len(used) + 1].tolist() == used
    assert not codebook[len(used) + 1:].any()


def test_a_centroid_never_becomes_zero():
    """The mean of this one cluster is exactly 0, which would prune all its weights."""
    weight = np.array([[-1.0, 1.0, -0.5, 0.5, 0.0]], dtype=np.float32)
    codes, codebook = share_weights(weight, 1)
    assert codes.tolist() == [[1, 1, 1, 1, 0]]
    assert codebook[1] != 0


def test_centroids_near_zero_keep_a_distance():
    weight = np.random.default_rng(0).normal(size=(50, 50)).astype(np.float32)
    _, codebook = share_weights(weight, 4)
    assert np.abs(codebook[1:]).min() >= np.abs(codebook).max() / 256


@pytest.mark.parametrize(("call", "text"), [
    (lambda: kmeans([], 3), "at least one value"),
    (lambda: kmeans([1.0, np.nan], 3), "finite"),
    (lambda: kmeans([1.0], 0), "k must be 1 or more, not 0"),
    (lambda: kmeans([1.0], 1, init="best"), "init must be one of linear, density, random, optimal"),
    (lambda: share_weights(np.ones((2, 2)), 9), "code_bits must be 1 to 8, not 9"),
    (lambda: share_weights(np.full((1, 2), np.inf), 4), "finite"),
    (lambda: SharedWeights(make_model(), {"0": 0}), "'0.weight': code_bits must be 1 to 8"),
    (lambda: SharedWeights(make_model(), {"fc": 4}), "no weight 'fc'"),
    (lambda: SharedWeights(nn.ReLU()), "no Linear, Conv2d or recurrent layer to share"),
])
def test_wrong_arguments_are_named(call, text):
    with pytest.raises(ValueError, match=text):
        call()


def test_three_million_weights_take_seconds():
    values = np.random.default_rng(0).normal(size=(3_250_000, 1)).astype(np.float32)
    start = time.perf_counter()
    share_weights(values, 4)
    # Half a second on one idle core; the bound only catches an algorithm of another order.
    assert time.perf_counter() - start < 10


def test_sharing_replaces_the_weights_of_the_model():
    model = make_model()
    pattern = model[0].weight.detach() != 0
    shared = SharedWeights(model, {"0": 3, "2": 5})
    assert shared.names == ["0.weight", "2.weight"]
    weight = model[0].weight.detach()
    assert torch.equal(weight != 0, pattern)
    assert len(torch.unique(weight)) == 8
    assert shared.codebook("0.weight").shape == (8,)
    assert shared.codebook("2.weight").shape == (32,)
    expected = shared.codebook("0.weight")[shared.codes("0.weight")]
    assert np.array_equal(weight.numpy().view(np.uint32), expected.view(np.uint32))


def test_gradient_of_a_centroid_is_the_sum_over_its_cluster():
    model = make_model()
    shared = SharedWeights(model, 3)
    loss_of(model).backward()
    gradient = model[0].weight.grad.numpy().copy()
    codes = shared.codes("0.weight")
    shared.gather()
    expected = [gradient[codes == c].sum() for c in range(1, 8)]
    np.testing.assert_allclose(shared.centroids("0.weight").grad.numpy(), expected, rtol=1e-5,
                               atol=1e-7)
    assert model[0].weight.grad is None


def test_gradient_of_a_centroid_equals_finite_differences():
    model = make_model(dtype=torch.float64)
    shared = SharedWeights(model, 3)
    loss_of(model).backward()
    shared.gather()
    step = 1e-6
    for name in shared.names:
        centroids = shared.centroids(name)
        for code in range(len(centroids)):
            losses = []
            for sign in (1, -1):
                with torch.no_grad():
                    centroids[code] += sign * step
                shared.apply()
                losses.append(loss_of(model).item())
                with torch.no_grad():
                    centroids[code] -= sign * step
            slope = (losses[0] - losses[1]) / (2 * step)
            assert slope == pytest.approx(float(centroids.grad[code]), rel=1e-5, abs=1e-8)


OPTIMIZERS = {
    "momentum+decay": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_fine_tuning_keeps_codes_pattern_and_zero(name):
    model = make_model()
    shared = SharedWeights(model, 3)
    optimizer = OPTIMIZERS[name](shared.parameters())
    shared.hold(optimizer)
    codes = {n: shared.codes(n) for n in shared.names}
    before = {n: shared.codebook(n) for n in shared.names}
    bias = model[0].bias.detach().clone()
    first = loss_of(model).item()
    for _ in range(50):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()
        for path in shared.names:
            weight = model.get_parameter(path).detach().numpy()
            assert np.array_equal(shared.codes(path), codes[path])
            assert np.array_equal(weight == 0, codes[path] == 0)
            assert np.array_equal(weight, shared.codebook(path)[codes[path]])
            assert shared.codebook(path)[0] == 0
    assert loss_of(model).item() < first
    assert all((shared.codebook(n) != before[n]).any() for n in shared.names)
    assert not torch.equal(model[0].bias, bias)


def test_gradients_of_several_batches_add_up():
    model = make_model()
    shared = SharedWeights(model, 3)
    optimizer = torch.optim.SGD(shared.parameters(), lr=1.0)
    shared.hold(optimizer)
    start = shared.centroids("0.weight").detach().clone()
    for seed in (1, 2):
        loss_of(model, seed).backward()
    optimizer.step()
    moved = shared.centroids("0.weight").detach() - start

    single = torch.zeros_like(moved)
    for seed in (1, 2):
        other = make_model()
        reference = SharedWeights(other, 3)
        loss_of(other, seed).backward()
        reference.gather()
        single -= reference.centroids("0.weight").grad
    torch.testing.assert_close(moved, single)


def test_a_centroid_trained_to_zero_keeps_its_last_value():
    model = make_model()
    shared = SharedWeights(model, 3)
    pattern = model[0].weight.detach() != 0
    before = shared.codebook("0.weight")
    with torch.no_grad():
        shared.centroids("0.weight")[2] = 0.0
    shared.apply()
    assert torch.equal(model[0].weight != 0, pattern)
    assert shared.codebook("0.weight")[3] == before[3]


def test_a_layer_without_gradient_does_not_move():
    model = make_model()
    shared = SharedWeights(model, 3)
    optimizer = torch.optim.Adam(shared.parameters(), lr=0.1)
    shared.hold(optimizer)
    before = shared.codebook("2.weight")
    optimizer.step()
    assert np.array_equal(shared.codebook("2.weight"), before)


def test_all_zero_and_all_equal_layers_train():
    model = make_model()
    with torch.no_grad():
        model[0].weight.zero_()
        model[2].weight.fill_(0.25)
    shared = SharedWeights(model, 4)
    optimizer = torch.optim.SGD(shared.parameters(), lr=0.1)
    shared.hold(optimizer)
    loss_of(model).backward()
    optimizer.step()
    assert not shared.codes("0.weight").any()
    assert (model[0].weight == 0).all()
    assert len(torch.unique(model[2].weight)) == 1


def test_matrices_of_a_recurrent_layer_by_path():
    torch.manual_seed(0)
    rnn = nn.LSTM(6, 5)
    shared = SharedWeights(rnn, {"weight_hh_l0": 2})
    optimizer = torch.optim.SGD(shared.parameters(), lr=0.1)
    shared.hold(optimizer)
    before = shared.codebook("weight_hh_l0")
    rnn(torch.randn(4, 2, 6))[0].square().mean().backward()
    optimizer.step()
    assert len(torch.unique(rnn.weight_hh_l0)) == 3
    assert (shared.codebook("weight_hh_l0") != before).any()


RECURRENT = {
    "rnn": lambda: nn.RNN(3, 4, num_layers=2, nonlinearity="relu"),
    "gru": lambda: nn.GRU(3, 4, bidirectional=True),
    "lstm": lambda: nn.LSTM(3, 4, num_layers=2, proj_size=2),
}


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("layer", RECURRENT)
def test_recurrent_gradients_equal_finite_differences(layer):
    """A weight acts at every step of a sequence; its centroid's slope is that of all of them."""
    torch.manual_seed(1)
    rnn = RECURRENT[layer]().double()
    x = torch.randn(6, 2, 3, dtype=torch.float64)
    Masks.by_density(rnn, 0.6).apply()
    shared = SharedWeights(rnn, 2)

    def loss():
        return (rnn(x)[0] - 0.5).square().sum()

    loss().backward()
    shared.gather()
    assert set(shared.names) == {n for n, _ in rnn.named_parameters() if "weight" in n}
    for name in shared.names:
        centroids = shared.centroids(name)
        slopes = []
        for code in range(len(centroids)):
            losses = []
            for value in (centroids[code].item() + 1e-6, centroids[code].item() - 1e-6):
                kept = centroids[code].item()
                with torch.no_grad():
                    centroids[code] = value
                shared.apply()
                losses.append(loss().item())
                with torch.no_grad():
                    centroids[code] = kept
            shared.apply()
            slopes.append((losses[0] - losses[1]) / 2e-6)
        np.testing.assert_allclose(centroids.grad.numpy(), slopes, rtol=1e-4, atol=1e-6)


def test_sharing_a_convolution():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(16, 3))
    Masks.by_density(model, 0.5).apply()
    shared = SharedWeights(model, {"0": 2, "2": 3})
    optimizer = torch.optim.Adam(shared.parameters(), lr=0.01)
    shared.hold(optimizer)
    before = shared.codebook("0.weight")
    model(torch.randn(5, 2, 4, 4)).square().mean().backward()
    optimizer.step()
    assert shared.codes("0.weight").shape == (4, 2, 3, 3)
    assert (shared.codebook("0.weight") != before).any()
    assert int((model[0].weight != 0).sum()) == 36


@pytest.mark.parametrize("make", [
    lambda p: torch.optim.LBFGS(p, lr=0.5, max_iter=3),
    lambda p: torch.optim.LBFGS(p, max_iter=3, line_search_fn="strong_wolfe"),
    lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
])
def test_optimizers_that_call_a_closure(make):
    """They see the centroids they try, and the gradients that belong to them."""
    model = make_model()
    shared = SharedWeights(model, 3)
    optimizer = make(shared.parameters())
    shared.hold(optimizer)
    codes = shared.codes("0.weight")
    first = loss_of(model).item()

    def closure():
        assert np.array_equal(model[0].weight.detach().numpy(), shared.codebook("0.weight")[codes])
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        return loss

    for _ in range(5):
        optimizer.step(closure)
        assert np.array_equal(model[0].weight.detach().numpy(), shared.codebook("0.weight")[codes])
    assert loss_of(model).item() < first


def test_a_step_with_a_closure_equals_one_without():
    models = []
    for by_closure in (False, True):
        model = make_model()
        shared = SharedWeights(model, 3)
        optimizer = torch.optim.SGD(shared.parameters(), lr=0.1, momentum=0.9)
        shared.hold(optimizer)

        def closure(model=model, optimizer=optimizer):
            optimizer.zero_grad()
            loss = loss_of(model)
            loss.backward()
            return loss

        for _ in range(3):
            if by_closure:
                optimizer.step(closure)
            else:
                closure()
                optimizer.step()
        models.append(model)
    assert torch.equal(models[0][0].weight, models[1][0].weight)


@pytest.mark.parametrize("clear", [
    lambda model, optimizer: model.zero_grad(),
    lambda model, optimizer: optimizer.zero_grad(),
    lambda model, optimizer: optimizer.zero_grad(set_to_none=False),
])
def test_however_the_gradients_are_cleared(clear):
    model = make_model()
    shared = SharedWeights(model, 3)
    optimizer = torch.optim.SGD(shared.parameters(), lr=0.1)
    shared.hold(optimizer)
    for seed in range(3):
        clear(model, optimizer)
        loss_of(model, seed).backward()
        gradient = shared.centroids("0.weight").grad.clone()
        optimizer.step()
    again = make_model()
    reference = SharedWeights(again, 3)
    with torch.no_grad():
        for name in shared.names:
            reference.centroids(name).copy_(shared.centroids(name)
                                            + 0.1 * shared.centroids(name).grad)
        for ours, theirs in zip((again[0].bias, again[2].bias), (model[0].bias, model[2].bias),
                                strict=True):
            ours.copy_(theirs + 0.1 * theirs.grad)
    reference.apply()
    loss_of(again, 2).backward()
    reference.gather()
    torch.testing.assert_close(reference.centroids("0.weight").grad, gradient)


def test_a_gradient_scaler_and_clipping_see_the_centroids():
    models = []
    for scaled in (False, True):
        model = make_model()
        shared = SharedWeights(model, 3)
        optimizer = torch.optim.SGD(shared.parameters(), lr=0.1)
        shared.hold(optimizer)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled)
        for seed in range(3):
            optimizer.zero_grad()
            scaler.scale(loss_of(model, seed)).backward()
            scaler.unscale_(optimizer)
            norm = nn.utils.clip_grad_norm_(shared.parameters(), 0.05)
            assert norm > 0.05
            scaler.step(optimizer)
            scaler.update()
        models.append(model)
    torch.testing.assert_close(models[0][0].weight, models[1][0].weight)


def test_half_precision_sums_in_float32():
    """A thousand gradients of 1: in bfloat16 the sum would stop at 256."""
    model = nn.Linear(1000, 1, bias=False).to(torch.bfloat16)
    with torch.no_grad():
        model.weight.fill_(0.5)
    shared = SharedWeights(model, 1)
    model(torch.ones(1, 1000, dtype=torch.bfloat16)).sum().backward()
    shared.gather()
    assert shared.centroids("weight").grad.item() == 1000


def test_hold_can_be_removed():
    model = make_model()
    shared = SharedWeights(model, 3)
    optimizer = torch.optim.SGD(shared.parameters(), lr=0.1)
    handle = shared.hold(optimizer)
    handle.remove()
    before = model[0].weight.detach().clone()
    loss_of(model).backward()
    optimizer.step()
    assert torch.equal(model[0].weight, before)
    assert model[0].weight.grad is not None
