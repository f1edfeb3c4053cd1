"""Balanced pruning: equal counts per PE, and per PE and column, for any matrix and PE count."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from openese.model.balance import Balance, balanced_mask, load_ratio, pe_counts
from openese.model.prune import Masks, gates_of

torch.set_num_threads(1)


def pe_of(row, rows, balance):
    """The PE of a row, in the words of the documentation."""
    return row % (rows // (balance.group or 1)) % balance.n_pes


def cells_of(weight, balance):
    """Magnitudes per PE, or PE and column, gathered one by one; zeros left out."""
    flat = weight.flatten(1)
    cells = {(pe, column if balance.per_column else 0): []
             for pe in range(balance.n_pes) for column in range(flat.shape[1])}
    for row in range(flat.shape[0]):
        for column in range(flat.shape[1]):
            if flat[row, column]:
                key = (pe_of(row, flat.shape[0], balance), column if balance.per_column else 0)
                cells[key].append(abs(float(flat[row, column])))
    return cells


@st.composite
def cases(draw):
    group = draw(st.sampled_from([None, 1, 3, 4]))
    balance = Balance(draw(st.integers(1, 9)), draw(st.booleans()), group)
    rows = draw(st.integers(1, 7)) * (group or 1)
    cols = draw(st.integers(1, 6))
    values = draw(st.lists(st.integers(-9, 9), min_size=rows * cols, max_size=rows * cols))
    weight = torch.tensor(values, dtype=torch.float32).view(rows, cols)
    return weight, draw(st.floats(0, 1)), balance


@settings(deadline=None, max_examples=150)
@given(cases())
def test_counts_are_equal_wherever_a_pe_has_enough(case):
    weight, density, balance = case
    mask = balanced_mask(weight, density, balance)
    assert mask.shape == weight.shape
    assert not mask[weight == 0].any()
    cells, kept = cells_of(weight, balance), cells_of(weight * mask, balance)
    wanted = min(round(density * weight.numel()), int((weight != 0).sum()))
    groups = [0] if not balance.per_column else range(weight.shape[1])
    tops = []
    for column in groups:
        counts = [(len(kept[pe, column]), len(cells[pe, column])) for pe in range(balance.n_pes)]
        free = [count for count, capacity in counts if count < capacity]
        top = max(count for count, _ in counts)
        tops.append((top, all(count == capacity for count, capacity in counts)))
        if balance.per_column:
            assert len(set(free)) <= 1, "PEs with weights to spare keep the same count"
            assert all(count == top for count in free)
        else:
            assert all(count >= top - 1 for count in free)
    if balance.per_column:
        # Columns differ by at most 1, but for those that have no more to keep.
        highest = max(top for top, _ in tops)
        assert all(full or top >= highest - 1 for top, full in tops)
        assert abs(int(mask.sum()) - wanted) <= balance.n_pes / 2
    else:
        assert int(mask.sum()) == wanted
    for key, cell in cells.items():
        cell.sort(reverse=True)
        assert sorted(kept[key], reverse=True) == cell[:len(kept[key])], "the largest are kept"


@settings(deadline=None, max_examples=60)
@given(cases())
def test_counting_agrees_with_the_definition(case):
    weight, _, balance = case
    counts = pe_counts(weight, balance)
    for (pe, column), cell in cells_of(weight, balance).items():
        assert counts[(pe, column) if balance.per_column else pe] == len(cell)


@pytest.mark.parametrize("shape", [(300, 784), (4096, 153), (1000, 97), (64, 64), (512, 1),
                                   (100, 64, 3, 3)])
@pytest.mark.parametrize("n_pes", [1, 2, 3, 5, 16, 64])
def test_ratio_of_largest_to_mean_is_one(shape, n_pes):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    # Half the rows are ten times smaller: by magnitude alone their PEs would be left idle.
    weight[::2] *= 0.1
    mask = balanced_mask(weight, 0.1, Balance(n_pes))
    counts = pe_counts(mask, Balance(n_pes))
    assert counts.sum() == round(0.1 * weight.numel())
    assert counts.max() - counts.min() <= 1
    assert load_ratio(counts) <= 1 + n_pes / counts.sum()


def test_unbalanced_pruning_is_what_it_says():
    """The guard above guards against something real: the same matrix by magnitude alone."""
    weight = torch.randn(300, 784, generator=torch.Generator().manual_seed(0))
    weight[::2] *= 0.1
    model = nn.Linear(784, 300)
    with torch.no_grad():
        model.weight.copy_(weight)
    assert load_ratio(pe_counts(Masks.by_density(model, 0.1)["weight"], Balance(16))) > 1.8


@pytest.mark.parametrize(("rows", "n_pes"), [(64, 8), (512, 64), (48, 16), (16, 16)])
def test_a_whole_number_per_column_is_met_exactly(rows, n_pes):
    weight = torch.randn(rows, 40, generator=torch.Generator().manual_seed(1))
    counts = pe_counts(balanced_mask(weight, 2 * n_pes / rows if rows > n_pes else 1.0,
                                     Balance(n_pes, per_column=True)), Balance(n_pes, True))
    assert counts.min() == counts.max()
    assert load_ratio(counts) == 1.0


def test_more_pes_than_rows():
    weight = torch.randn(10, 100, generator=torch.Generator().manual_seed(2))
    counts = pe_counts(balanced_mask(weight, 0.26, Balance(16)), Balance(16))
    assert counts.tolist() == [26] * 10 + [0] * 6
    assert load_ratio(counts) == pytest.approx(1.6)


def test_pes_with_fewer_rows_keep_all_they_have_when_it_must_be():
    weight = torch.randn(5, 10, generator=torch.Generator().manual_seed(3))
    # PE 0 has rows 0 and 4, the others one row each.
    assert pe_counts(balanced_mask(weight, 0.8, Balance(4)), Balance(4)).tolist() == [10] * 4
    assert pe_counts(balanced_mask(weight, 0.9, Balance(4)), Balance(4)).tolist() == [15, 10, 10,
                                                                                       10]
    assert balanced_mask(weight, 1.0, Balance(4)).all()
    assert balanced_mask(weight, 1.0, Balance(4, per_column=True)).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1)])
@pytest.mark.parametrize("per_column", [False, True])
def test_the_smallest_matrices(shape, per_column):
    weight = torch.arange(1.0, 1 + shape[0] * shape[1]).view(shape)
    balance = Balance(3, per_column)
    assert balanced_mask(weight, 1.0, balance).all()
    assert not balanced_mask(weight, 0.0, balance).any()
    assert not balanced_mask(torch.zeros(shape), 0.5, balance).any()


def test_gates_of_a_unit_go_to_one_pe():
    """4 gates x 3 units on 2 PEs: units 0 and 2 on PE 0, unit 1 on PE 1."""
    weight = torch.ones(12, 1)
    counts = pe_counts(weight, Balance(2, group=4))
    assert counts.tolist() == [8, 4]
    row_of_unit_1 = torch.zeros(12, 1)
    row_of_unit_1[[1, 4, 7, 10]] = 1
    assert pe_counts(row_of_unit_1, Balance(2, group=4)).tolist() == [0, 4]
    assert pe_counts(row_of_unit_1, Balance(2)).tolist() == [2, 2]


@pytest.mark.parametrize(("module", "gates"), [
    (nn.RNN(6, 10, num_layers=2, bidirectional=True), 1),
    (nn.GRU(6, 10, num_layers=2, bidirectional=True), 3),
    (nn.LSTM(6, 10, num_layers=2, bidirectional=True, proj_size=4), 4),
])
@pytest.mark.parametrize("per_column", [False, True])
def test_recurrent_layers_know_their_gates(module, gates, per_column):
    masks = Masks.by_density(module, 0.3, balance=Balance(4, per_column))
    assert set(masks.names) == {n for n, _ in module.named_parameters() if "weight" in n}
    for name in masks.names:
        group = 1 if "_hr_" in name else gates
        assert gates_of(module, name) == group
        expected = balanced_mask(module.get_parameter(name), 0.3, Balance(4, per_column, group))
        assert torch.equal(masks[name], expected)


def test_a_group_given_goes_before_the_layers_own():
    module = nn.LSTM(6, 10)
    masks = Masks.by_density(module, 0.3, balance=Balance(4, group=1))
    assert torch.equal(masks["weight_ih_l0"],
                       balanced_mask(module.weight_ih_l0, 0.3, Balance(4, group=1)))


@pytest.mark.parametrize(("call", "text"), [
    (lambda: Balance(0), "n_pes must be 1 or more, not 0"),
    (lambda: Balance(4, group=0), "group must be 1 or more, not 0"),
    (lambda: balanced_mask(torch.ones(3, 3), 1.1, Balance(2)), "density must be 0 to 1, not 1.1"),
    (lambda: balanced_mask(torch.ones(10, 3), 0.5, Balance(2, group=4)),
     "10 rows are no 4 stacked matrices"),
    (lambda: pe_counts(torch.ones(10, 3), Balance(2, group=4)), "10 rows are no 4 stacked"),
    (lambda: Masks.by_density(nn.Linear(3, 10), 0.5, balance=Balance(2, group=4)),
     "'weight': 10 rows are no 4 stacked matrices"),
])
def test_wrong_arguments_are_named(call, text):
    with pytest.raises(ValueError, match=text):
        call()


def test_load_ratio():
    assert load_ratio(np.array([3, 1, 2])) == 1.5
    assert load_ratio(np.zeros(4, dtype=np.int64)) == 1.0
    # The sum of each column's largest: 3 + 3, against a mean of 4.5 per PE.
    assert load_ratio(np.array([[3, 1], [2, 3]])) == pytest.approx(6 / 4.5)
