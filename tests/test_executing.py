"""Rows and models in other processes: the same results, in whatever order, and one line when a process dies."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from networks import samples, twins

from onnxprune import Options
from onnxprune.errors import RuntimeFailure, UsageError
from onnxprune.executing import each, executor_of, jobs_for
from onnxprune.numerics.threads import LIMIT, cores
from onnxprune.resuming import known_rows
from onnxprune.sweep_report import SweepReport, SweepRow
from onnxprune.sweeping import Sweep, sweep

pytestmark = pytest.mark.cores


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with net.onnx and calib.npy; the current one, and workers compute with one thread each."""
    onnx.save(twins(4)[0], str(tmp_path / "net.onnx"))
    np.save(tmp_path / "calib.npy", samples(96, seed=5))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def asked(folder: Path, **named: Any) -> Sweep:
    given = {"allocs": ("erk", "lamp"), "sparsities": (0.5, 0.8), "repairs": ("none", "bn", "channel"), **named}
    options = Options(sparsity=0.0, batch_size=16, device="cpu")
    return Sweep(folder / "net.onnx", (folder / "calib.npy",), options=options, **given)


def timeless(report: SweepReport) -> SweepReport:
    return dataclasses.replace(report, rows=tuple(dataclasses.replace(row, seconds=0.0) for row in report.rows), seconds=0.0)


def limits(number: int) -> tuple[int, int, str]:
    """A piece of work: its number, how many cores it may use there, and in which process."""
    return number, cores(), f"{os.getpid()}"


# ---- counting


def test_how_many_processes_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIMIT, "3")
    there = cores()
    assert there <= 3
    assert jobs_for(None, None, "cpu", 100) == there
    assert jobs_for(5, None, "cpu", 100) == 5
    assert jobs_for(5, None, "cpu", 2) == 2
    assert jobs_for(None, None, "cpu", 0) == 1
    with pytest.raises(UsageError, match="give one of them"):
        jobs_for(1, "tcp://127.0.0.1:1", "cpu", 3)


def test_the_threads_of_a_process_are_limited_by_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = cores()
    for told, found in (("1", 1), ("0", 1), ("1000", plain), ("many", plain), ("", plain)):
        monkeypatch.setenv(LIMIT, told)
        assert cores() == found, told


# ---- local processes


