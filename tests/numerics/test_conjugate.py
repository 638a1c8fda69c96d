"""How near conjugate gradients come, and which channels they leave out; test_reconstruct.py holds them against the exact solution."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxprune.numerics import conjugate
from onnxprune.numerics.conjugate import FIRST, solve_iterative
from onnxprune.numerics.thinning import solve_exact

Problem = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]


def problem(groups: int = 1, channels: int = 12, inputs: int = 30, seed: int = 4) -> Problem:
    """G, the right side, lam and supports, of correlated inputs."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(groups, inputs, inputs)) * np.geomspace(1, 0.05, inputs)
    G = np.einsum("gik,gjk->gij", mix, mix)
    lam = 1e-2 * np.einsum("gkk->g", G) / inputs
    return G, rng.normal(size=(channels, inputs)), lam, rng.random((channels, inputs)) < 0.7


def residuals(given: Problem, weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """For every channel, the norm of what is left on its support over that of the right side, in the scale of the diagonal."""
    G, rhs, lam, mask = given
    left = []
    for c, (w, b, m) in enumerate(zip(weight, rhs, mask, strict=True)):
        g = c // (len(mask) // len(G))
        A = G[g] + lam[g] * np.eye(len(w))
        scale = np.diag(A)[m]
        r = (b - A @ w)[m]
        left.append(np.sqrt((r**2 / scale).sum() / (b[m] ** 2 / scale).sum()))
    return np.array(left)


@pytest.mark.parametrize("tolerance", [1e-1, 1e-2, 1e-3])
def test_every_channel_comes_as_near_as_asked(tolerance: float) -> None:
    given = problem(channels=40)
    G, rhs, lam, mask = given
    found = solve_iterative(G.astype(np.float32), rhs, lam, mask, np.zeros(mask.shape), iterations=200, tolerance=tolerance)
    assert residuals(given, found).max() <= 1.05 * tolerance  # the residual is carried along in float32, not computed anew


class Watched(np.ndarray):
    """A matrix that knows how many rows it was multiplied with from the left, product by product."""

    rows: list[int]

    def __array_finalize__(self, source: object) -> None:
        self.rows = getattr(source, "rows", [])

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *given: Any, **more: Any) -> Any:
        if ufunc is np.matmul:
            self.rows.append(given[0].shape[1])
        return getattr(ufunc, method)(*(np.asarray(value) for value in given), **more)


def test_channels_that_are_there_are_left_out_and_stay() -> None:
    """Half of the channels begin at their solutions: products go on with the other half alone, and give what all of them give."""
    given = G, rhs, lam, mask = problem(channels=40)
    start = np.where(np.arange(40)[:, None] % 2 == 0, solve_exact(G, rhs, lam, mask), 0.0)
    watched = G.astype(np.float32).view(Watched)
    found = solve_iterative(watched, rhs, lam, mask, start, iterations=200, tolerance=1e-4)
    rows = watched.rows
    assert rows[: 1 + FIRST] == [40] * (1 + FIRST)
    assert rows[1 + FIRST] == 20
    assert rows == sorted(rows, reverse=True)
    assert residuals(given, found).max() <= 2e-4
    np.testing.assert_allclose(found[::2], start[::2], rtol=0, atol=1e-5 * np.abs(start).max())  # float32


@pytest.mark.parametrize(("groups", "channels"), [(1, 300), (3, 192), (70, 70), (5, 200), (2, 6)])
def test_every_channel_of_every_group_is_solved(groups: int, channels: int) -> None:
    """Whether a thread takes a part of a group's channels at a time, or several groups."""
    given = G, rhs, lam, mask = problem(groups, channels, inputs=12)
    found = solve_iterative(G.astype(np.float32), rhs, lam, mask, np.zeros(mask.shape), iterations=200, tolerance=1e-4)
    assert residuals(given, found).max() <= 2e-4


def test_few_iterations_leave_no_channel_out(monkeypatch: pytest.MonkeyPatch) -> None:
    G, rhs, lam, mask = problem(channels=40)
    start = np.where(np.arange(40)[:, None] % 2 == 0, solve_exact(G, rhs, lam, mask), 0.0)
    found = [solve_iterative(G.astype(np.float32), rhs, lam, mask, start, FIRST, 1e-2)]
    monkeypatch.setattr(conjugate, "FEWER", 0.0)
    found.append(solve_iterative(G.astype(np.float32), rhs, lam, mask, start, FIRST, 1e-2))
    np.testing.assert_array_equal(*found)


def test_no_iteration_gives_the_start_on_the_supports() -> None:
    G, rhs, lam, mask = problem()
    start = np.ones(mask.shape)
    np.testing.assert_array_equal(solve_iterative(G.astype(np.float32), rhs, lam, mask, start, 0, 1e-3), mask.astype(np.float64))


def test_a_channel_that_asks_for_nothing_gets_nothing() -> None:
    G, rhs, lam, mask = problem()
    rhs[3] = 0.0
    found = solve_iterative(G.astype(np.float32), rhs, lam, mask, np.zeros(mask.shape), 80, 1e-3)
    assert not found[3].any()
    assert np.isfinite(found).all()
