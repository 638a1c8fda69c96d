"""Bad input of every kind: one line on stderr, the right exit code, and a folder that is the same before and after."""

from __future__ import annotations

import errno
import io
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import Ran
from networks import mlp, model_of, tensors
from onnx import helper
from PIL import Image

import onnxprune as onnxprune_package
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


def test_samples_of_two_shapes_where_one_is_fixed(folder: Path, refused: Callable[..., None]) -> None:
    (folder / "data").mkdir()
    np.save("data/a.npy", np.zeros((10, 1, 8, 8), np.float32))
    np.save("data/b.npy", np.zeros((10, 1, 6, 8), np.float32))
    refused(1, ["data/b.npy", "(1, 6, 8)", "(1, 8, 8)"], "model.onnx", *AT_09, "--calib", "data")


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


# ---- files that are not what they should be


def external(folder: Path, location: str, **more: str) -> None:
    """Write big.onnx, whose first tensor says that it lies at ``location``."""
    model = onnx.load("model.onnx")
    tensor = model.graph.initializer[0]
    size = len(tensor.raw_data)
    (folder / "real.data").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": "0", "length": str(size), **more}.items():
        tensor.external_data.add(key=key, value=value)
    (folder / "big.onnx").write_bytes(model.SerializeToString())


def test_external_data_in_the_folder_is_read(folder: Path, onnxprune: Call) -> None:
    """So that what follows fails for its own reason."""
    external(folder, "real.data")
    assert onnxprune("big.onnx", *AT_09, *CALIB, "-o", "new.onnx").code == 0


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("../real.data", "leads out"),
        ("sub/../../real.data", "leads out"),
        ("..\\\\real.data", "leads out"),
        ("C:real.data", "leads out"),
        ("/etc/passwd", "leads out"),
        ("", "leads out"),
        ("a\0b", "leads out"),
        ("gone.data", "is missing"),
        ("outside.data", "is a link out of the model's folder"),
        ("outside/real.data", "is a link out of the model's folder"),
        ("sub/deep/real.data", "is a link out of the model's folder"),
        ("pipe", "is no regular file"),
        ("sub", "is no regular file"),
        ("loop", "external data cannot be loaded"),
        ("x" * 5000, "external data cannot be loaded"),
    ],
)
def test_external_data_out_of_the_folder(
    folder: Path, refused: Callable[..., None], tmp_path_factory: pytest.TempPathFactory, location: str, words: str
) -> None:
    other = tmp_path_factory.mktemp("other")
    external(folder, location.replace("\\\\", "\\"))
    shutil.copy("real.data", other / "real.data")
    shutil.copy("real.data", folder.parent / "real.data")
    (folder / "sub").mkdir()
    os.mkfifo(folder / "pipe")
    for name, target in (("outside.data", other / "real.data"), ("outside", other), ("sub/deep", other), ("loop", folder / "loop")):
        os.symlink(target, folder / name)
    refused(1, ["big.onnx: external data cannot be loaded", words], "big.onnx", *AT_09, *CALIB)
    refused(1, ["big.onnx: external data cannot be loaded", words], "inspect", "big.onnx", target=False)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"length": "4"}, "takes 2304 bytes, it has 4"),
        ({"offset": "4"}, "it has 2304 from byte 4 of real.data, which has 2304"),
        ({"offset": "-4"}, "has the offset '-4'"),
        ({"length": "9" * 40}, "has the length"),
        ({"offset": "0x10"}, "has the offset '0x10'"),
    ],
)
def test_external_data_at_no_place(folder: Path, refused: Callable[..., None], entries: dict[str, str], words: str) -> None:
    external(folder, "real.data", **entries)
    refused(1, ["big.onnx: external data cannot be loaded", words], "big.onnx", *AT_09, *CALIB)


def test_external_data_read_over_and_over(folder: Path, refused: Callable[..., None]) -> None:
    external(folder, "real.data")
    model = onnx.load("big.onnx", load_external_data=False)
    for number in range(20):
        model.graph.initializer.add().CopyFrom(model.graph.initializer[0])
        model.graph.initializer[-1].name = f"more{number}"
    (folder / "big.onnx").write_bytes(model.SerializeToString())
    refused(1, ["read the same bytes more than 16 times over"], "big.onnx", *AT_09, *CALIB)


def test_external_data_of_a_sparse_tensor(folder: Path, refused: Callable[..., None]) -> None:
    model = onnx.load("model.onnx")
    sparse = model.graph.sparse_initializer.add(dims=[4])
    sparse.values.CopyFrom(onnx.TensorProto(name="s", data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL))
    sparse.values.external_data.add(key="location", value="/etc/passwd")
    (folder / "big.onnx").write_bytes(model.SerializeToString())
    refused(1, ["tensor 's' lies in another file at a place where that is not read"], "big.onnx", *AT_09, *CALIB)


