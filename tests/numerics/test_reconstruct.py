"""Least-squares reconstruction: against hand-computed cases, the normal equations, lstsq, and its degenerate corners."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.numerics import thinning
from onnxprune.numerics.conjugate import solve_iterative
from onnxprune.numerics.gram import Gram
from onnxprune.numerics.reconstruct import reconstruct, refit
from onnxprune.numerics.supports import schedule
from onnxprune.numerics.thinning import best_of_each, select, solve_exact, thin


def correlated(rows, K, C, groups=1, seed=0):
    """Rows with correlated inputs, dense weights, and the dense outputs with a mean and a little unexplained noise."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, groups, K)) @ (np.eye(K) + 0.5 * rng.standard_normal((K, K))) + 1.0
    w = rng.standard_normal((C, K))
    y = np.einsum("rgk,gck->rgc", x, w.reshape(groups, C // groups, K)).reshape(rows, C)
    return x.reshape(rows, groups * K), w, y + 0.1 * rng.standard_normal((rows, C)) + 3.0


def masked_error(gram, w0, keep):
    """The error of the largest dense weights, with the bias that corrects the mean."""
    masked = w0 * select(np.abs(w0), keep, np.ones(w0.shape, bool))
    return gram.error(masked, gram.shift(masked))


# --- Gram


def test_gram_of_three_rows_by_hand():
    gram = Gram.from_batch(np.array([[1.0, 0.0], [2.0, 0.0], [3.0, 3.0]]), np.array([[2.0], [4.0], [9.0]]))
    np.testing.assert_array_equal(gram.x_mean, [[2.0, 1.0]])
    np.testing.assert_array_equal(gram.y_mean, [5.0])
    np.testing.assert_array_equal(gram.xx, [[[2.0, 3.0], [3.0, 6.0]]])
    np.testing.assert_array_equal(gram.xy, [[[7.0], [12.0]]])
    np.testing.assert_array_equal(gram.yy, [26.0])
    assert gram.count == 3


@settings(deadline=None, max_examples=40)
@given(
    cuts=st.lists(st.integers(0, 40), max_size=4),
    groups=st.sampled_from([1, 3]),
    offset=st.sampled_from([0.0, 1e3]),
    seed=st.integers(0, 99),
)
def test_merged_batches_equal_the_pooled_rows(cuts, groups, offset, seed):
    x, _, y = correlated(40, 4, 6, groups, seed)
    x, y = x + offset, y - offset
    bounds = [0, *sorted(cuts), 40]
    parts = [Gram.from_batch(x[a:b], y[a:b], groups) for a, b in itertools.pairwise(bounds)]
    merged = parts[0]
    for part in parts[1:]:
        merged = merged.merge(part)
    pooled = Gram.from_batch(x, y, groups)
    assert merged.count == pooled.count
    for name in ("x_mean", "y_mean", "xx", "xy", "yy"):
        # an offset of 1e3 costs float64 about 1e3^2 * 1e-16 of the sums' own size
        np.testing.assert_allclose(getattr(merged, name), getattr(pooled, name), rtol=1e-9, atol=1e-7, err_msg=name)


def test_float32_rows_far_from_zero_keep_their_moments():
    x, _, y = correlated(9000, 5, 3)
    far = (x + 300).astype(np.float32), (y + 300).astype(np.float32)
    gram, exact = Gram.from_batch(*far), Gram.from_batch(far[0].astype(np.float64), far[1].astype(np.float64))
    np.testing.assert_allclose(gram.xx, exact.xx, rtol=1e-4, atol=1e-4 * exact.xx.max())
    np.testing.assert_allclose(gram.yy, exact.yy, rtol=1e-4)


def test_error_is_the_residual_of_the_rows_also_when_the_shift_is_off():
    x, w, y = correlated(50, 4, 6, groups=2)
    gram, shift = Gram.from_batch(x, y, 2), np.arange(6.0)
    out = np.einsum("rgk,gck->rgc", x.reshape(50, 2, 4), w.reshape(2, 3, 4)).reshape(50, 6) + shift
    expected = ((y - out) ** 2).sum() / ((y - y.mean(0)) ** 2).sum()
    np.testing.assert_allclose(gram.error(w, shift), expected, rtol=1e-10)


def test_an_error_from_a_power_that_is_known_is_the_same():
    x, w, y = correlated(50, 4, 6, groups=2)
    gram, counts = Gram.from_batch(x, y, 2), np.arange(1.0, 7)
    half = w * 0.5
    known = gram.error(half, gram.shift(half), counts, 0.25 * gram.power(w))
    np.testing.assert_allclose(known, gram.error(half, gram.shift(half), counts), rtol=1e-12)


@pytest.mark.parametrize(("x", "y", "groups"), [((3, 4), (2, 1), 1), ((3, 4), (3, 3), 2), ((3, 4), (3,), 1)])
def test_rows_that_do_not_pair_up_are_refused(x, y, groups):
    with pytest.raises(ValueError, match="do not pair up"):
        Gram.from_batch(np.zeros(x), np.zeros(y), groups)


# --- selection


def test_select_keeps_the_exact_count_among_ties_the_first_ones():
    mask = select(np.array([[1.0, 2.0, 1.0], [1.0, 3.0, 1.0]]), 4, np.ones((2, 3), bool))
    np.testing.assert_array_equal(mask, [[True, True, True], [False, True, False]])


def test_select_puts_the_protected_first_and_never_takes_the_disallowed():
    allowed = np.array([[False, True, True, True]])
    mask = select(np.array([[9.0, 1.0, 2.0, 3.0]]), 2, allowed, np.array([[False, True, False, False]]))
    np.testing.assert_array_equal(mask, [[False, True, False, True]])


@settings(deadline=None, max_examples=150)
@given(
    size=st.integers(1, 3000),
    sample=st.sampled_from([1, 7, 64, 1 << 14]),
    kinds=st.sampled_from([0, 1, 5]),
    order=st.sampled_from(["random", "rising", "waves"]),
    data=st.data(),
)
def test_the_number_at_a_place_is_that_of_the_sorted_ones(size, sample, kinds, order, data):
    """Whatever the sample tells: of few values, of many that are equal, in an order that has its period; infinite and left-out ones too."""
    values = np.random.default_rng(size).exponential(size=size)
    if kinds:
        values = np.floor(values * kinds)
    values[::5], values[::11] = -1.0, np.inf
    values = {"random": values, "rising": np.sort(values), "waves": np.sort(values).reshape(-1, 1)[:: 1 if size % 2 else -1].ravel()}[order]
    place = data.draw(st.integers(1, size))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(thinning, "SAMPLE", sample)
        assert thinning.largest(values, place) == np.sort(values)[size - place]


def test_a_sample_that_tells_nothing_is_not_believed(monkeypatch):
    monkeypatch.setattr(thinning, "SAMPLE", 64)
    values = np.tile([5.0, *range(16)], 64)  # of every seventeen the sample sees the first
    for place in (1, 300, 512, 1088):
        assert thinning.largest(values, place) == np.sort(values)[1088 - place]


def test_two_of_four_counts_along_the_channels_not_along_the_kernel():
    # four input channels, kernel of two: column 0 of the kernel is weights 0, 2, 4, 6
    score = np.array([[4.0, 1.0, 3.0, 2.0, 2.0, 3.0, 1.0, 4.0]])
    mask = best_of_each(score, np.ones((1, 8), bool), 2, 4, 2)
    np.testing.assert_array_equal(mask, [[True, False, True, False, False, True, False, True]])


@given(keep=st.integers(0, 300), extra=st.integers(0, 3000), factor=st.floats(1.1, 4.0), start=st.floats(1.0, 30.0))
def test_schedules_fall_to_the_asked_count(keep, extra, factor, start):
    size = keep + extra
    steps = schedule(keep, size, factor, start)
    assert steps[-1] == keep
    assert all(a > b for a, b in itertools.pairwise(steps))
    assert len(steps) == 1 or steps[0] < size
    assert steps[0] <= max(keep, start * keep + 0.5001)  # the nearest integer; a half may go up or down


def test_schedule_by_hand():
    assert schedule(10, 1000, 2.0, 8.0) == [80, 40, 20, 10]
    assert schedule(10, 50, 2.0, 8.0) == [29, 17, 10]  # 50 drops nothing; from there three steps of 5^(1/3) each


# --- solving


def test_solution_by_hand():
    # one channel, G = [[2, 1], [1, 2]], R = [3, 0], no pull: on {0} w = 3/2; on both w = (2, -1)
    G, rhs, lam = np.array([[[2.0, 1.0], [1.0, 2.0]]]), np.array([[3.0, 0.0]]), np.array([1e-12])
    np.testing.assert_allclose(solve_exact(G, rhs, lam, np.array([[True, False]])), [[1.5, 0.0]], rtol=1e-9)
    np.testing.assert_allclose(solve_exact(G, rhs, lam, np.array([[True, True]])), [[2.0, -1.0]], rtol=1e-9)


@pytest.mark.parametrize("groups", [1, 4])
def test_gradient_is_zero_on_the_support_and_weights_are_zero_off_it(groups):
    x, w0, y = correlated(200, 20, 12, groups)
    gram = Gram.from_batch(x, y, groups)
    mask = np.random.default_rng(1).random(w0.shape) < np.linspace(0.0, 1.0, 12)[:, None]  # all sizes, empty and full too
    weight = refit(gram, w0, mask, 1e-2)
    lam = np.repeat(1e-2 * np.einsum("gkk->g", gram.xx) / (200 * 20), 12 // groups)[:, None]
    w = weight.reshape(groups, -1, 20)
    gradient = ((w @ gram.xx - gram.xy.transpose(0, 2, 1)) / 200).reshape(w0.shape) + lam * (weight - w0)
    np.testing.assert_allclose(gradient[mask], 0, atol=1e-10 * np.abs(gradient).max())
    assert not weight[~mask].any()


def test_without_pull_it_is_lstsq_on_the_support():
    x, w0, y = correlated(100, 12, 5)
    mask = np.random.default_rng(2).random(w0.shape) < 0.5
    weight = refit(Gram.from_batch(x, y), w0, mask, 1e-12)
    for c in range(5):
        expected = np.linalg.lstsq(x[:, mask[c]] - x[:, mask[c]].mean(0), y[:, c] - y[:, c].mean(), rcond=None)[0]
        np.testing.assert_allclose(weight[c, mask[c]], expected, rtol=1e-6, atol=1e-8)


def test_a_large_pull_gives_the_dense_weights_back():
    x, w0, y = correlated(50, 6, 4)
    mask = np.arange(24).reshape(4, 6) % 2 == 0
    np.testing.assert_allclose(refit(Gram.from_batch(x, y * 0), w0, mask, 1e9), w0 * mask, rtol=1e-6, atol=1e-9)


def test_batches_of_unlike_sizes_give_what_one_channel_at_a_time_gives(monkeypatch):
    x, w0, y = correlated(300, 40, 30)
    gram, mask = Gram.from_batch(x, y), np.random.default_rng(3).random((30, 40)) < 0.6
    together = refit(gram, w0, mask, 1e-2)
    monkeypatch.setattr("onnxprune.numerics.stacks.ENTRIES", 1)
    np.testing.assert_allclose(refit(gram, w0, mask, 1e-2), together, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("groups", [1, 3])
def test_conjugate_gradients_reach_the_exact_solution(groups):
    x, w0, y = correlated(400, 30, 6, groups)
    gram = Gram.from_batch(x, y, groups)
    G = gram.xx / 400
    lam = 1e-2 * np.einsum("gkk->g", G) / 30
    rhs = (gram.xy / 400).transpose(0, 2, 1).reshape(6, 30) + np.repeat(lam, 6 // groups)[:, None] * w0
    mask = np.random.default_rng(4).random((6, 30)) < 0.7
    exact = solve_exact(G, rhs, lam, mask)
    iterated = solve_iterative(G.astype(np.float32), rhs, lam, mask, w0, iterations=80, tolerance=1e-6)
    np.testing.assert_allclose(iterated, exact, rtol=2e-3, atol=2e-3 * np.abs(exact).max())
    assert not iterated[~mask].any()


# --- the whole


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("keep", [0, 1, 7, 30, 71, 72])
def test_keeps_exactly_what_was_asked(groups, keep):
    x, w0, y = correlated(100, 12, 6, groups)
    result = reconstruct(Gram.from_batch(x, y, groups), None, w0, keep)
    assert result.mask.sum() == keep == result.steps[-1]
    assert not result.weight[~result.mask].any()


@settings(deadline=None, max_examples=25)
@given(keep=st.integers(1, 80), seed=st.integers(0, 1000))
def test_on_its_own_rows_never_worse_than_the_masked_dense_weights(keep, seed):
    x, w0, y = correlated(60, 10, 8, seed=seed)
    gram = Gram.from_batch(x, y)
    one_step = reconstruct(gram, None, w0, keep, ridges=(1e-10,), start=1.0)  # the same mask, re-solved
    assert one_step.error_after <= masked_error(gram, w0, keep) + 1e-9


def test_the_bias_makes_the_mean_the_dense_one():
    x, w0, y = correlated(80, 9, 4, groups=2)
    result = reconstruct(Gram.from_batch(x, y, 2), None, w0, 12)
    out = np.einsum("rgk,gck->rgc", x.reshape(80, 2, 9), result.weight.reshape(2, 2, 9)).reshape(80, 4) + result.shift
    np.testing.assert_allclose(out.mean(0), y.mean(0), atol=1e-9)


def test_thinning_finds_the_inputs_that_one_shot_magnitude_misses():
    # input 1 is a copy of input 0 up to a little noise: together 1.8, dense magnitudes .9 and .9; inputs 2 and 3 weigh 1 on a
    # tenth of the variance. One shot keeps 2 and 3; with a support of three on the way, the pair's weight collects in one of them.
    rng = np.random.default_rng(5)
    x = rng.standard_normal((500, 4)) * [1.0, 1.0, 0.3, 0.3]
    x[:, 1] = x[:, 0]
    w0 = np.array([[0.9, 0.9, 1.0, 0.95]])
    gram = Gram.from_batch(x, x @ w0.T)
    shot = reconstruct(gram, None, w0, 2, start=1.0)
    thinned = reconstruct(gram, None, w0, 2, factor=1.3, start=2.0)
    np.testing.assert_array_equal(shot.mask, [[False, False, True, True]])
    assert thinned.mask[0, :2].any()
    assert thinned.error_after < 0.1 * shot.error_after


@pytest.mark.parametrize("kernel", [1, 9])
def test_two_of_four_holds_exactly_in_every_block(kernel):
    x, w0, y = correlated(120, 8 * kernel, 6)
    gram = Gram.from_batch(x, y)
    result = reconstruct(gram, None, w0, w0.size // 2, pattern=(2, 4, kernel))
    np.testing.assert_array_equal(result.mask.reshape(6, 2, 4, kernel).sum(2), 2)
    masked = w0 * best_of_each(np.abs(w0), np.ones(w0.shape, bool), 2, 4, kernel)
    assert result.error_after < gram.error(masked, gram.shift(masked))
    assert len(result.steps) > 1


def test_held_rows_choose_the_ridge_and_all_rows_the_support_and_the_weights():
    x, w0, y = correlated(30, 24, 8)  # about as many rows as weights: without a pull it overfits
    noise = np.random.default_rng(6).standard_normal((30, 8)) * 5
    fit, (hx, _, hy) = Gram.from_batch(x, y + noise), correlated(400, 24, 8)
    held = Gram.from_batch(hx, hx @ w0.T + hy.mean(0) * 0)
    whole, trials = fit.merge(held), (1e-6, 1e-2, 1.0)
    result = reconstruct(whole, (fit, held), w0, 150, ridges=trials)
    errors = {r: held.error(w, fit.shift(w)) for r in trials for w in (refit(fit, w0, result.mask, r),)}
    assert result.ridge == min(trials, key=errors.__getitem__) > 1e-6
    np.testing.assert_allclose(result.error_after, errors[result.ridge], rtol=1e-9)
    np.testing.assert_allclose(result.blind, refit(fit, w0, result.mask, result.ridge), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(result.weight, refit(whole, w0, result.mask, result.ridge), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(result.shift, whole.shift(result.weight), rtol=1e-12)
    np.testing.assert_array_equal(result.mask, reconstruct(whole, None, w0, 150, ridges=(1e-2,)).mask)


def test_the_ridge_in_the_middle_needs_no_second_solution_on_all_rows():
    """The support is chosen with it, and where it is the best, the weights that came with the support are the solution."""
    x, w0, y = correlated(300, 24, 8)
    fit, held = Gram.from_batch(x[:200], y[:200]), Gram.from_batch(x[200:], y[200:])
    whole = fit.merge(held)
    result = reconstruct(whole, (fit, held), w0, 150, ridges=(1e-4, 1e-2, 10.0))
    for ridge in (1e-4, 1e-2, 10.0):
        alone = reconstruct(whole, (fit, held), w0, 150, ridges=(ridge,))
        np.testing.assert_allclose(alone.weight, refit(whole, w0, alone.mask, ridge), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(result.weight, refit(whole, w0, result.mask, result.ridge), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("held_out", "part"), [(40, "first"), (60, "all")])
def test_rows_held_out_have_a_part_in_the_support_where_they_are_many(held_out, part):
    """Of 300 rows more than 50: a sixth."""
    x, w0, y = correlated(300, 24, 8)
    fit, held = (Gram.from_batch(x[rows], y[rows]) for rows in (slice(held_out, None), slice(held_out)))
    whole = fit.merge(held)
    result = reconstruct(whole, (fit, held), w0, 60)
    supports = {"first": fit, "all": whole}
    masks = {name: reconstruct(rows, None, w0, 60, ridges=(1e-2,)).mask for name, rows in supports.items()}
    assert not np.array_equal(*masks.values())
    np.testing.assert_array_equal(result.mask, masks[part])
    np.testing.assert_allclose(result.weight, refit(whole, w0, result.mask, 1e-2), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(result.blind, refit(fit, w0, result.mask, 1e-2), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("rows", "few"), [(20, True), (60, False)])
def test_rows_that_nothing_has_seen(rows, few):
    """With fewer rows than inputs the support is that of the first part alone, and the error that of a solution which saw no other."""
    x, w0, y = correlated(rows + 20, 24, 8)
    fit, held = Gram.from_batch(x[:rows], y[:rows]), Gram.from_batch(x[rows:], y[rows:])
    whole = fit.merge(held)
    result = reconstruct(whole, (fit, held), w0, 60, unseen=True)
    alone = reconstruct(fit, None, w0, 60, ridges=(1.0,))
    seen = reconstruct(whole, (fit, held), w0, 60)
    assert np.array_equal(result.mask, alone.mask) == few
    assert np.array_equal(result.mask, seen.mask) != few
    assert result.ridge in ((0.1, 1.0, 10.0) if few else (0.01, 0.03, 0.1))
    blind = refit(fit, w0, result.mask, result.ridge)
    np.testing.assert_allclose(result.blind, blind, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(result.error_after, held.error(blind, fit.shift(blind)), rtol=1e-9)
    np.testing.assert_allclose(result.weight, refit(whole, w0, result.mask, result.ridge), rtol=1e-9, atol=1e-12)
    if few:
        assert result.error_after > seen.error_after  # which is flattered: its support saw the rows


def test_the_curve_is_the_error_on_the_solved_rows_and_rises_as_the_support_falls():
    x, w0, y = correlated(200, 30, 12, groups=3)
    gram = Gram.from_batch(x, y, 3)
    result = reconstruct(gram, None, w0, 20)
    assert len(result.curve) == len(result.steps) > 3
    assert all(a < b for a, b in itertools.pairwise(result.curve))
    np.testing.assert_allclose(result.curve[-1], gram.error(result.weight, result.shift), rtol=1e-9)


# --- corners


def test_inputs_that_never_vary_are_dropped_first():
    x, w0, y = correlated(60, 6, 3)
    x[:, 2] = 4.0
    w0[:, 2] = 100.0
    result = reconstruct(Gram.from_batch(x, y), None, w0, 9)
    assert not result.mask[:, 2].any()
    assert np.isfinite(result.weight).all()


def test_a_layer_with_dead_inputs_only_still_gets_the_dense_mean():
    y = np.random.default_rng(7).standard_normal((20, 2)) + 5
    result = reconstruct(Gram.from_batch(np.zeros((20, 3)), y), None, np.ones((2, 3)), 4)
    assert result.mask.sum() == 4
    np.testing.assert_allclose(result.shift, y.mean(0))
    np.testing.assert_allclose(result.error_after, 1.0)


def test_outputs_that_never_vary_have_no_error_when_met():
    gram = Gram.from_batch(np.zeros((5, 2)), np.full((5, 1), 3.0))
    assert reconstruct(gram, None, np.ones((1, 2)), 1).error_after == 0


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_fewer_rows_than_inputs(rows):
    x, w0, y = correlated(rows, 16, 4)
    result = reconstruct(Gram.from_batch(x, y), None, w0, 40)
    assert result.mask.sum() == 40
    assert np.isfinite(result.weight).all()
    assert np.isfinite(result.shift).all()


def test_one_input_one_output():
    x = np.array([[1.0], [2.0], [4.0]])
    result = reconstruct(Gram.from_batch(x, 3 * x + 1), None, np.array([[3.0]]), 1)
    np.testing.assert_allclose(result.weight, [[3.0]])
    np.testing.assert_allclose(result.shift, [1.0])


def test_keeping_everything_restores_the_dense_layer():
    x, w0, _ = correlated(200, 8, 5)
    result = reconstruct(Gram.from_batch(x, x @ w0.T), None, w0, w0.size)
    np.testing.assert_allclose(result.weight, w0, rtol=1e-9)
    assert result.steps == (40,)


def test_depthwise_layers_are_solved_channel_by_channel_and_share_one_budget():
    x, w0, y = correlated(150, 9, 16, groups=16)
    w0[8:] *= 10
    y[:, 8:] *= 10
    gram = Gram.from_batch(x, y, 16)
    result = reconstruct(gram, None, w0, 60)
    assert result.mask[8:].sum() > result.mask[:8].sum()
    assert result.error_after < masked_error(gram, w0, 60)


@pytest.mark.parametrize(
    "options",
    [{"keep": 25}, {"keep": -1}, {"ridges": ()}, {"ridges": (0.0,)}, {"factor": 1.0}, {"start": 0.5}, {"pattern": (2, 4, 1)}],
)
def test_senseless_options_are_refused(options):
    x, w0, y = correlated(10, 6, 4)
    with pytest.raises(ValueError, match=r"keep|want|pattern"):
        reconstruct(Gram.from_batch(x, y), None, w0, **{"keep": 12, **options})


def test_the_same_input_gives_the_same_bytes():
    x, w0, y = correlated(100, 30, 10)
    first, again = (thin(g.xx, g.xy, w0, np.array([0.1]), [150, 60]) for g in [Gram.from_batch(x, y)] * 2)
    assert first[1].tobytes() == again[1].tobytes()


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.2, 0.3, 1.0])
def test_the_power_of_a_weight_is_that_of_its_outputs(groups, share):
    """Few weights meet few entries of the Gram matrix, which are gathered; many take a product with all of it."""
    rng = np.random.default_rng(3)
    x, weight = rng.standard_normal((50, groups * 20)) + 2, rng.standard_normal((6, 20))
    weight.reshape(-1)[rng.permutation(120)[round(share * 120) :]] = 0
    gram = Gram.from_batch(x, rng.standard_normal((50, 6)), groups)
    blocks = (x - x.mean(0)).reshape(50, groups, 20)
    outputs = np.einsum("rgk,gck->rgc", blocks, weight.reshape(groups, -1, 20)).reshape(50, 6)
    np.testing.assert_allclose(gram.power(weight), (outputs**2).sum(0), rtol=1e-10, atol=1e-12)


def test_rows_come_in_products_of_a_few_thousand(monkeypatch):
    """The buffers are used again for every product, the last of fewer rows."""
    rng = np.random.default_rng(4)
    x, y = rng.standard_normal((103, 7)), rng.standard_normal((103, 2))
    whole = Gram.from_batch(x, y)
    monkeypatch.setattr("onnxprune.numerics.gram.ROWS", 20)
    parts = Gram.from_batch(x, y)
    for one, other in ((whole.xx, parts.xx), (whole.xy, parts.xy), (whole.yy, parts.yy)):
        np.testing.assert_allclose(one, other, rtol=1e-12)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("where", ["x", "y", "product"])
def test_what_overflows_is_seen(where, groups):
    """The squares of 4e18 and their sums do not overflow float32, those of 3e19 do; a product of x and y may do alone."""
    rng = np.random.default_rng(5)
    x, y = (rng.choice([-1.0, 1.0], (4, 4)).astype(np.float32) for _ in range(2))
    assert Gram.from_batch(4e18 * x, y, groups).finite
    scale = {"x": (3e19, 1.0), "y": (1.0, np.inf), "product": (4e18, 1e20)}[where]
    with np.errstate(over="ignore", invalid="ignore"):
        found = Gram.from_batch(np.float32(scale[0]) * x, np.float32(scale[1]) * y, groups)
    assert not found.finite
    assert not all(np.isfinite(part).all() for part in (found.xx, found.xy, found.yy))
