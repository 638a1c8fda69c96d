"""--alloc error from samples to counts: curves against a slow oracle, what they do to the model, and who is asked for samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from networks import mlp, model_of, replaced, run, samples, twins
from onnx import helper

from onnxprune import Options, Result, budgeting, prune
from onnxprune.errors import AllocationError, UsageError
from onnxprune.feeding import axes_of
from onnxprune.graph import cheap
from onnxprune.masking import decide
from onnxprune.numerics.allocation import keep_total
from onnxprune.numerics.budget import Curve
from onnxprune.pipeline import plan
from onnxprune.report import to_json
from onnxprune.runtime.device import Device

X = samples(96, seed=5)


def curves(model: onnx.ModelProto, x: Any = X, **named: Any) -> dict[str, Curve | str]:
    def batches() -> Any:
        return ({model.graph.input[0].name: x[at : at + 16]} for at in range(0, len(x), 16))

    options = Options(**{"sparsity": 0.8, "alloc": "error", **named})
    return budgeting.measure(model, decide(model, options), options, batches, axes_of(model), Device("cpu"), lambda total: lambda: None)


def error(**named: Any) -> Result:
    return prune(twins(4)[0], X, **{"sparsity": 0.8, "alloc": "error", "batch_size": 16, "device": "cpu", **named})


# ---- the curves


@pytest.mark.parametrize("form", [0, 1])
def test_errors_fall_with_the_size_and_every_layer_has_a_curve(form: int) -> None:
    model = twins(4)[form]
    found = curves(model)
    assert list(found) == ["w0", "w1", "w2", "w3", "fc.w"]
    for name, curve in found.items():
        assert isinstance(curve, Curve), name
        assert len(curve.sizes) >= 3
        assert curve.importance > 0
        assert (np.diff(curve.errors) < 0.02).all()
        assert curve.errors[-1] < curve.errors[0] < 1.2


def test_the_last_layers_importance_is_1_for_its_error_is_the_outputs() -> None:
    """With the rows measured on being all rows of the judged samples, the relative error of the Gemm is that of the logits."""
    curve = curves(mlp(), samples(96, (8,), seed=5))["w1"]
    assert isinstance(curve, Curve)
    np.testing.assert_allclose([curve.importance, curve.power], 1.0, rtol=1e-3)


def test_importance_against_running_the_whole_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The outputs that the rest of the walk gives are those of the model with that one layer replaced, run from its input."""
    model = twins(4)[1]
    kept: list[tuple[str, dict[str, Any], float]] = []
    curve_of = budgeting._curve

    def spy(constants: Any, point: Any, *rest: Any) -> Any:
        number = point.layer.weight[1:]

        def told() -> float:
            value: float = rest[-1]()
            kept.append((number, {f"w{number}": constants.read(f"w{number}"), f"b{number}": constants.read(f"b{number}")}, value))
            return value

        return curve_of(constants, point, *rest[:-1], rest[-1] if point.layer.weight == "fc.w" else told)

    monkeypatch.setattr(budgeting, "_curve", spy)
    before = model.SerializeToString()
    curves(model)
    assert model.SerializeToString() == before
    assert len(kept) == 8
    x = X[:32]  # round(6 batches / JUDGED) = 2 of 16
    wanted = run(model, {"x": x})["logits"].astype(np.float64)
    for _, values, value in kept:
        got = run(replaced(model, values), {"x": x})["logits"]
        slow = ((got - wanted) ** 2).sum() / ((wanted - wanted.mean(0)) ** 2).sum()
        np.testing.assert_allclose(value, slow, rtol=2e-3)  # float32 outputs, differences of them
    assert len({value for *_, value in kept}) == 8


