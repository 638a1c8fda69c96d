import errno
import hashlib
import os
import stat
from pathlib import Path

import numpy as np
import onnx
import pytest
from models import build, node, parse, rand, run
from onnx import numpy_helper
from onnx.external_data_helper import set_external_data

from onnxprune.errors import ModelError
from onnxprune.graph import complete
from onnxprune.graph import external as external_data
from onnxprune.graph import model as files
from onnxprune.graph.complete import size_of
from onnxprune.graph.model import Loaded, check_complete, files_of, load, save
from onnxprune.graph.whole import check_writable


def net(seed=0, width=32):
    """Two weights of 32x33 float32, a little over 4 KiB each, and a small bias that stays in the file."""
    rng = np.random.default_rng(seed)
    constants = {"w": rand(rng, width, width + 1), "b": rand(rng, width + 1), "v": rand(rng, width + 1, width)}
    nodes = [node("Gemm", ["x", "w", "b"], ["h"], name="fc"), node("MatMul", ["h", "v"], ["y"], name="out")]
    return build(nodes, constants, {"x": ["N", width]}, ["y"])


def external(folder, name="net.onnx"):
    path = folder / name
    onnx.save_model(net(), str(path), save_as_external_data=True, location="w.bin", size_threshold=1024)
    return path


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def test_load_gives_the_model_and_its_one_file(tmp_path):
    onnx.save(net(), str(tmp_path / "net.onnx"))
    loaded = load(tmp_path / "net.onnx")
    assert isinstance(loaded, Loaded)
    assert loaded.model == net()
    assert loaded.files == (tmp_path / "net.onnx",) and not loaded.external


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (None, "no such file"),
        ("folder", "is a folder"),
        (b"", "hold no graph"),
        (b"\x89PNG\r\n\x1a\n" + bytes(64), "do not parse|hold no graph"),
        (b"just some text, no model at all\n", "do not parse|hold no graph"),
        (onnx.ModelProto(ir_version=8).SerializeToString(), "hold no graph"),
        (build([], {}, {"x": [1]}, ["x"]).SerializeToString(), "hold no graph"),
    ],
)
def test_load_says_in_one_line_what_the_file_is_not(tmp_path, data, says):
    path = tmp_path / "net.onnx"
    if data == "folder":
        path.mkdir()
    elif data is not None:
        path.write_bytes(data)
    with pytest.raises(ModelError, match=says) as caught:
        load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_load_refuses_a_file_cut_off_at_any_byte(tmp_path):
    # The opset import is the last field of these files, so no proper prefix is a model.
    data = net(width=3).SerializeToString()
    path = tmp_path / "net.onnx"
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(ModelError, match=r"net\.onnx"):
            load(path)
    path.write_bytes(data)
    assert load(path).model == net(width=3)


def test_load_refuses_weights_shorter_than_their_shape(tmp_path):
    model = net()
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-4]
    onnx.save(model, str(tmp_path / "net.onnx"))
    with pytest.raises(ModelError, match=r"tensor 'w' cannot be read: it has 4220 bytes, its shape \[32, 33\] needs 4224"):
        load(tmp_path / "net.onnx")


def test_load_refuses_a_short_constant_node(tmp_path):
    model = parse("g (float[N,2] x) => (float[N,2] y) { w = Constant<value = float[2] {1.0, 2.0}>() y = Add(x, w) }")
    tensor = model.graph.node[0].attribute[0].t
    tensor.CopyFrom(numpy_helper.from_array(np.ones(2, np.float32), "w"))
    tensor.raw_data = tensor.raw_data[:5]
    onnx.save(model, str(tmp_path / "net.onnx"))
    with pytest.raises(ModelError, match="5 bytes"):
        load(tmp_path / "net.onnx")


def test_check_complete_leaves_packed_and_text_types_alone():
    packed = onnx.TensorProto(name="q", data_type=onnx.TensorProto.INT4, dims=[3], raw_data=b"\0\0")
    check_complete(packed, Path("m.onnx"))
    check_complete(onnx.TensorProto(name="s", data_type=onnx.TensorProto.STRING, dims=[1], string_data=[b"a"]), Path("m.onnx"))
    with pytest.raises(ModelError, match="unknown type 99"):
        check_complete(onnx.TensorProto(name="u", data_type=99, dims=[1], raw_data=b"\0"), Path("m.onnx"))


