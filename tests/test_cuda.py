"""CUDA: the whole path on a fake device everywhere, on a real one where there is one (mark cuda), and what happens without.

The fake (fake_cuda) computes on the CPU: what a run gives there must be what it gives on the CPU, bit by bit, but for moments from graphs.
On a real device float32 sums are in another order: moments agree to 1e-4, and what is made of them nearly.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_cuda
import numpy as np
import onnx
import pytest
from fake_cuda import Traffic
from networks import model_of, samples, tensors, twins
from onnx import TensorProto, helper

from onnxprune import Result, prune, sampling
from onnxprune.errors import OutOfMemory, RuntimeFailure
from onnxprune.graph import layers
from onnxprune.graph.points import points
from onnxprune.memory import memory_for
from onnxprune.numerics.moments import Moments
from onnxprune.options import REPAIRS, Options
from onnxprune.pipeline import plan
from onnxprune.runtime import device_memory, session, stream
from onnxprune.runtime.device import CPU, CUDA, Device
from onnxprune.runtime.session import as_array, choose_device, run_bound, to_device
from onnxprune.runtime.spilling import LEAST, Memory
from onnxprune.statistics import dense_moments

GPU = Device("cuda")
DATA = samples(64)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Traffic]:
    """A device that computes as the CPU does, bit by bit; so the CPU's statistics must come from the same nodes."""
    monkeypatch.setitem(stream.ONE_NODE, "cpu", False)
    yield fake_cuda.install(monkeypatch)
    fake_cuda.forget()


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.cuda)])
def gpu(request: pytest.FixtureRequest) -> str:
    """Which device there is, a fake one or CUDA device 0."""
    if request.param == "fake":
        request.getfixturevalue("fake")
    else:
        choose_device("cuda")  # raises where none starts: the mark says that there is one
    return str(request.param)


def run(device: str, **named: Any) -> Result:
    return prune(twins(4)[0], DATA, **{"sparsity": 0.8, "batch_size": 8, "device": device, "memory": "1GB", **named})


def same(one: Result, two: Result) -> None:
    assert one.model.SerializeToString() == two.model.SerializeToString()
    assert str(one.report.layers) == str(two.report.layers)
    assert one.report.agreement == two.report.agreement


# ---- the fake device: everything, in the fast suite


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("repair", [repair for repair in REPAIRS if repair not in ("none", "reconstruct")])
def test_a_statistic_repair_on_the_device_is_that_on_the_cpu(fake: Traffic, repair: str, mirror: bool) -> None:
    there = run("cuda", repair=repair, mirror=mirror)
    assert there.report.provider == CUDA
    same(there, run("cpu", repair=repair, mirror=mirror))
    assert fake.held == 0


@pytest.mark.parametrize("options", [{"repair": "reconstruct"}, {"alloc": "error"}, {"alloc": "rr"}], ids=str)
def test_gram_matrices_come_from_the_device(fake: Traffic, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]) -> None:
    there = run("cuda", **options)
    monkeypatch.setitem(sampling.GRAPHS, "cpu", True)
    same(there, run("cpu", **options))
    fake_cuda.forget()
    assert fake.held == 0


def test_no_activation_leaves_the_device(fake: Traffic) -> None:
    """What comes down are statistics: by sample and channel, and in a reconstruction K by K and K by C. No array has positions or rows."""
    run("cuda")
    channels, batch = {5, 8}, {6, 7}  # 51 samples repair, in eight batches, of the head as of the layers
    assert {shape for shape in fake.shapes if len(shape) == 2} <= {(size, count) for size in batch for count in channels}
    assert {shape for shape in fake.shapes if len(shape) != 2} <= {(4,), (2,)}  # shapes
    assert fake.up < 3 * DATA.nbytes  # three passes of the held-out samples, two of the others, and small vectors
    fake.shapes.clear()
    run("cuda", repair="reconstruct")
    inputs, outputs = (27, 72, 8), (8, 5)  # of a convolution's kernel and of the head
    squares, products = {(K, K) for K in inputs}, {(K, C) for K in inputs for C in outputs}
    vectors = {(1, size) for size in (*inputs, *outputs)} | {(size,) for size in outputs}
    assert set(fake.shapes) <= squares | products | vectors
    assert fake.read == 0


