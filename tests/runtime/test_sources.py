"""Files and folders: what is found, what is read lazily, and one line for everything else."""

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from numpy.lib import format as npy
from PIL import Image

from onnxprune.errors import CalibrationError
from onnxprune.runtime import sources
from onnxprune.runtime.finding import find
from onnxprune.runtime.sources import from_memory, open_files

X = {"x": 2}
rows = np.array


def touch(folder: Path, *names: str) -> None:
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".npy":
            np.save(file, np.zeros((2, 3), np.float32))
        elif file.suffix == ".npz":
            np.savez(file, x=np.zeros((2, 3), np.float32))
        elif file.suffix in (".png", ".JPG"):
            Image.new("L", (2, 2)).save(file, "PNG")
        else:
            file.write_text("text")


def found(path: Path, *more: Path) -> tuple[list[str], list[str]]:
    files, notes = find([path, *more])
    return [file.relative_to(path).as_posix() if file.is_relative_to(path) else file.name for file in files], notes


def opened(file: Path, ranks: dict[str, int] = X) -> sources.Source:
    (source,) = open_files([file], ranks)
    return source


def refuses(act, *parts: object) -> None:
    with pytest.raises(CalibrationError) as error:
        act()
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message


# --- what is found ---


def test_folder_of_arrays_is_sorted_and_others_are_noted(tmp_path):
    touch(tmp_path, "b.npy", "a.npz", "B.npy", ".hidden.npy", "README", "labels.csv", "below/c.npy")
    files, notes = found(tmp_path)
    assert files == ["B.npy", "a.npz", "b.npy"]
    assert notes == [f"{tmp_path}: 3 other files ignored (README, below/c.npy, labels.csv)"]


def test_folder_of_images_is_recursive_and_sorted_by_path(tmp_path):
    touch(tmp_path, "dog/2.png", "cat/3.png", "cat/10.JPG", "a.png", ".git/x.png", "cat/.x.png", "notes.txt")
    files, notes = found(tmp_path)
    assert files == ["a.png", "cat/10.JPG", "cat/3.png", "dog/2.png"]
    assert notes == [f"{tmp_path}: 1 other file ignored (notes.txt)"]


def test_paths_are_concatenated_in_order(tmp_path):
    touch(tmp_path, "z.npz", "pictures/1.png", "a.npy")
    files, notes = found(tmp_path / "z.npz", tmp_path / "pictures", tmp_path / "a.npy")
    assert files == [".", "1.png", "a.npy"]  # "." is the first path itself
    assert notes == []


def test_linked_folders_are_not_followed_but_noted(tmp_path):
    touch(tmp_path, "a.png")
    os.symlink(tmp_path, tmp_path / "loop")
    files, notes = found(tmp_path)
    assert files == ["a.png"]
    assert notes == [f"{tmp_path}: 1 other file ignored (link loop)"]


@pytest.mark.parametrize(
    ("names", "path", "parts"),
    [
        (["a.npy", "b.png"], ".", ("arrays (a.npy)", "images (b.png)")),
        (["a.npy", "below/b.png"], ".", ("arrays (a.npy)", "images (b.png)")),
        (["README"], ".", ("nothing usable among its 1 files", ".npz")),
        ([".a.npy"], ".", ("nothing usable among its 0 files",)),
        (["below/a.npy"], ".", ("nothing usable", "pass the sub-folder")),
        ([], "missing.npy", ("missing.npy", "no such file", ".npz")),
        (["data.csv"], "data.csv", ("data.csv", "'.csv'", ".npz")),
    ],
)
def test_useless_paths(tmp_path, names, path, parts):
    touch(tmp_path, *names)
    refuses(lambda: find([tmp_path / path]), tmp_path, *parts)


def test_no_paths():
    refuses(lambda: find([]), "--calib PATH")


def test_a_file_given_twice_would_leak_into_the_holdout(tmp_path):
    touch(tmp_path, "a.npy")
    refuses(lambda: find([tmp_path, tmp_path / "a.npy"]), "a.npy", "twice", "--calib")


