"""Mirror images as samples: which axis, in which batches, and what a repair makes of them."""

import numpy as np
import pytest
from models import build, node

import onnxprune
from onnxprune.errors import UsageError
from onnxprune.mirroring import mirrored, width_axes
from onnxprune.runtime.preprocess import InputSpec

FLOAT = np.dtype(np.float32)


def test_the_width_is_the_last_axis_behind_the_channels_or_the_last_before_them():
    specs = [InputSpec("a", FLOAT, (None, 3, 8, 9)), InputSpec("b", FLOAT, (None, 8, 9, 1)), InputSpec("c", FLOAT, (None, 7))]
    assert width_axes(specs) == {"a": 3, "b": 2}


@pytest.mark.parametrize("shape", [(None, 7), (None, 16, 8, 8), (None, 3, 8)])
def test_other_inputs_are_no_images(shape):
    with pytest.raises(UsageError, match=r"--mirror is for images.*x \["):
        width_axes([InputSpec("x", FLOAT, shape)])


def test_each_sample_is_followed_by_its_mirror_image_by_hand():
    batch = {"x": np.arange(4.0).reshape(1, 1, 2, 2), "t": np.array([7.0])}
    (whole,) = mirrored([batch], {"x": 3}, 2)
    np.testing.assert_array_equal(whole["x"], [[[[0, 1], [2, 3]]], [[[1, 0], [3, 2]]]])
    np.testing.assert_array_equal(whole["t"], [7, 7])
    one, two = mirrored([batch], {"x": 3}, 1)  # a batch of one: the mirror image is a batch of its own
    np.testing.assert_array_equal(one["x"], batch["x"])
    np.testing.assert_array_equal(two["x"], [[[[1, 0], [3, 2]]]])


def network(batch):
    """conv -> relu -> conv, with random weights."""
    rng = np.random.default_rng(0)
    nodes = [
        node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1]),
        node("Relu", ["c"], ["r"]),
        node("Conv", ["r", "v"], ["y"], pads=[1, 1, 1, 1]),
    ]
    values = {"w": rng.standard_normal((8, 3, 3, 3)), "b": rng.standard_normal(8), "v": rng.standard_normal((4, 8, 3, 3))}
    return build(nodes, {name: value.astype(np.float32) for name, value in values.items()}, {"x": [batch, 3, 6, 5]}, ["y"])


@pytest.mark.parametrize("repair", ["channel", "reconstruct"])
@pytest.mark.parametrize(("batch", "size"), [("n", 8), ("n", 7), (4, 8), (1, 8)])
def test_it_is_as_if_the_mirror_images_had_been_given_too(repair, batch, size):
    x = np.random.default_rng(1).standard_normal((12, 3, 6, 5)).astype(np.float32)
    options = {"sparsity": 0.5, "alloc": "lamp", "repair": repair, "holdout": 0.0, "batch_size": size}
    with_option = onnxprune.prune(network(batch), x, mirror=True, **options)
    given = onnxprune.prune(network(batch), np.concatenate([x, x[..., ::-1]]), **options)
    assert with_option.report.calibration.mirrored
    assert not given.report.calibration.mirrored
    assert with_option.report.calibration.repair == 12
    if repair == "channel":  # reconstruction holds other batches out, so it takes other supports
        for a, b in zip(with_option.model.graph.initializer, given.model.graph.initializer, strict=True):
            # the same statistics, summed in another order in float32
            np.testing.assert_allclose(np.frombuffer(a.raw_data, np.float32), np.frombuffer(b.raw_data, np.float32), rtol=1e-4, atol=1e-5)


def test_a_model_without_images_is_refused():
    model = build([node("MatMul", ["x", "w"], ["y"])], {"w": np.ones((4, 4), np.float32)}, {"x": ["n", 4]}, ["y"])
    with pytest.raises(UsageError, match="--mirror"):
        onnxprune.prune(model, np.ones((9, 4), np.float32), sparsity=0.5, mirror=True)
