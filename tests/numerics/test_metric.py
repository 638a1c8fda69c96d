"""Least squares of all channels together, against a direct solution of all their equations."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxprune.numerics.gram import Gram, ridge_of
from onnxprune.numerics.metric import OWN, normalised, refine
from onnxprune.numerics.reconstruct import refit

Floats = NDArray[np.float64]


def problem(seed: int = 0, C: int = 5, K: int = 7) -> tuple[Gram, Floats, NDArray[np.bool_], Floats]:
    """Moments of rows, dense weights, a support of half of them, and a metric far from diagonal."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(K, K))
    x = rng.normal(size=(200, K)) @ mix
    w0 = rng.normal(size=(C, K))
    y = x @ w0.T + 0.3 * rng.normal(size=(200, C))
    reads = rng.normal(size=(2, C))
    metric = normalised(reads.T @ reads)
    assert metric is not None
    return Gram.from_batch(x, y), w0, rng.random((C, K)) < 0.5, metric


def objective(gram: Gram, metric: Floats, w0: Floats, lam: float, weight: Floats) -> float:
    """E[e' M e] of the rows' errors e, less that of no weights at all, and what drawing the weights to the dense ones adds."""
    G, R = gram.xx[0] / gram.count, gram.xy[0].T / gram.count
    fit = np.einsum("cd,ck,dk->", metric, weight, weight @ G) - 2 * np.einsum("cd,ck,dk->", metric, weight, R)
    return float(fit + lam * (np.diag(metric)[:, None] * (weight - w0) ** 2).sum())


@pytest.mark.parametrize("seed", range(5))
def test_many_iterations_come_to_the_solution_of_all_equations(seed: int) -> None:
    gram, w0, mask, metric = problem(seed)
    lam = float(ridge_of(gram, 1e-2)[0])
    G, R = gram.xx[0] / gram.count, gram.xy[0].T / gram.count
    own = np.diag(np.repeat(np.diag(metric), len(G)))
    on = np.flatnonzero(mask.ravel())
    system = (np.kron(metric, G) + lam * own)[np.ix_(on, on)]
    wanted = np.zeros(mask.shape)
    wanted[mask] = np.linalg.solve(system, ((metric @ R).ravel() + lam * own @ w0.ravel())[on])
    start = refit(gram, w0, mask, 1e-2)
    found = refine(gram, w0, mask, 1e-2, metric, start, iterations=200)
    np.testing.assert_allclose(found, wanted, rtol=2e-3, atol=2e-3)  # the products are float32, and the condition is 1e3 and more
    assert not found[~mask].any()


@pytest.mark.parametrize("seed", range(5))
def test_every_iteration_lowers_the_error_that_counts(seed: int) -> None:
    gram, w0, mask, metric = problem(seed)
    lam = float(ridge_of(gram, 1e-2)[0])
    start = refit(gram, w0, mask, 1e-2)
    errors = [objective(gram, metric, w0, lam, refine(gram, w0, mask, 1e-2, metric, start, iterations=count)) for count in range(6)]
    assert errors[0] == pytest.approx(objective(gram, metric, w0, lam, start))
    assert all(after < before for before, after in itertools.pairwise(errors))


def test_without_anything_in_common_nothing_changes() -> None:
    """With a diagonal metric the channels' own solutions are the solution."""
    gram, w0, mask, metric = problem()
    start = refit(gram, w0, mask, 1e-2)
    np.testing.assert_allclose(refine(gram, w0, mask, 1e-2, np.diag(np.diag(metric)), start), start, rtol=1e-5, atol=1e-5)


def test_a_channel_that_nobody_reads_is_no_harm() -> None:
    gram, w0, mask, _ = problem()
    reads = np.ones((1, len(w0)))
    reads[0, 2] = 0
    metric = normalised(reads.T @ reads)
    assert metric is not None
    start = refit(gram, w0, mask, 1e-2)
    found = refine(gram, w0, mask, 1e-2, metric, start)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[2], start[2], rtol=1e-4)


def test_a_metric_has_mean_diagonal_one_and_its_own_share() -> None:
    moments = np.array([[3.0, 2.0], [2.0, 1.0]])
    np.testing.assert_allclose(normalised(moments), [[1.5, (1 - OWN) * 1.0], [(1 - OWN) * 1.0, 0.5]])
    assert normalised(np.zeros((2, 2))) is None
    assert normalised(np.array([[1.0, np.nan], [np.nan, 1.0]])) is None
