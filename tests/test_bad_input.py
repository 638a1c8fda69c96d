"""Bad input of every kind: one line on stderr, the right exit code, and a folder that is the same before and after."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import Ran
from networks import mlp, model_of, tensors, twins
from onnx import helper
from PIL import Image

from onnxprune.runtime import session

Call = Callable[..., Ran]
CALIB = ("--calib", "calib.npz")
AT_09 = ("--sparsity", "0.9")


@pytest.fixture
def folder(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a model, its samples, and targets that exist already."""
    shutil.copy(digits / "digits_folded.onnx", tmp_path / "model.onnx")
    image = np.load(digits / "calib.npz")["image"][:60]
    np.savez(tmp_path / "calib.npz", image=image)
    for name in ("out.onnx", "out.json"):
        (tmp_path / name).write_bytes(b"what was there before")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Every file below the folder with its bytes; folders count too."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture
def refused(folder: Path, onnxprune: Call) -> Callable[..., None]:
    """refused(code, words, *arguments): a run onto out.onnx and out.json fails so, and changes nothing."""

    def check(code: int, words: list[str], *arguments: object, target: bool = True) -> None:
        before = snapshot(folder)
        more = ("-o", "out.onnx", "--report", "out.json", "--force") if target else ()
        ran = onnxprune(*arguments, *more)
        assert ran.code == code, ran
        assert ran.out == ""
        (line,) = ran.err.splitlines()
        assert line.startswith("onnxprune: error: "), line
        for word in words:
            assert word in line, line
        assert len(line) < 600, line
        assert snapshot(folder) == before

    return check


# ---- the model file


def test_missing_file(refused: Callable[..., None]) -> None:
    refused(1, ["gone.onnx: no such file"], "gone.onnx", *AT_09, *CALIB)


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 1000, b"hello, this is no model", np.random.default_rng(0).bytes(5000), b"PK\x03\x04" * 100]
)
def test_not_onnx(folder: Path, refused: Callable[..., None], content: bytes) -> None:
    (folder / "model.onnx").write_bytes(content)
    refused(1, ["model.onnx: not an ONNX"], "model.onnx", *AT_09, *CALIB)


def test_a_folder_is_no_model(folder: Path, refused: Callable[..., None]) -> None:
    (folder / "models").mkdir()
    refused(1, ["models: is a folder"], "models", *AT_09, *CALIB)


@pytest.mark.parametrize("share", [0.001, 0.3, 0.9, 0.999])
def test_truncated_file(folder: Path, refused: Callable[..., None], share: float) -> None:
    data = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(data[: int(share * len(data))])
    refused(1, ["model.onnx: "], "model.onnx", *AT_09, *CALIB)
    refused(1, ["model.onnx: "], "inspect", "model.onnx", target=False)


def test_missing_external_data(folder: Path, refused: Callable[..., None]) -> None:
    model = onnx.load("model.onnx")
    onnx.save(model, "big.onnx", save_as_external_data=True, location="big.data", size_threshold=0)
    (folder / "big.data").unlink()
    refused(1, ["big.onnx: external data cannot be loaded", "big.data"], "big.onnx", *AT_09, *CALIB)


def test_external_data_cut_off(folder: Path, refused: Callable[..., None]) -> None:
    model = onnx.load("model.onnx")
    onnx.save(model, "big.onnx", save_as_external_data=True, location="big.data", size_threshold=0)
    os.truncate(folder / "big.data", 10_000)
    refused(1, ["big.onnx: "], "big.onnx", *AT_09, *CALIB)


def test_nothing_prunable(folder: Path, refused: Callable[..., None]) -> None:
    onnx.save(model_of([helper.make_node("Relu", ["x"], ["y"])], {"x": ("n", 4)}, {"y": ("n", 4)}, {}), "relu.onnx")
    refused(1, ["nothing to prune: no Conv, ConvTranspose, Gemm or MatMul"], "relu.onnx", *AT_09, *CALIB)


