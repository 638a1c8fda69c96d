"""Out of memory: the run is done again with half the batch, and gives what that batch would have given from the start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from networks import samples, twins

from onnxprune import Options, Result, prune
from onnxprune.comparing import compare_files
from onnxprune.errors import OutOfMemory, RuntimeFailure
from onnxprune.numerics.gram import Gram
from onnxprune.pipeline import plan
from onnxprune.runtime import session as sessions
from onnxprune.runtime.shortage import failure, short_of_memory
from onnxprune.sweeping import Sweep, sweep

ARENA = (
    "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Conv node. Name:'c' Status Message: /onnxruntime_src/"
    "onnxruntime/core/framework/bfc_arena.cc:360 void* onnxruntime::BFCArena::AllocateRawInternal(size_t, bool, onnxruntime::Stream*) "
    "Failed to allocate memory for requested buffer of size 268435456\n"
)
LEAN = "Error in execution: Non-zero status code returned while running Conv node. Name:'c' Status Message: std::bad_alloc"
CUDA = (
    "[ONNXRuntimeError] : 1 : FAIL : /onnxruntime_src/onnxruntime/core/providers/cuda/cuda_call.cc:121 std::conditional_t<THRW, void, "
    "onnxruntime::common::Status> onnxruntime::CudaCall(ERRTYPE, const char*, const char*, ERRTYPE, const char*, const char*, int) "
    "[with ERRTYPE = cudaError; bool THRW = true] CUDA failure 2: out of memory ; GPU=0 ; hostname=h ; file=cuda_allocator.cc ; "
    "line=48 ; expr=cudaMalloc((void**)&p, size);"
)
CUBLAS = CUDA.replace("CUDA failure 2: out of memory", "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED")
CUDNN = CUDA.replace("CUDA failure 2: out of memory", "CUDNN failure 4000: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED")
LIMIT = "Available memory of 1048576 is smaller than requested bytes of 4194304"


@dataclass
class Tight:
    """Sessions that have no memory for more than ``most`` images at once while the run is in ``phase``; ``failed``: how often."""

    most: int = 0
    phase: str = ""
    words: str = LEAN
    now: str = ""
    failed: int = 0

    def tell(self, phase: str, done: int, total: int) -> None:
        """A progress callback."""
        self.now = phase

    def look(self, shape: Any) -> None:
        """Raise where an input of this shape is too much."""
        if len(shape) == 4 and shape[0] > self.most > 0 and self.now == self.phase:
            self.failed += 1
            raise RuntimeError(self.words)


@pytest.fixture
def tight(monkeypatch: pytest.MonkeyPatch) -> Iterator[Tight]:
    told = Tight()
    made = ort.InferenceSession

    class Session(made):  # type: ignore[misc, valid-type]
        def run(self, names: Any, feed: Any, options: Any = None) -> Any:
            for value in feed.values():
                told.look(value.shape)
            return super().run(names, feed, options)

        def run_with_iobinding(self, binding: Any, options: Any = None) -> None:
            for value in binding._bound_inputs.values():
                told.look(value.shape())
            super().run_with_iobinding(binding, options)

    monkeypatch.setattr(sessions.ort, "InferenceSession", Session)
    yield told
    for module in ("rows", "grams"):  # their sessions stay for the next run, and these must not
        __import__(f"onnxprune.runtime.{module}", fromlist=["_session"])._session.cache_clear()


WORDS = {"sparsity": 0.8, "device": "cpu", "memory": "1GB"}


def run(batch_size: int, tight: Tight | None = None, **named: Any) -> Result:
    return prune(twins(4)[0], samples(80), batch_size=batch_size, **WORDS, **named, **({} if tight is None else {"progress": tight.tell}))


def same(found: Result, wanted: Result) -> None:
    """Bit by bit, the report too but for what was asked, how long it took, and the notes."""
    assert found.model.SerializeToString() == wanted.model.SerializeToString()
    for name in ("layers", "norms", "agreement", "calibration", "memory", "kept", "changes"):
        assert getattr(found.report, name) == getattr(wanted.report, name), name


@pytest.mark.parametrize(
    ("repair", "phase", "words"),
    [
        ("channel", "dense outputs", ARENA),
        ("channel", "masked outputs", CUDA),
        ("channel", "dense statistics", LEAN),
        ("channel", "repair", LEAN),
        ("channel", "repaired outputs", LIMIT),
        ("reconstruct", "repair", CUBLAS),
    ],
)
def test_wherever_it_runs_out_the_run_is_that_of_half_the_batch(tight: Tight, repair: str, phase: str, words: str) -> None:
    wanted = run(8, repair=repair)
    assert wanted.report.notes == ()
    tight.most, tight.phase, tight.words = 8 if phase in ("repair", "dense statistics") else 7, phase, words  # 16 are held out: two batches
    found = run(16, tight, repair=repair)
    assert tight.failed == 1
    assert found.report.notes == ("memory ran out with batches of 16: all was done again with batches of 8",)
    assert found.report.calibration is not None
    assert found.report.calibration.batch_size == 8
    assert found.report.options["batch_size"] == 16
    same(found, wanted)


def test_the_batch_is_halved_until_it_fits(tight: Tight) -> None:
    wanted = run(2)
    tight.most, tight.phase = 3, "repair"
    found = run(16, tight)
    assert found.report.notes == ("memory ran out with batches of 16 and of 8 and of 4: all was done again with batches of 2",)
    same(found, wanted)


def test_a_batch_size_that_no_batch_has_is_not_tried_twice(tight: Tight) -> None:
    """1024 and 40 make the same batches here: 64 samples for the repair, 16 held out. The largest that changes one is 32."""
    tight.most, tight.phase = 40, "repair"
    found = run(1024, tight)
    assert tight.failed == 1
    assert found.report.calibration is not None
    assert found.report.calibration.batch_size == 32


@pytest.mark.parametrize(("batch_size", "most"), [(8, 7), (7, 5)])  # 64 samples in batches of 4 and their images, and in batches of 5 and 6
def test_mirrored_images_count_in_a_batch(tight: Tight, batch_size: int, most: int) -> None:
    wanted = run(batch_size // 2, mirror=True)
    tight.most, tight.phase = most, "repair"
    found = run(batch_size, tight, mirror=True)
    assert tight.failed == 1
    same(found, wanted)


def test_one_sample_that_does_not_fit_is_one_line(tight: Tight) -> None:
    tight.most, tight.phase = -1, "repair"
    tight.look = refuse_all(tight)  # type: ignore[method-assign]
    with pytest.raises(OutOfMemory, match=r"memory ran out with batches of one sample: a stage of the model does not run: .*bad_alloc"):
        run(4, tight)
    assert tight.failed == 3  # 4, 2, 1


def refuse_all(tight: Tight) -> Callable[[Any], None]:
    def look(shape: Any) -> None:
        if tight.now == tight.phase:
            tight.failed += 1
            raise RuntimeError(tight.words)

    return look


def test_a_batch_that_the_model_fixes_is_not_halved(tight: Tight) -> None:
    model = twins(4)[0]
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 8
    tight.most, tight.phase = 4, "repair"
    with pytest.raises(OutOfMemory, match="memory ran out with the batch of 8 samples that the model fixes: a stage") as caught:
        prune(model, samples(80), progress=tight.tell, **WORDS)
    assert tight.failed == 1
    assert len(str(caught.value).splitlines()) == 1


def test_another_error_is_not_tried_again(tight: Tight) -> None:
    tight.most, tight.phase, tight.words = 8, "repair", "Non-zero status code returned while running Conv node: no kernel image"
    with pytest.raises(RuntimeFailure, match="no kernel image") as caught:
        run(16, tight)
    assert not isinstance(caught.value, OutOfMemory)
    assert tight.failed == 1


def test_arrays_that_find_no_room_count_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """NumPy's own error, in the Gram matrices of a reconstruction."""
    wanted = run(8, repair="reconstruct")
    made, calls = Gram.from_batch, []

    def short(*given: Any) -> Gram:
        calls.append(given)
        if len(calls) == 3:
            np.empty(2**58)
        return made(*given)

    monkeypatch.setattr(Gram, "from_batch", short)
    found = run(16, repair="reconstruct")
    assert found.report.notes == ("memory ran out with batches of 16: all was done again with batches of 8",)
    same(found, wanted)


