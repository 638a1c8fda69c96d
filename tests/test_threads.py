"""--threads: who gets it, and that a model comes out the same."""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Ran
from networks import samples, twins
from threadpoolctl import threadpool_info
from zoo import SUBJECTS

from onnxprune import Options, job, prune
from onnxprune.errors import UsageError
from onnxprune.numerics import threads as ours
from onnxprune.numerics.threads import LIMIT, bound, cores
from onnxprune.opening import device_of
from onnxprune.runtime import session as sessions
from onnxprune.runtime import trial

pytestmark = pytest.mark.cores
BLAS = [library for library in threadpool_info() if library["user_api"] == "blas"]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[Any]]:
    """What every session and every pool of threads was given while the test ran, and what BLAS may use beside them."""
    found: dict[str, set[Any]] = {"sessions": set(), "pools": set(), "blas": set()}
    made, pool = sessions.ort.InferenceSession, ours.ThreadPoolExecutor

    def session(source: Any, options: Any, **words: Any) -> Any:
        found["sessions"].add(options.intra_op_num_threads)
        found["blas"] |= {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}
        return made(source, options, **words)

    def executor(count: int, **more: Any) -> Any:
        found["pools"].add(count)
        return pool(count, **more)

    monkeypatch.setattr(sessions.ort, "InferenceSession", session)
    monkeypatch.setattr(ours, "ThreadPoolExecutor", executor)
    return found


def test_nothing_limits_them_here() -> None:
    """`make test` gives the other tests one thread."""
    assert bound(0) is None


@pytest.mark.parametrize("repair", ["channel", "reconstruct"])
def test_sessions_blas_and_our_own_threads_get_it(seen: dict[str, set[Any]], repair: str) -> None:
    before = [library["num_threads"] for library in threadpool_info()]
    prune(twins(depth=2)[0], {"x": samples(40)}, sparsity=0.5, repair=repair, device="cpu", threads=1)
    assert seen["sessions"] == {1}
    assert seen["pools"] <= {1}
    assert bool(seen["pools"]) == (repair == "reconstruct")
    assert seen["blas"] <= {1}
    assert [library["num_threads"] for library in threadpool_info()] == before


def test_compare_gives_it_to_both_models(digits: Path, seen: dict[str, set[Any]], onnxprune: Callable[..., Ran]) -> None:
    model = digits / "digits.onnx"
    words = ("--calib", digits / "calib.npz", "--samples", 20, "--device", "cpu", "--threads", 1)
    assert onnxprune("compare", model, digits / "digits_folded.onnx", *words).code == 0
    assert seen["sessions"] == {1}


@pytest.mark.skipif(not BLAS, reason="threadpoolctl knows no BLAS here")
def test_our_own_threads_are_no_more_than_blas_may_have() -> None:
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, "blas"):
        assert cores() == 1
    assert cores() >= 1


@pytest.mark.parametrize("repair", ["channel", "reconstruct"])
def test_one_and_two_threads_give_the_same_bytes(repair: str) -> None:
    models = [
        prune(twins(width=16)[0], {"x": samples(40)}, sparsity=0.8, repair=repair, device="cpu", threads=threads).model
        for threads in (1, 2)
    ]
    assert models[0] == models[1]


@pytest.mark.slow
def test_one_and_two_threads_give_the_same_bytes_on_the_example(digits: Path) -> None:
    words = {"sparsity": 0.9, "samples": 80, "repair": "reconstruct", "device": "cpu"}
    one, two = (prune(digits / "digits.onnx", digits / "calib.npz", threads=threads, **words).model for threads in (1, 2))
    assert one == two


def test_there_are_never_more_threads_than_cores() -> None:
    assert device_of(Options(sparsity=0.5, device="cpu", threads=10_000)).threads == ours.allowed()
    assert device_of(Options(sparsity=0.5, device="cpu")).threads == 0


@pytest.mark.parametrize(("asked", "told", "given"), [(0, "", None), (0, "1", 1), (1, "", 1), (2, "1", 1), (99, "", 3), (0, "x", None)])
def test_blas_is_bound_by_what_is_asked_and_told(monkeypatch: pytest.MonkeyPatch, asked: int, told: str, given: int | None) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2}, raising=False)
    monkeypatch.setenv(LIMIT, told)
    assert bound(asked) == given


@pytest.mark.parametrize(("threads", "limit", "beside"), [(0, None, True), (1, None, False), (2, None, False), (0, "2", False)])
def test_the_input_is_packed_beside_the_run_where_threads_are_not_counted(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int, limit: str | None, beside: bool
) -> None:
    """gzip and zstd of the input take a thread of their own otherwise."""
    if limit is not None:
        monkeypatch.setenv(LIMIT, limit)
    seen, made = [], job.describe
    monkeypatch.setattr(job, "describe", lambda *given, **told: seen.append(threading.current_thread()) or made(*given, **told))
    options = Options(sparsity=0.5, repair="none", threads=threads)
    job.prune_file(job.Job(digits / "digits.onnx", tmp_path / "out.onnx"), None, options, lambda *told: None)
    assert any(thread is not threading.main_thread() for thread in seen) == beside


@pytest.mark.parametrize(("threads", "given"), [(1, 1), (0, None)])
def test_the_child_that_tries_a_model_gets_it_too(monkeypatch: pytest.MonkeyPatch, threads: int, given: int | None) -> None:
    seen = []
    monkeypatch.setattr(
        trial, "_run", lambda data, seconds: seen.append(pickle.loads(data)["threads"]) or (["begun", "session", "sample"], 0)
    )
    odd = SUBJECTS["einsum"]()
    prune(odd.model, dict(odd.samples), sparsity=0.5, device="cpu", threads=threads)
    assert seen == [given or ours.allowed()]


def test_a_negative_number_is_refused() -> None:
    with pytest.raises(UsageError, match="--threads -1 is negative; give 1 or more, or 0 for all cores"):
        Options(sparsity=0.5, threads=-1)


@pytest.mark.parametrize(("repair", "each"), [("channel", 1), ("reconstruct", 2)])
def test_two_batches_with_one_thread_each_or_one_with_two(
    seen: dict[str, set[Any]], monkeypatch: pytest.MonkeyPatch, repair: str, each: int
) -> None:
    """A reconstruction has threads of its own besides, so its walks take one batch at a time; the agreement does not."""
    monkeypatch.setattr("onnxprune.opening.allowed", lambda: 2)
    prune(twins(depth=2)[0], {"x": samples(40)}, sparsity=0.5, repair=repair, device="cpu", threads=2)
    assert seen["sessions"] == {1, each}


def test_a_bounded_memory_takes_one_batch_at_a_time(seen: dict[str, set[Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxprune.opening.allowed", lambda: 2)
    prune(twins(depth=2)[0], {"x": samples(40)}, sparsity=0.5, device="cpu", threads=2, memory="1GB")
    assert seen["sessions"] == {2}