def test_a_model_that_the_runtime_does_not_take(folder: Path, refused: Callable[..., None]) -> None:
    model = mlp()
    model.graph.node[2].op_type = "Rely"
    onnx.save(model, "odd.onnx")
    np.save("x.npy", np.zeros((20, 8), np.float32))
    refused(1, ["ONNX Runtime", "does not take the model", "Rely"], "odd.onnx", *AT_09, "--calib", "x.npy")


# ---- the sparsity


@pytest.mark.parametrize("sparsity", ["1", "-0.1", "nan", "inf", "95", "1.0000001", "-1e-9"])
def test_sparsity_out_of_range(refused: Callable[..., None], sparsity: str) -> None:
    refused(2, ["--sparsity", "is not in 0 <= S < 1"], "model.onnx", "--sparsity", sparsity, *CALIB)
    refused(2, ["is not in 0 <= S < 1"], "model.onnx", "--sparsity", sparsity, "--dry-run", target=False)
    refused(2, ["is not in 0 <= S < 1"], "model.onnx", *AT_09, "--layer-sparsity", f"/stem/conv/Conv={sparsity}", *CALIB)


@pytest.mark.parametrize("alloc", ["uniform", "global", "erk", "lamp"])
def test_fewer_weights_than_layers(refused: Callable[..., None], alloc: str) -> None:
    words = ["599872 weights keeps 6 weights for 9 layers", "lower the sparsity to"]
    refused(1, words, "model.onnx", "--sparsity", "0.99999", "--alloc", alloc, *CALIB)


# ---- the samples


def test_empty_folder(folder: Path, refused: Callable[..., None]) -> None:
    (folder / "data").mkdir()
    refused(1, ["data: nothing usable among its 0 files"], "model.onnx", *AT_09, "--calib", "data")


def test_no_samples_there(refused: Callable[..., None]) -> None:
    refused(1, ["gone: no such file or folder"], "model.onnx", *AT_09, "--calib", "gone")


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((20, 1, 9, 8), np.float32), ["(1, 9, 8)", "(1, 8, 8)"]),  # wrong shape
        (np.zeros((20, 64), np.float32), ["rank 2", "rank 4"]),  # wrong rank
        (np.zeros((20, 1, 8, 8), np.float64), ["got float64", "takes float32", "--mean"]),  # wrong dtype
        (np.zeros((20, 1, 8, 8), np.uint8), ["got uint8", "takes float32", "--mean"]),
        (np.zeros((20, 1, 8, 8), np.complex64), ["got complex64", "takes float32"]),
        (np.zeros((20, 3, 8, 8), np.float32), ["(3, 8, 8)", "(1, 8, 8)"]),  # wrong number of channels
        (np.zeros((20, 8, 8, 1), np.float32), ["(8, 8, 1)", "--layout nhwc"]),  # the other layout
        (np.zeros((0, 1, 8, 8), np.float32), ["is empty"]),
    ],
)
def test_samples_that_do_not_fit(folder: Path, refused: Callable[..., None], array: np.ndarray, words: list[str]) -> None:
    np.savez(folder / "bad.npz", image=array)
    refused(1, ["bad.npz", *words], "model.onnx", *AT_09, "--calib", "bad.npz")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_in_the_samples(folder: Path, refused: Callable[..., None], value: float) -> None:
    image = np.load("calib.npz")["image"]
    image[41, 0, 3, 3] = value
    np.save(folder / "bad.npy", image)
    refused(1, ["bad.npy: sample 41 holds NaN or infinity"], "model.onnx", *AT_09, "--calib", "bad.npy")


def test_fewer_samples_than_the_holdout_needs(folder: Path, refused: Callable[..., None]) -> None:
    np.save(folder / "few.npy", np.zeros((2, 1, 8, 8), np.float32))
    words = ["2 of 2 calibration samples leave nothing for the holdout", "3 are needed"]
    refused(1, words, "model.onnx", *AT_09, "--calib", "few.npy")
    refused(1, ["--samples 3"], "model.onnx", *AT_09, *CALIB, "--samples", "1")