@pytest.mark.parametrize("repair", ["bn", "channel", "asr", "reconstruct"])
def test_what_the_device_has_no_room_for_spills_and_comes_back(gpu: str, repair: str) -> None:
    plenty, some, none = (run("cuda", repair=repair, memory=size) for size in ("1GB", "60KB", 1))
    told = [result.report.memory for result in (plenty, some, none)]
    assert all(entry is not None for entry in told)
    assert [entry.spilled > 0 for entry in told if entry is not None] == [False, True, True]
    same(plenty, some)
    same(plenty, none)


def test_the_device_holds_no_more_than_the_budget_and_a_batch(fake: Traffic) -> None:
    run("cuda", memory="1GB")
    plenty = fake.peak
    fake.peak = 0
    run("cuda", memory=1)
    batch = 8 * 8 * 64 * 4  # eight samples of eight channels of 64 positions
    assert fake.peak <= 6 * batch  # what a stage takes and makes of one batch, and small tensors of all
    assert plenty > 2 * fake.peak


@pytest.mark.parametrize("repair", ["channel", pytest.param("reconstruct", marks=pytest.mark.slow)])
def test_a_full_device_takes_smaller_batches(fake: Traffic, repair: str) -> None:
    wanted = run("cuda", repair=repair, memory=1)
    fake.peak, fake.capacity = 0, fake.peak
    found = run("cuda", repair=repair, memory=1, batch_size=32)
    assert "memory ran out with batches of 32" in found.report.notes[0]
    assert found.report.calibration is not None
    assert found.report.calibration.batch_size < 32
    fake.capacity = 100
    with pytest.raises(OutOfMemory, match=r"memory ran out with batches of one sample: float32.* cannot be put on cuda: CUDA failure 2"):
        run("cuda", repair=repair)
    assert wanted.report.notes[-1].endswith("temporary file")


def test_strings_stay_on_the_host(fake: Traffic) -> None:
    """A device holds numbers alone. The tensor of strings is live while the layers between are repaired."""
    rng = np.random.default_rng(0)
    weights = {f"w{number}": rng.normal(0, 0.5, (8, 8)).astype(np.float32) for number in range(3)}
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["a"]),
        helper.make_node("Cast", ["a"], ["text"], to=TensorProto.STRING),
        helper.make_node("MatMul", ["a", "w1"], ["b"]),
        helper.make_node("Cast", ["text"], ["c"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["b", "c"], ["d"]),
        helper.make_node("MatMul", ["d", "w2"], ["y"]),
    ]
    model = model_of(nodes, {"x": ("n", 8)}, {"y": ("n", 8)}, weights)
    x = rng.normal(size=(40, 8)).astype(np.float32)
    for size in ("1GB", 1):
        there, here = (prune(model, x, sparsity=0.5, device=device, memory=size) for device in ("cuda", "cpu"))
        same(there, here)


