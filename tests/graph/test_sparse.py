"""Sparse initializers: what is stored, what is read back, and the bytes that are promised."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import build, node, run
from onnx import SparseTensorProto, TensorProto, numpy_helper

from onnxprune.errors import ModelError
from onnxprune.graph import sparse
from onnxprune.graph.sparse import coo, dense, densify, made_dense, move, restore, saved

DTYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.int8, np.uint8, np.int16, np.int32]


def thin(shape: tuple[int, ...], density: float, seed: int = 0, dtype: type = np.float32) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.where(rng.random(shape) < density, rng.integers(1, 100, shape), 0).astype(dtype)


def two_layers(density: float = 0.05) -> onnx.ModelProto:
    """Two matrices that get smaller, a full one that does not, a small one, a vector, and one that is an input of the graph too."""
    weights = {name: thin((64, 64), density, seed) for seed, name in enumerate(("a", "b", "fed"))}
    weights |= {"full": np.ones((64, 64), np.float32), "small": np.zeros((4, 4), np.float32), "vector": np.zeros(512, np.float32)}
    nodes = [node("MatMul", ["x", "a"], ["h"]), node("MatMul", ["h", "full"], ["g"]), node("MatMul", ["g", "b"], ["i"])]
    nodes += [node("MatMul", ["i", "fed"], ["y"])]
    model = build(nodes, weights, {"x": ["n", 64]}, ["y"])
    model.graph.input.append(onnx.helper.make_tensor_value_info("fed", TensorProto.FLOAT, [64, 64]))
    return model


def test_by_hand() -> None:
    tensor = numpy_helper.from_array(np.array([[0, 5, 0], [7, 0, -2]], np.float32), "w")
    stored = coo(tensor)
    assert list(stored.dims) == [2, 3]
    assert numpy_helper.to_array(stored.values).tolist() == [5, 7, -2]
    assert stored.values.name == "w"
    assert numpy_helper.to_array(stored.indices).tolist() == [1, 3, 5]
    assert stored.indices.data_type == TensorProto.INT64
    assert dense(stored) == tensor


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("density", [0.0, 0.1, 1.0])
def test_every_type_comes_back_bit_by_bit(dtype: type, density: float) -> None:
    tensor = numpy_helper.from_array(thin((6, 7), density, dtype=dtype), "w")
    assert dense(coo(tensor)) == tensor


@given(st.lists(st.sampled_from([0.0, -0.0, np.nan, np.inf, 1.0, 1e-45]), min_size=1, max_size=30))
def test_minus_zero_and_nan_are_kept_and_the_places_ascend(values: list[float]) -> None:
    tensor = numpy_helper.from_array(np.array([values], np.float32), "w")
    stored = coo(tensor)
    places = numpy_helper.to_array(stored.indices)
    assert (np.diff(places) > 0).all()
    assert dense(stored).raw_data == tensor.raw_data


def test_indices_of_one_number_an_axis_are_read() -> None:
    tensor = numpy_helper.from_array(np.array([[0, 5, 0], [7, 0, 0]], np.float32), "w")
    stored = coo(tensor)
    stored.indices.CopyFrom(numpy_helper.from_array(np.array([[1, 0], [0, 1]])))
    stored.values.CopyFrom(numpy_helper.from_array(np.array([7, 5], np.float32), "w"))
    assert dense(stored) == tensor


@pytest.mark.parametrize(
    ("places", "values", "dims"),
    [
        ([0, 6], [1, 2], [2, 3]),
        ([-1, 2], [1, 2], [2, 3]),
        ([1, 1], [1, 2], [2, 3]),
        ([1], [1, 2], [2, 3]),
        ([[0, 3]], [1], [2, 3]),
        ([[0, 1, 1]], [1], [2, 3]),
        ([1], [1], [2, -3]),
        ([1], [1], [2**30, 2**10]),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(places: list, values: list, dims: list) -> None:
    stored = SparseTensorProto(dims=dims)
    stored.values.CopyFrom(numpy_helper.from_array(np.array(values, np.float32), "w"))
    stored.indices.CopyFrom(numpy_helper.from_array(np.array(places, np.int64)))
    with pytest.raises(ModelError, match="f: sparse initializer 'w' cannot be read"):
        dense(stored, "f")


def test_moved_is_what_gets_smaller_and_nothing_else() -> None:
    model = two_layers()
    assert move(model) == ("a", "b")
    assert [tensor.name for tensor in model.graph.initializer] == ["fed", "full", "small", "vector"]
    assert [entry.values.name for entry in model.graph.sparse_initializer] == ["a", "b"]


@given(st.integers(0, 4096), st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_the_bytes_promised_are_the_bytes_saved(count: int, seed: int) -> None:
    values = np.zeros(4096, np.float32)
    values[np.random.default_rng(seed).permutation(4096)[:count]] = 1
    model = build([node("MatMul", ["x", "w"], ["y"])], {"w": values.reshape(64, 64)}, {"x": ["n", 64]}, ["y"])
    before, promised = len(model.SerializeToString()), saved(model)
    names = move(model)
    assert before - len(model.SerializeToString()) == promised
    assert bool(names) == (promised > 0)


def test_onnx_runtime_gives_the_same_outputs() -> None:
    model = two_layers()
    feed = {"x": np.random.default_rng(0).normal(0, 1, (3, 64)).astype(np.float32)}
    before = run(model, feed)
    move(model)
    for value, was in zip(run(model, feed), before, strict=True):
        assert value.tobytes() == was.tobytes()


def test_an_old_ir_version_is_refused() -> None:
    model = two_layers()
    model.ir_version = 5
    with pytest.raises(ModelError, match=r"IR version 5 has no sparse initializers, 6 has; leave --sparse-initializers out"):
        move(model)


def test_what_came_in_sparse_goes_out_as_it_came_or_with_its_new_values() -> None:
    model = two_layers()
    move(model)
    # Another order of the places: a file of somebody else's, which stays as it is.
    entry = model.graph.sparse_initializer[1]
    for part in (entry.values, entry.indices):
        part.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(part)[::-1].copy(), part.name))
    before = model.SerializeToString(deterministic=True)
    copy, held = made_dense(model)
    assert model.SerializeToString(deterministic=True) == before
    assert not copy.graph.sparse_initializer
    assert list(held) == ["a", "b"]
    tensor = next(tensor for tensor in copy.graph.initializer if tensor.name == "a")
    tensor.raw_data = np.eye(64, dtype=np.float32).tobytes()
    restore(copy, held)
    assert copy.graph.sparse_initializer[1] == entry
    assert dense(copy.graph.sparse_initializer[0]).raw_data == np.eye(64, dtype=np.float32).tobytes()
    assert [tensor.name for tensor in copy.graph.initializer] == ["fed", "full", "small", "vector"]


def test_two_initializers_of_one_name_are_refused() -> None:
    model = two_layers()
    model.graph.sparse_initializer.append(coo(model.graph.initializer[0]))
    with pytest.raises(ModelError, match="two initializers have the name 'a'"):
        densify(model)


def test_the_note_names_who_does_not_read_it() -> None:
    assert all(word in sparse.NOTE for word in ("OpenVINO", "onnxsim", "onnxslim", "version converter", "quantizers", "full_check"))