def test_auto_compares_all_candidates_on_batches_that_fit(tight: Tight) -> None:
    wanted = run(8, alloc="erk", repair="auto")
    tight.most, tight.phase = 8, "repair"
    found = run(16, tight, alloc="erk", repair="auto")
    same(found, wanted)
    assert found.report.choice is not None
    assert wanted.report.choice is not None
    scores = [[(entry.repair, entry.score, entry.error) for entry in each.report.choice.candidates] for each in (found, wanted)]
    assert scores[0] == scores[1]
    assert "batches of 16" in found.report.notes[0]


def test_the_allocation_is_measured_again_in_a_dry_run_too(tight: Tight) -> None:
    options = Options(sparsity=0.8, alloc="error", batch_size=8, device="cpu", repair="none")
    wanted = plan(twins(4)[0], options, samples(80))
    tight.most = 8
    found = plan(twins(4)[0], options.but(batch_size=16), samples(80))
    assert found.layers == wanted.layers
    assert tight.failed
    assert "all was done again with batches of 8" in found.notes[0]


def test_compare_runs_again(tight: Tight, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxprune.runtime.latency.SECONDS", 0.0)
    for name, model in zip(("a.onnx", "b.onnx"), twins(4), strict=True):
        onnx.save(model, tmp_path / name)
    tight.most, tight.phase = 8, "pruned outputs"
    options = Options(sparsity=0.0, batch_size=16, device="cpu", repair="none")
    found = compare_files(tmp_path / "a.onnx", tmp_path / "b.onnx", samples(40), options, tight.tell)
    assert found.latency.samples == 8
    assert found.notes == ("memory ran out with batches of 16: all was done again with batches of 8",)


def test_a_row_of_a_sweep_runs_again_and_says_its_batch(tight: Tight, tmp_path: Path) -> None:
    onnx.save(twins(4)[0], tmp_path / "net.onnx")
    np.save(tmp_path / "x.npy", samples(80))

    def rows(batch_size: int, repairs: tuple[str, ...] = ("bn", "channel")) -> list[Any]:
        options = Options(sparsity=0.0, batch_size=batch_size, device="cpu")
        return list(sweep(Sweep(tmp_path / "net.onnx", (tmp_path / "x.npy",), ("erk",), (0.8,), repairs, options)).rows)

    wanted = rows(8)
    tight.most = 8
    found = rows(16)
    assert tight.failed
    assert [row.batch_size for row in found] == [8, 8]
    assert [(row.score, row.kept, row.error) for row in found] == [(row.score, row.kept, None) for row in wanted]
    tight.most, tight.phase = 0, "never"
    assert [row.batch_size for row in rows(16)] == [16, 16]


@pytest.mark.parametrize("text", [ARENA, LEAN, CUDA, CUBLAS, CUDNN, LIMIT, "Unable to allocate 954. MiB for an array"])
def test_words_of_allocators(text: str) -> None:
    assert short_of_memory(RuntimeError(text))
    assert isinstance(failure(RuntimeError(text), "x"), OutOfMemory)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Invalid rank for input: memory Got: 2 Expected: 3"),
        RuntimeError("CUDA failure 209: no kernel image is available for execution on the device"),
        RuntimeError("CUDNN failure 3000: CUDNN_STATUS_NOT_SUPPORTED"),
        OSError(28, "No space left on device"),
        RuntimeFailure("node 'bad_alloc' is not there"),  # ours, with a name of the model in it
    ],
)
def test_words_of_others(error: Exception) -> None:
    assert not short_of_memory(error)
    assert not isinstance(failure(error, "x"), OutOfMemory)