def test_outputs_by_themselves_on_the_cpu() -> None:
    """Two outputs of a run, one of them let go: the other does not keep it. Measured by what the process holds."""
    model = model_of(
        [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Neg", ["x"], ["z"])], {"x": ("n",)}, {"y": ("n",), "z": ("n",)}, {}
    )
    cpu = Device("cpu", threads=1)
    opened = session.open_session(model.SerializeToString(), cpu, lean=True)
    size = 64 << 20
    feed = {"x": to_device(np.ones(size // 4, np.float32), cpu)}
    made = run_bound(opened, feed, ["y", "z"], cpu)
    before = resident()
    del made["z"]
    assert before - resident() > 0.9 * size
    assert as_array(made["y"])[-1] == 1


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


if sys.platform != "linux":
    test_outputs_by_themselves_on_the_cpu = pytest.mark.skip("reads /proc")(test_outputs_by_themselves_on_the_cpu)


def test_auto_takes_the_device_and_a_dry_run_too(fake: Traffic) -> None:
    assert run("auto").report.provider == CUDA
    assert choose_device("auto") == choose_device("cuda:0") == GPU
    with pytest.raises(RuntimeFailure, match=r"--device cuda:1: .* could not start CUDA device 1 here"):
        choose_device("cuda:1")
    fake.up = 0
    report = plan(twins(4)[0], Options(sparsity=0.8, alloc="error", repair="none", device="cuda"), DATA)
    assert fake.up > DATA.nbytes / 2
    assert report.memory is not None


# ---- the budget


class Driver:
    """libcuda with one device; ``fails`` is a function that gives an error."""

    def __init__(self, free: int, fails: str = "") -> None:
        self.free, self.fails = free, fails
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        def call(*given: Any) -> int:
            self.calls.append(name)
            if name == self.fails or (name == "cuDeviceGet" and given[1] != 0):
                return 101
            if name == "cuMemGetInfo_v2":
                ctypes.cast(given[0], ctypes.POINTER(ctypes.c_size_t))[0] = self.free
            return 0

        return call


def test_half_of_what_the_device_has_free_is_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(10**10)
    monkeypatch.setattr(device_memory, "driver", lambda: driver)
    assert device_memory.free_on(0) == 10**10
    assert driver.calls[-1] == "cuDevicePrimaryCtxRelease_v2"
    assert driver.calls.count("cuCtxPushCurrent_v2") == driver.calls.count("cuCtxPopCurrent_v2") == 1
    assert memory_for(None, GPU).budget == 5 * 10**9
    assert memory_for(7, GPU).budget == 7
    monkeypatch.setattr("onnxprune.memory.budget", lambda asked: asked or 3)
    assert memory_for(None, Device("cpu")).budget == 3
    assert memory_for(None, Device("cuda", 1)).budget == 3  # no such device: what the host has


@pytest.mark.parametrize("name", ["cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain", "cuCtxPushCurrent_v2", "cuMemGetInfo_v2"])
def test_a_driver_that_does_not_tell(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    driver = Driver(10**10, name)
    monkeypatch.setattr(device_memory, "driver", lambda: driver)
    assert device_memory.free_on(0) == 0
    assert driver.calls.count("cuDevicePrimaryCtxRelease_v2") == (name in ("cuCtxPushCurrent_v2", "cuMemGetInfo_v2"))


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> Any:
        raise OSError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(device_memory, "driver", none)
    assert device_memory.free_on(0) == 0


# ---- what happens where CUDA does not start


class Broken:
    """onnxruntime with CUDA in its list; ``how`` it fails: falls back to the CPU, raises, or breaks when it runs."""

    def __init__(self, how: str, *, preload: str = "prints") -> None:
        self.how = how
        self.severity: list[int] = []
        if preload != "none":
            self.preload_dlls = self.raises if preload == "raises" else lambda: print("Failed to load libcudnn.so.9")

    def raises(self) -> None:
        raise RuntimeError("Invalid parameter of directory")

    def __getattr__(self, name: str) -> Any:
        if name == "preload_dlls":
            raise AttributeError(name)
        return getattr(fake_cuda.ort, name)

    def get_available_providers(self) -> list[str]:
        return [CUDA, CPU]

    def set_default_logger_severity(self, level: int) -> None:
        self.severity.append(level)

    def InferenceSession(self, *given: Any, **named: Any) -> Any:  # noqa: N802
        if self.how == "raises":
            raise RuntimeError("CUDA failure 35: CUDA driver version is insufficient")

        def run(*told: Any) -> None:
            if self.how == "breaks":
                raise RuntimeError("CUDA failure 209: no kernel image is available for execution on the device")

        return SimpleNamespace(get_providers=lambda: [CPU] if self.how == "falls back" else [CUDA, CPU], run=run)


@pytest.fixture
def uncached() -> Iterator[None]:
    session._cuda_starts.cache_clear()
    yield
    session._cuda_starts.cache_clear()


@pytest.mark.usefixtures("uncached")
@pytest.mark.parametrize("preload", ["prints", "raises", "none"])
@pytest.mark.parametrize("how", ["falls back", "raises", "breaks", "starts"])
def test_cuda_counts_where_a_session_runs_on_it(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], how: str, preload: str
) -> None:
    broken = Broken(how, preload=preload)
    monkeypatch.setattr(session, "ort", broken)
    starts = how == "starts" and preload != "raises"
    found = choose_device("auto", threads=2)
    assert found.kind == ("cuda" if starts else "cpu")
    assert found.threads == 2
    assert bool(found.note) == (not starts)
    if not starts:
        with pytest.raises(RuntimeFailure, match="could not start CUDA device 0 here; check the driver"):
            choose_device("cuda")
    assert capfd.readouterr() == ("", "")
    assert broken.severity[0] == 4  # the loader's lines
    assert broken.severity[-1] == 2


@pytest.mark.usefixtures("uncached")
def test_a_runtime_without_cuda_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session.ort, "get_available_providers", lambda: [CPU])
    monkeypatch.setattr(session.ort, "InferenceSession", lambda *given, **named: pytest.fail("a session was built"))
    assert choose_device("auto").kind == "cpu"


def test_a_session_that_falls_back_later_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The provider that is reported is the one that ran."""
    monkeypatch.setattr(session, "ort", Broken("falls back"))
    with pytest.raises(RuntimeFailure, match="the session runs on CPUExecutionProvider, not on CUDAExecutionProvider; use --device cpu"):
        session.open_session(twins(1)[0].SerializeToString(), GPU)


# ---- a real device, where there is one; the fake runs them too


def moments_on(device: Device, model: onnx.ModelProto, batches: list[dict[str, Any]]) -> list[Moments]:
    return dense_moments(model, points(layers.find(model)), batches, device, lambda: None)


@pytest.mark.parametrize("form", ["digits", "digits_folded"])
def test_moments_agree(gpu: str, digits: Path, form: str) -> None:
    """To 1e-4: of the mean by the standard deviation, of the variance by itself."""
    model = onnx.load(digits / f"{form}.onnx")
    images = np.load(digits / "calib.npz")["image"].astype(np.float32)[:128]
    batches = [{model.graph.input[0].name: images[at : at + 32]} for at in range(0, len(images), 32)]
    for here, there in zip(*(moments_on(device, model, batches) for device in (Device("cpu"), GPU)), strict=True):
        assert here.count == there.count
        live = here.variance > 0
        np.testing.assert_allclose(there.variance[live], here.variance[live], rtol=1e-4)
        np.testing.assert_array_less(np.abs(there.mean - here.mean)[live], 1e-4 * np.sqrt(here.variance[live]))


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "options",
    [
        {"repair": "channel"},
        pytest.param({"repair": "bn"}, marks=SLOW),
        pytest.param({"repair": "asr"}, marks=SLOW),
        pytest.param({"repair": "reconstruct", "samples": 100}, marks=SLOW),
        pytest.param({"alloc": "error"}, marks=SLOW),
    ],
    ids=str,
)
def test_the_example_comes_out_nearly_the_same(gpu: str, digits: Path, options: dict[str, Any]) -> None:
    """Top-1 on the 600 labelled samples that no run has seen: within two of them, 0.33 points, for thinning may turn on a tie."""
    told = np.load(digits / "test.npz")
    images, labels = told["image"].astype(np.float32), told["labels"]
    right = []
    for device in ("cpu", "cuda"):
        words = {"sparsity": 0.9, "seed": 0, **options, "device": device}
        result = prune(digits / "digits.onnx", digits / "calib.npz", **words)
        assert result.report.provider == (CUDA if device == "cuda" else CPU)
        opened = session.open_session(result.model.SerializeToString(), Device("cpu"))
        (scores,) = opened.run(None, {result.model.graph.input[0].name: images})
        right.append((scores.argmax(1) == labels).mean())
    assert abs(right[0] - right[1]) <= 2 / len(labels) + 1e-9


@pytest.mark.slow
@pytest.mark.cuda
@pytest.mark.parametrize("repair", ["channel", "reconstruct"])
@pytest.mark.parametrize("name", ["resnet20.onnx", "resnet56_folded.onnx"])
def test_top1_of_a_reference_network_agrees(reference: Path, name: str, repair: str) -> None:
    """Within 0.3 points on the labelled samples of the reference folder, at 0.9."""
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.syspath_prepend(Path(__file__).resolve().parent.parent / "tools")
        import reference as subjects

        right = []
        for device in ("cpu", "cuda"):
            images = subjects.samples(f"cifar10/{name}")
            result = prune(reference / "cifar10" / name, images, sparsity=0.9, repair=repair, samples=256, device=device)
            right.append(subjects.top1(result.model, f"cifar10/{name}"))
    assert abs(right[0] - right[1]) <= 0.003


def test_two_runs_on_one_device_give_the_same_bytes(gpu: str) -> None:
    for repair in ("channel", "reconstruct"):
        same(run("cuda", repair=repair), run("cuda", repair=repair))


def test_masks_do_not_depend_on_the_device(gpu: str) -> None:
    one, two = (tensors(run(device, repair="none").model) for device in ("cpu", "cuda"))
    for name, values in one.items():
        np.testing.assert_array_equal(values, two[name])


def test_tensors_come_back_as_they_went(gpu: str) -> None:
    rng = np.random.default_rng(0)
    memory = Memory(LEAST)
    for dtype in (np.float32, np.float16, np.int64, np.bool_):
        array = rng.integers(0, 2, (3, LEAST)).astype(dtype)
        np.testing.assert_array_equal(as_array(to_device(array, GPU)), array)
        held = memory.hold(to_device(array, GPU), GPU)
        np.testing.assert_array_equal(held.numpy(), array)
        np.testing.assert_array_equal(as_array(held.value()), array)
    assert memory.spilled
