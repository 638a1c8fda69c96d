"""The statistics a repair leaves behind, measured by plain ONNX Runtime, and a slow oracle that runs every prefix anew."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from networks import EPSILON, model_of, moments, replaced, run, samples, tensors, twins
from numpy.typing import NDArray
from onnx import helper

from onnxprune import prune, statistics
from onnxprune.graph.layers import find
from onnxprune.graph.model import load
from onnxprune.graph.points import points as points_of
from onnxprune.numerics.moments import Moments
from onnxprune.reporting import farthest
from onnxprune.runtime.device import Device
from onnxprune.sequential import variance_ratio

DEPTH = 7
LAYERS = [f"y{number}" for number in range(DEPTH)]
DATA = samples(48)

# The runtime sums in float32: over 48 * 64 numbers a channel and 7 layers the relative error stays below 1e-4. Means near zero are
# held to the deviation, which is about 1 here.
TIGHT = {"rtol": 1e-4, "atol": 1e-4}


def same(one: tuple[NDArray[np.float64], ...], other: tuple[NDArray[np.float64], ...]) -> None:
    for left, right in zip(one, other, strict=True):
        np.testing.assert_allclose(left, right, **TIGHT)


def stored(model: onnx.ModelProto, number: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    values = tensors(model)
    return values[f"m{number}"].astype(np.float64), values[f"v{number}"].astype(np.float64)


def stored_are_measured(model: onnx.ModelProto) -> None:
    """The check: what each BatchNormalization has stored is what arrives at its input."""
    inputs = run(model, {"x": DATA}, [f"c{number}" for number in range(DEPTH)])
    for number in range(DEPTH):
        same(moments(inputs[f"c{number}"]), stored(model, number))


@pytest.mark.parametrize("alloc", ["erk", "lamp", "uniform"])
@pytest.mark.parametrize("batch_size", [48, 20])
def test_after_bn_the_stored_statistics_are_the_measured_ones(alloc: str, batch_size: int) -> None:
    result = prune(twins(DEPTH)[0], DATA, sparsity=0.8, alloc=alloc, repair="bn", holdout=0, batch_size=batch_size)
    assert result.report.sparsity == pytest.approx(0.8, abs=1e-3)
    stored_are_measured(result.model)


def test_bn_sets_the_statistics_before_the_first_pruned_layer_too() -> None:
    stored_are_measured(prune(twins(DEPTH)[0], DATA, sparsity=0.8, include=("conv4",), repair="bn", holdout=0).model)


def test_one_pass_over_the_masked_model_fails_that_check() -> None:
    """All statistics from the masked model at once: each is right for a model that no longer exists."""
    masked = prune(twins(DEPTH)[0], sparsity=0.8, repair="none").model
    inputs = run(masked, {"x": DATA}, [f"c{number}" for number in range(DEPTH)])
    found = {number: moments(inputs[f"c{number}"]) for number in range(DEPTH)}
    at_once = replaced(
        masked,
        {f"m{number}": mean for number, (mean, _) in found.items()} | {f"v{number}": var for number, (_, var) in found.items()},
    )
    same(moments(run(at_once, {"x": DATA}, ["c0"])["c0"]), stored(at_once, 0))  # the first layer's are right
    with pytest.raises(AssertionError):
        stored_are_measured(at_once)
    last = moments(run(at_once, {"x": DATA}, [f"c{DEPTH - 1}"])[f"c{DEPTH - 1}"])[1]
    assert np.abs(np.log(last / stored(at_once, DEPTH - 1)[1])).max() > 0.1  # far beyond the tolerance, not by rounding


@pytest.mark.parametrize("form", [0, 1])
@pytest.mark.parametrize("alloc", ["erk", "lamp", "uniform"])
def test_after_channel_every_layer_has_the_dense_mean_and_variance(form: int, alloc: str) -> None:
    dense = twins(DEPTH)[form]
    result = prune(dense, DATA, sparsity=0.8, alloc=alloc, repair="channel", holdout=0)
    assert result.report.dead_channels == 0
    names = [*LAYERS, "logits"]
    before, after = run(dense, {"x": DATA}, names), run(result.model, {"x": DATA}, names)
    for name in names:
        same(moments(after[name]), moments(before[name]))


def test_bn_on_a_folded_network_is_the_channel_repair() -> None:
    """A folded BatchNormalization gives every output channel its dense mean and variance once it is recalibrated."""
    dense = twins(DEPTH)[1]
    bn, channel = (prune(dense, DATA, sparsity=0.8, repair=rule, holdout=0) for rule in ("bn", "channel"))
    assert {entry.repair for entry in bn.report.layers} == {"bn (folded)"}
    for name, values in tensors(channel.model).items():
        np.testing.assert_array_equal(tensors(bn.model)[name], values)


# ---- the formulas, with numpy, layer after layer


def gain_by_hand(rule: str, dense: NDArray[np.float64], current: NDArray[np.float64]) -> NDArray[np.float64]:
    if rule == "layer":
        return np.full(dense.size, np.sqrt(dense.mean() / current.mean()))
    gain = np.sqrt(dense / current)
    if rule == "channel":
        return gain
    trust = current / (current + np.median(current))
    return trust * gain + (1 - trust)


def by_hand(dense: onnx.ModelProto, masked: onnx.ModelProto, rule: str, folded: bool) -> tuple[onnx.ModelProto, list[NDArray[np.float64]]]:
    """The masked model repaired in float64 by re-running it from the start for every layer, and the gains of the layers."""
    current, gains = masked, []
    for number in range(DEPTH):
        target = moments(run(dense, {"x": DATA}, [f"y{number}"])[f"y{number}"])
        mean, variance = moments(run(current, {"x": DATA}, [f"y{number}"])[f"y{number}"])
        gain = gain_by_hand(rule, target[1], variance)
        shift = target[0] - gain * mean
        gains.append(gain)
        values = tensors(current)
        new = {f"b{number}": values[f"b{number}"] * gain + shift}
        if folded:
            new[f"w{number}"] = values[f"w{number}"] * gain.reshape(-1, 1, 1, 1)
        else:
            new[f"s{number}"] = values[f"s{number}"] * gain
        current = replaced(current, new)
    return current, gains


@pytest.mark.parametrize("form", [0, 1])
@pytest.mark.parametrize("rule", ["layer", "channel", "asr"])
def test_a_slow_oracle_finds_the_same_model(form: int, rule: str) -> None:
    dense = twins(DEPTH)[form]
    options = {"sparsity": 0.8, "holdout": 0}
    masked = prune(dense, repair="none", **options).model
    result = prune(dense, DATA, repair=rule, batch_size=13, **options)
    expected, gains = by_hand(dense, masked, rule, folded=form == 1)
    for name in ("w", "b", *(() if form else ("s", "m", "v"))):
        for number in range(DEPTH):
            np.testing.assert_allclose(
                tensors(result.model)[f"{name}{number}"], tensors(expected)[f"{name}{number}"], err_msg=f"{name}{number}", **TIGHT
            )
    for entry, gain in zip(result.report.layers, gains, strict=False):  # the classifier is not in the oracle
        assert entry.gain_min == pytest.approx(gain.min(), rel=1e-4), entry.name
        assert entry.gain_max == pytest.approx(gain.max(), rel=1e-4), entry.name


def test_the_rules_are_not_the_same() -> None:
    """The oracle test would mean little if the rules agreed on this network."""
    found = {}
    for rule in ("layer", "channel", "asr"):
        result = prune(twins(DEPTH)[1], DATA, repair=rule, sparsity=0.8, holdout=0)
        found[rule] = tensors(result.model)["w3"]
    assert np.abs(found["layer"] - found["channel"]).max() > 0.01
    assert np.abs(found["asr"] - found["channel"]).max() > 0.01


def test_a_report_tells_the_errors_of_the_variance() -> None:
    dense = twins(DEPTH)[1]
    masked = prune(dense, sparsity=0.8, repair="none").model
    report = prune(dense, DATA, sparsity=0.8, repair="channel", holdout=0).report
    expected, current = moments(run(dense, {"x": DATA}, ["y0"])["y0"])[1], moments(run(masked, {"x": DATA}, ["y0"])["y0"])[1]
    error = np.sqrt(np.mean(np.log(current / expected) ** 2))
    assert report.layers[0].variance_error_before == pytest.approx(error, rel=1e-3)  # float32 sums, and a log near zero
    ratio = np.exp(np.mean(np.log(current / expected)))
    assert report.layers[0].variance_ratio_before == pytest.approx(ratio, rel=1e-3)
    assert ratio < 0.9  # masks take variance away
    for entry in report.layers:
        assert entry.variance_error_after == pytest.approx(0, abs=1e-9)
        assert entry.variance_ratio_after == pytest.approx(1, abs=1e-9)


def test_a_variance_ratio_by_hand() -> None:
    dense = Moments(10, np.zeros(4), np.array([10.0, 10.0, 10.0, 0.0]))
    current = Moments(5, np.zeros(4), np.array([10.0, 1.25, 0.0, 5.0]))  # variances 2, 1/4, and two that one of the models lacks
    assert variance_ratio(dense, current) == pytest.approx(np.sqrt(2 * 0.25))
    assert variance_ratio(dense, Moments(5, np.zeros(4), np.zeros(4))) is None


def test_a_weight_with_several_uses_tells_the_ratiofarthest_from_one() -> None:
    assert farthest([0.5, None, 1.5]) == 0.5
    assert farthest([0.5, 2.5]) == 2.5
    assert farthest([None]) is None


# ---- the two forms of one network


@pytest.mark.parametrize("rule", ["layer", "channel", "asr"])
def test_explicit_and_folded_twins_get_the_same_gains(rule: str) -> None:
    """Folding scales a whole layer by a power of two here, so both forms have the same masks."""
    results = [
        prune(model, DATA, sparsity=0.8, alloc="uniform", repair=rule, holdout=0, unfold=False) for model in twins(DEPTH, exact=True)
    ]
    for number in range(DEPTH):
        masks = [tensors(result.model)[f"w{number}"] != 0 for result in results]
        np.testing.assert_array_equal(*masks)
    for one, other in zip(*(result.report.layers for result in results), strict=True):
        assert one.gain_min == pytest.approx(other.gain_min, rel=1e-5)  # the same numbers but for float32 sums
        assert one.gain_max == pytest.approx(other.gain_max, rel=1e-5)
        assert one.variance_error_before == pytest.approx(other.variance_error_before, rel=1e-4)
    outputs = [run(result.model, {"x": DATA})["logits"] for result in results]
    np.testing.assert_allclose(*outputs, **TIGHT)


def test_bn_in_both_forms_gives_the_same_outputs() -> None:
    """bn gives the explicit form the BatchNormalization's scale and bias as statistics, the folded form the dense ones.

    They are the same where the dense model's stored statistics are those of the calibration samples.
    """
    explicit = twins(DEPTH, exact=True)[0]
    for number in range(DEPTH):
        mean, variance = moments(run(explicit, {"x": DATA}, [f"c{number}"])[f"c{number}"])
        deviation = np.sqrt(variance)
        fixed = tensors(explicit)
        # the convolution is scaled instead of the variance, so that the layer's gain stays one power of two
        weight = fixed[f"w{number}"] / deviation.reshape(-1, 1, 1, 1) * 2
        explicit = replaced(explicit, {f"w{number}": weight, f"m{number}": mean / deviation * 2})
    values = tensors(explicit)
    folded = twins(DEPTH, exact=True)[1]
    new = {"fc.w": values["fc.w"]}
    for number in range(DEPTH):
        gain = values[f"s{number}"] / 2
        new[f"w{number}"] = values[f"w{number}"] * gain.reshape(-1, 1, 1, 1)
        new[f"b{number}"] = values[f"b{number}"] - gain * values[f"m{number}"]
    folded = replaced(folded, new)
    dense = [run(model, {"x": DATA})["logits"] for model in (explicit, folded)]
    np.testing.assert_allclose(*dense, **TIGHT)
    results = [prune(model, DATA, sparsity=0.5, alloc="uniform", repair="bn", holdout=0, unfold=False) for model in (explicit, folded)]
    assert [result.report.dead_channels for result in results] == [0, 0]
    outputs = [run(result.model, {"x": DATA})["logits"] for result in results]
    np.testing.assert_allclose(*outputs, rtol=1e-3, atol=1e-3)  # statistics are rounded to float32 in two places, 7 layers deep


# ---- other normalisations


def norm_network(op: str) -> tuple[onnx.ModelProto, NDArray[np.float32], int]:
    """Two layers with a normalisation of their own behind each; the model, its samples and the channel axis."""
    rng = np.random.default_rng(11)
    wide = 12
    weights: dict[str, NDArray[np.float32]] = {}
    nodes = []
    source, channels = "x", 6
    for number in range(3):
        if op == "LayerNormalization":
            weights[f"w{number}"] = rng.normal(0, 0.5, (channels, wide)).astype(np.float32)
            nodes.append(helper.make_node("MatMul", [source, f"w{number}"], [f"p{number}"], f"mm{number}"))
        else:
            weights[f"w{number}"] = rng.normal(0, 0.3, (wide, channels, 3, 3)).astype(np.float32)
            nodes.append(helper.make_node("Conv", [source, f"w{number}"], [f"p{number}"], f"conv{number}", pads=[1, 1, 1, 1]))
        weights[f"s{number}"] = rng.uniform(0.5, 1.5, wide).astype(np.float32)
        weights[f"b{number}"] = rng.normal(0, 0.5, wide).astype(np.float32)
        more = {"num_groups": 3} if op == "GroupNormalization" else {}
        nodes.append(
            helper.make_node(op, [f"p{number}", f"s{number}", f"b{number}"], [f"n{number}"], f"norm{number}", epsilon=EPSILON, **more)
        )
        nodes.append(helper.make_node("Relu", [f"n{number}"], [f"h{number}"], f"relu{number}"))
        source, channels = f"h{number}", wide
    shape = ("n", "t", 6) if op == "LayerNormalization" else ("n", 6, 5, 5)
    out = ("n", "t", wide) if op == "LayerNormalization" else ("n", wide, 5, 5)
    model = model_of(nodes, {"x": shape}, {source: out}, weights, opset=21)
    data = samples(40, (7, 6) if op == "LayerNormalization" else (6, 5, 5))
    return model, data, -1 if op == "LayerNormalization" else 1


@pytest.mark.parametrize("op", ["LayerNormalization", "InstanceNormalization", "GroupNormalization"])
def test_free_standing_normalisations_get_the_dense_mean_and_variance(op: str) -> None:
    model, data, axis = norm_network(op)
    names = [f"{what}{number}" for number in range(3) for what in "pn"]
    masked = prune(model, sparsity=0.4, alloc="uniform", repair="none").model
    result = prune(model, data, sparsity=0.4, alloc="uniform", repair="channel", holdout=0)
    assert result.report.dead_channels == 0
    assert [(entry.name, entry.op, entry.repair) for entry in result.report.norms] == [
        (f"norm{number}", op, "channel") for number in range(3)
    ]
    before, after = run(model, {"x": data}, names), run(result.model, {"x": data}, names)
    for name in names:
        same(moments(after[name], axis), moments(before[name], axis))
    off = run(masked, {"x": data}, names)
    with pytest.raises(AssertionError):
        same(moments(off["p2"], axis), moments(before["p2"], axis))


def test_a_layer_before_a_normalisation_of_its_own_is_not_the_last_word() -> None:
    """The first pruned layer may lie anywhere: what lies before it has its dense values and is not touched."""
    model = twins(DEPTH)[1]
    result = prune(model, DATA, sparsity=0.8, include=("conv3",), holdout=0)
    touched = {entry.name for entry in result.report.layers if entry.repair != "none"}
    assert touched == {f"conv{number}" for number in range(3, DEPTH)} | {"fc"}
    before, after = tensors(model), tensors(result.model)
    for number in range(3):
        np.testing.assert_array_equal(before[f"w{number}"], after[f"w{number}"])
        np.testing.assert_array_equal(before[f"b{number}"], after[f"b{number}"])
    names = [*LAYERS, "logits"]
    dense, repaired = run(model, {"x": DATA}, names), run(result.model, {"x": DATA}, names)
    for name in names:
        same(moments(repaired[name]), moments(dense[name]))


def test_branches_and_a_graph_output_in_the_middle() -> None:
    """A pruned tensor that leaves the graph, is read twice and is added to itself later."""
    rng = np.random.default_rng(4)
    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["y0"], "conv0", pads=[1, 1, 1, 1]),
        helper.make_node("Sigmoid", ["y0"], ["g"], "gate"),
        helper.make_node("Conv", ["y0", "w1"], ["y1"], "conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Mul", ["y1", "g"], ["m"], "mul"),
        helper.make_node("Concat", ["m", "y0"], ["cat"], "cat", axis=1),
        helper.make_node("Conv", ["cat", "w2"], ["y2"], "conv2", group=2),
    ]
    weights = {
        "w0": rng.normal(0, 0.4, (8, 3, 3, 3)),
        "b0": rng.normal(0, 0.4, 8),
        "w1": rng.normal(0, 0.2, (8, 8, 3, 3)),
        "w2": rng.normal(0, 0.3, (6, 8, 1, 1)),
    }
    model = model_of(
        nodes,
        {"x": ("n", 3, 8, 8)},
        {"y0": ("n", 8, 8, 8), "y2": ("n", 6, 8, 8)},
        {name: value.astype(np.float32) for name, value in weights.items()},
    )
    names = ["y0", "y1", "y2"]
    result = prune(model, DATA, sparsity=0.5, alloc="uniform", holdout=0)
    assert result.report.dead_channels == 0
    before, after = run(model, {"x": DATA}, names), run(result.model, {"x": DATA}, names)
    for name in names:
        same(moments(after[name]), moments(before[name]))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet20", "resnet56"])
def test_a_real_deep_network_has_its_measured_statistics_stored(reference: Path, name: str) -> None:
    """resnet56: 55 BatchNormalizations behind each other, 128 images in CIFAR's own preprocessing."""
    path = reference / "cifar10" / f"{name}.onnx"
    images = np.load(reference / "cifar10" / "calib.npz")["x"][:128].astype(np.float32) / 255
    data = ((images - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).transpose(0, 3, 1, 2).astype(np.float32)
    dense = load(path).model
    result = prune(dense, data, sparsity=0.8, repair="bn", holdout=0)
    (feed,) = (value.name for value in dense.graph.input)
    nodes = [node for node in result.model.graph.node if node.op_type == "BatchNormalization"]
    values = tensors(result.model)
    inputs = run(result.model, {feed: data}, [node.input[0] for node in nodes])
    assert len(nodes) >= 19
    for node in nodes:
        mean, variance = moments(inputs[node.input[0]])
        np.testing.assert_allclose(values[node.input[4]], variance, rtol=1e-3)  # 55 layers deep; float32 all the way
        # a mean is as exact as the deviation it is measured with
        assert (np.abs(values[node.input[3]] - mean) <= 1e-3 * np.sqrt(variance) + 1e-6).all()


@pytest.mark.parametrize("repair", ["bn", "channel"])
def test_two_normalisations_in_a_row_whose_first_input_is_read_again(repair: str) -> None:
    """The first one's output and its input are both there when the second is repaired, which is computed from the first as repaired."""
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(4, 3, 3, 3)), "fc": rng.normal(size=(4, 5))}
    for number in (1, 2):
        weights |= {f"s{number}": 1 + rng.random(4), f"b{number}": rng.normal(size=4)}
        weights |= {f"m{number}": rng.normal(size=4), f"v{number}": 1 + rng.random(4)}
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"])]
    for number, source in ((1, "c"), (2, "n1")):
        nodes.append(helper.make_node("BatchNormalization", [source, *(f"{what}{number}" for what in "sbmv")], [f"n{number}"]))
    nodes += [helper.make_node("Relu", ["n2"], ["r"]), helper.make_node("Add", ["r", "c"], ["a"])]
    nodes += [helper.make_node("GlobalAveragePool", ["a"], ["p"]), helper.make_node("Flatten", ["p"], ["f"])]
    nodes.append(helper.make_node("MatMul", ["f", "fc"], ["y"]))
    dense = model_of(nodes, {"x": ("n", 3, 8, 8)}, {"y": ("n", 5)}, {name: value.astype(np.float32) for name, value in weights.items()})
    result = prune(dense, DATA, sparsity=0.5, repair=repair, holdout=0)
    found, wanted = (run(model, {"x": DATA}, ["n1", "n2", "y"]) for model in (result.model, dense))
    values = tensors(result.model)
    if repair == "bn":
        same(moments(found["n1"]), (values["m2"].astype(np.float64), values["v2"].astype(np.float64)))
    else:
        for name in ("n1", "n2", "y"):
            same(moments(found[name]), moments(wanted[name]))