def test_unreadable_folder(tmp_path, monkeypatch):
    def denied(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", denied)  # root may read everything
    refuses(lambda: find([tmp_path]), tmp_path, "Permission denied")


# --- .npy ---


@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_batch_and_single_sample(tmp_path, order):
    batch = np.asarray(np.arange(12, dtype=np.float32).reshape(4, 3), order=order)
    np.save(tmp_path / "batch.npy", batch)
    source = opened(tmp_path / "batch.npy")
    assert (source.count, source.stored["x"].shape, source.stored["x"].dtype) == (4, (3,), np.float32)
    np.testing.assert_array_equal(source.rows(rows([2, 0, 2]))["x"], batch[[2, 0, 2]])
    np.save(tmp_path / "one.npy", batch[1])
    source = opened(tmp_path / "one.npy")
    assert source.count == 1
    np.testing.assert_array_equal(source.rows(rows([0, 0]))["x"], batch[[1, 1]])


def test_rank_one_input_takes_scalars_as_samples(tmp_path):
    np.save(tmp_path / "a.npy", np.float32(5))
    np.testing.assert_array_equal(opened(tmp_path / "a.npy", {"x": 1}).rows(rows([0]))["x"], [5])


def test_npy_version_2(tmp_path):
    with open(tmp_path / "a.npy", "wb") as stream:
        npy.write_array(stream, np.ones((2, 3)), version=(2, 0))
    assert opened(tmp_path / "a.npy").count == 2


def test_npy_rows_are_copies(tmp_path):
    touch(tmp_path, "a.npy")
    got = opened(tmp_path / "a.npy").rows(rows([0, 1]))["x"]
    assert type(got) is np.ndarray
    got[:] = 1  # a read-only map would raise
    assert not np.load(tmp_path / "a.npy").any()


def _header_only(path: Path, shape: tuple[int, ...]) -> None:
    with path.open("wb") as stream:
        npy.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": shape})


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (lambda p: np.save(p, np.array([{}], dtype=object)), ("pickled", "save a plain array")),
        (lambda p: p.write_bytes(b"not numpy at all"), ("cannot be read", "magic")),
        (lambda p: p.write_bytes(b""), ("cannot be read",)),
        (lambda p: p.write_bytes(b"\x93NUMPY\x01\x00\x10\x00{'descr': ((((((\n"), ("cannot be read",)),
        (lambda p: p.write_bytes(b"\x93NUMPY\x03\x00\x10\x00\x00\x00" + b" " * 16), ("version 3.0",)),
        (lambda p: _header_only(p, (2, 3)), ("promises shape (2, 3)",)),
        (lambda p: _header_only(p, (10**12, 10**12)), ("promises shape",)),
        (lambda p: _header_only(p, (-2, -3)), ("promises shape",)),
        (lambda p: np.save(p, np.zeros((2, 3, 4))), ("rank 3", "has rank 2", "one sample (rank 1)")),
        (lambda p: np.save(p, np.zeros((0, 3))), ("is empty", "at least one sample")),
        (lambda p: np.save(p, np.zeros((2, 0))), ("is empty",)),
    ],
)
def test_bad_npy(tmp_path, make, parts):
    make(tmp_path / "a.npy")
    refuses(lambda: opened(tmp_path / "a.npy"), "a.npy", *parts)


def test_npy_for_two_inputs(tmp_path):
    touch(tmp_path, "a.npy")
    refuses(lambda: opened(tmp_path / "a.npy", {"x": 2, "y": 2}), "a.npy", "x, y", ".npz")


def test_file_that_changes_after_opening(tmp_path):
    touch(tmp_path, "a.npy")
    source = opened(tmp_path / "a.npy")
    np.save(tmp_path / "a.npy", np.zeros((1, 3), np.float32))
    refuses(lambda: source.rows(rows([1])), "a.npy", "changed while in use")


# --- .npz ---


def test_npz_by_name_with_unused_arrays(tmp_path):
    x, y = np.arange(6).reshape(2, 3), np.arange(2.0)
    np.savez(tmp_path / "a.npz", y=y, labels=np.zeros(9), x=x)
    source = opened(tmp_path / "a.npz", {"x": 2, "y": 1})
    assert (source.count, source.unused) == (2, ("labels",))
    got = source.rows(rows([1]))
    np.testing.assert_array_equal(got["x"], x[1:])
    np.testing.assert_array_equal(got["y"], y[1:])


def test_lone_array_of_any_name_serves_a_lone_input(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", np.ones((2, 3)))
    assert opened(tmp_path / "a.npz").stored["x"].label == f"{tmp_path}/a.npz: array 'arr_0'"


def test_npz_single_samples(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.ones(3), y=np.ones((1, 3)))
    assert opened(tmp_path / "a.npz", {"x": 2, "y": 2}).count == 1


def test_npz_opens_without_decompressing_and_keeps_the_last_file(tmp_path, monkeypatch):
    for name in "ab":
        np.savez_compressed(tmp_path / f"{name}.npz", x=np.full((2, 3), ord(name)))
    loaded = []
    real = sources._load_npz
    monkeypatch.setattr(sources, "_load_npz", lambda file, keys: loaded.append(file.stem) or real(file, keys))
    a, b = open_files([tmp_path / "a.npz", tmp_path / "b.npz"], X)
    assert loaded == []
    for source in (a, a, b, b, a):
        source.rows(rows([0]))
    assert loaded == ["a", "b", "a"]
    np.testing.assert_array_equal(b.rows(rows([0]))["x"], np.full((1, 3), ord("b")))


def _zip(path: Path, member: bytes, name: str = "x.npy") -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, member)


