"""Backward elimination: by hand, against a slow oracle that solves anew for every candidate, and its corners."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.numerics import supports
from onnxprune.numerics.elimination import eliminate, inverse, least
from onnxprune.numerics.gram import Gram
from onnxprune.numerics.reconstruct import reconstruct
from onnxprune.numerics.supports import schedule, sizes_of
from onnxprune.numerics.thinning import solve_exact


def problem(K, C, groups=1, seed=0, rows=200):
    """G (g, K, K) summed over rows, rhs (C, K) and lam (g,) of a layer with correlated inputs."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, groups, K)) @ (np.eye(K) + 0.7 * rng.standard_normal((K, K)))
    G = np.einsum("rgk,rgj->gkj", x, x)
    w = rng.standard_normal((C, K))
    R = np.einsum("gkj,gcj->gck", G, w.reshape(groups, C // groups, K)).reshape(C, K) / rows
    lam = 1e-2 * np.einsum("gkk->g", G) / (rows * K)
    return G, R + np.repeat(lam, C // groups)[:, None] * w, lam


def all_alive(rhs):
    return np.ones(rhs.shape, np.bool_)


def test_one_weight_goes_by_hand():
    # G = [[2, 1], [1, 1]], rhs (3, 2), no pull: w = (1, 1). H = [[1, -1], [-1, 2]]: losses 1/1 and 1/2, so the second goes and
    # the first makes up for it: 3/2.
    G, rhs, lam = np.array([[[2.0, 1.0], [1.0, 1.0]]]), np.array([[3.0, 2.0]]), np.array([1e-15])
    mask, weight, trail = eliminate(G, rhs, lam, np.ones((1, 2), bool), np.ones((1, 2), bool), [1])
    np.testing.assert_array_equal(mask, [[True, False]])
    np.testing.assert_allclose(weight, [[1.5, 0.0]], rtol=1e-12)
    np.testing.assert_allclose(trail, [[1.5, 0.0]], rtol=1e-12)


def greedy(G, rhs, lam, mask, keep, rows):
    """The slow way: of all weights left, drop the one without which the layer, solved anew, is least worse."""

    def value(c, support):
        A = G[c // (len(rhs) // len(G))][np.ix_(support, support)] / rows + lam[c // (len(rhs) // len(G))] * np.eye(len(support))
        return float(rhs[c, support] @ np.linalg.solve(A, rhs[c, support])) if len(support) else 0.0

    mask = mask.copy()
    while mask.sum() > keep:
        losses = {}
        for c, k in zip(*np.nonzero(mask), strict=True):
            support = np.flatnonzero(mask[c])
            losses[c, k] = value(c, support) - value(c, support[support != k])
        mask[min(losses, key=losses.get)] = False
    return mask


@pytest.mark.parametrize(("groups", "seed"), [(1, 0), (1, 1), (2, 2), (4, 3)])
def test_one_at_a_time_it_is_the_greedy_choice(groups, seed):
    G, rhs, lam = problem(7, 4, groups, seed)
    start = np.random.default_rng(seed).random((4, 7)) < 0.8
    keep = 6
    mask, weight, _ = eliminate(G, rhs, lam, start, all_alive(rhs), list(range(int(start.sum()) - 1, keep - 1, -1)), 200)
    np.testing.assert_array_equal(mask, greedy(G, rhs, lam, start, keep, 200))
    # block downdates of well-conditioned inverses lose a few digits of sixteen
    np.testing.assert_allclose(weight, solve_exact(G, rhs, lam, mask, 200), rtol=1e-8, atol=1e-10)


@settings(deadline=None, max_examples=40)
@given(K=st.integers(1, 14), C=st.integers(1, 6), seed=st.integers(0, 999), data=st.data())
def test_every_size_is_met_and_the_weights_are_the_least_squares_ones(K, C, seed, data):
    G, rhs, lam = problem(K, C, seed=seed)
    start = np.random.default_rng(seed).random((C, K)) < 0.7
    sizes = sorted(data.draw(st.sets(st.integers(0, int(start.sum())), min_size=1, max_size=5)), reverse=True)
    mask, weight, trail = eliminate(G, rhs, lam, start, all_alive(rhs), sizes, 200)
    assert mask.sum() == sizes[-1]
    assert not mask[~start].any()
    np.testing.assert_allclose(weight, solve_exact(G, rhs, lam, mask, 200), rtol=1e-6, atol=1e-8)
    for size, values in zip(sizes, trail, strict=True):
        assert values.shape == (start.sum(),)
        assert np.count_nonzero(values) <= size
    np.testing.assert_allclose(trail[-1], weight[start], rtol=0, atol=0)


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, np.inf, np.nan]), min_size=1, max_size=40), st.data())
def test_the_least_are_those_that_a_stable_sort_puts_first(values, data):
    count = data.draw(st.integers(1, len(values)))
    order = sorted(range(len(values)), key=lambda place: np.inf if np.isnan(values[place]) else values[place])
    assert least(np.array(values), count).tolist() == sorted(order[:count])