@pytest.mark.parametrize("dims", [[2**40, 2**40], [-64, -1, 3, 3], [0, 2**62], [64, 1, 3, 4], [2**62, 2**62, 2**62]])
def test_a_tensor_of_a_shape_that_cannot_be(folder: Path, refused: Callable[..., None], dims: list[int]) -> None:
    model = onnx.load("model.onnx")
    del model.graph.initializer[0].dims[:]
    model.graph.initializer[0].dims.extend(dims)
    (folder / "odd.onnx").write_bytes(model.SerializeToString())
    refused(1, ["odd.onnx: tensor", "cannot be read: "], "odd.onnx", *AT_09, *CALIB)


def test_a_model_nested_without_end(folder: Path, refused: Callable[..., None]) -> None:
    def field(number: int, content: bytes) -> bytes:
        size, head = len(content), b""
        while size > 127:
            head, size = head + bytes([size & 127 | 128]), size >> 7
        return bytes([number << 3 | 2]) + head + bytes([size]) + content

    body = b""
    for _ in range(2000):
        body = field(1, field(4, b"If") + field(5, field(1, b"then_branch") + field(6, body)))
    (folder / "deep.onnx").write_bytes(b"\x08\x08" + field(8, b"\x10\x11") + field(7, body))
    refused(1, ["deep.onnx: not an ONNX file"], "deep.onnx", *AT_09, *CALIB)


@pytest.mark.parametrize("name", ["pipe.onnx", "pipe.npy", "pipe.npz", "pipe.png", "pipe.jsonl"])
def test_a_pipe_is_never_opened(folder: Path, refused: Callable[..., None], name: str) -> None:
    os.mkfifo(folder / name)
    if name.endswith("onnx"):
        refused(1, ["pipe.onnx: is no regular file"], name, *AT_09, *CALIB)
        refused(1, ["pipe.onnx: is no regular file"], "inspect", name, target=False)
    else:
        refused(1, [f"{name}: is no regular file"], "model.onnx", *AT_09, "--calib", name)


@pytest.mark.parametrize("name", ["zero.onnx", "zero.npy"])
def test_a_device_is_never_read(folder: Path, refused: Callable[..., None], name: str) -> None:
    os.symlink("/dev/zero", folder / name)
    arguments = (name, *AT_09, *CALIB) if name.endswith("onnx") else ("model.onnx", *AT_09, "--calib", name)
    with_device = [f"{name}: is no regular file"]
    # the folder's snapshot would read it, too
    before = sorted(os.listdir(folder))
    refused_by(folder, with_device, arguments)
    assert sorted(os.listdir(folder)) == before


def refused_by(folder: Path, words: list[str], arguments: tuple[object, ...]) -> None:
    """As the fixture does, in a process of its own with five seconds."""
    ran = subprocess.run(
        [sys.executable, "-m", "onnxprune", *map(str, arguments), "-o", "new.onnx"],
        cwd=folder, capture_output=True, text=True, timeout=30, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(onnxprune_package.__file__).parent.parent)},
    )  # fmt: skip
    assert (ran.returncode, ran.stdout) == (1, "")
    (line,) = ran.stderr.splitlines()
    for word in words:
        assert word in line


def test_a_pipe_among_the_samples_is_left_aside(folder: Path, onnxprune: Call) -> None:
    (folder / "data").mkdir()
    shutil.copy("calib.npz", "data/a.npz")
    os.mkfifo(folder / "data" / "b.npz")
    ran = onnxprune("model.onnx", *AT_09, "--calib", "data")
    assert ran.code == 0
    assert "1 other file ignored (b.npz, no regular file)" in ran.out


def test_a_decompression_bomb(folder: Path, refused: Callable[..., None]) -> None:
    """Four gigabytes of zeros in four megabytes, with a header that fits them: only the sizes give it away."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<f4", "fortran_order": False, "shape": (2**24, 1, 8, 8)})
    with zipfile.ZipFile("bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("image.npy", "w", force_zip64=True) as member:
        member.write(head.getvalue() + bytes(2**20))
    data = bytearray((folder / "bomb.npz").read_bytes())
    at = data.index(b"PK\x01\x02")  # the entry of the directory, whose sizes count
    data[at + 24 : at + 28] = (len(head.getvalue()) + 2**32 - 2**8).to_bytes(4, "little")
    (folder / "bomb.npz").write_bytes(data)
    refused(1, ["bomb.npz: cannot be read"], "model.onnx", *AT_09, "--calib", "bomb.npz")


def test_an_image_bomb(folder: Path, refused: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "data").mkdir()
    Image.new("L", (300, 300)).save("data/a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50_000)
    words = [".png: cannot be read as an image", "decompression bomb"]
    shutil.copy("data/a.png", "data/b.png")
    shutil.copy("data/a.png", "data/c.png")
    refused(1, words, "model.onnx", *AT_09, "--calib", "data", "--resize", "8", "--mean", "0")


def test_a_sliver_that_resize_would_blow_up(folder: Path, refused: Callable[..., None]) -> None:
    (folder / "data").mkdir()
    Image.new("L", (60_000, 1)).save("data/a.png")
    words = [".png: cannot be read as an image", "scaled to 3840000x64 it has more than"]
    shutil.copy("data/a.png", "data/b.png")
    shutil.copy("data/a.png", "data/c.png")
    refused(1, words, "model.onnx", *AT_09, "--calib", "data", "--resize", "64", "--mean", "0")


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