def test_unknown_input_name(folder: Path, refused: Callable[..., None]) -> None:
    image = np.load("calib.npz")["image"]
    np.savez(folder / "bad.npz", picture=image, labels=np.zeros(60, np.int64))
    words = ["bad.npz: arrays picture, labels; model inputs: image: name each array after its input"]
    refused(1, words, "model.onnx", *AT_09, "--calib", "bad.npz")


def test_mixed_shapes(folder: Path, refused: Callable[..., None]) -> None:
    model = twins(depth=2)[0]
    for axis in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].Clear()
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"d{axis}"
    onnx.save(model, "free.onnx")
    (folder / "data").mkdir()
    np.save("data/a.npy", np.zeros((10, 3, 8, 8), np.float32))
    np.save("data/b.npy", np.zeros((10, 3, 6, 8), np.float32))
    refused(1, ["data/b.npy", "(3, 6, 8)", "(3, 8, 8)", "one shape"], "free.onnx", *AT_09, "--calib", "data")


def test_unreadable_image(folder: Path, refused: Callable[..., None]) -> None:
    (folder / "data").mkdir()
    rng = np.random.default_rng(0)
    for number in range(10):
        Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(f"data/{number}.png")
    scaled = ("--mean", "0", "--std", "255")
    (folder / "data" / "7.png").write_bytes((folder / "data" / "7.png").read_bytes()[:60])
    refused(1, ["data/7.png: "], "model.onnx", *AT_09, "--calib", "data", *scaled)
    (folder / "data" / "7.png").write_text("no image at all")
    refused(1, ["data/7.png: "], "model.onnx", *AT_09, "--calib", "data", *scaled)


@pytest.mark.parametrize("name", ["bad.npy", "bad.npz"])
def test_damaged_arrays(folder: Path, refused: Callable[..., None], name: str) -> None:
    np.savez("bad.npz", image=np.zeros((20, 1, 8, 8), np.float32))
    np.save("bad.npy", np.zeros((20, 1, 8, 8), np.float32))
    (folder / name).write_bytes((folder / name).read_bytes()[:-700])
    refused(1, [f"{name}: cannot be read"], "model.onnx", *AT_09, "--calib", name)


def test_pickled_objects_are_never_loaded(folder: Path, refused: Callable[..., None]) -> None:
    np.save(folder / "bad.npy", np.array([{"a": 1}], object), allow_pickle=True)
    refused(1, ["bad.npy", "pickled"], "model.onnx", *AT_09, "--calib", "bad.npy")


# ---- the target


def test_a_folder_that_is_not_there(folder: Path, refused: Callable[..., None]) -> None:
    words = ["cannot be written: the folder gone does not exist"]
    refused(1, words, "model.onnx", *AT_09, *CALIB, "-o", "gone/out.onnx", target=False)
    refused(1, words, "model.onnx", *AT_09, *CALIB, "--out-dir", "gone", target=False)
    refused(1, words, "model.onnx", *AT_09, *CALIB, "-o", "new.onnx", "--report", "gone/r.json", target=False)
    (folder / "file").write_text("")
    refused(1, ["the folder file does not exist"], "model.onnx", *AT_09, *CALIB, "-o", "file/out.onnx", target=False)


@pytest.mark.parametrize("force", [("--force",), ()])
@pytest.mark.parametrize("flag", ["-o", "--report"])
def test_a_folder_as_target(folder: Path, refused: Callable[..., None], flag: str, force: tuple[str, ...]) -> None:
    (folder / "out").mkdir()
    refused(1, ["out: cannot be written: it is a folder"], "model.onnx", *AT_09, *CALIB, flag, "out", *force, target=False)


@pytest.mark.parametrize("flag", ["-o", "--report"])
def test_a_device_as_target_is_not_replaced(folder: Path, refused: Callable[..., None], flag: str) -> None:
    os.mkfifo(folder / "pipe")
    words = ["pipe: cannot be written: it is no regular file"]
    refused(1, words, "model.onnx", *AT_09, *CALIB, flag, "pipe", "--force", target=False)
    assert not (folder / "pipe").is_file()