def test_inputs_that_never_vary_go_first():
    G, rhs, lam = problem(6, 3)
    G[:, 2], G[:, :, 2] = 0, 0
    rhs[:, 2] = 100.0
    alive = np.ones((3, 6), np.bool_)
    alive[:, 2] = False
    mask, _, _ = eliminate(G, rhs, lam, np.ones((3, 6), bool), alive, [15], 200)
    assert not mask[:, 2].any()
    assert mask.sum() == 15


def test_ties_are_broken_the_same_way_each_time_and_counted_exactly():
    G, lam = np.eye(4)[None], np.array([1e-3])
    rhs = np.ones((3, 4))
    first, again = (eliminate(G, rhs, lam, np.ones((3, 4), bool), all_alive(rhs), [7]) for _ in range(2))
    assert first[0].sum() == 7
    assert first[1].tobytes() == again[1].tobytes()


def test_it_loses_less_than_thinning_by_magnitude():
    """On inputs that correlate, for layers of many seeds: on average by a tenth and more, and small steps less than large ones."""
    errors = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((400, 40)) @ (np.eye(40) + rng.standard_normal((40, 40)))
        w = rng.standard_normal((10, 40)) * rng.standard_normal((10, 40)) ** 2
        gram = Gram.from_batch(x, x @ w.T)
        errors.append([reconstruct(gram, None, w, 60, fine=fine).error_after for fine in (1.05, 3.0, 1.0)])
    small, large, magnitude = np.mean(errors, axis=0)
    assert small < 0.97 * large
    assert small < 0.9 * magnitude


@given(keep=st.integers(0, 5000), channels=st.integers(1, 600), inputs=st.integers(1, 5000), fine=st.sampled_from([1.0, 1.05, 1.5]))
def test_the_sizes_fall_to_what_is_kept_by_way_of_the_support_that_elimination_starts_from(keep, channels, inputs, fine):
    keep = min(keep, channels * inputs)
    coarse, near = sizes_of(keep, channels, inputs, 16.0, 1.4, fine)
    whole = [*coarse, *near]
    assert whole[-1] == keep
    assert all(a > b for a, b in itertools.pairwise(whole[:-1]))
    assert whole[0] <= channels * inputs
    if near:
        assert fine > 1
        assert coarse[-1] >= near[0]
        assert coarse[-1] <= supports.NEAR * keep + 1


def test_a_layer_too_large_for_inverses_is_thinned_by_magnitude_alone(monkeypatch):
    assert sizes_of(100, 10, 1000, 16.0, 1.4, 1.05)[1]
    monkeypatch.setattr(supports, "BYTES", 8 * 10 * 10.0**2)  # inverses of 10 weights a channel: not more than are kept
    assert sizes_of(100, 10, 1000, 16.0, 1.4, 1.05) == (schedule(100, 10_000, 1.4, 16.0), [])