def test_load_reads_external_data_and_names_its_file(tmp_path):
    path = external(tmp_path)
    loaded = load(path)
    assert loaded.files == (path, tmp_path / "w.bin") and loaded.external
    assert files_of(path) == loaded.files
    for got, want in zip(loaded.model.graph.initializer, net().graph.initializer, strict=True):
        np.testing.assert_array_equal(numpy_helper.to_array(got), numpy_helper.to_array(want))


def test_files_of_parses_nothing_where_no_data_file_is_named(tmp_path, monkeypatch):
    onnx.save(net(), str(tmp_path / "net.onnx"))
    monkeypatch.setattr(files, "_parsed", None)
    assert files_of(tmp_path / "net.onnx") == (tmp_path / "net.onnx",)


def test_load_names_the_external_data_of_constant_nodes(tmp_path, monkeypatch):
    values = np.arange(4, dtype=np.float32)
    (tmp_path / "c.bin").write_bytes(values.tobytes())
    tensor = numpy_helper.from_array(values, "c")
    set_external_data(tensor, "c.bin", 0, 16)
    tensor.ClearField("raw_data")
    model = build([node("Constant", [], ["c"], value=tensor), node("Add", ["x", "c"], ["y"])], {}, {"x": [4]}, ["y"])
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    loaded = load(tmp_path / "net.onnx")
    assert loaded.files == (tmp_path / "net.onnx", tmp_path / "c.bin")
    np.testing.assert_array_equal(numpy_helper.to_array(loaded.model.graph.node[0].attribute[0].t), values)
    at = (tmp_path / "net.onnx").read_bytes().index(b"location")
    for before in range(-9, 2):  # the word that tells of data files may lie across the blocks in which the file is looked through
        monkeypatch.setattr(files, "BLOCK", at - before)
        assert files_of(tmp_path / "net.onnx") == loaded.files


@pytest.mark.parametrize("harm", ["missing", "short", "empty", "outside", "absolute", "link"])
def test_load_refuses_damaged_external_data(tmp_path, harm):
    folder = tmp_path / "inside"
    folder.mkdir()
    path = external(folder)
    data = folder / "w.bin"
    content = data.read_bytes()
    if harm == "missing":
        data.unlink()
    elif harm in ("short", "empty"):
        data.write_bytes(content[:-4] if harm == "short" else b"")
    elif harm == "link":
        data.rename(tmp_path / "w.bin")
        data.symlink_to(tmp_path / "w.bin")
    else:
        data.rename(tmp_path / "w.bin")
        model = onnx.load(str(path), load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = "../w.bin" if harm == "outside" else str(tmp_path / "w.bin")
        path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=r"net\.onnx") as caught:
        load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("outside", [False, True])
def test_save_and_load_are_inverse(tmp_path, outside):
    path = tmp_path / "net.onnx"
    written = save(net(), path, external=outside)
    assert names(tmp_path) == sorted(entry.name for entry in written)
    assert written[0] == path and len(written) == 1 + outside
    loaded = load(path)
    assert set(loaded.files) == set(written)
    feed = {"x": rand(np.random.default_rng(1), 3, 32)}
    np.testing.assert_array_equal(run(loaded.model, feed)[0], run(net(), feed)[0])
    onnx.checker.check_model(str(path))


def test_save_does_not_change_the_model(tmp_path):
    model = net()
    save(model, tmp_path / "net.onnx", external=True)
    assert model == net()


