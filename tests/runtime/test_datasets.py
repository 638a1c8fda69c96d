"""ONNX test data sets: found, matched to inputs, and refused where a tensor is no tensor."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.errors import CalibrationError
from onnxprune.runtime.calibration import InputSpec, Preprocess, open_samples

X = InputSpec("x", np.dtype(np.float32), (None, 3))
IDS = InputSpec("ids", np.dtype(np.int64), (None,))
AS_IS = Preprocess()


def put(folder: Path, *values: object, names: tuple[str, ...] = ()) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, value in enumerate(values):
        proto = numpy_helper.from_array(value, names[number] if names else "") if isinstance(value, np.ndarray) else value
        (folder / f"input_{number}.pb").write_bytes(proto if isinstance(proto, bytes) else proto.SerializeToString())
    return folder


def rows(*numbers: float) -> np.ndarray:
    return np.float32([[number, 0, 0] for number in numbers])


def test_sets_in_numeric_order_each_one_sample_or_a_batch(tmp_path: Path) -> None:
    for number, value in ((10, rows(3)), (2, rows(1, 2)), (0, rows(0)[0])):  # the last one lacks the batch axis
        put(tmp_path / f"test_data_set_{number}", value)
        (tmp_path / f"test_data_set_{number}" / "output_0.pb").write_bytes(b"not read")
    (tmp_path / "model.onnx").touch()
    samples = open_samples([tmp_path], [X], AS_IS)
    assert [Path(path).name for path in samples.paths] == ["test_data_set_0", "test_data_set_2", "test_data_set_10"]
    assert samples.take(np.arange(4))["x"][:, 0].tolist() == [0, 1, 2, 3]
    assert samples.notes == (f"{tmp_path}: 1 other file ignored (model.onnx)",)
    assert open_samples([tmp_path / "test_data_set_2"], [X], AS_IS).count == 2


def test_inputs_by_position_and_by_name(tmp_path: Path) -> None:
    ids = np.array([7], np.int64)
    by_place = open_samples([put(tmp_path / "a", rows(1), ids)], [X, IDS], AS_IS).take(np.array([0]))
    by_name = open_samples([put(tmp_path / "b", ids, rows(1), names=("ids", "x"))], [X, IDS], AS_IS).take(np.array([0]))
    for got in (by_place, by_name):
        np.testing.assert_array_equal(got["x"], rows(1))
        np.testing.assert_array_equal(got["ids"], ids)


def test_a_batch_on_another_axis(tmp_path: Path) -> None:
    value = np.arange(12, dtype=np.float32).reshape(3, 4)  # the model takes (3, n)
    samples = open_samples([put(tmp_path / "a", value)], [X], AS_IS, {"x": 1})
    assert samples.count == 4
    np.testing.assert_array_equal(samples.take(np.array([2]))["x"], value[None, :, 2])


def test_sets_of_several_lengths(tmp_path: Path) -> None:
    for number, size in enumerate((2, 5, 2)):
        put(tmp_path / f"test_data_set_{number}", np.ones((1, size), np.float32))
    samples = open_samples([tmp_path], [InputSpec("x", np.dtype(np.float32), (None, None))], AS_IS)
    assert samples.kinds.tolist() == [0, 1, 0]


def _short() -> TensorProto:
    return TensorProto(data_type=TensorProto.FLOAT, dims=[1, 3], raw_data=bytes(8))


def _of(**fields: object) -> Callable[[], TensorProto]:
    return lambda: TensorProto(**fields)


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (lambda: b"\xff\xff", ["do not parse"]),
        (lambda: b"", ["no element type"]),
        (_short, ["has 8 bytes", "needs 12"]),
        (_of(data_type=1, dims=[1, 3], float_data=[1.0]), ["has 1 values", "needs 3"]),
        (_of(data_type=1, dims=[2**40, 2**40], raw_data=b""), ["no tensor has the shape"]),
        (_of(data_type=1, dims=[-1, -3], raw_data=bytes(12)), ["no tensor has the shape"]),
        (_of(data_type=1, dims=[0, 2**60], raw_data=b""), ["no tensor has the shape"]),
        (_of(data_type=99, dims=[1, 3], raw_data=bytes(12)), ["unknown type 99"]),
        (_of(data_type=8, dims=[1], string_data=[b"a"]), ["holds strings"]),
        (lambda: helper.make_tensor("x", 1, [0, 3], []), ["is empty"]),
        (lambda: numpy_helper.from_array(np.zeros((1, 2, 3), np.float32)), ["rank 3", "rank 2"]),
        (lambda: numpy_helper.from_list([rows(1)], "x"), ["holds a sequence or an optional"]),
        (lambda: numpy_helper.from_optional(rows(1), "x"), ["holds a sequence or an optional"]),
        (_of(data_type=1, dims=[1, 3], data_location=1), ["in another file"]),
    ],
)
def test_what_is_no_tensor(tmp_path: Path, make: Callable[[], object], parts: list[str]) -> None:
    put(tmp_path / "a", make())
    with pytest.raises(CalibrationError) as error:
        open_samples([tmp_path / "a"], [X], AS_IS)
    for part in ["input_0.pb", *parts]:
        assert part in str(error.value)


def test_sets_that_are_not_whole(tmp_path: Path) -> None:
    put(tmp_path / "a", rows(1), rows(1), rows(1))
    with pytest.raises(CalibrationError, match="holds 3 inputs, the model has 2"):
        open_samples([tmp_path / "a"], [X, IDS], AS_IS)
    (tmp_path / "a" / "input_1.pb").unlink()
    with pytest.raises(CalibrationError, match=r"input_1.pb is missing among 2"):
        open_samples([tmp_path / "a"], [X, IDS], AS_IS)
    with pytest.raises(CalibrationError, match=r"input_0.pb: is one tensor of a test data set: pass its folder"):
        open_samples([tmp_path / "a" / "input_0.pb"], [X], AS_IS)
    np.save(tmp_path / "b.npy", rows(1))
    with pytest.raises(CalibrationError, match=r"holds test data sets \(a\) and arrays \(b.npy\)"):
        open_samples([tmp_path], [X], AS_IS)


def test_nested_messages_without_end(tmp_path: Path) -> None:
    """An optional of an optional of ...: protobuf stops at its depth, and so do we."""
    inner = b""
    for _ in range(3000):
        inner = b"\x3a" + _varint(len(inner)) + inner  # OptionalProto.optional_value
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "input_0.pb").write_bytes(inner)
    with pytest.raises(CalibrationError, match=r"input_0.pb: cannot be read"):
        open_samples([tmp_path / "a"], [X], AS_IS)


def _varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])


def test_the_whole_run_takes_a_set(tmp_path: Path) -> None:
    from networks import mlp

    from onnxprune import prune

    rng = np.random.default_rng(0)
    onnx.save(mlp(), tmp_path / "model.onnx")
    for number in range(12):
        put(tmp_path / f"test_data_set_{number}", rng.normal(size=(1, 8)).astype(np.float32))
    report = prune(tmp_path / "model.onnx", tmp_path, sparsity=0.5, device="cpu").report
    assert (report.calibration.repair, report.calibration.holdout) == (10, 2)
