"""On which axis the batch is, and arrays that are given as the model takes them."""

import numpy as np
import pytest
from models import build, node
from onnx import TensorProto, helper

import onnxprune
from onnxprune.errors import CalibrationError
from onnxprune.feeding import axes_of, input_specs

RNG = np.random.default_rng(0)


def model_of(**inputs):
    model = build([node("Relu", [name], [f"{name}_out"]) for name in inputs], {}, inputs, [])
    for name, shape in inputs.items():
        model.graph.output.append(helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, list(shape)))
    return model


@pytest.mark.parametrize(
    ("inputs", "axes"),
    [
        ({"x": ["N", 3]}, {"x": 0}),
        ({"x": ["time", "batch", 3]}, {"x": 1}),
        ({"x": ["time", "batch_size", 3]}, {"x": 1}),
        ({"x": ["batch", "time", 3]}, {"x": 0}),
        ({"x": ["time", "features"]}, {"x": 0}),
        ({"x": [1, "time"]}, {"x": 0}),
        ({"x": [5, "N", 4]}, {"x": 1}),
        ({"x": ["some", 8], "h": [2, "some", 6]}, {"x": 0, "h": 1}),
        ({"x": ["N", 8], "h": [2, "N", 6], "r": []}, {"x": 0, "h": 1, "r": None}),
        ({"x": [None, None], "h": [2, None, 6]}, {"x": 0, "h": 1}),
        ({"x": [None, 8], "h": [1, None, 6]}, {"x": 0, "h": 0}),
        ({"x": ["a", 8], "h": ["b", 6]}, {"x": 0, "h": 0}),
        ({"x": ["N", "N"]}, {"x": 0}),
    ],
)
def test_axes(inputs, axes):
    found = axes_of(model_of(**inputs))
    assert found.inputs == axes
    assert found.outputs == {f"{name}_out": axis or 0 for name, axis in axes.items() if "None" not in str(inputs)} or "None" in str(inputs)


def test_specs_have_the_batch_first():
    specs = input_specs(model_of(x=["N", 8], h=[2, "N", 6], r=[]))
    assert [spec.shape for spec in specs] == [(None, 8), (None, 2, 6), (None,)]


def test_arrays_come_back_as_they_were_given():
    axes = axes_of(model_of(x=["N", 8], h=[2, "N", 6], r=[]))
    given = {"x": RNG.normal(size=(5, 8)), "h": RNG.normal(size=(2, 5, 6)), "r": np.array(0.5)}
    gathered = axes.gathered(given)
    assert {name: value.shape for name, value in gathered.items()} == {"x": (5, 8), "h": (5, 2, 6), "r": (5,)}
    (batch,) = axes.laid_out([gathered])
    for name, value in given.items():
        np.testing.assert_array_equal(batch[name], value)


def test_numbers_that_differ_within_a_batch_are_refused():
    axes = axes_of(model_of(x=["N", 8], r=[]))
    with pytest.raises(CalibrationError, match="input 'r' is one number for a whole batch"):
        list(axes.laid_out([{"x": np.ones((2, 8)), "r": np.array([1.0, 2.0])}]))


def test_a_fixed_input_is_given_once():
    axes = axes_of(model_of(x=["N", 8], h=[1, 6]))
    gathered = axes.gathered({"x": np.ones((4, 8)), "h": np.arange(6.0)[None]})
    np.testing.assert_array_equal(gathered["h"], np.tile(np.arange(6.0), (4, 1)))


def test_time_before_batch_is_the_batch_before_time():
    """The same network with its input turned: the same masks, repairs and agreement."""
    w, v = (RNG.normal(size=shape).astype(np.float32) for shape in ((4, 6), (6, 3)))
    nodes = [node("MatMul", ["x", "w"], ["m"]), node("Relu", ["m"], ["r"]), node("MatMul", ["r", "v"], ["y"])]
    samples = RNG.normal(0.5, 1, (20, 5, 4)).astype(np.float32)
    reports = []
    for shape, given in ((["N", 5, 4], samples), ([5, "N", 4], np.ascontiguousarray(samples.transpose(1, 0, 2)))):
        model = build(nodes, {"w": w, "v": v}, {"x": shape}, ["y"])
        reports.append(onnxprune.prune(model, given, sparsity=0.5, repair="channel", device="cpu").report)
    assert [report.calibration.available for report in reports] == [20, 20]
    assert [entry.kept for entry in reports[0].layers] == [entry.kept for entry in reports[1].layers]
    assert reports[0].agreement.score == pytest.approx(reports[1].agreement.score, abs=0.02)


def time_first(length=None):
    """x (time, batch, 4) -> MatMul, Relu, MatMul."""
    w, v = (RNG.normal(size=shape).astype(np.float32) for shape in ((4, 6), (6, 3)))
    nodes = [node("MatMul", ["x", "w"], ["m"]), node("Relu", ["m"], ["r"]), node("MatMul", ["r", "v"], ["y"])]
    return build(nodes, {"w": w, "v": v}, {"x": [length, "N", 4]}, ["y"])


def test_a_file_laid_out_as_the_model_is_told_where_files_have_their_samples(tmp_path):
    np.save(tmp_path / "x.npy", RNG.normal(size=(5, 20, 4)).astype(np.float32))
    words = r"samples have shape \(20, 4\), model input 'x' takes \(5, 4\) \(its batch is on axis 1; files have their samples on axis 0"
    with pytest.raises(CalibrationError, match=words):
        onnxprune.prune(time_first(5), tmp_path / "x.npy", sparsity=0.5, device="cpu")


def test_where_both_would_fit_a_note_says_how_files_were_read(tmp_path):
    np.save(tmp_path / "x.npy", RNG.normal(size=(20, 5, 4)).astype(np.float32))
    report = onnxprune.prune(time_first(), tmp_path / "x.npy", sparsity=0.5, device="cpu").report
    assert report.calibration.available == 20
    assert "model input 'x' has its batch on axis 1; the array files were read with their samples on axis 0" in report.notes
