"""Iterative and gradual pruning: densities, order of events, resuming, and what goes wrong."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from openese.model.balance import Balance, pe_counts
from openese.model.prune import Masks, layer_weights
from openese.model.schedule import (
    GradualPruning,
    cubic_density,
    geometric_densities,
    prune_iteratively,
)

torch.set_num_threads(1)


def make_model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 4))


def make_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)


def loss_of(model, seed):
    x = torch.randn(16, 12, generator=torch.Generator().manual_seed(seed))
    return nn.functional.cross_entropy(model(x), (x[:, :4]).argmax(dim=1))


def step(model, optimizer, seed):
    optimizer.zero_grad()
    loss_of(model, seed).backward()
    optimizer.step()


def alive(model):
    return [int((weight != 0).sum()) for weight in layer_weights(model).values()]


def train(model, step_hook, steps=8):
    optimizer = make_optimizer(model)
    for seed in range(steps):
        step(model, optimizer, seed)
        step_hook()


def test_geometric_densities():
    assert geometric_densities(0.1, 1) == [0.1]
    found = geometric_densities(0.0625, 4)
    assert found == pytest.approx([0.5, 0.25, 0.125, 0.0625])
    assert found[-1] == 0.0625
    assert geometric_densities({"a": 0.25, "b": 1.0}, 2) == [{"a": 0.5, "b": 1.0},
                                                              {"a": 0.25, "b": 1.0}]


def test_cubic_density():
    assert [cubic_density(p, 0.1) for p in (-1, 0, 1, 2)] == [1.0, 1.0, 0.1, 0.1]
    assert cubic_density(0.5, 0.2, 0.6) == pytest.approx(0.2 + 0.4 / 8)
    curve = [cubic_density(p / 20, 0.05) for p in range(21)]
    assert curve == sorted(curve, reverse=True)
    # Most of it in the first half.
    assert curve[10] < 0.2


def test_rounds_prune_and_retrain_deeper_each_time():
    model, seen = make_model(), []

    def watched(model, step_hook):
        seen.append(alive(model))
        train(model, step_hook)

    masks, steps = prune_iteratively(model, [0.5, {"0": 0.25, "2": 0.5}, 0.1], watched,
                                     evaluate=lambda m: -loss_of(m, 99).item())
    assert seen == [[120, 40], [60, 40], [24, 8]]
    assert alive(model) == [24, 8]
    assert [s.target for s in steps] == [0.5, {"0": 0.25, "2": 0.5}, 0.1]
    assert [[layer.nonzeros for layer in s.layers] for s in steps] == seen
    assert steps[-1].score == -loss_of(model, 99).item()
    assert steps[0].score > steps[0].pruned_score
    for name, weight in layer_weights(model).items():
        assert torch.equal(weight != 0, masks[name])


@pytest.mark.parametrize("masks", [
    Masks.by_density,
    Masks.by_budget,
    partial(Masks.by_budget, scale="std", minimum=0.05),
    partial(Masks.by_density, balance=Balance(4, per_column=True)),
])
def test_rounds_take_any_rule(masks):
    model = make_model()
    _, steps = prune_iteratively(model, [0.6, 0.3], train, masks=masks)
    assert 0.25 * 320 < sum(alive(model)) < 0.35 * 320
    assert steps[0].score is None


def test_rounds_by_quality():
    model = make_model()
    prune_iteratively(model, [0.5, 0.5], train, masks=Masks.by_quality)
    assert 0 < sum(alive(model)) < 320


def test_balance_holds_through_the_rounds():
    model = make_model()
    balance = Balance(3)
    prune_iteratively(model, geometric_densities(0.2, 3), train,
                      masks=partial(Masks.by_density, balance=balance))
    for weight in layer_weights(model).values():
        counts = pe_counts(weight, balance)
        assert counts.max() - counts.min() <= 1


def test_a_training_that_ignores_the_hook_is_refused():
    with pytest.raises(ValueError, match=r"round 1: pruned weights of '0.weight' came back"):
        prune_iteratively(make_model(), [0.5], lambda m, hook: train(m, lambda: None))


def test_a_training_that_never_steps_is_fine():
    model = make_model()
    prune_iteratively(model, [0.5], lambda m, hook: None)
    assert alive(model) == [120, 40]


def test_gradual_pruning_follows_its_schedule():
    model = make_model()
    optimizer = make_optimizer(model)
    gradual = GradualPruning(model, {"0": 0.1}, begin=5, end=25, every=4)
    gradual.hold(optimizer)
    before = None
    for number in range(1, 41):
        step(model, optimizer, number)
        assert gradual.steps == number
        if number < 5:
            assert gradual.densities() == {}
            assert alive(model) == [240, 80]
            continue
        # The last moment at which the masks were made.
        last = 25 if number >= 25 else number - (number - 5) % 4
        assert alive(model) == [round(240 * cubic_density((last - 5) / 20, 0.1)), 80]
        mask = gradual.masks["0.weight"]
        assert torch.equal(model[0].weight != 0, mask)
        assert before is None or not (mask & ~before).any(), "a pruned weight came back"
        before = mask.clone()
    assert gradual.densities() == {"0.weight": 0.1}


def test_gradual_pruning_with_balance_from_the_first_step():
    model = make_model()
    optimizer = make_optimizer(model)
    gradual = GradualPruning(model, 0.2, begin=0, end=6, every=3, initial=0.8,
                             balance=Balance(4))
    handle = gradual.hold(optimizer)
    assert alive(model) == [192, 64]
    for number in range(6):
        step(model, optimizer, number)
    assert alive(model) == [48, 16]
    assert pe_counts(model[0].weight, Balance(4)).tolist() == [12] * 4
    handle.remove()
    step(model, optimizer, 7)
    assert alive(model) != [48, 16]
    assert gradual.steps == 6


def test_gradual_pruning_resumes_bit_for_bit():
    def run(model, optimizer, gradual, steps):
        handle = gradual.hold(optimizer)
        for number in steps:
            step(model, optimizer, number)
        handle.remove()

    def start():
        model = make_model()
        gradual = GradualPruning(model, 0.1, begin=2, end=12, every=2)
        return SimpleNamespace(model=model, optimizer=make_optimizer(model), gradual=gradual)

    whole, first, second = start(), start(), start()
    run(whole.model, whole.optimizer, whole.gradual, range(16))
    run(first.model, first.optimizer, first.gradual, range(7))
    for part in ("model", "optimizer", "gradual"):
        getattr(second, part).load_state_dict(getattr(first, part).state_dict())
    run(second.model, second.optimizer, second.gradual, range(7, 16))
    for ours, theirs in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_state_of_another_schedule_is_refused():
    state = GradualPruning(make_model(), {"0": 0.1}, begin=0, end=1, every=1).state_dict()
    with pytest.raises(ValueError, match=r"masks of 0.weight, the schedule prunes 2.weight"):
        GradualPruning(make_model(), {"2": 0.1}, begin=0, end=1, every=1).load_state_dict(state)


@pytest.mark.parametrize(("call", "text"), [
    (lambda m: geometric_densities(0.1, 0), "steps must be 1 or more, not 0"),
    (lambda m: geometric_densities(0.0, 2), "density must be above 0 and at most 1, not 0.0"),
    (lambda m: cubic_density(0, 0.5, 0.2), "densities must fall .* not from 0.2 to 0.5"),
    (lambda m: prune_iteratively(m, [], train), "at least one target"),
    (lambda m: GradualPruning(m, 0.1, begin=3, end=3, every=1), "0 <= begin < end"),
    (lambda m: GradualPruning(m, 0.1, begin=0, end=3, every=0), "every 0"),
    (lambda m: GradualPruning(m, {"2": 1.5}, begin=0, end=3, every=1),
     "'2.weight': densities must fall"),
    (lambda m: GradualPruning(m, {"fc": 0.5}, begin=0, end=3, every=1), "no weight 'fc'"),
])
def test_wrong_arguments_are_named(call, text):
    with pytest.raises(ValueError, match=text):
        call(make_model())