def _bomb(path: Path) -> None:
    head = io.BytesIO()
    npy.write_array_header_1_0(head, {"descr": "<f4", "fortran_order": False, "shape": (10**9, 3)})
    _zip(path, head.getvalue() + bytes(24))


def _cut(path: Path) -> None:
    np.savez(path, x=np.zeros((2, 3)))
    path.write_bytes(path.read_bytes()[:-30])


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (lambda p: p.write_bytes(b"not a zip"), ("cannot be read", "zip")),
        (_cut, ("cannot be read",)),
        (_bomb, ("promises shape (1000000000, 3)",)),
        (lambda p: _zip(p, b"garbage"), ("cannot be read",)),
        (lambda p: _zip(p, b"text", "readme.txt"), ("no arrays", "model inputs: x")),
        (lambda p: np.savez(p, a=np.zeros(1), b=np.zeros(1)), ("arrays a, b; model inputs: x",)),
        (lambda p: np.savez(p, x=np.array([None])), ("pickled",)),
        (lambda p: np.savez(p, x=np.zeros(())), ("array 'x'", "rank 0")),
    ],
)
def test_bad_npz(tmp_path, make, parts):
    make(tmp_path / "a.npz")
    refuses(lambda: opened(tmp_path / "a.npz"), "a.npz", *parts)


def test_npz_with_unequal_counts(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((2, 3)), y=np.zeros((4, 3)))
    refuses(lambda: opened(tmp_path / "a.npz", {"x": 2, "y": 2}), "a.npz", "x 2, y 4", "same number")


def test_npz_damaged_in_its_data_is_found_when_read(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.arange(3000.0).reshape(1000, 3))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[9000] ^= 255
    (tmp_path / "a.npz").write_bytes(content)
    source = opened(tmp_path / "a.npz")
    refuses(lambda: source.rows(rows([0])), "a.npz", "cannot be read", "CRC")


# --- memory ---


def test_memory_takes_a_lone_array_and_notes_extras():
    x = np.arange(6.0).reshape(2, 3)
    assert from_memory({"anything": x}, X).count == 2
    source = from_memory({"x": x, "labels": np.zeros(5)}, X)
    assert source.unused == ("labels",)
    np.testing.assert_array_equal(source.rows(rows([1, 0]))["x"], x[::-1])


@pytest.mark.parametrize(
    ("arrays", "part"),
    [
        ({"x": [[1.0]]}, "got list"),
        ({"x": np.array([[None]])}, "got objects"),
        ({}, "no arrays; model inputs: x"),
        ({"a": np.zeros((1, 1)), "b": np.zeros((1, 1))}, "arrays a, b; model inputs: x"),
        ({"x": np.zeros((1, 1, 1))}, "calibration array 'x': has rank 3"),
    ],
)
def test_bad_memory(arrays, part):
    refuses(lambda: from_memory(arrays, X), part)


# --- by position ---


def test_arrays_without_a_name_go_by_position(tmp_path):
    x, y = np.zeros((2, 3)), np.ones((2, 3))
    np.savez(tmp_path / "a.npz", x, y)
    source = opened(tmp_path / "a.npz", {"q": 2, "p": 2})
    assert source.by_position == "'arr_0' -> 'q', 'arr_1' -> 'p'"
    np.testing.assert_array_equal(source.rows(rows([0]))["p"], y[:1])


def test_arrays_of_other_names_go_by_position_where_ranks_leave_no_choice(tmp_path):
    np.savez(tmp_path / "a.npz", image=np.zeros((2, 3, 4, 4)), ids=np.zeros((2, 3)))
    assert opened(tmp_path / "a.npz", {"x": 4, "y": 2}).by_position == "'image' -> 'x', 'ids' -> 'y'"
    for ranks in ({"x": 2, "y": 4}, {"x": 4, "y": 4}):  # another order, and none
        refuses(lambda ranks=ranks: opened(tmp_path / "a.npz", ranks), "arrays image, ids; model inputs: x, y")
    np.savez(tmp_path / "b.npz", a=np.zeros((2, 3)), b=np.zeros((2, 3)))  # either may serve either
    refuses(lambda: opened(tmp_path / "b.npz", {"x": 2, "y": 2}), "arrays a, b; model inputs: x, y")


def test_a_bomb_is_told_by_its_sizes(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "UNPACKED_MAX", 100_000)
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros((100_000, 3), np.float32))
    refuses(lambda: opened(tmp_path / "a.npz"), "decompression bomb", "to 1200")
    np.savez(tmp_path / "a.npz", x=np.zeros((100_000, 3), np.float32))
    assert opened(tmp_path / "a.npz").count == 100_000
