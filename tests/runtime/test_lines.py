"""JSON lines: token ids and numbers of any length, and one line for what is none."""

import json
from pathlib import Path

import numpy as np
import pytest

from onnxprune.errors import CalibrationError
from onnxprune.runtime import lines
from onnxprune.runtime.calibration import InputSpec, Preprocess, open_samples, runs

AS_IS = Preprocess()
IDS = InputSpec("input_ids", np.dtype(np.int64), (None, None))
MASK = InputSpec("attention_mask", np.dtype(np.int32), (None, None))


def write(folder: Path, *values: object, name: str = "x.jsonl") -> Path:
    (folder / name).write_text("\n".join(value if isinstance(value, str) else json.dumps(value) for value in values))
    return folder / name


def test_two_inputs_of_several_lengths(tmp_path: Path) -> None:
    rows = [{"input_ids": list(range(size)), "attention_mask": [1] * size, "text": "left aside"} for size in (3, 5, 3, 4)]
    samples = open_samples([write(tmp_path, *rows)], [IDS, MASK], AS_IS)
    assert samples.count == 4
    assert samples.shapes == tuple({"input_ids": (size,), "attention_mask": (size,)} for size in (3, 5, 4))
    assert samples.notes == (
        f"{tmp_path}/x.jsonl: array 'text' not used, no model input has its name",
        "samples of 3 shapes: those of one shape run together, nothing is padded",
    )
    got = [samples.take(run) for run in runs(samples, np.arange(4), 8)]
    assert [batch["input_ids"].tolist() for batch in got] == [[[0, 1, 2]] * 2, [[0, 1, 2, 3, 4]], [[0, 1, 2, 3]]]
    assert {batch["input_ids"].dtype for batch in got} == {np.dtype(np.int64)}
    assert {batch["attention_mask"].dtype for batch in got} == {np.dtype(np.int32)}


def test_a_bare_list_and_a_lone_key_serve_a_lone_input(tmp_path: Path) -> None:
    path = write(tmp_path, [1, 2], "", {"ids": [3, 4]}, [[5, 6], [7, 8]])  # the last one is a batch
    samples = open_samples([path], [IDS], AS_IS)
    assert samples.take(np.arange(4))["input_ids"].tolist() == [[1, 2], [3, 4], [5, 6], [7, 8]]


def test_float_inputs_take_whole_numbers_and_preprocessing(tmp_path: Path) -> None:
    spec = InputSpec("x", np.dtype(np.float32), (None, 2))
    path = write(tmp_path, [1, 2.5], [300, -1])
    np.testing.assert_array_equal(open_samples([path], [spec], AS_IS).take(np.arange(2))["x"], np.float32([[1, 2.5], [300, -1]]))
    told = Preprocess((1.0,), (2.0,))
    np.testing.assert_array_equal(open_samples([path], [spec], told).take(np.array([1]))["x"], np.float32([[149.5, -1]]))


def test_a_byte_order_mark_and_a_folder_of_lines(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf[1, 2]\r\n")
    write(tmp_path, [3, 4], name="b.ndjson")
    assert open_samples([tmp_path], [IDS], AS_IS).take(np.arange(2))["input_ids"].tolist() == [[1, 2], [3, 4]]


def test_lines_beside_arrays_are_their_notes(tmp_path: Path) -> None:
    write(tmp_path, [1])
    np.save(tmp_path / "a.npy", np.zeros((2, 3), np.int64))
    samples = open_samples([tmp_path], [IDS], AS_IS)
    assert (samples.count, samples.notes) == (2, (f"{tmp_path}: 1 other file ignored (x.jsonl)",))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("{", ["line 1", "is no JSON"]),
        ("[1]\n[2", ["line 2", "is no JSON"]),
        ("[1, NaN]", ["line 1", "NaN is no number"]),
        ("[" * 100_000, ["line 1", "is no JSON"]),
        ("1" * 10_000, ["line 1", "is no JSON"]),  # Python's bound on the digits of a number
        ("[" * 70 + "1" + "]" * 70, ["line 1", "is no array"]),
        ("[[1], [1, 2]]", ["line 1", "unequal length"]),
        ('["a"]', ["line 1", "no number"]),
        ("[null]", ["line 1", "no number"]),
        ('{"input_ids": {"a": 1}}', ["line 1", "'input_ids'", "no number"]),
        ("[1.5]", ["line 1", "holds fractions", "int64"]),
        ("[9223372036854775808]", ["line 1", "int64 holds"]),
        ("[1e400]", ["line 1", "fractions"]),
        ("[]", ["line 1", "is empty"]),
        ("{}", ["line 1", "no arrays", "input_ids"]),
        ("7", ["line 1", "rank 0"]),
        ("\n \n", ["holds no line"]),
        ("", ["holds no line"]),
    ],
)
def test_what_is_no_sample(tmp_path: Path, text: str, parts: list[str]) -> None:
    with pytest.raises(CalibrationError) as error:
        open_samples([write(tmp_path, text)], [IDS], AS_IS)
    for part in ["x.jsonl", *parts]:
        assert part in str(error.value)


def test_an_input_that_a_line_leaves_out(tmp_path: Path) -> None:
    path = write(tmp_path, {"input_ids": [1], "attention_mask": [1]}, {"input_ids": [1], "mask": [1]})
    with pytest.raises(CalibrationError, match=r"line 2: arrays input_ids, mask; model inputs: input_ids, attention_mask"):
        open_samples([path], [IDS, MASK], AS_IS)
    path = write(tmp_path, {"input_ids": [1, 2], "attention_mask": [[1, 1], [1, 1]]})
    with pytest.raises(CalibrationError, match="line 1: different numbers of samples"):
        open_samples([path], [IDS, MASK], AS_IS)


def test_a_value_that_the_dtype_does_not_hold(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"line 1, 'attention_mask': has -1 to 2147483648, int32 holds"):
        open_samples([write(tmp_path, [-1, 2**31])], [MASK], AS_IS)
    with pytest.raises(CalibrationError, match="exceeds float16"):
        open_samples([write(tmp_path, [1e6])], [InputSpec("x", np.dtype(np.float16), (None, 1))], AS_IS)


def test_a_line_without_end_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "LINE_MAX", 100)
    with pytest.raises(CalibrationError, match="line 2: is longer than 100 bytes"):
        open_samples([write(tmp_path, [1], list(range(200)))], [IDS], AS_IS)