def test_no_file_can_be_made(refused: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """As root every folder is writable; so the system says no when asked for a file beside the target."""

    def no(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(tempfile, "TemporaryFile", no)
    refused(1, ["out.onnx: cannot be written: Permission denied"], "model.onnx", *AT_09, *CALIB)
    monkeypatch.undo()


def test_a_folder_that_turns_read_only_on_the_way(refused: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    def no(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(tempfile, "mkstemp", no)
    refused(1, ["cannot be written: Read-only file system"], "model.onnx", *AT_09, *CALIB)


@pytest.mark.parametrize("nth", [1, 2])
def test_a_full_disk(refused: Callable[..., None], monkeypatch: pytest.MonkeyPatch, nth: int) -> None:
    """The first fsync is the report's, the second the model's."""
    calls = []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == nth:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    refused(1, ["cannot be written: No space left on device"], "model.onnx", *AT_09, *CALIB)
    assert len(calls) == nth


def test_the_inputs_data_file_is_no_target(folder: Path, refused: Callable[..., None]) -> None:
    onnx.save(onnx.load("model.onnx"), "big.onnx", save_as_external_data=True, location="big.data")
    words = ["big.data holds data of the input big.onnx"]
    refused(2, words, "big.onnx", *AT_09, *CALIB, "-o", "big.data", "--force", target=False)
    refused(2, words, "big.onnx", *AT_09, *CALIB, "-o", "new.onnx", "--report", "./big.data", "--force", target=False)


# ---- the device


@pytest.fixture
def no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_cuda_starts", lambda index: False)


@pytest.mark.usefixtures("no_cuda")
@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:7"])
def test_cuda_asked_and_absent(refused: Callable[..., None], device: str) -> None:
    words = [f"--device {device}: ONNX Runtime", "could not start CUDA device", "use --device cpu"]
    refused(1, words, "model.onnx", *AT_09, *CALIB, "--device", device)


@pytest.mark.usefixtures("no_cuda", "folder")
def test_auto_falls_back_and_says_so(onnxprune: Call) -> None:
    ran = onnxprune("model.onnx", *AT_09, *CALIB)
    assert (ran.code, ran.err) == (0, "")
    assert "note: no CUDA device could be started; running on the CPU" in ran.out
    assert "CPUExecutionProvider" in ran.out
    ran = onnxprune("model.onnx", *AT_09, *CALIB, "--device", "cpu", "--force")
    assert "note:" not in ran.out


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:-1", "cuda:x", "CPU", "cuda:0,1", ""])
def test_unknown_device(refused: Callable[..., None], device: str) -> None:
    refused(2, [f"--device {device!r} is not known"], "model.onnx", *AT_09, *CALIB, "--device", device)


# ---- compare and inspect refuse the same things


@pytest.mark.parametrize("command", [("inspect",), ("compare", "model.onnx")])
def test_the_other_commands_are_as_strict(folder: Path, refused: Callable[..., None], command: tuple[str, ...]) -> None:
    samples = CALIB if command[0] == "compare" else ()
    refused(1, ["gone.onnx: no such file"], *command, "gone.onnx", *samples, target=False)
    (folder / "junk.onnx").write_text("junk")
    refused(1, ["junk.onnx: not an ONNX"], *command, "junk.onnx", *samples, target=False)


def test_compare_refuses_bad_samples(refused: Callable[..., None]) -> None:
    np.save("bad.npy", np.zeros((20, 1, 9, 9), np.float32))
    refused(1, ["bad.npy"], "compare", "model.onnx", "model.onnx", "--calib", "bad.npy", target=False)


@pytest.mark.parametrize("which", ["w0", "w1"])
def test_damaged_weights(folder: Path, refused: Callable[..., None], which: str) -> None:
    model = mlp()
    for tensor in model.graph.initializer:
        if tensor.name == which:
            values = tensors(model)[which].copy()
            values[0, 0] = np.inf
            tensor.raw_data = values.tobytes()
    onnx.save(model, "damaged.onnx")
    np.save("x.npy", np.zeros((20, 8), np.float32))
    refused(1, [f"layer 'mm{which[1]}' has NaN or infinite weights"], "damaged.onnx", *AT_09, "--calib", "x.npy")
