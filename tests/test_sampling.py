"""Both ways to the moments of sampled rows: by BLAS on the host, and by graphs where the rows are."""

import numpy as np
import onnx
import pytest
from networks import model_of, samples, tensors, twins
from onnx import helper

from onnxprune import prune, sampling
from onnxprune.numerics import targets
from onnxprune.numerics.gram import Gram
from onnxprune.runtime import grams
from onnxprune.runtime.device import Device
from onnxprune.runtime.session import to_device
from onnxprune.sampling import Rows, RowsThere, rows_of

CPU = Device("cpu", threads=1)
DATA = samples(48)
# Both multiply in float32, over other blocks of rows: 2^-24 * sqrt(rows) is 1e-6 of a sum's terms, of which there are some 1000 here.
MOMENTS = {"rtol": 1e-5, "atol": 1e-2}


def both(groups, fit=(300, 200), held=(150,), K=6, C=8, seed=0):
    """The same rows on the host, and on the device."""
    rng = np.random.default_rng(seed)
    counts = [*fit, *held]
    x, z, other = (rng.normal(1, 1, (sum(counts), width)).astype(np.float32) for width in (groups * K, C, C))
    parts = zip(*(np.split(values, np.cumsum(counts)[:-1]) for values in (x, z, other)), strict=True)
    pieces = [tuple(to_device(part, CPU) for part in parts_of) for parts_of in parts]
    return Rows(x, z, other, sum(fit)), RowsThere(pieces[: len(fit)], pieces[len(fit) :], CPU), rng.normal(0, 0.3, (C, K))


def same(one: Gram, two: Gram) -> None:
    assert one.count == two.count
    for name in ("x_mean", "y_mean", "xx", "xy", "yy"):
        np.testing.assert_allclose(getattr(one, name), getattr(two, name), **MOMENTS, err_msg=name)


@pytest.mark.parametrize("most", [8192, 250])
@pytest.mark.parametrize("groups", [1, 4])
def test_rows_on_the_host_and_on_the_device_have_the_same_moments(monkeypatch, groups, most):
    monkeypatch.setattr(grams, "ROWS", most)
    host, there, weight = both(groups)
    (fit, held), (fit2, held2) = host.grams(groups), there.grams(groups)
    assert (fit.count, held.count) == (500, 150)
    same(fit, fit2)
    same(held, held2)
    whole = fit.merge(held)
    for low, high in ((0.0, np.inf), (-np.inf, 1.0), (0.0, 1.0)):
        moved = host.moved(whole, weight, low, high)
        assert not np.allclose(moved.xy, whole.xy, **MOMENTS)
        same(moved, there.moved(whole, weight, low, high))


@pytest.mark.parametrize("block", [2048, 100])
@pytest.mark.parametrize("groups", [1, 4])
def test_a_moved_target_by_a_slow_oracle(monkeypatch, groups, block):
    """Row by row in float64: where the activation is flat, what the layer gives now, cut to its side."""
    monkeypatch.setattr(targets, "BLOCK", block)
    host, _, weight = both(groups)
    x, z, other = (part.astype(np.float64) for part in (host.x, host.z, host.other))
    whole = Gram.from_batch(x, z - other, groups)
    low, high = 0.0, 1.5
    target = np.empty_like(z)
    for r, row in enumerate(x):
        for c in range(8):
            inputs = row.reshape(groups, 6)[c // (8 // groups)]
            now = inputs @ weight[c] + whole.shift(weight)[c] + other[r, c]
            target[r, c] = z[r, c] if low < z[r, c] < high else min(now, low) if z[r, c] <= low else max(now, high)
    same(host.moved(whole, weight, low, high), Gram.from_batch(x, target - other, groups))


@pytest.mark.parametrize("most", [8192, 250])
def test_the_share_of_rows_inside_bounds_is_the_same(monkeypatch, most):
    monkeypatch.setattr(grams, "ROWS", most)
    host, there, _ = both(1)
    for low, high in ((0.0, np.inf), (-np.inf, 1.0), (0.0, 1.0), (-np.inf, np.inf)):
        wanted = [np.mean([low < value < high for value in column]) for column in host.z.T]
        np.testing.assert_allclose(host.inside(low, high), wanted, rtol=1e-12)
        np.testing.assert_allclose(there.inside(low, high), wanted, rtol=1e-6)  # float32 means of up to 8192 rows


def test_no_rows_held_out():
    host, there, _ = both(2, held=(0,))
    assert host.grams(2)[1].count == 0
    same(host.grams(2)[1], there.grams(2)[1])
    assert RowsThere(there.fit, [], CPU).grams(2)[1].count == 0


def grouped() -> onnx.ModelProto:
    """x (batch, 4, 8, 8) -> depthwise, strided grouped and transposed convolutions with Relu6 and Relu between -> y."""
    rng = np.random.default_rng(3)
    shapes = {"w0": (4, 1, 3, 3), "w1": (8, 2, 3, 3), "w2": (8, 6, 2, 2)}
    values = {name: rng.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}
    values |= {f"b{n}": rng.normal(0, 0.2, size).astype(np.float32) for n, size in enumerate((4, 8, 6))}
    values |= {"zero": np.array(0, np.float32), "six": np.array(0.8, np.float32)}
    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["c0"], "depthwise", group=4, auto_pad="SAME_UPPER"),
        helper.make_node("Clip", ["c0", "zero", "six"], ["h0"], "clip"),
        helper.make_node("Conv", ["h0", "w1", "b1"], ["c1"], "grouped", group=2, strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["h1"], "relu"),
        helper.make_node("ConvTranspose", ["h1", "w2", "b2"], ["y"], "transposed", strides=[2, 2]),
    ]
    return model_of(nodes, {"x": ("batch", 4, 8, 8)}, {"y": ("batch", 6, 8, 8)}, values)


@pytest.mark.parametrize(
    ("model", "data"), [(twins()[0], DATA), (twins()[1], DATA), (grouped(), samples(shape=(4, 8, 8)))], ids=["norms", "folded", "grouped"]
)
def test_reconstruction_by_graphs_is_that_by_blas(monkeypatch, model, data):
    """The reconstructed weights, whole network through. A rounding of 1e-6 in the moments becomes at most 1e-4 in a weight: the ridge
    of 1e-2 bounds the condition, and what a layer passes on is solved for again in the next."""
    options = {"sparsity": 0.7, "repair": "reconstruct", "holdout": 0, "batch_size": 16}
    blas = prune(model, data, **options)
    made = []
    monkeypatch.setitem(sampling.GRAPHS, "cpu", True)
    monkeypatch.setattr(sampling, "moments", lambda *given: made.append(1) or grams.moments(*given))
    graphs = prune(model, data, **options)
    assert made
    one, two = tensors(blas.model), tensors(graphs.model)
    assert one.keys() == two.keys()
    assert any(not np.array_equal(one[name], tensors(model).get(name)) for name in one)
    for name, values in one.items():
        np.testing.assert_array_equal(values == 0, two[name] == 0, err_msg=name)
        np.testing.assert_allclose(two[name], values, rtol=1e-4, atol=1e-4, err_msg=name)


def test_rows_that_are_enough() -> None:
    """All where moments are cheap, fewer where they are dear, but never fewer than seven an input as long as there are 20,000."""
    assert [rows_of(inputs) for inputs in (1, 576, 806, 1152, 2304, 4608)] == [20_000, 20_000, 20_000, 9_795, 16_128, 20_000]