@pytest.mark.parametrize("n", [1, 2, 95, 96, 97, 193, 250])
def test_the_inverse_by_halves(n):
    x = np.random.default_rng(n).standard_normal((n + 5, n)) * np.geomspace(1, 30, n)
    A = x.T @ x + 1e-2 * np.eye(n)
    kept = A.copy()
    np.testing.assert_allclose(inverse(A) @ A, np.eye(n), atol=1e-6)  # a condition of up to 1e8, times float64's 1e-16 and n
    np.testing.assert_array_equal(A, kept)
    np.testing.assert_allclose(inverse(A), np.linalg.inv(A), rtol=1e-6, atol=1e-7 * np.abs(np.linalg.inv(A)).max())


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("n", [1, 23, 47, 96, 193])
def test_inverses_of_several_are_those_of_each(n, dtype):
    x = np.random.default_rng(n).standard_normal((2, 3, 2 * n, n))
    A = (x.swapaxes(-1, -2) @ x / n).astype(dtype)
    kept, found = A.copy(), inverse(A)
    assert found.dtype == dtype
    np.testing.assert_array_equal(A, kept)
    np.testing.assert_array_equal(found, found.swapaxes(-1, -2))
    wanted = np.linalg.inv(A.astype(np.float64))
    # of a condition of a hundred, for hundreds of roundings
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e5 * np.finfo(dtype).eps * np.abs(wanted).max())


@pytest.mark.parametrize("condition", [1e2, 1e4, 1e6])
def test_the_inverse_is_right_through_many_halves(condition):
    """Five levels: an inverse whose errors each level multiplies by the condition is off by 1e2 and more at 1e4."""
    rng = np.random.default_rng(3)
    axes, _ = np.linalg.qr(rng.standard_normal((700, 700)))
    A = (axes * np.geomspace(1 / condition, 1, 700)) @ axes.T
    A = (A + A.T) / 2
    found = inverse(A)
    np.testing.assert_array_equal(found, found.T)
    # float64's 1e-16 times the condition, and a hundred for 700 sums
    np.testing.assert_allclose(found @ A, np.eye(700), atol=1e-14 * condition)


def test_inputs_that_are_nearly_one_another():
    """672 inputs of a slowly changing signal, and some that never vary, as an audio network has: many inputs and a condition of 1e4."""
    steps = np.arange(640)
    G = np.zeros((1, 672, 672))
    G[0, :640, :640] = np.exp(-(((steps[:, None] - steps) / 60) ** 2)) + 1e-7 * np.eye(640)
    lam = np.array([5e-3])
    rhs = np.random.default_rng(0).standard_normal((2, 672)) @ (G[0] + lam[0] * np.eye(672))
    alive = np.repeat(np.einsum("gkk->gk", G) > 0, 2, axis=0)
    sizes = [round(1344 * 0.95**step) for step in range(1, 28)]
    mask, weight, _ = eliminate(G, rhs, lam, np.ones(rhs.shape, bool), alive, sizes)
    assert mask.sum() == sizes[-1]
    assert not mask[~alive].any()
    wanted = solve_exact(G, rhs, lam, mask)
    np.testing.assert_allclose(weight, wanted, rtol=0, atol=1e-7 * np.abs(wanted).max())  # the condition, times 1e-16 and a thousand sums


@pytest.mark.parametrize("groups", [1, 2])
def test_many_steps_over_many_weights_end_on_the_least_squares_ones(groups):
    """Inverses of 220 weights, from which 12 to 28 steps take most: what is left is what solving anew gives."""
    G, rhs, lam = problem(220, 4, groups, rows=400)
    sizes = [round(880 * 0.9**step) for step in range(1, 28)]
    mask, weight, trail = eliminate(G, rhs, lam, np.ones(rhs.shape, bool), all_alive(rhs), sizes, rows=400)
    assert mask.sum() == sizes[-1] == np.count_nonzero(weight)
    np.testing.assert_allclose(weight, solve_exact(G, rhs, lam, mask, 400), rtol=1e-8, atol=1e-10)
    assert [np.count_nonzero(step) for step in trail] == sizes
    half = trail[13].reshape(rhs.shape)
    np.testing.assert_allclose(half, solve_exact(G, rhs, lam, half != 0, 400), rtol=1e-8, atol=1e-10)
