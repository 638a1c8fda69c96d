"""Least squares of all channels together, against a direct solution of all their equations, and the supports that they choose."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import onnxprune.numerics.reconstruct as reconstruction
from onnxprune.numerics import elimination, stacks, supports, together
from onnxprune.numerics.elimination import alike, eliminate
from onnxprune.numerics.gram import Gram
from onnxprune.numerics.metric import Metric
from onnxprune.numerics.problem import Problem, problem_of
from onnxprune.numerics.reconstruct import reconstruct, refit
from onnxprune.numerics.stacks import Stack
from onnxprune.numerics.supports import BEFORE, above, fits, schedule, sizes_of, together_of
from onnxprune.numerics.together import solve_together, thin_together

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
RIDGE = 1e-2


def gram_of(seed: int, C: int, K: int) -> tuple[Gram, Floats]:
    """Moments of rows whose inputs have much in common, and the dense weights."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(200, K)) @ rng.normal(size=(K, K))
    w0 = rng.normal(size=(C, K))
    return Gram.from_batch(x, x @ w0.T + 0.3 * rng.normal(size=(200, C))), w0


def setting(seed: int, C: int = 5, K: int = 7, along: int = 2) -> tuple[Problem, Bools]:
    """A problem with a metric far from diagonal, and a support of half of the weights."""
    rng = np.random.default_rng(seed + 100)
    gram, w0 = gram_of(seed, C, K)
    metric = Metric(rng.uniform(0.2, 1.0, C), rng.normal(size=(C, along)))
    return problem_of(gram, w0, RIDGE, metric), rng.random((C, K)) < 0.5


def metric_in(problem: Problem) -> Floats:
    return np.asarray(np.diag(problem.metric.own) + problem.metric.along @ problem.metric.along.T)


def solution(problem: Problem, mask: Bools) -> Floats:
    """The slow oracle: one system of all weights of the support."""
    M, G = metric_in(problem), problem.G / problem.rows
    own = problem.lam * np.diag(np.repeat(np.diag(M), len(G)))
    on = np.flatnonzero(mask.ravel())
    made = np.zeros(mask.shape)
    made[mask] = np.linalg.solve((np.kron(M, G) + own)[np.ix_(on, on)], ((M @ problem.R).ravel() + own @ problem.w0.ravel())[on])
    return made


def objective(problem: Problem, weight: Floats) -> float:
    """E[e' M e] of the rows' errors e, less that of no weights at all, and what drawing the weights to the dense ones adds."""
    M, G = metric_in(problem), problem.G / problem.rows
    fit = np.einsum("cd,ck,dk->", M, weight, weight @ G) - 2 * np.einsum("cd,ck,dk->", M, weight, problem.R)
    return float(fit + problem.lam * (np.diag(M)[:, None] * (weight - problem.w0) ** 2).sum())