REAL = """
import json, resource, sys
sys.path.insert(0, {tests!r})
from networks import samples
from test_memory import wide
import onnxprune, onnxprune.sampling
onnxprune.sampling.ROWS = 2000  # these take as much memory in small batches
words = dict(sparsity=0.5, device="cpu", threads=1, samples=128, holdout=0.25, repair={repair!r})
net, x = wide(64, 32), samples(128, (3, 32, 32))
onnxprune.prune(net, x[:8], batch_size=4, memory="1MB", **words)  # threads, libraries and the first growth of the heap
held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + {room}, resource.RLIM_INFINITY))
found = onnxprune.prune(net, x, batch_size=64, memory="1MB", **words)
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
size = found.report.calibration.batch_size
wanted = onnxprune.prune(net, x, batch_size=size, memory="1MB", **words)
print(json.dumps([size, found.report.notes, found.model.SerializeToString() == wanted.model.SerializeToString()]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs RLIMIT_AS and /proc")
@pytest.mark.slow
@pytest.mark.parametrize(("repair", "room"), [("channel", 40_000_000), ("reconstruct", 20_000_000)])
def test_a_process_with_a_limit_takes_the_batch_that_fits(tmp_path: Path, repair: str, room: int) -> None:
    """Tensors of 256 KB a sample: a stage has several of 16 MB at once in batches of 64, and there is room for less than a small run and
    that: here 16 or 32 samples fit, and any batch does from 10 MB on. The first run of a reconstruction leaves more in the heap."""
    tests = Path(__file__).resolve().parent
    script = REAL.format(tests=str(tests), repair=repair, room=room)
    environment = {**os.environ, "PYTHONPATH": str(tests.parent), "TMPDIR": str(tmp_path), "OPENBLAS_NUM_THREADS": "1"}
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False, timeout=120)
    assert ran.returncode == 0, ran.stderr
    size, notes, equal = json.loads(ran.stdout)
    assert 1 <= size < 64
    assert notes[0].startswith("memory ran out with batches of 64")
    assert f"all was done again with batches of {size}" in notes[0]
    assert equal
