"""--sparse-initializers from the command line and from Python, and models that come in with sparse initializers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import Ran
from networks import model_of, run, tensors
from onnx import TensorProto, helper, numpy_helper

from onnxprune import prune, storing
from onnxprune.errors import ModelError
from onnxprune.graph import sparse
from onnxprune.graph.model import load
from onnxprune.storing import store_sparse

Call = Callable[..., Ran]


@pytest.fixture
def folder(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with model.onnx and calib.npz; the current one."""
    shutil.copy(digits / "digits.onnx", tmp_path / "model.onnx")
    shutil.copy(digits / "calib.npz", tmp_path / "calib.npz")
    monkeypatch.chdir(tmp_path)
    return tmp_path


WORDS = ("model.onnx", "--sparsity", 0.95, "--calib", "calib.npz", "--samples", 60, "--force", "-q")


def logits(path: Path, folder: Path) -> np.ndarray:
    return run(onnx.load(str(path)), {"image": np.load(folder / "calib.npz")["image"][:20]})["logits"]


def test_the_sparse_file_is_the_dense_one_stored_otherwise(folder: Path, onnxprune: Call) -> None:
    assert onnxprune(*WORDS, "-o", "dense.onnx", "--report", "dense.json").code == 0
    ran = onnxprune(*WORDS, "-o", "thin.onnx", "--report", "thin.json", "--sparse-initializers")
    assert (ran.code, ran.err) == (0, "")
    before, after = json.loads((folder / "dense.json").read_text()), json.loads((folder / "thin.json").read_text())
    assert (folder / "thin.onnx").stat().st_size == before["output"]["sparse_bytes"] == after["output"]["sparse_bytes"]
    assert after["output"]["bytes"] == after["output"]["sparse_bytes"] < before["output"]["bytes"] / 5
    assert logits(folder / "thin.onnx", folder).tobytes() == logits(folder / "dense.onnx", folder).tobytes()
    dense, thin = onnx.load(str(folder / "dense.onnx")), onnx.load(str(folder / "thin.onnx"))
    moved = [entry.values.name for entry in thin.graph.sparse_initializer]
    assert after["changes"]["sparse"] == moved
    assert before["changes"]["sparse"] == []
    assert {key: after["changes"][key] for key in ("values", "initializers", "nodes", "rewired")} == {
        key: before["changes"][key] for key in ("values", "initializers", "nodes", "rewired")
    }
    assert any("OpenVINO, onnxsim, onnxslim" in note for note in after["notes"])
    # But for the moved tensors, the files are the same.
    sparse.densify(thin)
    order = {tensor.name: number for number, tensor in enumerate(dense.graph.initializer)}
    thin.graph.initializer.sort(key=lambda tensor: order[tensor.name])
    assert thin == dense


def test_a_sparse_file_is_read_pruned_and_stays_sparse(folder: Path, onnxprune: Call) -> None:
    assert onnxprune(*WORDS, "-o", "thin.onnx", "--sparse-initializers").code == 0
    ran = onnxprune("inspect", "thin.onnx", "--json")
    assert json.loads(ran.out)["skipped"] == []
    assert len(json.loads(ran.out)["layers"]) == 9
    assert onnxprune("thin.onnx", "--sparsity", 0, "--repair", "none", "-q", "-o", "same.onnx").code == 0
    again, first = onnx.load(str(folder / "same.onnx")), onnx.load(str(folder / "thin.onnx"))
    assert again == first
    assert onnxprune("thin.onnx", "--sparsity", 0.98, "--calib", "calib.npz", "--samples", 60, "-q", "-o", "more.onnx").code == 0
    more = onnx.load(str(folder / "more.onnx"))
    assert [entry.values.name for entry in more.graph.sparse_initializer] == [entry.values.name for entry in first.graph.sparse_initializer]
    assert (folder / "more.onnx").stat().st_size < (folder / "thin.onnx").stat().st_size
    compared = onnxprune("compare", "model.onnx", "more.onnx", "--calib", "calib.npz", "--samples", 60, "--json")
    assert compared.code == 0
    assert json.loads(compared.out)["pruned_sparsity"] == pytest.approx(0.98, abs=1e-4)


