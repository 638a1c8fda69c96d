import os

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.errors import ModelError
from onnxprune.graph import mapped
from onnxprune.graph import stops as stops_of
from onnxprune.graph.complete import size_of
from onnxprune.graph.mapped import covered, inside, is_mapped, leave, multiplied, raw_of, share, values_of
from onnxprune.graph.model import load, save

RNG = np.random.default_rng(0)


def placed(folder, tensor, before=5):
    """The tensor left in a file that begins with some other bytes, and itself with its values."""
    path = folder / "w.bin"
    path.write_bytes(b"x" * before + tensor.raw_data + b"behind")
    left = TensorProto()
    left.CopyFrom(tensor)
    leave(left, path, before)
    return left


def tensor_of(values, name="w"):
    return numpy_helper.from_array(np.asarray(values), name)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(mapped, "LARGE", 1)
    monkeypatch.setattr(mapped, "BLOCK", 64)  # whole values and whole bytes of bits for types of up to 8 bytes


@pytest.mark.parametrize("kind", ["FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16", "INT8", "BOOL", "COMPLEX64"])
@pytest.mark.parametrize("count", [1, 7, 8, 63, 64, 65, 200])
def test_values_are_read_and_masked_block_by_block(tmp_path, kind, count):
    number = TensorProto.DataType.Value(kind)
    values = RNG.integers(1, 100, count).astype(helper.tensor_dtype_to_np_dtype(number))
    tensor = placed(tmp_path, tensor_of(values))
    assert is_mapped(tensor) and values_of(tensor).tobytes() == values.tobytes()
    assert b"".join(map(bytes, raw_of(tensor))) == values.tobytes()
    for kept in (RNG.random(count) < 0.5, RNG.random(count) < 0.5):  # the second mask over the first
        values = np.where(kept, values, np.zeros_like(values))
        assert covered([tensor], kept)
        assert values_of(tensor).tobytes() == values.tobytes() == b"".join(map(bytes, raw_of(tensor)))


def test_what_a_mask_makes_zero_is_not_negative(tmp_path):
    tensor = placed(tmp_path, tensor_of(np.array([[-1.0, -0.0], [np.nan, 2.0]], np.float32)))
    assert covered([tensor], np.array([[False, True], [False, True]]))
    assert values_of(tensor).tobytes() == np.array([[0.0, -0.0], [0.0, 2.0]], np.float32).tobytes()


def test_a_tensor_in_memory_is_left_alone(tmp_path):
    tensor = tensor_of(np.ones(3, np.float32))
    assert not covered([tensor], np.zeros(3, np.bool_)) and not is_mapped(tensor)
    assert values_of(tensor).tolist() == [1, 1, 1] and list(raw_of(tensor)) == [tensor.raw_data]


def test_a_copy_refers_to_the_same_values(tmp_path):
    tensor = placed(tmp_path, tensor_of(np.arange(6, dtype=np.float32)))
    assert covered([tensor], np.arange(6) % 2 == 1)
    other = TensorProto(name="other", data_type=TensorProto.FLOAT, dims=[6], float_data=[0] * 6)
    share(other, tensor)
    assert values_of(other).tolist() == [0, 1, 0, 3, 0, 5] and other.name == "other"


@pytest.mark.parametrize("size", [1, 31, 32, 127, 128, 20_000])
def test_the_bytes_that_it_would_take_inside(tmp_path, size):
    tensor = tensor_of(RNG.standard_normal((size, 1)).astype(np.float32), "a name")
    tensor.doc_string = "words"
    left = placed(tmp_path, tensor)
    assert inside(left) == inside(tensor) == tensor.ByteSize()
    assert covered([left], np.ones((size, 1), np.bool_)) and inside(left) == tensor.ByteSize()


def touch_later(path):
    found = path.stat()

    path.write_bytes(path.read_bytes())
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns + 1))


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (touch_later, "was changed while it was in use; leave it as it is and run again"),
        (lambda path: path.write_bytes(b"short"), "was changed while it was in use"),
        (lambda path: path.unlink(), "cannot be read: No such file"),
    ],
)
def test_a_file_that_changes_is_refused(tmp_path, harm, says):
    tensor = placed(tmp_path, tensor_of(np.ones(100, np.float32)))
    harm(tmp_path / "w.bin")
    with pytest.raises(ModelError, match=rf"w\.bin: .*{says}"):
        values_of(tensor)


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path):
    tensor = placed(tmp_path, tensor_of(np.ones(100, np.float32)))
    pieces = raw_of(tensor)
    next(pieces)
    (tmp_path / "w.bin").write_bytes(b"short")
    with pytest.raises(ModelError, match="was changed"):
        list(pieces)


