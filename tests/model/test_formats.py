"""Rounding and saturation, exhaustively on negatives and both rails; number formats."""

from fractions import Fraction
from math import floor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openese.model.formats import QFormat, round_shift, saturate


@pytest.mark.parametrize("shift", range(0, 13))
def test_round_shift_is_exact_for_every_small_integer(shift):
    x = np.arange(-5000, 5001)
    expected = [floor(Fraction(int(v), 1 << shift) + Fraction(1, 2)) for v in x]
    assert round_shift(x, shift).tolist() == expected


def test_halves_round_up_on_both_sides_of_zero():
    assert round_shift([-6, -5, -3, -2, -1, 1, 2, 3, 5, 6], 2).tolist() == [
        -1, -1, -1, 0, 0, 0, 1, 1, 1, 2]


@settings(deadline=None)
@given(st.integers(-(1 << 62), 1 << 62), st.integers(0, 61))
def test_round_shift_is_exact_for_large_integers(x, shift):
    expected = floor(Fraction(x, 1 << shift) + Fraction(1, 2))
    assert int(round_shift(x, shift)) == expected


def test_round_shift_keeps_shape_and_type():
    result = round_shift(np.ones((2, 0, 3), dtype=np.int16), 1)
    assert (result.shape, result.dtype) == ((2, 0, 3), np.int64)


def test_round_shift_refuses_a_negative_shift():
    with pytest.raises(ValueError, match=r"^shift must be 0 or more, not -1$"):
        round_shift([1], -1)


@pytest.mark.parametrize("bits", range(2, 13))
def test_saturate_is_exact_and_counts_for_every_small_integer(bits):
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    for x in range(3 * low, 3 * high + 4):
        value, count = saturate([x], bits)
        assert value.tolist() == [min(max(x, low), high)]
        assert count == (not low <= x <= high)


def test_both_rails_of_16_bits():
    values, count = saturate([-32769, -32768, -32767, 32766, 32767, 32768, -(1 << 62), 1 << 62], 16)
    assert values.tolist() == [-32768, -32768, -32767, 32766, 32767, 32767, -32768, 32767]
    assert count == 4


def test_saturate_counts_over_all_dimensions_and_takes_empty_arrays():
    assert saturate(np.full((3, 4), 9), 4)[1] == 12
    values, count = saturate(np.zeros((0, 4)), 4)
    assert (values.shape, values.dtype, count) == ((0, 4), np.int64, 0)


@pytest.mark.parametrize("bits", [-1, 0, 1, 33])
def test_a_width_out_of_range_is_refused(bits):
    with pytest.raises(ValueError, match=rf"^bits must be 2 to 32, not {bits}$"):
        QFormat(bits, 0)


def test_limits_and_step():
    q = QFormat(16, 12)
    assert (q.min, q.max, q.step) == (-32768, 32767, 2.0**-12)
    assert QFormat(2, -3).step == 8.0


@pytest.mark.parametrize("frac", [-5, 0, 7, 15, 24])
def test_every_raw_value_survives_the_way_to_real_and_back(frac):
    q = QFormat(16, frac)
    raw = np.arange(q.min, q.max + 1)
    back, saturated = q.quantise(q.dequantise(raw))
    assert (back == raw).all()
    assert saturated == 0


@settings(deadline=None)
@given(st.floats(-300, 300), st.integers(2, 12), st.integers(-4, 12))
def test_quantise_is_round_half_up_then_saturate(x, bits, frac):
    q = QFormat(bits, frac)
    # As exact fractions; a shift of the sum's tiny part below float64 would be no tie.
    nearest = floor(Fraction(x * 2.0**frac + 0.5))
    raw, saturated = q.quantise(x)
    assert int(raw) == min(max(nearest, q.min), q.max)
    assert saturated == (not q.min <= nearest <= q.max)


def test_quantise_ties_and_rails():
    q = QFormat(4, 1)
    raw, saturated = q.quantise([-4.25, -4.0, -0.75, -0.25, 0.25, 0.75, 3.5, 3.75, 1e300, -1e300])
    assert raw.tolist() == [-8, -8, -1, 0, 1, 2, 7, 7, 7, -8]
    assert saturated == 3


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_quantise_refuses_what_is_not_finite(value):
    with pytest.raises(ValueError, match=r"^cannot quantise values that are not finite"):
        QFormat(16, 8).quantise([0.0, value])


@settings(deadline=None)
@given(st.floats(0, 1e15, allow_subnormal=False), st.integers(2, 18))
def test_covering_is_the_finest_format_that_holds_the_magnitude(magnitude, bits):
    q = QFormat.covering(bits, magnitude)
    assert q.bits == bits
    assert q.quantise([magnitude, -magnitude])[1] == 0
    if q.frac < 24:
        assert QFormat(bits, q.frac + 1).quantise([magnitude])[1] == 1


def test_covering_of_nothing_is_the_finest_allowed():
    assert QFormat.covering(16, 0.0) == QFormat(16, 24)
    assert QFormat.covering(16, 0.0, max_frac=10) == QFormat(16, 10)
    assert QFormat.covering(16, 1.0) == QFormat(16, 14)
    assert QFormat.covering(16, 32767.4) == QFormat(16, 0)
    assert QFormat.covering(16, 32767.5) == QFormat(16, -1)


@pytest.mark.parametrize("magnitude", [-1.0, np.nan, np.inf])
def test_covering_refuses_a_magnitude_that_is_none(magnitude):
    with pytest.raises(ValueError, match=r"^magnitude must be finite and not negative, not "):
        QFormat.covering(16, magnitude)