def test_a_model_in_memory_may_have_sparse_initializers_and_is_not_changed(folder: Path) -> None:
    model = onnx.load(str(folder / "model.onnx"))
    thin = prune(model, sparsity=0.9, repair="none", sparse_initializers=True).model
    assert thin.graph.sparse_initializer
    before = thin.SerializeToString(deterministic=True)
    again = prune(thin, sparsity=0.9, repair="none").model
    assert thin.SerializeToString(deterministic=True) == before
    assert again == thin
    assert sum(np.count_nonzero(value) for value in tensors(load_dense(again)).values()) > 0


def load_dense(model: onnx.ModelProto) -> onnx.ModelProto:
    return sparse.made_dense(model)[0]


def test_with_external_data_the_rest_stays_where_it_was(folder: Path, onnxprune: Call) -> None:
    onnx.save(onnx.load("model.onnx"), "beside.onnx", save_as_external_data=True, location="w.data", size_threshold=0)
    words = ("beside.onnx", *WORDS[1:])
    assert onnxprune(*words, "-o", "thin.onnx", "--sparse-initializers").code == 0
    loaded = load(folder / "thin.onnx")
    assert len(loaded.files) == 2
    assert len(loaded.sparse) == 6
    assert not set(loaded.sparse) & set(loaded.places)


def test_a_runtime_that_gives_other_outputs_is_refused_and_nothing_is_written(
    folder: Path, onnxprune: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = storing._outputs, []

    def other(*words: object) -> dict[str, np.ndarray]:
        calls.append(1)
        return {name: value + (len(calls) == 2) for name, value in real(*words).items()}

    monkeypatch.setattr(storing, "_outputs", other)
    before = sorted(folder.iterdir())
    ran = onnxprune(*WORDS, "-o", "thin.onnx", "--sparse-initializers")
    assert ran.code == 1
    assert "gives another output 'logits'; leave --sparse-initializers out" in ran.err
    assert sorted(folder.iterdir()) == before


def test_a_runtime_that_reads_other_values_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = thin_model(TensorProto.FLOAT)
    monkeypatch.setattr(storing.sparse, "dense", lambda entry: numpy_helper.from_array(np.ones((64, 64), np.float32)))
    with pytest.raises(ModelError, match="reads the sparse initializer 'w' as other values"):
        store_sparse(model, None)


def thin_model(kind: int) -> onnx.ModelProto:
    values = np.zeros((64, 64), helper.tensor_dtype_to_np_dtype(kind))
    values[::7, 3] = 2
    nodes = [helper.make_node("Cast", ["w"], ["v"], to=TensorProto.FLOAT), helper.make_node("MatMul", ["x", "v"], ["y"])]
    return model_of(nodes, {"x": ("n", 64)}, {"y": ("n", 64)}, {"w": values})


@pytest.mark.parametrize("kind", sparse.TYPES)
def test_onnx_runtime_reads_every_type(kind: int) -> None:
    model = thin_model(kind)
    batch = {"x": np.random.default_rng(0).normal(0, 1, (3, 64)).astype(np.float32)}
    assert store_sparse(model, batch) == ("w",)
    assert store_sparse(model, batch) == ()


def test_a_damaged_sparse_file_is_one_line(folder: Path, onnxprune: Call) -> None:
    model = thin_model(TensorProto.FLOAT)
    sparse.move(model)
    model.graph.sparse_initializer[0].indices.raw_data = np.full(10, 5000, np.int64).tobytes()
    (folder / "bad.onnx").write_bytes(model.SerializeToString())
    ran = onnxprune("bad.onnx", "--sparsity", 0.5, "--repair", "none")
    assert ran.code == 1
    assert len(ran.err.splitlines()) == 1
    assert "bad.onnx: sparse initializer 'w' cannot be read" in ran.err
