"""prune(): exact counts, nothing changed but what the report names, the same again from the same input, and the odd models."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import build
from models import node as made
from networks import (
    CLASSES,
    differences,
    mlp,
    model_of,
    moments,
    replaced,
    run,
    samples,
    tensors,
    twins,
    unnamed_changes,
)
from onnx import TensorProto, helper, numpy_helper

from onnxprune import OnnxpruneError, Options, Result, prune, running
from onnxprune.errors import AllocationError, CalibrationError, GateError, ModelError, UsageError
from onnxprune.graph.model import load
from onnxprune.numerics.allocation import ALLOCATIONS, keep_total
from onnxprune.options import REPAIRS
from onnxprune.runtime.idle import THERE

FORMS = ("digits.onnx", "digits_folded.onnx")
FEW = {"samples": 64, "batch_size": 16}


def proto(path: Path) -> onnx.ModelProto:
    return onnx.load(str(path))


# ---- counts and masks


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("alloc", list(ALLOCATIONS))
@pytest.mark.parametrize("sparsity", [0.5, 0.9, 0.987])
def test_counts_are_exact_and_the_largest_stay(digits: Path, form: str, alloc: str, sparsity: float) -> None:
    before = tensors(proto(digits / form))
    result = prune(digits / form, sparsity=sparsity, alloc=alloc, repair="none", unfold=False)
    after, report = tensors(result.model), result.report
    assert report.kept == sum(entry.kept for entry in report.layers) == keep_total([599_872], sparsity)
    assert report.weights == 599_872
    assert report.sparsity == 1 - report.kept / 599_872
    for entry in report.layers:
        old, new = before[entry.weight], after[entry.weight]
        mask = new != 0
        assert mask.sum() == entry.kept == entry.nonzero, entry.name
        np.testing.assert_array_equal(new[mask], old[mask])
        if 0 < entry.kept < entry.weights:
            assert np.abs(old[mask]).min() >= np.abs(old[~mask]).max(), entry.name


def test_a_folded_scale_is_taken_out_of_the_ranking(digits: Path) -> None:
    before = tensors(proto(digits / "digits_folded.onnx"))
    result = prune(digits / "digits_folded.onnx", sparsity=0.9, repair="none")
    after = tensors(result.model)
    assert result.report.kept == keep_total([599_872], 0.9)
    for entry in result.report.layers:
        old, mask = before[entry.weight].astype(np.float64), after[entry.weight] != 0
        if entry.op == "Conv":  # by w / |w_c|^(2/3), c the output channel
            old = old / np.linalg.norm(old.reshape(len(old), -1), axis=1).reshape(-1, 1, 1, 1) ** (2 / 3)
        if entry.kept < entry.weights:
            assert ("ranked unfolded" in entry.notes) == (entry.op == "Conv")
            # the score is rounded to float32 before it is ranked
            assert np.abs(old[mask]).min() >= np.abs(old[~mask]).max() * (1 - 1e-6), entry.name


def test_ranking_does_not_change_where_batchnorm_is_explicit(digits: Path) -> None:
    one, other = (prune(digits / "digits.onnx", sparsity=0.9, repair="none", unfold=flag).model for flag in (True, False))
    assert one.SerializeToString() == other.SerializeToString()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("repair", [pytest.param(how, marks=pytest.mark.slow) if how == "reconstruct" else how for how in REPAIRS])
def test_a_repair_moves_no_mask(digits: Path, form: str, repair: str) -> None:
    masked = tensors(prune(digits / form, sparsity=0.9, repair="none").model)
    result = prune(digits / form, digits / "calib.npz", sparsity=0.9, repair=repair, **FEW)
    repaired = tensors(result.model)
    for entry in result.report.layers:
        if repair != "reconstruct":  # which chooses its own support, of the same size
            np.testing.assert_array_equal(masked[entry.weight] != 0, repaired[entry.weight] != 0)
        assert np.count_nonzero(repaired[entry.weight]) == entry.kept == entry.nonzero


@settings(max_examples=25, deadline=None)
@given(
    alloc=st.sampled_from(list(ALLOCATIONS)),
    sparsity=st.floats(0, 0.9),
    width=st.integers(3, 9),
    seed=st.integers(0, 2**31),
)
def test_any_network_keeps_the_exact_total(alloc: str, sparsity: float, width: int, seed: int) -> None:
    model = mlp(width=width, seed=seed)
    report = prune(model, sparsity=sparsity, alloc=alloc, repair="none").report
    total = 8 * width + width * CLASSES
    assert sum(entry.kept for entry in report.layers) == report.kept == keep_total([total], sparsity)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("repair", REPAIRS)
def test_sparsity_0_is_the_identity(digits: Path, form: str, repair: str) -> None:
    result = prune(digits / form, digits / "calib.npz", sparsity=0, repair=repair, **FEW)
    assert result.model.SerializeToString(deterministic=True) == proto(digits / form).SerializeToString(deterministic=True)
    assert result.report.agreement is not None
    assert result.report.agreement.score == 1
    changes = result.report.changes
    assert not (changes.values or changes.initializers or changes.nodes or changes.rewired)


# ---- what changes and what does not


@pytest.mark.parametrize("form", FORMS)
def test_the_given_model_is_not_touched(digits: Path, form: str) -> None:
    model = proto(digits / form)
    before = model.SerializeToString(deterministic=True)
    prune(model, digits / "calib.npz", sparsity=0.9, **FEW)
    assert model.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("repair", ["bn", "channel", "asr"])
def test_same_input_and_options_same_bytes(digits: Path, form: str, repair: str) -> None:
    def go(model: Path | onnx.ModelProto, **more: object) -> bytes:
        result = prune(model, digits / "calib.npz", sparsity=0.9, repair=repair, **{**FEW, **more})
        return result.model.SerializeToString(deterministic=True)

    first = go(digits / form)
    assert go(digits / form) == first
    assert go(proto(digits / form)) == first
    assert go(digits / form, seed=1) != first


def test_saved_twice_the_files_are_the_same(digits: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        prune(digits / FORMS[0], digits / "calib.npz", sparsity=0.9, **FEW).save(tmp_path / f"{name}.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.onnx", "b.onnx"]


def dressed(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with every field set that people lose: metadata, doc strings, types, annotations, functions, a second opset."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.producer_name, copy.producer_version, copy.domain, copy.model_version = "maker", "1.2", "org.example", 7
    copy.doc_string = "a model"
    helper.set_model_props(copy, {"labels": "[0, 1]", "author": "né"})
    graph = copy.graph
    graph.doc_string = "a graph"
    for node in graph.node:
        node.doc_string = f"doc of {node.name}"
        node.metadata_props.add(key="scope", value=node.name)
    for tensor in graph.initializer:
        tensor.doc_string = f"doc of {tensor.name}"
    for node in graph.node[:-1]:
        graph.value_info.append(helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None))
    graph.initializer.append(numpy_helper.from_array(np.arange(3, dtype=np.int64), "unused"))
    annotation = graph.quantization_annotation.add(tensor_name=graph.node[0].output[0])
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="unused")
    function = copy.functions.add(name="twice", domain="org.example", input=["a"], output=["b"])
    function.node.append(helper.make_node("Add", ["a", "a"], ["b"]))
    function.opset_import.append(helper.make_opsetid("", 17))
    copy.opset_import.append(helper.make_opsetid("org.example", 1))
    copy.training_info.add()
    return copy


@pytest.mark.parametrize("repair", REPAIRS)
@pytest.mark.parametrize("kind", ["explicit", "folded", "mlp", "mlp without bias"])
def test_only_what_the_report_names_has_changed(kind: str, repair: str) -> None:
    if kind.startswith("mlp"):
        model, data = dressed(mlp(bias=kind == "mlp")), samples(40, (8,))
    else:
        model, data = dressed(twins(depth=4)[kind == "folded"]), samples(40)
    result = prune(model, data, sparsity=0.7, repair=repair)
    assert unnamed_changes(model, result.model, result.report.changes) == []
    assert list(differences(model, result.model)) != []
    onnx.checker.check_model(result.model)
    run(result.model, {"x": data})


def test_the_diff_sees_a_change_that_is_not_named() -> None:
    """The helper itself: one byte of metadata, one doc string, one weight."""
    model = dressed(twins(depth=4)[0])
    result = prune(model, sparsity=0.7, repair="none")
    for spoil in (
        lambda other: other.metadata_props[0].__setattr__("value", "x"),
        lambda other: other.graph.node[2].__setattr__("doc_string", ""),
        lambda other: other.graph.quantization_annotation.pop(),
        lambda other: other.graph.initializer[1].__setattr__("raw_data", b"\0" * len(other.graph.initializer[1].raw_data)),
    ):
        other = onnx.ModelProto()
        other.CopyFrom(result.model)
        spoil(other)
        assert len(unnamed_changes(model, other, result.report.changes)) == 1


# ---- include, exclude, layer_sparsity


def kept(result: Result) -> dict[str, int]:
    return {entry.name: entry.kept for entry in result.report.layers}


def test_include_and_exclude_choose_layers_and_the_budget(digits: Path) -> None:
    result = prune(digits / FORMS[0], sparsity=0.9, repair="none", include=("block",), exclude=("shortcut", "block3"))
    taken = {entry.name for entry in result.report.layers if entry.pruned}
    assert taken == {f"/block{block}/{side}/conv/Conv" for block in (1, 2) for side in ("first", "second")}
    sizes = {entry.name: entry.weights for entry in result.report.layers}
    assert sum(kept(result)[name] for name in taken) == result.report.kept == keep_total([sizes[name] for name in taken], 0.9)
    assert result.report.weights == sum(sizes[name] for name in taken)
    before, after = tensors(proto(digits / FORMS[0])), tensors(result.model)
    for entry in result.report.layers:
        if not entry.pruned:
            assert entry.kept == entry.weights
            assert entry.density == 1
            assert any("--exclude" in note for note in entry.notes)
            np.testing.assert_array_equal(before[entry.weight], after[entry.weight])


def test_several_includes_add_up(digits: Path) -> None:
    result = prune(digits / FORMS[0], sparsity=0.9, repair="none", include=("stem", "classifier"))
    assert [entry.name for entry in result.report.layers if entry.pruned] == ["/stem/conv/Conv", "/classifier/Gemm"]


def test_layer_sparsity_leaves_the_common_budget(digits: Path) -> None:
    name = "/block3/first/conv/Conv"
    result = prune(digits / FORMS[0], sparsity=0.9, repair="none", layer_sparsity={name: 0.25})
    assert kept(result)[name] == round(0.75 * 147_456)
    assert sum(kept(result).values()) - kept(result)[name] == keep_total([599_872 - 147_456], 0.9)


def test_layer_sparsity_takes_a_pattern_but_a_whole_name_first(digits: Path) -> None:
    result = prune(digits / FORMS[0], sparsity=0.5, repair="none", layer_sparsity={"block[12]/": 0.75})
    for entry in result.report.layers:
        if "block1/" in entry.name or "block2/" in entry.name:
            assert entry.kept == entry.weights // 4
    sizes = {"conv1": 36, "conv10": 360}
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], "conv1"),
        helper.make_node("Conv", ["a", "w10"], ["y"], "conv10"),
    ]
    rng = np.random.default_rng(0)
    weights = {"w1": rng.normal(size=(12, 3, 1, 1)), "w10": rng.normal(size=(30, 12, 1, 1))}
    model = model_of(nodes, {"x": (1, 3, 4, 4)}, {"y": (1, 30, 4, 4)}, {name: value.astype(np.float32) for name, value in weights.items()})
    result = prune(model, sparsity=0.9, repair="none", layer_sparsity={"conv1": 0.5})
    assert kept(result) == {"conv1": sizes["conv1"] // 2, "conv10": sizes["conv10"] // 10}
    for order in (("conv1", "conv"), ("conv", "conv1")):
        given_both = prune(model, sparsity=0.9, repair="none", layer_sparsity={key: {"conv1": 0.5, "conv": 0.75}[key] for key in order})
        assert kept(given_both) == {"conv1": 18, "conv10": 90}, order


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"include": ("nothing_like_it",)}, "--include 'nothing_like_it' matches none of the 9 layers"),
        ({"exclude": ("nothing_like_it",)}, "--exclude 'nothing_like_it' matches none of the 9 layers"),
        ({"exclude": ("Conv", "Gemm")}, "leave none of the 9 layers"),
        ({"include": ("(",)}, "--include '(' is not a regular expression"),
        ({"layer_sparsity": {"nothing_like_it": 0.5}}, "'nothing_like_it' matches none"),
        ({"layer_sparsity": {"(": 0.5}}, "no regular expression"),
        ({"layer_sparsity": {"/stem/conv/Conv": 1.0}}, "/stem/conv/Conv: sparsity 1.0 is not in"),
        ({"layer_sparsity": {"/stem/conv/Conv": 0.5}, "exclude": ("stem",)}, "is left out by --include or --exclude"),
        ({"alloc": "best"}, "choose one of uniform, global, erk, lamp"),
        ({"repair": "best"}, "choose one of none, bn, layer, channel, asr"),
        ({"samples": 0}, "--samples 0"),
        ({"batch_size": 0}, "--batch-size 0"),
        ({"holdout": 1.0}, "--holdout 1.0"),
        ({"holdout": float("nan")}, "--holdout nan"),
        ({"seed": -1}, "--seed -1"),
        ({"min_agreement": 1.5}, "--min-agreement 1.5"),
        ({"min_agreement": float("nan")}, "--min-agreement nan"),
        ({"min_agreement": 0.5, "holdout": 0}, "--min-agreement needs held-out samples"),
        ({"min_agreement": 0.5}, "--min-agreement needs calibration samples"),
        ({"repair": "channel"}, "--repair channel needs calibration samples"),
        ({"device": "gpu"}, "--device 'gpu' is not known"),
    ],
)
def test_options_out_of_range_are_refused(digits: Path, options: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError) as error:
        prune(digits / FORMS[0], **{"sparsity": 0.9, "repair": "none", **options})
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_fixed_layer_too_small_for_its_sparsity_is_named(digits: Path) -> None:
    with pytest.raises(AllocationError, match="'/classifier/Gemm'"):
        prune(digits / FORMS[0], sparsity=0.5, repair="none", layer_sparsity={"/classifier/Gemm": 0.9999})


def test_one_pattern_may_be_given_as_a_string(digits: Path) -> None:
    assert Options(sparsity=0.5, include="stem", exclude=["classifier"]).include == ("stem",)
    result = prune(digits / FORMS[0], sparsity=0.9, repair="none", include="stem")
    assert [entry.name for entry in result.report.layers if entry.pruned] == ["/stem/conv/Conv"]


# ---- samples


def test_no_repair_needs_no_samples(digits: Path) -> None:
    report = prune(digits / FORMS[0], sparsity=0.9, repair="none").report
    assert report.calibration is report.agreement is report.provider is None
    assert {entry.repair for entry in report.layers} == {"none"}


def test_masks_alone_are_judged_where_there_are_samples(digits: Path) -> None:
    report = prune(digits / FORMS[0], digits / "calib.npz", sparsity=0.9, repair="none", **FEW).report
    assert report.agreement is not None
    assert report.agreement.score == report.agreement.masked_score
    assert report.agreement.samples == 13  # round(0.2 * 64)


def test_without_a_holdout_all_samples_repair(digits: Path) -> None:
    report = prune(digits / FORMS[0], digits / "calib.npz", sparsity=0.9, holdout=0, **FEW).report
    assert report.agreement is None
    assert report.calibration is not None
    assert (report.calibration.repair, report.calibration.holdout, report.calibration.available) == (64, 0, 512)
    assert report.calibration.paths == (str(digits / "calib.npz"),)


def test_the_batch_size_changes_rounding_alone(digits: Path) -> None:
    data = np.load(digits / "calib.npz")["image"][:50]
    results = [prune(digits / FORMS[0], data, sparsity=0.9, batch_size=size, repair="bn") for size in (1, 7, 50)]
    for other in results[1:]:
        for name, values in tensors(results[0].model).items():
            # float32 sums over 64 positions in another order: 1e-6 a layer, nine layers deep
            np.testing.assert_allclose(tensors(other.model)[name], values, rtol=1e-4, atol=1e-5)


def test_a_fixed_batch_dimension_is_honoured() -> None:
    model = twins(depth=3)[1]
    model.graph.input[0].type.tensor_type.shape.dim[0].Clear()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    model.graph.output[0].type.tensor_type.shape.dim[0].Clear()
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 4
    report = prune(model, samples(10), sparsity=0.5, holdout=0.4).report
    used = report.calibration
    assert used is not None
    assert (used.available, used.repair, used.holdout, used.batch_size) == (10, 4, 4, 4)
    assert any("2 of 10 samples dropped" in note for note in report.notes)
    with pytest.raises(CalibrationError, match="batches of 4"):
        prune(model, samples(10), sparsity=0.5, holdout=0.2)  # two held-out samples make no batch of four


def two_inputs() -> onnx.ModelProto:
    rng = np.random.default_rng(3)
    weights = {"wa": rng.normal(size=(6, 8)).astype(np.float32), "wb": rng.normal(size=(4, 8)).astype(np.float32)}
    nodes = [
        helper.make_node("MatMul", ["a", "wa"], ["ya"], "left"),
        helper.make_node("MatMul", ["b", "wb"], ["yb"], "right"),
        helper.make_node("Add", ["ya", "yb"], ["sum"], "sum"),
        helper.make_node("Tanh", ["sum"], ["y"], "tanh"),
    ]
    return model_of(nodes, {"a": ("n", 6), "b": ("n", 4)}, {"y": ("n", 8)}, weights)


def test_two_inputs_from_arrays_and_from_npz(tmp_path: Path) -> None:
    data = {"a": samples(30, (6,)), "b": samples(30, (4,), seed=2)}
    np.savez(tmp_path / "both.npz", **data)
    model = two_inputs()
    first = prune(model, data, sparsity=0.5)
    second = prune(model, tmp_path / "both.npz", sparsity=0.5)
    assert first.model.SerializeToString(deterministic=True) == second.model.SerializeToString(deterministic=True)
    assert {entry.repair for entry in first.report.layers} == {"channel"}
    before, after = run(model, data, ["ya", "yb"]), run(prune(model, data, sparsity=0.3, holdout=0).model, data, ["ya", "yb"])
    for name in before:
        for old, new in zip(moments(before[name]), moments(after[name]), strict=True):
            np.testing.assert_allclose(new, old, rtol=1e-4, atol=1e-5)  # float32 weights and sums of 30 numbers


# ---- odd models


def alike(one: onnx.ModelProto, other: onnx.ModelProto, data: np.ndarray, name: str) -> None:
    """A tensor has the same mean and variance per channel in both models."""
    pairs = zip(moments(run(one, {"x": data}, [name])[name]), moments(run(other, {"x": data}, [name])[name]), strict=True)
    for old, new in pairs:
        np.testing.assert_allclose(new, old, rtol=1e-4, atol=1e-5)  # weights and sums are float32


def test_a_float16_model_stays_float16() -> None:
    wide = twins(depth=3)[1]
    half = model_of(
        wide.graph.node,
        {"x": ("batch", 3, 8, 8)},
        {"logits": ("batch", CLASSES)},
        {name: values.astype(np.float16) for name, values in tensors(wide).items()},
        elem_type=TensorProto.FLOAT16,
    )
    data = samples(40).astype(np.float16)
    result = prune(half, data, sparsity=0.6, holdout=0)
    assert {tensor.data_type for tensor in result.model.graph.initializer} == {TensorProto.FLOAT16}
    assert unnamed_changes(half, result.model, result.report.changes) == []
    before, after = run(half, {"x": data}, ["y0", "y2"]), run(result.model, {"x": data}, ["y0", "y2"])
    for name in before:
        # float16 weights carry 11 bits, and so do the activations of the layers before: 1 % covers both
        np.testing.assert_allclose(moments(after[name])[1], moments(before[name])[1], rtol=1e-2)
        np.testing.assert_allclose(moments(after[name])[0], moments(before[name])[0], atol=1e-2)


def test_nodes_without_names_are_called_after_their_outputs() -> None:
    model = mlp(names=False)
    result = prune(model, samples(40, (8,)), sparsity=0.6)
    assert [entry.name for entry in result.report.layers] == ["m0", "m1"]
    assert unnamed_changes(model, result.model, result.report.changes) == []


def test_layers_without_a_bias_get_one() -> None:
    model = mlp(bias=False)
    data = samples(40, (8,))
    result = prune(model, data, sparsity=0.4, holdout=0)
    assert result.report.dead_channels == 0
    changes = result.report.changes
    assert changes.nodes == ("mm0.add_bias", "mm1.add_bias")
    assert changes.initializers == ("mm0.bias", "mm1.bias")
    assert [node.op_type for node in result.model.graph.node] == ["MatMul", "Add", "Relu", "MatMul", "Add"]
    for name in ("p0", "logits"):
        alike(model, result.model, data, name)


def test_a_convolution_and_a_gemm_without_a_bias_get_their_third_input() -> None:
    rng = np.random.default_rng(5)
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["c"], "conv"),
        helper.make_node("GlobalAveragePool", ["c"], ["g"], "pool"),
        helper.make_node("Flatten", ["g"], ["f"], "flat"),
        helper.make_node("Gemm", ["f", "w1"], ["y"], "gemm", beta=0.5),
    ]
    weights = {"w0": rng.normal(size=(6, 3, 3, 3)).astype(np.float32), "w1": rng.normal(size=(6, 4)).astype(np.float32)}
    model = model_of(nodes, {"x": ("n", 3, 8, 8)}, {"y": ("n", 4)}, weights)
    data = samples(40)
    result = prune(model, data, sparsity=0.6, holdout=0)
    assert result.report.changes.rewired == ("conv", "gemm")
    assert result.report.changes.nodes == ()
    assert [len(node.input) for node in result.model.graph.node if node.op_type in ("Conv", "Gemm")] == [3, 3]
    for name in ("c", "y"):
        alike(model, result.model, data, name)


@pytest.mark.parametrize("kind", ["explicit", "folded"])
@pytest.mark.parametrize("repair", ["bn", "layer", "channel", "asr"])
def test_dead_channels_are_counted_and_shifted_to_the_dense_mean(kind: str, repair: str) -> None:
    """Two output channels of the second convolution hold only weights too small to survive."""
    model = twins(depth=4)[kind == "folded"]
    small = tensors(model)["w1"].copy()
    small[[2, 5]] *= 1e-3
    model = replaced(model, {"w1": small})
    data = samples(40)
    result = prune(model, data, sparsity=0.5, alloc="uniform", repair=repair, holdout=0)
    entry = result.report.layers[1]
    assert (entry.dead_channels, entry.channels) == (2, 8)
    assert result.report.dead_channels == 2
    before, after = run(model, {"x": data}, ["y1"])["y1"], run(result.model, {"x": data}, ["y1"])["y1"]
    assert np.ptp(after[:, [2, 5]], axis=(0, 2, 3)).max() == 0
    if repair != "bn":  # bn makes the normalised output of every channel the BatchNormalization's own bias
        np.testing.assert_allclose(moments(after)[0], moments(before)[0], rtol=1e-4, atol=1e-5)  # float32 weights and sums


def test_bn_of_a_dead_channel_with_epsilon_0_gives_numbers() -> None:
    model = twins(depth=4, exact=True)[0]
    small = tensors(model)["w1"].copy()
    small[2] *= 1e-3
    model = replaced(model, {"w1": small})
    data = samples(40)
    result = prune(model, data, sparsity=0.5, alloc="uniform", repair="bn", holdout=0)
    assert np.isfinite(run(result.model, {"x": data})["logits"]).all()


def test_shared_weights_are_masked_once() -> None:
    rng = np.random.default_rng(7)
    shared = rng.normal(size=(8, 8)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], "first"),
        helper.make_node("Tanh", ["a"], ["t"], "tanh"),
        helper.make_node("MatMul", ["t", "w"], ["y"], "second"),
    ]
    model = model_of(nodes, {"x": ("n", 8)}, {"y": ("n", 8)}, {"w": shared})
    data = samples(40, (8,))
    result = prune(model, data, sparsity=0.5, holdout=0)
    (entry,) = result.report.layers
    assert (entry.weights, entry.kept, entry.nonzero) == (64, 32, 32)
    assert "weight of 2 nodes" in entry.notes
    after = tensors(result.model)["w"]
    np.testing.assert_array_equal(after[after != 0], shared[after != 0])  # no gain: the other node reads it too
    assert unnamed_changes(model, result.model, result.report.changes) == []
    np.testing.assert_allclose(
        moments(run(result.model, {"x": data})["y"])[0], moments(run(model, {"x": data})["y"])[0], rtol=1e-4, atol=1e-5
    )  # float32 sums; only the mean is repaired


def test_a_model_with_no_float_output_is_pruned_and_not_judged() -> None:
    wide = mlp()
    model = model_of(
        [*wide.graph.node, helper.make_node("ArgMax", ["logits"], ["class"], "argmax", axis=1, keepdims=0)],
        {"x": ("batch", 8)},
        {"class": ("batch",)},
        tensors(wide),
        output_type=TensorProto.INT64,
    )
    result = prune(model, samples(40, (8,)), sparsity=0.5)
    assert result.report.agreement is None
    with pytest.raises(UsageError, match="no float output"):
        prune(model, samples(40, (8,)), sparsity=0.5, min_agreement=0.1)


def test_outputs_whose_length_depends_on_the_values_are_judged() -> None:
    """A detector gives as many rows as it finds: another number in the pruned model, even none."""
    wide = mlp()
    nodes = [
        *wide.graph.node,
        helper.make_node("Greater", ["logits", "level"], ["hit"], "greater"),
        helper.make_node("NonZero", ["hit"], ["at"], "nonzero"),
        helper.make_node("Transpose", ["at"], ["where"], "transpose"),
        helper.make_node("GatherND", ["logits", "where"], ["found"], "gather"),
    ]
    for level in (0.5, 1e9):
        model = model_of(nodes, {"x": ("batch", 8)}, {"found": ("hits",)}, {**tensors(wide), "level": np.array(level, np.float32)})
        report = prune(model, samples(60, (8,)), sparsity=0.9).report
        if level == 0.5:
            assert report.agreement is not None
            assert 0 <= report.agreement.score < 1
            assert report.agreement.measure == "cosine"


def test_an_output_without_a_batch_axis_is_judged() -> None:
    wide = mlp()
    model = model_of(
        [*wide.graph.node, helper.make_node("ReduceMean", ["logits"], ["mean"], "mean", keepdims=0)],
        {"x": ("batch", 8)},
        {"mean": ()},
        tensors(wide),
    )
    report = prune(model, samples(60, (8,)), sparsity=0.5, batch_size=8).report
    assert report.agreement is not None
    assert report.agreement.samples == 2  # 12 held-out samples, two batches


def test_a_layer_with_nan_is_named() -> None:
    model = mlp()
    broken = tensors(model)["w1"].copy()
    broken[0, 0] = np.nan
    with pytest.raises(AllocationError, match="layer 'mm1' has NaN"):
        prune(replaced(model, {"w1": broken}), sparsity=0.5, repair="none")


def test_a_model_with_nothing_to_prune_says_what_was_skipped() -> None:
    nodes = [helper.make_node("MatMul", ["x", "x"], ["y"], "square")]
    model = model_of(nodes, {"x": (4, 4)}, {"y": (4, 4)}, {})
    with pytest.raises(ModelError, match=r"nothing to prune.*'square': both sides are computed"):
        prune(model, sparsity=0.5, repair="none")


def test_a_dense_model_that_gives_nan_cannot_be_judged() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], "mm"),
        helper.make_node("Log", ["a"], ["y"], "log"),
    ]
    model = model_of(nodes, {"x": ("n", 8)}, {"y": ("n", 4)}, {"w": -np.ones((8, 4), np.float32)})
    with pytest.raises(OnnxpruneError, match="dense model"):
        prune(model, np.abs(samples(20, (8,))), sparsity=0.5)


# ---- the gate, and progress


def test_the_gate_says_both_numbers_and_writes_nothing(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(GateError, match=r"below --min-agreement 0\.9; nothing was written") as error:
        prune(digits / FORMS[0], digits / "calib.npz", sparsity=0.95, repair="none", min_agreement=0.9)
    assert error.value.exit_code == 3
    assert list(tmp_path.iterdir()) == []
    result = prune(digits / FORMS[0], digits / "calib.npz", sparsity=0.5, min_agreement=0.9)
    assert result.report.agreement is not None
    assert result.report.agreement.score >= 0.9


def test_an_agreement_of_one_passes_a_gate_of_one(digits: Path) -> None:
    prune(digits / FORMS[0], digits / "calib.npz", sparsity=0, min_agreement=1, **FEW)


@pytest.mark.cores
@pytest.mark.parametrize("meanwhile", [False, pytest.param(True, marks=pytest.mark.skipif(not THERE, reason="no such threads"))])
def test_progress_counts_every_phase_up_to_its_total(digits: Path, meanwhile: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "allowed", lambda: 2 if meanwhile else 1)
    told: dict[str, list[tuple[int, int]]] = {}
    prune(
        digits / FORMS[0],
        digits / "calib.npz",
        sparsity=0.9,
        progress=lambda phase, done, total: told.setdefault(phase, []).append((done, total)),
        **FEW,
    )
    made = ["masked outputs", "dense outputs"] if meanwhile else ["dense outputs", "masked outputs"]
    assert list(told) == [*([] if meanwhile else made), "dense statistics", "repair", *(made if meanwhile else []), "repaired outputs"]
    for phase, steps in told.items():
        total = steps[0][1]
        assert steps == [(done, total) for done in range(total + 1)], phase
        assert total > 0


def test_external_data_is_remembered(digits: Path, tmp_path: Path) -> None:
    onnx.save(proto(digits / FORMS[1]), str(tmp_path / "big.onnx"), save_as_external_data=True, location="big.bin")
    result = prune(tmp_path / "big.onnx", sparsity=0.9, repair="none")
    written = result.save(tmp_path / "out.onnx")
    assert len(written) == 2
    back = load(tmp_path / "out.onnx").model
    for name, values in tensors(result.model).items():
        np.testing.assert_array_equal(tensors(back)[name], values)


# ---- known gaps


def test_a_fixed_batch_dimension_of_the_second_input_is_honoured() -> None:
    model = two_inputs()
    model.graph.input[1].type.tensor_type.shape.dim[0].Clear()
    model.graph.input[1].type.tensor_type.shape.dim[0].dim_value = 4
    data = {"a": samples(40, (6,)), "b": samples(40, (4,), seed=2)}
    used = prune(model, data, sparsity=0.3).report.calibration
    assert used is not None
    assert (used.batch_size, used.repair, used.holdout) == (4, 32, 8)


def test_an_input_without_an_element_type_is_refused() -> None:
    model = mlp()
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UNDEFINED
    with pytest.raises(ModelError):
        prune(model, samples(40, (8,)), sparsity=0.5)


def test_nodes_out_of_order_are_refused_or_sorted() -> None:
    model = mlp()
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes[1:], nodes[0]])
    run(model, {"x": samples(4, (8,))})
    with contextlib.suppress(ModelError):  # a line that says so is as good
        prune(model, samples(40, (8,)), sparsity=0.5)


def test_activations_whose_squares_overflow_give_no_warning() -> None:
    prune(mlp(), samples(40, (8,)) * np.float32(1e30), sparsity=0.5)


def test_an_output_without_the_batch_is_not_judged_by_classes() -> None:
    """A mean over the batch, (5,): one row of numbers a batch, in which the largest is no class."""
    rng = np.random.default_rng(0)
    model = build(
        [made("MatMul", ["x", "w"], ["h"]), made("ReduceMean", ["h"], ["y"], axes=[0], keepdims=0)],
        {"w": rng.standard_normal((6, 5)).astype(np.float32)},
        {"x": ["n", 6]},
        ["y"],
        opset=13,
    )
    report = prune(model, rng.standard_normal((40, 6)).astype(np.float32), sparsity=0.5, batch_size=4).report
    assert report.agreement is not None
    assert report.agreement.measure == "cosine"
    assert report.agreement.samples == 2  # eight samples held out, in batches of four