@pytest.mark.parametrize("together", [1, 2, 64])
def test_the_dense_statistics_are_those_of_all_batches(monkeypatch: pytest.MonkeyPatch, together: int) -> None:
    """Of 7 batches, the last a short one, however many are merged at a time."""
    monkeypatch.setattr(statistics, "TOGETHER", together)
    model, x = twins()[0], samples(100)
    points = points_of(find(model, ()))
    batches = ({"x": x[at : at + 16]} for at in range(0, len(x), 16))
    ticks: list[int] = []
    found = statistics.dense_moments(model, points, batches, Device("cpu"), lambda: ticks.append(1))
    assert len(ticks) == 7
    for point, of_point in zip(points, found, strict=True):
        mean, variance = moments(run(model, {"x": x}, [point.dense_tensor])[point.dense_tensor], point.axis)
        np.testing.assert_allclose(of_point.mean, mean, rtol=1e-6, atol=1e-6)  # float32 of the runtime
        np.testing.assert_allclose(of_point.variance, variance, rtol=1e-5)


def test_the_rounding_of_a_constant_channel_is_not_made_a_signal() -> None:
    """One channel of the convolution loses its weight. The InstanceNormalization behind it lifts the rest by 316; no gain lifts that."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], "conv", group=2),
        helper.make_node("InstanceNormalization", ["c", "s", "t"], ["y"], "norm"),
    ]
    given = {"w": [[[[1.1]]], [[[0.8]]]], "b": [0.0, 0.1], "s": [1.2, 1.3], "t": [0.4, 0.1]}
    values = {name: np.array(value, np.float32) for name, value in given.items()}
    model = model_of(nodes, {"x": ("n", 2, 9, 9)}, {"y": ("n", 2, 9, 9)}, values)
    result = prune(model, rng.normal(size=(40, 2, 9, 9)).astype(np.float32), sparsity=0.5, alloc="uniform", device="cpu")
    (norm,) = result.report.norms
    assert norm.dead_channels == 1
    scale = tensors(result.model)["s"]
    assert (np.abs(scale) < 2).all()