def test_save_names_external_data_by_its_content(tmp_path):
    path, data = save(net(), tmp_path / "net.onnx", external=True)
    content = data.read_bytes()
    assert data.name == f"net.onnx.{hashlib.sha256(content).hexdigest()[:12]}.data"
    slim = onnx.load(str(path), load_external_data=False)
    places = {
        tensor.name: {entry.key: entry.value for entry in tensor.external_data} for tensor in slim.graph.initializer if tensor.external_data
    }
    assert set(places) == {"w", "v"}  # b has 132 bytes and stays inside
    for tensor in net().graph.initializer:
        if tensor.name in places:
            start, length = int(places[tensor.name]["offset"]), int(places[tensor.name]["length"])
            assert start % 4096 == 0
            assert content[start : start + length] == tensor.raw_data


@pytest.mark.parametrize("outside", [False, True])
def test_same_model_same_bytes(tmp_path, outside):
    contents = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        written = save(net(), tmp_path / folder / "net.onnx", external=outside)
        contents.append({entry.name: entry.read_bytes() for entry in written})
    assert contents[0] == contents[1]


def test_save_removes_the_data_of_an_earlier_save_and_nothing_else(tmp_path):
    others = ["net.onnx.data", "net.onnx.0123456789ab.data.bak", "other.onnx.0123456789ab.data", "net.onnx.0123456789aX.data"]
    for name in others:
        (tmp_path / name).write_bytes(b"mine")
    path = tmp_path / "net.onnx"
    first = save(net(0), path, external=True)
    second = save(net(1), path, external=True)
    assert first[1] != second[1] and not first[1].exists() and second[1].exists()
    again = save(net(1), path, external=True)  # the same data file is still in use
    assert again == second and second[1].exists()
    save(net(1), path, external=False)
    assert names(tmp_path) == sorted([*others, "net.onnx"])


def test_save_honours_umask(tmp_path):
    old = os.umask(0o027)
    try:
        written = save(net(), tmp_path / "net.onnx", external=True)
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(old)
    for path in written:
        assert stat.S_IMODE(path.stat().st_mode) == 0o640


class Full:
    """A file that takes some bytes and then says that the disk is full."""

    def __init__(self, handle, room):
        self.handle, self.room, self.name = handle, room, handle.name

    def __enter__(self):
        return self

    def __exit__(self, *what):
        self.handle.close()

    def write(self, data):
        if len(data) > self.room:
            self.handle.write(data[: self.room])
            raise OSError(errno.ENOSPC, "No space left on device")
        self.room -= len(data)
        return self.handle.write(data)

    def flush(self):
        self.handle.flush()

    def fileno(self):
        return self.handle.fileno()


@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("room", [0, 700, 5000])
def test_a_full_disk_leaves_everything_as_it_was(tmp_path, monkeypatch, outside, before, room):
    path = tmp_path / "net.onnx"
    if before:
        save(net(5), path, external=True)
    there = {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()}
    plain = Path.open
    monkeypatch.setattr(Path, "open", lambda self, mode="r", **more: Full(plain(self, mode, **more), room))
    with pytest.raises(ModelError, match=r"net\.onnx: cannot be written: No space left on device"):
        save(net(), path, external=outside)
    monkeypatch.undo()
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == there


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("nth", [1, 2])
def test_a_failing_system_call_leaves_everything_as_it_was(tmp_path, monkeypatch, call, nth):
    path = tmp_path / "net.onnx"
    save(net(5), path, external=True)
    there = {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()}
    calls = 0
    place = os if call == "fsync" else Path
    plain = getattr(place, call)

    def failing(*given):
        nonlocal calls
        calls += 1
        if calls == nth:
            raise OSError(errno.EIO, "Input/output error")
        return plain(*given)

    monkeypatch.setattr(place, call, failing)
    with pytest.raises(ModelError, match="cannot be written: Input/output error"):
        save(net(), path, external=True)
    monkeypatch.undo()
    assert calls == nth
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == there


def test_a_model_that_does_not_serialize_leaves_no_data_file(tmp_path, monkeypatch):
    def huge(model):
        raise ValueError("over 2 GiB")

    monkeypatch.setattr(files, "_payload", huge)
    with pytest.raises(ValueError, match="over 2 GiB"):
        save(net(), tmp_path / "net.onnx", external=True)
    assert names(tmp_path) == []