@pytest.mark.parametrize("work", [0.0, cheap.WORK])
def test_a_replaced_layer_leaves_no_trace_in_the_next_ones(work: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second layer's curve does not depend on whether the first was measured, nor on whether the first is run again.

    What is in a stage is fused, which another cut changes: float32 rounding.
    """
    monkeypatch.setattr(cheap, "WORK", work)
    model = twins(3)[0]
    whole, alone = curves(model, sparsity=0.05), curves(model, sparsity=0.05, include=("conv2", "fc"))
    assert list(alone) == ["w2", "fc.w"]
    apart = [whole[name].errors[-1] - alone[name].errors[-1] for name in alone]  # all rows are taken, none drawn
    np.testing.assert_allclose(apart, 0, atol=1e-6)


def test_a_norm_behind_a_later_convolution() -> None:
    """conv, conv, then both BatchNormalizations, the later one first: each layer is measured before it runs."""
    rng = np.random.default_rng(0)
    values = {name: rng.normal(0, 0.4, (4, 3, 3, 3)).astype(np.float32) for name in ("wa", "wb")}
    values |= {f"{part}{side}": np.full(4, 1.0 + (part == "v"), np.float32) for part in "sbmv" for side in "ab"}
    nodes = [
        helper.make_node("Conv", ["x", "wa"], ["ca"], "conv_a"),
        helper.make_node("Conv", ["x", "wb"], ["cb"], "conv_b"),
        *(helper.make_node("BatchNormalization", [f"c{s}", f"s{s}", f"b{s}", f"m{s}", f"v{s}"], [f"n{s}"], f"bn_{s}") for s in "ba"),
        helper.make_node("Add", ["na", "nb"], ["y"], "add"),
    ]
    found = curves(model_of(nodes, {"x": ("batch", 3, 8, 8)}, {"y": ("batch", 4, 6, 6)}, values))
    for curve in found.values():
        assert isinstance(curve, Curve)
        assert 0.2 < curve.importance < 1


# ---- the samples


def test_samples_are_few_whole_batches_and_evenly_spread() -> None:
    rows = np.arange(1000)
    chosen = budgeting.chosen_samples(rows, 32)
    assert len(chosen) == budgeting.SAMPLES // 32 * 32
    assert len(set(np.diff(chosen))) <= 2
    assert len(budgeting.chosen_samples(rows, 500)) == 500
    np.testing.assert_array_equal(budgeting.chosen_samples(rows[:50], 32), rows[:50])


def test_held_out_samples_play_no_part() -> None:
    """Other values in the samples held out change no count."""
    first = error(repair="none", holdout=0.25).report
    held = np.random.default_rng(0).permutation(len(X))[: len(X) // 4]
    other = X.copy()
    other[held] = 7.0
    second = prune(twins(4)[0], other, sparsity=0.8, alloc="error", repair="none", holdout=0.25, batch_size=16, device="cpu").report
    assert [entry.kept for entry in first.layers] == [entry.kept for entry in second.layers]
    assert [entry.importance for entry in first.layers] == [entry.importance for entry in second.layers]


def test_two_samples_are_enough() -> None:
    assert prune(mlp(), samples(2, (8,)), sparsity=0.5, alloc="error", repair="none", holdout=0.0, device="cpu").report.kept == 78


# ---- the counts


@pytest.mark.parametrize("repair", ["none", "channel", "reconstruct"])
def test_counts_add_up_and_the_same_comes_out_again(repair: str) -> None:
    first, second = error(repair=repair), error(repair=repair)
    report = first.report
    assert report.kept == keep_total([entry.weights for entry in report.layers], 0.8)
    assert all(0 < entry.kept <= entry.weights and entry.importance is not None for entry in report.layers)
    assert first.model.SerializeToString() == second.model.SerializeToString()
    assert "error curves" in report.seconds
    assert json.loads(to_json(report))["layers"][0]["importance"] == report.layers[0].importance


def test_a_layer_the_outputs_hardly_hear_gets_little() -> None:
    """Two branches into an Add, one of them a hundredth of the other: its weights are worth a hundredth squared."""
    rng = np.random.default_rng(3)
    values = {name: rng.normal(0, 0.3, (16, 16)).astype(np.float32) for name in ("wa", "wb")}
    values["small"] = np.float32(0.01)
    nodes = [
        helper.make_node("MatMul", ["x", "wa"], ["a"], "a"),
        helper.make_node("MatMul", ["x", "wb"], ["b"], "b"),
        helper.make_node("Mul", ["b", "small"], ["less"], "less"),
        helper.make_node("Add", ["a", "less"], ["y"], "add"),
    ]
    model = model_of(nodes, {"x": ("batch", 16)}, {"y": ("batch", 16)}, values)
    report = prune(model, samples(200, (16,)), sparsity=0.6, alloc="error", repair="none", device="cpu").report
    assert report.layers[1].importance < 1e-3 * report.layers[0].importance
    assert report.layers[0].kept > 5 * report.layers[1].kept


def test_fixed_and_left_out_layers_are_not_measured() -> None:
    report = error(repair="none", exclude=("conv0",), layer_sparsity={"conv1": 0.25}).report
    first, second, *others = report.layers
    assert (first.kept, first.importance) == (first.weights, None)
    assert (second.kept, second.importance) == (second.weights * 3 // 4, None)
    assert sum(entry.kept for entry in others) == keep_total([entry.weights for entry in others], 0.8)
    assert all(entry.importance is not None for entry in others)


def test_a_layer_that_cannot_be_measured_keeps_the_count_of_lamp_and_says_so() -> None:
    rng = np.random.default_rng(4)
    shared = rng.normal(0, 0.4, (8, 8)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "shared"], ["a"], "first"),
        helper.make_node("Relu", ["a"], ["h"], "relu"),
        helper.make_node("MatMul", ["h", "shared"], ["b"], "second"),
        helper.make_node("MatMul", ["b", "own"], ["c"], "third"),
        helper.make_node("MatMul", ["c", "last"], ["y"], "fourth"),
    ]
    values = {"shared": shared, **{name: rng.normal(0, 0.4, (8, 8)).astype(np.float32) for name in ("own", "last")}}
    model = model_of(nodes, {"x": ("batch", 8)}, {"y": ("batch", 8)}, values)
    ours = prune(model, samples(64, (8,)), sparsity=0.7, alloc="error", repair="none", device="cpu").report
    lamp = prune(model, sparsity=0.7, alloc="lamp", repair="none").report
    assert ours.layers[0].kept == lamp.layers[0].kept
    assert "counted by lamp: its weight is shared" in ours.layers[0].notes
    assert ours.layers[0].importance is None
    assert ours.kept == lamp.kept


def test_nothing_to_remove_or_a_pattern_measures_nothing() -> None:
    for named in ({"sparsity": 0.0}, {"pattern": "2:4"}):
        report = prune(twins(4)[0], None, alloc="error", repair="none", **named).report
        assert "error curves" not in report.seconds
    assert prune(twins(4)[0], None, alloc="error", repair="none", sparsity=0.0).model == twins(4)[0]


def test_a_model_without_float_outputs_counts_every_error_alike() -> None:
    model = mlp()
    model.graph.node.append(helper.make_node("ArgMax", ["logits"], ["class"], "argmax"))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("class", onnx.TensorProto.INT64, ("batch", 1)))
    report = prune(model, samples(64, (8,)), sparsity=0.5, alloc="error", repair="none", device="cpu").report
    assert report.kept == 78


# ---- who is asked for samples


def test_without_samples_it_is_a_usage_error(tmp_path: Path, onnxprune: Any) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(twins(3)[0], str(path))
    for words in (("--repair", "none"), ("--dry-run",)):
        ran = onnxprune(path, "--sparsity", 0.5, "--alloc", "error", *words)
        assert ran.code == 2
        assert "--alloc error measures the layers on calibration samples" in ran.err
    ran = onnxprune("inspect", path, "--sparsity", 0.5, "--alloc", "error")
    assert ran.code == 2
    assert ran.err.count("\n") == 1
    assert "--dry-run" in ran.err
    with pytest.raises(UsageError, match="--alloc error"):
        plan(path, Options(sparsity=0.5, alloc="error"))


def test_a_dry_run_shows_what_a_run_keeps(tmp_path: Path, onnxprune: Any) -> None:
    path, calib = tmp_path / "net.onnx", tmp_path / "calib.npy"
    onnx.save(twins(4)[0], str(path))
    np.save(calib, X)
    words = ("--sparsity", 0.8, "--alloc", "error", "--calib", calib, "--batch-size", 16, "--device", "cpu")
    ran = onnxprune(path, *words, "--dry-run")
    assert (ran.code, ran.err) == (0, "")
    for entry in error(repair="none").report.layers:
        assert any(line.startswith(entry.name) and f"{entry.kept:,}" in line.split() for line in ran.out.splitlines())
    assert sorted(item.name for item in tmp_path.iterdir()) == ["calib.npy", "net.onnx"]


def test_what_masking_refuses_is_refused_before_anything_is_measured() -> None:
    with pytest.raises(AllocationError, match="lower the sparsity"):
        error(sparsity=0.9999)
    with pytest.raises(UsageError, match="matches none"):
        error(include=("nothing",))


# ---- residual ratios


def ratios(model: onnx.ModelProto, **named: Any) -> dict[str, Any]:
    return curves(model, alloc="rr", **named)


@pytest.mark.parametrize("form", [0, 1])
def test_a_ratio_is_the_residual_over_the_raw_distortion(form: int) -> None:
    """Against the definition: every layer of the dense model alone is masked, and its output compared with all values of the samples."""
    model = twins(4)[form]
    found = ratios(model, x=X[:64])
    options = Options(sparsity=0.8, alloc="rr")
    kept = decide(model, options)
    for number, name in enumerate(["w0", "w1", "w2", "w3"]):
        weight = onnx.numpy_helper.to_array(next(entry for entry in model.graph.initializer if entry.name == name))
        one = replaced(model, {name: weight * kept.masks[number]})
        dense, masked = (run(each, {"x": X[:64]}, [f"y{number}"])[f"y{number}"].astype(np.float64) for each in (model, one))
        axes = (0, 2, 3)

        def distortion(other: Any, dense: Any = dense, axes: Any = axes) -> float:
            return float(((dense - other) ** 2).sum() / ((dense - dense.mean(axes, keepdims=True)) ** 2).sum())

        gain = dense.std(axes, keepdims=True) / masked.std(axes, keepdims=True)
        repaired = gain * (masked - masked.mean(axes, keepdims=True)) + dense.mean(axes, keepdims=True)
        # float32 moments of the rows; up to 8,000 rows a layer are all there are, 64 images of 8 x 8
        assert found[name] == pytest.approx(distortion(repaired) / distortion(masked), rel=1e-3)


def test_a_layer_that_keeps_all_its_weights_has_ratio_1() -> None:
    model = twins(4)[0]
    found = ratios(model, sparsity=0.5, x=X[:32])
    kept = decide(model, Options(sparsity=0.5, alloc="rr"))
    whole = [layer.weight for layer, keep in zip(kept.found.layers, kept.keep, strict=True) if keep == layer.size]
    assert whole
    assert [found[name] for name in whole] == [1.0] * len(whole)
    assert any(ratio != 1.0 for name, ratio in found.items() if name not in whole)


def test_rr_keeps_the_asked_number_and_tells_its_ratios() -> None:
    result = error(alloc="rr", repair="channel")
    erk = error(alloc="erk", repair="channel")
    assert result.report.kept == erk.report.kept == keep_total([entry.weights for entry in erk.report.layers], 0.8)
    assert [entry.kept for entry in result.report.layers] != [entry.kept for entry in erk.report.layers]
    assert all(any(note.startswith("residual ratio") for note in entry.notes) for entry in result.report.layers)
    with pytest.raises(UsageError, match="--alloc rr measures the layers on calibration samples"):
        prune(twins(4)[0], sparsity=0.5, alloc="rr", repair="none")
