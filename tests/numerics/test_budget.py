"""The budget by error curves: by hand, against dynamic programming over every count, and its properties."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.errors import AllocationError
from onnxprune.numerics.allocation import allocate, keep_total
from onnxprune.numerics.budget import GRID, Curve, by_error, by_ratio, fitted, share


def power_law(scale, slope, sizes=(10, 1000), **named):
    return Curve(sizes, tuple(scale * k**-slope for k in sizes), **named)


@st.composite
def layers(draw, most=40):
    """Sizes and curves of a few layers, errors not always falling and not convex."""
    sizes = draw(st.lists(st.integers(1, most), min_size=1, max_size=5))
    curves = []
    for size in sizes:
        known = sorted(draw(st.sets(st.integers(1, size), min_size=1, max_size=4)))
        errors = [draw(st.floats(0, 1.5, allow_subnormal=False)) for _ in known]
        curves.append(Curve(tuple(known), tuple(errors), draw(st.floats(0, 10)), draw(st.floats(0.5, 2))))
    return sizes, curves


# --- by hand


@pytest.mark.parametrize(
    ("importance", "power", "expected"),
    [
        # errors 1/k and 4/k: least sum at a total of 300 where 1/k^2 = 4/k'^2, so k' = 2 k
        (1.0, 1.0, (100, 200)),
        (4.0, 1.0, (150, 150)),
        # (1/k)^2 and 16 * (4/k')^2 / 16: 2/k^3 = 128 / (2 k'^3)... with importance 8 and 1: 8/k^3 = 16/k'^3
        (8.0, 2.0, (133, 167)),
    ],
)
def test_two_power_laws_by_hand(importance, power, expected):
    curves = [power_law(1, 1, importance=importance, power=power), power_law(4, 1, power=power)]
    counts = share([10**5, 10**5], curves, 300)
    # corners lie within 1.2 % of each other, GRID of them over 1 to 10^5
    assert sum(counts) == 300
    np.testing.assert_allclose(counts, expected, rtol=0.015)


def test_a_curve_by_hand():
    curve = Curve((4, 16), (0.5, 0.25))
    # half a decade of sizes halves the error per factor of 4: error = k^-1/2; a constant's error at one weight, none at all weights
    np.testing.assert_allclose(
        curve.at(np.array([1, 2, 4, 8, 16, 64, 99, 100]), 100), [1, 0.5**0.5, 0.5, 8**-0.5, 0.25, 0.125, 99**-0.5, 0]
    )
    # an error that rises with the size is held at the larger size's
    np.testing.assert_allclose(Curve((4, 16), (0.2, 0.25)).at(np.array([4, 16]), 100), [0.25, 0.25])


def test_importance_and_power_by_hand():
    importance, power = fitted((0.25, 0.0625), (0.5, 0.0625))  # 4 * 0.25^1.5 = 0.5, 4 * 0.0625^1.5 = 0.0625
    np.testing.assert_allclose([importance, power], [4, 1.5])
    assert fitted((0.2, 0.1), (0.4, 0.0)) == (2.0, 1.0)  # the second tells nothing
    assert fitted((0.2, 0.1), (0.4, 0.4)) == (pytest.approx(0.4 / 0.2**0.5), 0.5)
    assert fitted((0.0, 0.0), (0.0, 0.0)) == (0.0, 1.0)


# --- the oracle


def cost(curve, count, size):
    return curve.importance * float(curve.at(np.array([count]), size)[0]) ** curve.power


def cheapest(sizes, curves, total):
    """The least sum over all counts from 1 that add up to total, by dynamic programming."""
    best = {0: 0.0}
    for size, curve in zip(sizes, curves, strict=True):
        nxt = {}
        for spent, value in best.items():
            for count in range(1, min(size, total - spent) + 1):
                new = value + cost(curve, count, size)
                if new < nxt.get(spent + count, np.inf):
                    nxt[spent + count] = new
        best = nxt
    return best[total]


@settings(max_examples=60, deadline=None)
@given(data=layers(16), fraction=st.floats(0, 1))
def test_no_counts_are_better_but_for_the_last_edge(data, fraction):
    sizes, curves = data
    total = len(sizes) + int(fraction * (sum(sizes) - len(sizes)))
    got = sum(cost(curve, count, size) for size, curve, count in zip(sizes, curves, share(sizes, curves, total), strict=True))
    # a convex sum is met exactly; one edge of a hull, where a curve lies above it, may cost up to what that layer's curve spans
    gap = max(cost(curve, 1, size) for size, curve in zip(sizes, curves, strict=True))
    assert cheapest(sizes, curves, total) - 1e-9 <= got <= cheapest(sizes, curves, total) + gap + 1e-9


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(2, 14), st.floats(0.3, 3), st.floats(0, 5)), min_size=1, max_size=4), st.floats(0, 1))
def test_convex_curves_are_met_exactly(drawn, fraction):
    sizes = [size for size, *_ in drawn]
    # error k^-b as far as one is left, 0 with none left out: convex up to the last step, which is made so by a last error of near 0
    curves = [Curve(tuple(range(1, size + 1)), tuple(max(0.0, k**-slope - size**-slope) for k in range(1, size + 1)), importance)
              for size, slope, importance in drawn]  # fmt: skip
    total = len(sizes) + int(fraction * (sum(sizes) - len(sizes)))
    got = sum(cost(curve, count, size) for size, curve, count in zip(sizes, curves, share(sizes, curves, total), strict=True))
    np.testing.assert_allclose(got, cheapest(sizes, curves, total), rtol=1e-9, atol=1e-9)


# --- properties


@settings(deadline=None)
@given(data=layers(), fraction=st.floats(0, 1))
def test_counts_add_up_and_stay_in_their_bounds(data, fraction):
    sizes, curves = data
    total = round(fraction * sum(sizes))
    counts = share(sizes, curves, total)
    assert sum(counts) == total
    assert all(min(1, total // len(sizes)) <= count <= size for count, size in zip(counts, sizes, strict=True))
    assert counts == share(sizes, curves, total)


@settings(deadline=None)
@given(data=layers(), fraction=st.floats(0, 1), place=st.integers(0, 4), factor=st.floats(1, 100))
def test_more_importance_never_brings_fewer(data, fraction, place, factor):
    sizes, curves = data
    place %= len(sizes)
    old = curves[place]
    total = round(fraction * sum(sizes))
    more = [*curves[:place], Curve(old.sizes, old.errors, old.importance * factor, old.power), *curves[place + 1 :]]
    assert share(sizes, more, total)[place] >= share(sizes, curves, total)[place]


@settings(deadline=None)
@given(st.integers(2, 10**6), st.floats(0, 1))
def test_large_layers_add_up_too(size, fraction):
    sizes = [size, 3 * size, GRID + 1]
    total = 3 + int(fraction * (sum(sizes) - 3))
    counts = share(sizes, [power_law(1, 0.7, (1, 9)), power_law(3, 1.2, (2, 9)), power_law(1, 1)], total)
    assert sum(counts) == total
    assert all(1 <= count <= most for count, most in zip(counts, sizes, strict=True))


def test_equal_layers_share_equally_and_the_earlier_takes_the_odd_one():
    assert share([50, 50], [power_law(1, 1, (1, 25))] * 2, 41) == (21, 20)


# --- beside the other rules


def test_a_layer_without_a_curve_keeps_what_lamp_gives():
    weights = [np.random.default_rng(n).standard_normal(size) for n, size in enumerate((100, 200, 300))]
    lamp = allocate("lamp", weights, 0.8, {2: 0.5})
    counts = by_error(weights, {0: power_law(1, 1, (5, 50))}, 0.8, {2: 0.5})
    assert counts == lamp
    assert by_error(weights, {}, 0.8, {2: 0.5}) == lamp
    both = by_error(weights, {0: power_law(1, 1, (5, 50), importance=1e6), 1: power_law(1, 1, (5, 50))}, 0.8, {2: 0.5})
    assert both[2] == 150
    assert sum(both[:2]) == keep_total([100, 200], 0.8)
    assert both[0] > lamp[0]


# --- refusals


@pytest.mark.parametrize(
    "given",
    [((), ()), ((0,), (1.0,)), ((2, 1), (1.0, 1.0)), ((1,), (1.0, 1.0)), ((1,), (-1.0,)), ((1,), (np.nan,)), ((1,), (1.0,), np.inf),
     ((1,), (1.0,), 1.0, 0.0)],
)  # fmt: skip
def test_a_curve_refuses_what_is_none(given):
    with pytest.raises(ValueError, match="expected"):
        Curve(*given)


def test_a_total_that_does_not_fit_is_refused():
    with pytest.raises(AllocationError, match="cannot keep 11 of 10 weights"):
        share([10], [power_law(1, 1, (1, 5))], 11)


# --- residual ratios


def test_ratios_multiply_erks_densities_by_hand():
    """Shapes (10, 10) and (20, 20) have sums 20 and 40. At 0.9, K = 50: erk gives 16.67 and 33.33; with 1 and 1/4, 20 : 10."""
    weights = [np.ones((10, 10)), np.ones((20, 20))]
    assert allocate("erk", weights, 0.9) == (17, 33)
    assert by_ratio(weights, {0: 1.0, 1: 0.25}, 0.9) == (33, 17)
    assert by_ratio(weights, {0: 0.7, 1: 0.7}, 0.9) == (17, 33)


def test_no_layer_keeps_more_than_it_has_and_the_counts_add_up():
    weights = [np.ones((4, 4)), np.ones((30, 30)), np.ones((10, 10))]
    counts = by_ratio(weights, {0: 1.0, 1: 1e-9, 2: 1.0}, 0.8)
    assert counts[0] == 16
    assert counts[2] == 100
    assert sum(counts) == keep_total([16, 900, 100], 0.8)


def test_a_layer_without_a_ratio_keeps_what_erk_gives():
    weights = [np.ones((10, 10)), np.ones((20, 20)), np.ones((15, 10))]
    erk = allocate("erk", weights, 0.8, {2: 0.5})
    assert by_ratio(weights, {}, 0.8, {2: 0.5}) == erk
    assert by_ratio(weights, {0: 3.0}, 0.8, {2: 0.5}) == erk
    assert by_ratio(weights, {0: 3.0, 1: 1.0}, 0.8, {2: 0.5})[2] == 75