@pytest.fixture(params=["inverses", "diagonal"])
def iterated(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets the iterations of both ways of preconditioning, one of which is taken."""
    if request.param == "diagonal":
        monkeypatch.setattr(together, "fits", lambda counts: False)

    def set_to(count: int) -> None:
        for name in ("LAST", "PLAIN"):
            monkeypatch.setattr(together, name, count)

    return set_to


@pytest.mark.parametrize("seed", range(5))
def test_many_iterations_come_to_the_solution_of_all_equations(seed: int, iterated: Callable[[int], None]) -> None:
    problem, mask = setting(seed)
    iterated(200)
    found, _ = solve_together(problem, mask, np.zeros(mask.shape))
    np.testing.assert_allclose(found, solution(problem, mask), rtol=2e-3, atol=2e-3)  # float32 products, a condition of 1e3 and more
    assert not found[~mask].any()


@pytest.mark.parametrize("seed", range(5))
def test_every_iteration_lowers_the_error_that_counts(seed: int, iterated: Callable[[int], None]) -> None:
    problem, mask = setting(seed)
    start = np.where(mask, problem.w0, 0.0)
    errors = []
    for count in range(6):
        iterated(count)
        errors.append(objective(problem, solve_together(problem, mask, start)[0]))
    assert errors[0] == pytest.approx(objective(problem, start))
    assert all(after < before for before, after in itertools.pairwise(errors))


def test_few_iterations_are_enough_with_the_channels_own_inverses() -> None:
    """As many as the metric has directions, and one, where the inputs are alike to all channels."""
    gram, w0 = gram_of(0, 6, 8)
    problem = problem_of(gram, w0, RIDGE, Metric(np.full(6, 0.5), np.random.default_rng(0).normal(size=(6, 1))))
    found, _ = solve_together(problem, np.ones((6, 8), np.bool_), np.zeros((6, 8)))
    np.testing.assert_allclose(found, solution(problem, np.ones((6, 8), np.bool_)), atol=1e-3)


def test_without_anything_in_common_the_channels_own_solutions_come_out(iterated: Callable[[int], None]) -> None:
    gram, w0 = gram_of(3, 5, 7)
    mask = np.random.default_rng(3).random((5, 7)) < 0.5
    iterated(60)
    problem = problem_of(gram, w0, RIDGE, Metric(np.array([0.1, 1, 2, 0.5, 1]), np.zeros((5, 0))))
    found, _ = solve_together(problem, mask, w0)
    np.testing.assert_allclose(found, refit(gram, w0, mask, RIDGE), rtol=1e-3, atol=1e-3)


def in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no matrix be inverted in float32."""

    def inverse(A: NDArray[Any]) -> NDArray[Any]:
        if A.dtype == np.float32:
            raise np.linalg.LinAlgError
        return elimination.inverse(A)

    monkeypatch.setattr(together, "inverse", inverse)


PRECISIONS = pytest.mark.parametrize(("doubles", "within"), [(True, 1.0), (False, 1e4)])
"""In float64, and in float32 with bounds so many times as wide: inverses of matrices of a condition of 1e3 and more."""


@PRECISIONS
def test_the_next_solve_goes_on_where_the_last_one_stopped(doubles: bool, within: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what is settled, other targets on the same support take no new inverses, and give what a solve of their own gives."""
    problem, mask = setting(1)
    if doubles:
        in_float64(monkeypatch)
    start, settled = solve_together(problem, mask, np.zeros(mask.shape))
    assert settled is not None
    other = Problem(problem.G, problem.R + 0.1, problem.w0, problem.lam, problem.rows, problem.metric)
    fresh, _ = solve_together(other, mask, start)
    again, after = solve_together(other, mask, np.full(mask.shape, np.nan), settled)
    np.testing.assert_allclose(again, fresh, rtol=within * 1e-9, atol=within * 1e-9)
    assert after is not None and {stack.matrices.dtype for stack in after.stacks} == {np.dtype(np.float64 if doubles else np.float32)}
    seen = again @ problem.G / problem.rows
    np.testing.assert_allclose(after.seen, seen[mask], atol=within * 1e-9)
    np.testing.assert_allclose(after.power(mask.shape), (again * seen).sum(1), rtol=within * 1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_with_nothing_in_common_elimination_chooses_the_same(seed: int) -> None:
    """One weight at a time, in units in which all channels count alike."""
    gram, w0 = gram_of(seed, 5, 7)
    counts = np.random.default_rng(seed).uniform(0.1, 2, 5)
    mask = np.random.default_rng(seed + 1).random((5, 7)) < 0.8
    sizes = list(range(int(mask.sum()) - 1, 9, -1))
    problem = problem_of(gram, w0, RIDGE, Metric(counts, np.zeros((5, 0))))
    found, weight, alone, explained = thin_together(problem, mask, sizes)
    unit = np.sqrt(counts)[:, None]
    rhs = unit * (problem.R + problem.lam * w0)
    wanted, solved, _ = eliminate(gram.xx, rhs, np.array([problem.lam]), mask, np.ones(mask.shape, np.bool_), sizes, gram.count)
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_allclose(unit * weight, solved, rtol=1e-4, atol=1e-4)  # in float32, a condition of 1e3 and more
    np.testing.assert_allclose(unit * alone, solved, rtol=1e-4, atol=1e-4)
    assert len(explained) == len(sizes) + 1
    for told, at in ((explained[0], refit(gram, w0, mask, RIDGE)), (explained[-1], weight)):
        np.testing.assert_allclose(told, (2 * problem.R * at - at * (at @ problem.G / problem.rows)).sum(1), rtol=1e-5)


def test_a_stack_of_which_nothing_is_left_is_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights of a channel that hardly counts go first, and others after them."""
    monkeypatch.setattr(stacks, "ENTRIES", 1)
    gram, w0 = gram_of(3, 5, 7)
    problem = problem_of(gram, w0, RIDGE, Metric(np.array([1, 1, 1e-9, 1, 1]), np.zeros((5, 0))))
    mask, weight, alone, _ = thin_together(problem, np.ones((5, 7), np.bool_), [28, 20, 12])
    assert mask.sum() == 12 and not mask[2].any()
    np.testing.assert_allclose(weight, refit(gram, w0, mask, RIDGE), rtol=1e-3, atol=1e-3)  # in float32
    np.testing.assert_allclose(alone, refit(gram, w0, mask, RIDGE), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("single", ["has no factor", "overflows"])
def test_where_float32_is_not_enough_they_choose_in_float64(single: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gram, w0 = gram_of(0, 5, 7)
    mask = np.random.default_rng(1).random((5, 7)) < 0.8
    sizes = list(range(int(mask.sum()) - 1, 9, -1))

    def inverse(A: NDArray[Any]) -> NDArray[Any]:
        if A.dtype == np.float32 and single == "has no factor":
            raise np.linalg.LinAlgError
        return elimination.inverse(A) if A.dtype == np.float64 else np.full(A.shape, np.inf, np.float32)

    monkeypatch.setattr(together, "inverse", inverse)
    problem = problem_of(gram, w0, RIDGE, Metric(np.ones(5), np.zeros((5, 0))))
    found, weight, alone, _ = thin_together(problem, mask, sizes)
    rhs = problem.R + problem.lam * w0
    wanted, solved, _ = eliminate(gram.xx, rhs, np.array([problem.lam]), mask, np.ones(mask.shape, np.bool_), sizes, gram.count)
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_allclose(weight, solved, rtol=1e-7, atol=1e-7)  # float64 throughout, but for products by no directions
    np.testing.assert_allclose(alone, solved, rtol=1e-9, atol=1e-9)


def test_where_float32_is_not_enough_weights_are_solved_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where matrices have no factor, where they overflow, and where what was settled before does."""
    problem, mask = setting(2)
    start = np.where(mask, problem.w0, 0.0)
    _, single = solve_together(problem, mask, start)
    assert single is not None and single.stacks[0].matrices.dtype == np.float32
    infinite = [Stack(np.full_like(stack.matrices, np.inf), stack.slots) for stack in single.stacks]
    found = [solve_together(problem, mask, start, dataclasses.replace(single, stacks=infinite))]
    with monkeypatch.context() as patched:
        in_float64(patched)
        found.append(solve_together(problem, mask, start))
    with monkeypatch.context() as patched:
        large = lambda A: elimination.inverse(A) if A.dtype == np.float64 else np.full(A.shape, np.inf, np.float32)  # noqa: E731
        patched.setattr(together, "inverse", large)
        found.append(solve_together(problem, mask, start))
    for weight, settled in found:
        assert settled is not None and settled.stacks[0].matrices.dtype == np.float64
        np.testing.assert_array_equal(weight, found[0][0])


def test_what_has_seen_no_held_out_rows_are_the_channels_own_solutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the rows to solve on, with the ridge that is best on the others; those of the first ridge are not solved for anew."""
    rng = np.random.default_rng(3)
    x, w0 = rng.normal(size=(300, 30)) @ rng.normal(size=(30, 30)), rng.normal(size=(8, 30))
    y = x @ w0.T + 0.3 * rng.normal(size=(300, 8))
    fit, held = Gram.from_batch(x[:240], y[:240]), Gram.from_batch(x[240:], y[240:])
    metric = Metric(np.full(8, 0.5), rng.normal(size=(8, 2)) / 2)
    monkeypatch.setattr(reconstruction, "FEW_HELD", 4)
    solved = []
    monkeypatch.setattr(reconstruction, "refit", lambda *given: solved.append(given[3]) or refit(*given))
    for ridges, anew in (([0.01], []), ([0.01, 0.03, 0.1], [0.01, 0.1])):
        solved.clear()
        found = reconstruct(fit.merge(held), (fit, held), w0, 60, metric=metric, ridges=ridges)
        np.testing.assert_allclose(found.blind, refit(fit, w0, found.mask, found.ridge), rtol=1e-3, atol=1e-3)  # made in float32
        assert solved == anew


@pytest.mark.parametrize("near", [True, False])
def test_every_size_on_the_way_has_its_error(near: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where magnitude leaves what the channels begin to choose from, and nothing is solved in between."""
    monkeypatch.setattr(supports, "WORTH", 1.2 if near else 100.0)
    gram, w0 = gram_of(0, 12, 40)
    metric = Metric(np.full(12, 0.5), np.random.default_rng(0).normal(size=(12, 2)) / 2)
    found = reconstruct(gram, None, w0, 50, metric=metric)
    assert found.steps[-6:] == tuple(together_of(50, 12, 40))
    assert found.steps[:-6] == (tuple(schedule(80, 320, 1.1, 4.0)[:-1]) if near else (400, 234, 137))
    assert len(found.curve) == len(found.steps)
    assert list(found.curve) == sorted(found.curve)


def test_what_is_left_out_first_costs_least_by_a_slow_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one weight whose loss, the others of its channel making up for it, raises the error least."""
    problem, mask = setting(2)
    start = solution(problem, mask)
    monkeypatch.setattr(together, "BETWEEN", 60)
    found, _, _, _ = thin_together(problem, mask, [int(mask.sum()) - 1])
    G, counts = problem.G / problem.rows + problem.lam * np.eye(mask.shape[1]), problem.metric.counts
    costs = {}
    for c, k in np.argwhere(mask):
        on = np.flatnonzero(mask[c])
        inner = np.linalg.inv(G[np.ix_(on, on)])
        costs[c, k] = counts[c] * start[c, k] ** 2 / inner[list(on).index(k), list(on).index(k)]
    assert tuple(np.argwhere(mask & ~found)[0]) == min(costs, key=lambda place: costs[place])


def test_chosen_together_the_supports_err_less() -> None:
    """Than those that each channel's own errors choose, solved together afterwards; summed over problems."""
    ours, theirs = 0.0, 0.0
    for seed in range(8):
        problem, _ = setting(seed, 12, 20, 3)
        everything = np.ones((12, 20), np.bool_)
        sizes = [200, 170, 145, 120, 100, 85, 72, 60]
        mask, weight, _, _ = thin_together(problem, everything, sizes)
        assert mask.sum() == 60
        unit = np.sqrt(problem.metric.counts)[:, None]
        rhs = unit * (problem.R + problem.lam * problem.w0)
        other, _, _ = eliminate(problem.G[None], rhs, np.array([problem.lam]), everything, everything, sizes, problem.rows)
        nothing = float(np.einsum("cd,ck,dk->", metric_in(problem), problem.w0, problem.w0 @ problem.G / problem.rows))
        ours += 1 + objective(problem, weight) / nothing
        theirs += 1 + objective(problem, solution(problem, other)) / nothing
    assert ours < 0.9 * theirs


def test_inputs_that_never_vary_go_first() -> None:
    gram, w0 = gram_of(0, 4, 6)
    gram.xx[0, 2], gram.xx[0, :, 2], gram.xy[0, 2] = 0, 0, 0
    problem = problem_of(gram, 50 * w0, RIDGE, Metric(np.ones(4), np.ones((4, 1))))
    mask, weight, _, _ = thin_together(problem, np.ones((4, 6), np.bool_), [20])
    assert not mask[:, 2].any()
    assert np.isfinite(weight).all()


def test_channels_without_weights_are_no_harm() -> None:
    problem, mask = setting(4)
    mask[2] = False
    found, _ = solve_together(problem, mask, problem.w0)
    np.testing.assert_allclose(found, solution(problem, mask), atol=0.3 * np.abs(found).max())
    kept, weight, _, _ = thin_together(problem, mask, [3, 0])
    assert not kept.any()
    assert not weight.any()


def test_sizes_at_which_channels_are_solved_together() -> None:
    assert together_of(1000, 10, 1000) == [1600, 1456, 1326, 1207, 1099, 1000]  # the fifth root of 1.6 is 1.099
    assert together_of(512 * 80, 512, 4608) == [65536, 56032, 47907, 40960]  # the third root is 1.1696: a product with G is dear
    assert together_of(64 * 260, 64, 576) == [24858, 21745, 19022, 16640]  # 64 inverses of 388 weights take 15 Gflop
    assert len(together_of(64 * 160, 64, 576)) == 6  # of 256 weights, 4.3 Gflop
    assert together_of(9900, 10, 1000) == [9900]  # nearly everything is kept
    assert together_of(0, 10, 1000) == [0]
    assert together_of(512 * 230, 512, 4608) == [512 * 230]  # too much to be inverted
    assert fits(np.full(512, 100))
    assert not fits(np.full(512, 230))


def test_magnitude_begins_nearer_where_products_are_dear() -> None:
    """A product of 512 x 4,608 weights with G takes 22 Gflop, one of 64 x 576 takes 42 Mflop."""
    assert (above(512, 4608), above(64, 576)) == (4.0, 8.0)
    assert above(1250, 1414) == 8.0  # 2 C K^2 is 4.998e9
    assert above(1250, 1415) == 4.0


def test_elimination_before_that_is_short() -> None:
    """By default 4 n^3 flops a channel are enough for 194 weights in each of 512, here for 134."""
    assert sizes_of(512 * 120, 512, 4608, 4.0, 2.0, 1.1)[1]
    assert sizes_of(512 * 120, 512, 4608, 4.0, 2.0, 1.1, BEFORE) == (schedule(512 * 120, 512 * 4608, 2.0, 4.0), [])
    assert sizes_of(64 * 20, 64, 576, 4.0, 2.0, 1.1, BEFORE) == sizes_of(64 * 20, 64, 576, 4.0, 2.0, 1.1)


def test_matrices_of_like_size_are_inverted_in_one_go() -> None:
    """The largest first, as many as have so many entries once filled up; a channel without weights is in none."""
    assert alike(np.array([3, 0, 4, 2, 9, 4]), 32) == [[4], [2, 5], [0, 3]]
    assert alike(np.zeros(3, np.intp), 32) == []


@PRECISIONS
@pytest.mark.parametrize("entries", [1, 40_000])
def test_how_many_are_inverted_in_one_go_changes_nothing(
    entries: int, doubles: bool, within: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for rounding: they are filled up to the largest with what they have nothing in common with."""
    problem, mask = setting(3, 9, 130)
    mask[2] = False
    if doubles:
        in_float64(monkeypatch)
    wanted, _ = solve_together(problem, mask, problem.w0)
    monkeypatch.setattr(stacks, "ENTRIES", entries)
    found, _ = solve_together(problem, mask, problem.w0)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=min(within * 1e-6, 1e-4) * np.abs(wanted).max())