def net(folder):
    """A model whose large initializers lie in two files; a small one and one in a sparse tensor's place stay inside."""
    weights = [tensor_of(RNG.standard_normal((8, 8)).astype(np.float32), f"w{number}") for number in range(3)]
    nodes = [helper.make_node("MatMul", [f"x{number}" if number else "x", f"w{number}"], [f"x{number + 1}"]) for number in range(3)]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(nodes, "net", [value("x", 1, [2, 8])], [value("x3", 1, [2, 8])], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    for tensor, home in zip(model.graph.initializer, ("a.bin", "b.bin", "a.bin"), strict=True):
        onnx.external_data_helper.set_external_data(tensor, home)
    onnx.save_model(model, str(folder / "net.onnx"))
    return folder / "net.onnx"


def test_load_leaves_what_is_large_and_save_writes_the_same_files(tmp_path, monkeypatch):
    path = net(tmp_path)
    plain, left = load(path), load(path, mapped=0)
    assert [is_mapped(tensor) for tensor in left.model.graph.initializer] == [True] * 3
    assert not any(map(is_mapped, plain.model.graph.initializer))
    assert (left.files, left.places, left.doubt) == (plain.files, plain.places, plain.doubt)
    assert size_of(left.model) > 3 * 8 * 8 * 4
    written = []
    for folder, loaded in (("one", plain), ("two", left)):
        (tmp_path / folder).mkdir()
        files = save(loaded.model, tmp_path / folder / "net.onnx", external=True, places=loaded.places)
        written.append({file.name: file.read_bytes() for file in files})
    assert written[0] == written[1] and len(written[0]) == 3
    monkeypatch.setattr(mapped, "LARGE", 8 * 8 * 4 + 1)
    assert not any(map(is_mapped, load(path, mapped=0).model.graph.initializer))


def test_a_save_that_cannot_read_leaves_everything_as_it_was(tmp_path):
    loaded = load(net(tmp_path), mapped=0)
    target = tmp_path / "out" / "net.onnx"
    target.parent.mkdir()
    save(load(tmp_path / "net.onnx").model, target, external=True)
    before = {file.name: file.read_bytes() for file in target.parent.iterdir()}
    (tmp_path / "b.bin").unlink()
    with pytest.raises(ModelError, match=r"b\.bin: external data cannot be read: No such file"):
        save(loaded.model, target, external=True, places=loaded.places)
    assert {file.name: file.read_bytes() for file in target.parent.iterdir()} == before


def test_a_sparse_tensor_in_a_file_is_still_refused(tmp_path):
    path = net(tmp_path)
    model = onnx.load(str(path), load_external_data=False)
    entry = model.graph.sparse_initializer.add()
    entry.values.CopyFrom(model.graph.initializer[0])
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="lies in another file at a place where that is not read"):
        load(path, mapped=0)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_a_factor_for_every_channel_is_applied_after_the_mask(tmp_path, kind, axis):
    values = RNG.standard_normal((5, 7, 3)).astype(kind)
    gain = RNG.uniform(-2, 2, values.shape[axis])
    kept = RNG.random(values.shape) < 0.5
    tensor = placed(tmp_path, tensor_of(values))
    assert covered([tensor], kept) and multiplied([tensor], gain, axis)
    shape = [-1 if number == axis else 1 for number in range(3)]
    expected = (np.where(kept, values, 0).astype(np.float64) * gain.reshape(shape)).astype(kind)
    assert values_of(tensor).tobytes() == expected.tobytes()
    other = TensorProto(name="other", data_type=tensor.data_type, dims=[5, 7, 3])
    share(other, tensor)
    assert values_of(other).tobytes() == expected.tobytes()
    assert inside(tensor) == tensor_of(values).ByteSize()
    assert not multiplied([tensor], gain, axis) and not covered([tensor], kept)  # a second one would be rounded once instead of twice


def test_stops_lie_where_the_weights_become_many(tmp_path, monkeypatch):
    loaded = load(net(tmp_path), mapped=0)  # 256 bytes a node
    found = {}
    for most in (1, 256, 511, 512, 768):
        monkeypatch.setattr(stops_of, "STAGE", most)
        found[most] = stops_of.stops(loaded.model)
    assert found == {1: [1, 2], 256: [1, 2], 511: [1, 2], 512: [2], 768: []}
    assert mapped.has_mapped(loaded.model) and stops_of.stops(load(tmp_path / "net.onnx").model) == []


def test_a_constant_handed_on_counts_where_it_is_used(tmp_path, monkeypatch):
    path = net(tmp_path)
    model = onnx.load(str(path), load_external_data=False)
    for number in range(3):
        model.graph.node[number].input[1] = f"t{number}"
    turned = [helper.make_node("Transpose", [f"w{number}"], [f"t{number}"]) for number in range(3)]
    nodes = [*turned, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    path.write_bytes(model.SerializeToString())
    monkeypatch.setattr(stops_of, "STAGE", 300)
    assert stops_of.stops(load(path, mapped=0).model) == [4, 5]