@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_sealed_sees_the_whole_files_and_can_call_it_off(tmp_path, outside, error):
    path = tmp_path / "net.onnx"
    save(net(5), path, external=outside)
    there = {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()}
    seen = []

    def sealed(written):
        assert written[0] != path and len(written) == 1 + outside
        assert path.read_bytes() == there["net.onnx"]
        seen.append([numpy_helper.to_array(tensor) for tensor in onnx.load(str(written[0])).graph.initializer])
        raise error("no")

    with pytest.raises(error, match="no"):
        save(net(), path, external=outside, sealed=sealed)
    for got, want in zip(seen[0], net().graph.initializer, strict=True):
        np.testing.assert_array_equal(got, numpy_helper.to_array(want))
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == there


def test_sealed_called_off_keeps_a_data_file_that_the_old_model_uses(tmp_path):
    path = tmp_path / "net.onnx"
    save(net(), path, external=True)

    def sealed(_):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        save(net(), path, external=True, sealed=sealed)  # same content, so the very same data file
    assert load(path).model.graph.initializer[0].raw_data == net().graph.initializer[0].raw_data


@pytest.mark.parametrize("outside", [False, True])
def test_save_into_no_folder_or_over_a_folder(tmp_path, outside):
    with pytest.raises(ModelError, match="cannot be written: No such file or directory"):
        save(net(), tmp_path / "none" / "net.onnx", external=outside)
    with pytest.raises(ModelError, match="No such file or directory"):
        check_writable(tmp_path / "none" / "net.onnx")
    (tmp_path / "net.onnx").mkdir()
    with pytest.raises(ModelError, match="it is a folder"):
        save(net(), tmp_path / "net.onnx", external=outside)
    with pytest.raises(ModelError, match="it is a folder"):
        check_writable(tmp_path / "net.onnx")
    assert names(tmp_path) == ["net.onnx"]


def test_check_writable_leaves_nothing(tmp_path):
    check_writable(tmp_path / "net.onnx")
    assert names(tmp_path) == []


def test_a_model_over_protobufs_limit_becomes_external(tmp_path, monkeypatch):
    for module in (complete, external_data, files):
        monkeypatch.setattr(module, "PROTO_LIMIT", 4096)
    assert len(save(net(), tmp_path / "net.onnx", external=False)) == 2


def test_the_size_of_a_model():
    model = net()
    assert size_of(model) == len(model.SerializeToString())


def test_the_size_of_a_model_that_protobuf_cannot_write(monkeypatch):
    """Its own ByteSize raises an error then; the values alone tell that it is too large."""
    model = net()
    values = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    monkeypatch.setattr(complete, "PROTO_LIMIT", values - 1)
    assert size_of(model) == values


def test_data_of_several_files_stays_in_several_files(tmp_path):
    """What was in one file stays together, what was in the model stays there, whatever its size."""
    model = onnx.ModelProto(ir_version=8)
    model.opset_import.add(version=21)
    model.graph.node.append(node("Relu", ["x"], ["y"]))
    homes = {"a": "one.bin", "b": "two.bin", "c": "one.bin", "d": ""}
    (tmp_path / "in").mkdir()
    for number, (name, home) in enumerate(homes.items()):
        model.graph.initializer.append(numpy_helper.from_array(np.full(600, number, np.float32), name))
        if home:
            onnx.external_data_helper.set_external_data(model.graph.initializer[-1], home)
    onnx.save(model, tmp_path / "in" / "net.onnx")
    loaded = load(tmp_path / "in" / "net.onnx")
    assert loaded.places == {name: home for name, home in homes.items() if home}
    written = save(loaded.model, tmp_path / "net.onnx", external=loaded.external, places=loaded.places)
    assert len(written) == 3
    again = load(tmp_path / "net.onnx")
    assert "d" not in again.places and again.places["a"] == again.places["c"] != again.places["b"]
    assert [numpy_helper.to_array(tensor)[0] for tensor in again.model.graph.initializer] == [0, 1, 2, 3]
    save(loaded.model, tmp_path / "net.onnx", external=False)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["net.onnx"]
