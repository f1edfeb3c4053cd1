"""Sigmoid and tanh over every input, and the cells against floating point."""

import numpy as np
import pytest

from openese.model.elementwise import (
    gate_frac,
    gru_cell,
    lstm_cell,
    peephole_frac,
    sigmoid,
    tanh,
    unit_frac,
)


def every(act_bits: int):
    """All pre-activations: raw, and as real numbers."""
    raw = np.arange(-(1 << (act_bits - 1)), 1 << (act_bits - 1))
    return raw, raw / 2.0 ** gate_frac(act_bits)


@pytest.mark.parametrize("act_bits", range(8, 18))
def test_sigmoid_and_tanh_are_close_monotone_and_bounded(act_bits):
    raw, real = every(act_bits)
    one = 2.0 ** unit_frac(act_bits)
    largest = 1.5 if act_bits <= 16 else 2.5
    t, s = tanh(raw, act_bits), sigmoid(raw, act_bits)
    assert np.abs(t - np.tanh(real) * one).max() < largest
    assert np.abs(s - one / (1 + np.exp(-real))).max() < largest
    assert (np.diff(t) >= 0).all()
    assert (np.diff(s) >= 0).all()
    assert -one < t.min()
    assert t.max() < one
    assert s.min() == 0
    assert s.max() < one
    # Odd: the magnitudes of both signs are equal.
    assert np.array_equal(t[1:], -t[1:][::-1])
    assert t[len(t) // 2] == 0
    assert s[len(s) // 2] == one // 2


@pytest.mark.parametrize("peepholes", [False, True])
@pytest.mark.parametrize("cell_shift", range(8))
def test_lstm_cell_is_close_to_floating_point(cell_shift, peepholes):
    rng = np.random.default_rng(cell_shift)
    raw = rng.integers(-(1 << 13), 1 << 13, (4, 500))
    cell = rng.integers(-(1 << 14), 1 << 14, 500)
    step = 2.0 ** (unit_frac(16) - cell_shift)
    weights = rng.integers(-(1 << 12), 1 << 12, (3, 500)) if peepholes else None
    h, c, clipped = lstm_cell(raw, cell, act_bits=16, cell_shift=cell_shift, peephole=weights,
                              peep_shift=0)
    i, f, g, o = raw / 2.0 ** gate_frac(16)
    before = cell / step
    if peepholes:
        real = weights / 2.0 ** peephole_frac(16, cell_shift, 0)
        i, f = i + real[0] * before, f + real[1] * before
    new = before / (1 + np.exp(-f)) + np.tanh(g) / (1 + np.exp(-i))
    if peepholes:
        o = o + real[2] * new
    expected = np.tanh(new) / (1 + np.exp(-o))
    fits = ~clipped
    assert fits.sum() > 400
    assert np.abs(c / step - new)[fits].max() < 4 / step + 2e-3
    assert np.abs(h / 2.0 ** unit_frac(16) - expected)[fits].max() < 8e-3


def test_gru_cell_is_close_to_floating_point_and_stays_between_its_ends():
    rng = np.random.default_rng(1)
    raw, state = rng.integers(-(1 << 14), 1 << 14, (4, 500)), rng.integers(-32768, 32768, 500)
    h = gru_cell(raw, state, act_bits=16)
    r, z, x, own = raw / 2.0 ** gate_frac(16)
    before = state / 2.0 ** 15
    n = np.tanh(x + own / (1 + np.exp(-r)))
    z = 1 / (1 + np.exp(-z))
    assert np.abs(h / 2.0 ** 15 - (n + z * (before - n))).max() < 1e-3
    ends = np.array([-32768, 32767])
    corners = np.array(np.meshgrid(ends, ends, ends, ends, ends)).reshape(5, -1)
    assert np.abs(gru_cell(corners[:4], corners[4], act_bits=16)).max() <= 32768


def test_cell_states_saturate_and_say_so():
    gates = np.array([[32767], [32767], [32767], [0]])
    _, c, clipped = lstm_cell(gates, np.array([32767]), act_bits=16, cell_shift=0)
    assert c.tolist() == [32767]
    assert clipped.tolist() == [True]
    _, c, clipped = lstm_cell(gates * [[1], [1], [-1], [1]], np.array([-32768]), act_bits=16,
                              cell_shift=0)
    assert c.tolist() == [-32768]
    assert clipped.tolist() == [True]