def test_the_cores_are_divided_among_the_processes() -> None:
    with executor_of(2, None) as executor:
        found = [result for _, result in each(limits, [(number,) for number in range(8)], executor)]
    assert sorted(number for number, _, _ in found) == list(range(8))
    assert {threads for _, threads, _ in found} == {max(1, cores() // 2)}
    assert f"{os.getpid()}" not in {process for _, _, process in found}


def test_rows_of_processes_are_those_of_one(net: Path) -> None:
    with executor_of(2, None) as executor:
        other = sweep(asked(net, allocs=("erk", "error")), executor)
    assert timeless(other) == timeless(sweep(asked(net, allocs=("erk", "error"))))


def test_a_process_that_dies_is_one_line_and_rows_are_kept(net: Path, onnxprune: Callable[..., Any]) -> None:
    with executor_of(2, None) as executor, pytest.raises(RuntimeFailure, match="a worker process ended before its work did"):
        list(each(os._exit, [(1,)], executor))


@pytest.mark.parametrize("rows", [pytest.param(0, marks=pytest.mark.slow), 1, pytest.param(3, marks=pytest.mark.slow)])
def test_ctrl_c_ends_the_processes_and_a_second_run_goes_on(net: Path, rows: int) -> None:
    """After so many rows: with none and one the processes are still at their imports, or about to answer signals."""
    words = ["sweep", str(net / "net.onnx"), "--calib", str(net / "calib.npy"), "--jobs", "2", "--device", "cpu", "-o", "s.json"]
    words += ["--sparsity", "0.1:0.95:0.01", "--repair", "bn,channel,asr", "--batch-size", "16"]
    # A job in the background starts with Ctrl-C ignored, which Python leaves so.
    code = f"import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); sys.argv[1:] = {words!r}; "
    words = [sys.executable, "-c", code + "from onnxprune.cli import main; main()"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True) as child:
        while len(known_rows(net / "s.json.rows")) < rows or (not rows and len(children(child.pid)) < 3):  # two, and their tracker
            assert child.poll() is None, child.communicate()
            time.sleep(0.01)
        os.killpg(child.pid, signal.SIGINT)  # as a terminal does: the children too
        _, err = child.communicate(timeout=60)
    assert child.returncode == 130
    lines = [line.split(":")[0] for line in err.splitlines() if line]
    told = "s.json.rows" in err  # with no row yet there may be nothing to go on from
    assert told or not rows
    assert lines == ["onnxprune"] * (2 if told else 1), err
    left = {path.name for path in net.iterdir()}
    assert left - (set() if rows else {"s.json.rows"}) == {"calib.npy", "net.onnx", *(["s.json.rows"] if rows else [])}
    end = time.monotonic() + 20
    while there(child.pid) and time.monotonic() < end:
        time.sleep(0.05)
    assert not there(child.pid)


def children(parent: int) -> list[str]:
    return Path(f"/proc/{parent}/task/{parent}/children").read_text().split()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_work_that_a_signal_ends_clears_up_even_when_a_second_comes(net: Path, number: signal.Signals) -> None:
    with executor_of(2, None) as executor, pytest.raises(RuntimeFailure, match="a worker process ended before its work did"):
        list(each(ended, [(str(net / "held"), int(number))], executor))
    assert not (net / "held").exists()


def test_a_signal_that_comes_while_an_object_is_finalized_ends_the_process_too(net: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Python ignores what is raised there: the process would go on, and who waits for it for ever."""
    end = time.monotonic() + 30
    with executor_of(2, None) as executor, pytest.raises(RuntimeFailure, match="a worker process ended before its work did"):
        list(each(finalized, [(str(net / "gone"),)], executor))
    assert time.monotonic() < end
    assert (net / "gone").read_text() == "cleared up"
    assert "Exception ignored" not in capfd.readouterr().err


def finalized(path: str) -> None:
    """A signal in a finalizer, and a long wait behind it."""
    kept = threading.Event()
    weakref.finalize(kept, os.kill, os.getpid(), signal.SIGTERM)
    try:
        del kept
        time.sleep(60)
    finally:
        Path(path).write_text("cleared up")


def ended(path: str, number: int) -> None:
    """A piece of work: it holds a file while it is told to end, and told again while it clears up."""
    with contextlib.ExitStack() as stack:
        stack.callback(Path(path).unlink)
        stack.callback(os.kill, os.getpid(), signal.SIGTERM)
        Path(path).touch()
        os.kill(os.getpid(), number)
        time.sleep(30)


def test_an_executor_of_the_user_keeps_its_signals(net: Path) -> None:
    """A pool of threads could not set them, and a pool of processes has its own."""
    before = signal.getsignal(signal.SIGTERM)
    with ThreadPoolExecutor(2) as executor:
        assert sorted(each(abs, [(-3,), (4,)], executor)) == [(0, 3), (1, 4)]
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as processes:
        assert [found for _, found in each(answers, [(), ()], processes)] == [True, True]
    assert signal.getsignal(signal.SIGTERM) is before
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())


def answers() -> bool:
    return signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def there(group: int) -> bool:
    """True while a process of the group is left."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, 0)
        return True
    return False


def test_several_models_at_once_are_those_one_by_one(net: Path, onnxprune: Callable[..., Any]) -> None:
    onnx.save(twins(4)[1], str(net / "folded.onnx"))
    words = ("net.onnx", "folded.onnx", "--sparsity", 0.8, "--calib", "calib.npy", "--batch-size", 16, "--device", "cpu")
    for folder in ("one", "two"):
        (net / folder).mkdir()
    assert onnxprune(*words, "--out-dir", "one").code == 0
    ran = onnxprune(*words, "--out-dir", "two", "--jobs", 2)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.count("written") == 2
    for name in ("net.pruned.onnx", "folded.pruned.onnx"):
        assert (net / "one" / name).read_bytes() == (net / "two" / name).read_bytes()
    onnx.save(twins(2)[0], str(net / "small.onnx"))
    failed = onnxprune("net.onnx", "small.onnx", *words[2:4], "--calib", "nothing.npy", "--out-dir", "two", "--force", "--jobs", 2)
    assert failed.code == 1
    assert failed.err.count("\n") == 1
    assert "nothing.npy" in failed.err


# ---- a cluster


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """The address of a Dask scheduler on this machine, and its two workers, processes of one thread that nobody restarts."""
    pytest.importorskip("distributed")
    address = folder / "scheduler.json"
    environment = {**os.environ, "DASK_DISTRIBUTED__DASHBOARD__LINK": "", "PYTHONPATH": os.pathsep.join(sys.path)}
    with contextlib.ExitStack() as stack, (folder / "dask.log").open("wb") as log:

        def begin(*words: str) -> subprocess.Popen[bytes]:
            command = [sys.executable, "-m", "distributed.cli.dask_" + words[0], *words[1:], "--scheduler-file", str(address)]
            child = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=folder)
            stack.callback(child.wait)
            stack.callback(child.kill)
            return child

        begin("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard")
        workers = [begin("worker", "--nthreads", "1", "--no-nanny", "--no-dashboard") for _ in range(2)]
        while not address.exists() or not address.read_text().strip():
            time.sleep(0.05)
        yield json.loads(address.read_text())["address"], workers


@pytest.mark.slow
def test_a_worker_that_is_killed_loses_nothing_and_nothing_is_there_twice(net: Path) -> None:
    wanted = asked(net, sparsities=(0.5, 0.7, 0.8, 0.9))
    told: Counter[str] = Counter()
    with cluster(net) as (address, workers), executor_of(1, address) as executor:

        def note(row: SweepRow, done: int, total: int) -> None:
            told[row.key] += 1
            assert (done, total) == (sum(told.values()), 24)
            if done == 4:
                workers[0].kill()

        report = sweep(wanted, executor, {}, note)
        assert workers[0].wait(10) == -signal.SIGKILL
        assert workers[1].poll() is None
    assert set(told.values()) == {1}
    assert [row.key for row in report.rows] == list(dict.fromkeys(row.key for row in report.rows))
    assert timeless(report).best == timeless(sweep(wanted)).best
    assert len(told) == len(report.rows) == 24
    assert not [row for row in report.rows if row.error]


@pytest.mark.slow
def test_models_are_pruned_on_a_cluster(net: Path, onnxprune: Callable[..., Any]) -> None:
    words = (net / "net.onnx", "--sparsity", 0.8, "--calib", net / "calib.npy", "--batch-size", 16, "--device", "cpu")
    with cluster(net) as (address, _):
        ran = onnxprune(*words, "-o", net / "there.onnx", "--scheduler", address)
    assert (ran.code, ran.err) == (0, "")
    assert onnxprune(*words, "-o", net / "here.onnx").code == 0
    assert (net / "there.onnx").read_bytes() == (net / "here.onnx").read_bytes()


def test_a_scheduler_that_is_not_there_is_one_line(net: Path, onnxprune: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr("onnxprune.executing.REACH", 1)
    words = ("net.onnx", "--sparsity", 0.8, "--calib", "calib.npy")
    ran = onnxprune(*words, "--scheduler", "tcp://127.0.0.1:1")
    assert ran.code == 1
    assert ran.err.count("\n") == 1
    assert "no Dask scheduler answers there" in ran.err
    assert onnxprune(*words, "--scheduler", "nowhere").code in (1, 2)
    assert not (net / "net.pruned.onnx").exists()


def test_without_dask_the_error_says_what_to_install(net: Path, onnxprune: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    ran = onnxprune("net.onnx", "--sparsity", 0.8, "--calib", "calib.npy", "--scheduler", "tcp://127.0.0.1:1")
    assert ran.code == 2
    assert "pip install 'onnxprune[dask]'" in ran.err
