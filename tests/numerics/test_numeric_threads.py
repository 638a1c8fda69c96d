"""Products by threads of our own: right, and the same bits for any number of threads."""

from __future__ import annotations

from threading import get_ident, main_thread
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from onnxprune.numerics import threads
from onnxprune.numerics.gram import Gram
from onnxprune.numerics.metric import cosines_of, metric_of
from onnxprune.numerics.products import Products
from onnxprune.numerics.reconstruct import reconstruct
from onnxprune.numerics.threads import cores, one_each, product, shared

pytestmark = pytest.mark.cores
RNG = np.random.default_rng(0)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("groups", "rows", "width", "columns"), [(1, 1, 1, 1), (1, 200, 70, 90), (3, 130, 65, 64), (5, 2, 3, 4), (1, 0, 7, 5)]
)
def test_a_product(groups: int, rows: int, width: int, columns: int, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    left, right = RNG.normal(size=(groups, rows, width)).astype(kind), RNG.normal(size=(groups, width, columns)).astype(kind)
    wanted = np.einsum("gnk,gkm->gnm", left.astype(np.float64), right.astype(np.float64))
    for least in (1, threads.LEAST):
        monkeypatch.setattr(threads, "LEAST", least)
        with one_each() as team:
            found = product(team, left, right)
        assert (found.dtype, found.shape, team.count) == (kind, wanted.shape, cores())
        np.testing.assert_allclose(found, wanted, rtol=0, atol=70 * 20 * np.finfo(kind).eps)  # sums of 70 products of at most 20


def test_little_work_wakes_nobody() -> None:
    """The caller does it; more of it goes to the threads of the pool. Each channel comes once."""
    with one_each() as team:
        for flops, here in ((threads.ALONE - 1, True), (threads.ALONE, False)):
            came: list[tuple[int, bool]] = []
            shared(team, lambda c, came=came: came.append((c, get_ident() == main_thread().ident)), range(3, 50), flops)  # type: ignore[misc]
            assert sorted(came) == [(c, here) for c in range(3, 50)]


def test_blas_has_one_thread_meanwhile_and_as_many_as_before_afterwards() -> None:
    with threadpool_limits(2, "blas"):
        before = cores()
        with one_each() as team:
            assert (team.count, cores()) == (before, 1)
        assert cores() == before
        with pytest.raises(KeyError), one_each():
            raise KeyError
        assert cores() == before


def test_threads_take_the_error_state_of_who_begins_them() -> None:
    """What may overflow is told by the caller; a warning from a thread would be an error here."""
    values = np.full(4, 3e38, np.float32)
    for over in ("ignore", "raise"):
        with np.errstate(over=over), one_each() as team:  # type: ignore[call-overload]
            states = list(threads.mapped(team, lambda _: np.geterr()["over"], range(20), threads.ALONE))
            assert states == [over] * 20
            if over == "ignore":
                shared(team, lambda _: np.testing.assert_array_equal(values * values, np.inf), range(20), threads.ALONE)


# Inputs and outputs of one group, and groups; on both sides of SIDE, and with a rest of a few columns.
LAYERS = [(27, 64, 1), (150, 40, 1), (576, 64, 1), (9, 64, 64), (144, 64, 4)]


def rows_of(inputs: int, outputs: int, groups: int) -> tuple[Any, Any, Any]:
    """Rows x and y of a layer, and its weight."""
    x = RNG.normal(size=(5000, groups * inputs)).astype(np.float32)
    x += x[:, ::-1] / 2
    weight = RNG.normal(size=(outputs, inputs)).astype(np.float32)
    return x, RNG.normal(size=(5000, outputs)).astype(np.float32) + x[:, :1], weight


@pytest.mark.parametrize(("inputs", "outputs", "groups"), LAYERS)
def test_moments_against_float64(inputs: int, outputs: int, groups: int) -> None:
    x, y, _ = rows_of(inputs, outputs, groups)
    found = Gram.from_batch(x, y, groups)
    a = (x - x.mean(0, dtype=np.float64)).reshape(len(x), groups, inputs)
    b = (y - y.mean(0, dtype=np.float64)).reshape(len(y), groups, outputs // groups)
    # float32 products of two blocks of rows, of size 5000: their root times 2^-24 of it in practice
    np.testing.assert_allclose(found.xx, np.einsum("rgk,rgl->gkl", a, a), rtol=1e-5, atol=5e-3)
    np.testing.assert_allclose(found.xy, np.einsum("rgk,rgc->gkc", a, b), rtol=1e-5, atol=5e-3)
    np.testing.assert_array_equal(found.xx, found.xx.transpose(0, 2, 1))


@pytest.mark.parametrize(("inputs", "outputs", "groups"), LAYERS)
def test_one_and_two_threads_give_the_same_bits(inputs: int, outputs: int, groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenBLAS's own threads do not on a CPU without AVX-512. Nor does it matter from what size on there are several."""
    x, y, weight = rows_of(inputs, outputs, groups)
    found: list[list[Any]] = []
    for count, alone in ((1, threads.ALONE), (2, 0)):
        monkeypatch.setattr(threads, "ALONE", alone)
        with threadpool_limits(count, "blas"):
            fit, held = (Gram.from_batch(x[part], y[part], groups) for part in (slice(4000), slice(4000, None)))
            made = [fit.xx, fit.xy, fit.power(weight.astype(np.float64))]
            for keep in (0.2, 0.7, 1.0):
                solved = reconstruct(fit.merge(held), (fit, held), weight, int(weight.size * keep))
                made += [solved.weight, solved.shift, solved.curve, solved.error_after]
            mean = fit.x_mean[0]
            moments = Products(4000, 4000 * mean, fit.xx[0] + 4000 * np.outer(mean, mean)).moments(weight, np.zeros(outputs))
            found.append([*made, moments.mean, moments.m2])
    for one, two in zip(*found, strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(("inputs", "outputs"), [(27, 64), pytest.param(576, 130, marks=pytest.mark.slow)])
def test_channels_solved_together_have_the_same_bits_too(inputs: int, outputs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The metric of gradients, the supports that it chooses, and the weights on them."""
    x, y, weight = rows_of(inputs, outputs, 1)
    gradients = RNG.normal(size=(2, 300, outputs)) @ RNG.normal(size=(outputs, outputs))
    halves = gradients.transpose(0, 2, 1) @ gradients
    found: list[list[Any]] = []
    for count, alone in ((1, threads.ALONE), (2, 0)):
        monkeypatch.setattr(threads, "ALONE", alone)
        with threadpool_limits(count, "blas"):
            cosines = cosines_of(halves)
            assert cosines is not None
            metric = metric_of(cosines, np.ones(outputs))
            fit, held = (Gram.from_batch(x[part], y[part]) for part in (slice(4000), slice(4000, None)))
            made = [metric.own, metric.along]
            for keep in (0.1, 0.9):
                solved = reconstruct(fit.merge(held), (fit, held), weight, int(weight.size * keep), metric=metric)
                made += [solved.weight, solved.mask, solved.blind]
            found.append(made)
    for one, two in zip(*found, strict=True):
        np.testing.assert_array_equal(one, two)
