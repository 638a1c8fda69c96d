"""Labels: the forms in which they may lie on the disk, and what is no label."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.errors import CalibrationError
from onnxprune.runtime.labels import read_labels

LABELS = np.array([3, 0, 9], np.uint8)


def written(folder: Path, form: str) -> Path:
    path = folder / f"labels{form.lstrip('+')}"
    if form == ".npy":
        np.save(path, LABELS)
    elif form == ".npz":
        np.savez(path, image=np.zeros((3, 2)), labels=LABELS)
    elif form == "+.npz":
        np.savez(path, LABELS)
    else:
        path.write_text("3\n0\n 9 \n\n", encoding="utf-8-sig")
    return path


@pytest.mark.parametrize("form", [".npy", ".npz", "+.npz", ".txt", ".csv", ""])
def test_every_form_gives_the_numbers_in_order(tmp_path: Path, form: str) -> None:
    found = read_labels(written(tmp_path, form), 3)
    assert found.dtype == np.int64
    assert found.tolist() == [3, 0, 9]


def test_a_column_is_a_list(tmp_path: Path) -> None:
    np.save(tmp_path / "y.npy", LABELS[:, None])
    assert read_labels(tmp_path / "y.npy", 3).tolist() == [3, 0, 9]


@given(st.lists(st.integers(0, 2**31), min_size=1, max_size=30))
def test_text_and_array_say_the_same(tmp_path_factory: pytest.TempPathFactory, labels: list[int]) -> None:
    folder = tmp_path_factory.mktemp("labels")
    (folder / "y.txt").write_text("\n".join(map(str, labels)))
    np.save(folder / "y.npy", np.array(labels))
    assert read_labels(folder / "y.txt", len(labels)).tolist() == read_labels(folder / "y.npy", len(labels)).tolist() == labels


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1\n2\n", "holds 2 labels, there are 3 samples"),
        ("1\n\n2\n", "line 2 is ''"),
        ("1\n2\nthree\n", "line 3 is 'three'"),
        ("1\n2.0\n3\n", "line 2 is '2.0'"),
        ("1\n-2\n3\n", "label 1 is -2, expected 0 or more"),
        ("1\n2\n99999999999999999999\n", "line 3 is '99999999999999999999'"),
        ("", "holds 0 labels"),
    ],
)
def test_what_is_no_list_of_labels_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "y.txt").write_text(text)
    with pytest.raises(CalibrationError) as caught:
        read_labels(tmp_path / "y.txt", 3)
    assert said in str(caught.value)
    assert str(tmp_path / "y.txt") in str(caught.value)


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros(3, np.float32), "holds float32 (3,)"),
        (np.eye(3, dtype=np.int64), "holds int64 (3, 3)"),
        (np.array(["a", "b", "c"]), "expected one whole number a sample"),
        (np.array([object()] * 3), "cannot be read"),
        (np.array([0, 1, 2**64 - 1], np.uint64), "label 2 is 18446744073709551615"),
    ],
)
def test_arrays_of_other_things_are_refused(tmp_path: Path, array: np.ndarray, said: str) -> None:
    np.save(tmp_path / "y.npy", array)
    with pytest.raises(CalibrationError, match=r"y\.npy") as caught:
        read_labels(tmp_path / "y.npy", 3)
    assert said in str(caught.value)


def test_an_archive_must_say_which_array_it_is(tmp_path: Path) -> None:
    np.savez(tmp_path / "y.npz", one=LABELS, two=LABELS)
    with pytest.raises(CalibrationError, match="arrays one, two: call the one with the labels 'labels'"):
        read_labels(tmp_path / "y.npz", 3)


def test_what_is_missing_or_no_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "bad.npz").write_bytes(b"no archive")
    (tmp_path / "y.pt").write_bytes(b"")
    for name, said in (("none.npy", "no such file"), (".", "no regular file"), ("bad.npz", "cannot be read"), ("y.pt", "unknown suffix")):
        with pytest.raises(CalibrationError, match=said):
            read_labels(tmp_path / name, 3)
