"""A model that crashes ONNX Runtime, never ends or takes all memory is one line of error, and this process lives on."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from invariants import data
from networks import model_of
from onnx import TensorProto, helper
from zoo import SUBJECTS, convnet, image, mlp, row

from onnxprune import OnnxpruneError, Options, prune
from onnxprune.comparing import compare_files
from onnxprune.errors import OutOfMemory, UsageError
from onnxprune.runtime import trial

W = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
QUIET = lambda phase, done, total: None  # noqa: E731


def refused(model: onnx.ModelProto, samples: Any = None, **options: Any) -> str:
    """The one line with which a model is refused."""
    with pytest.raises(OnnxpruneError) as error:
        prune(model, row() if samples is None else samples, sparsity=0.5, **options)
    text = str(error.value)
    assert "\n" not in text and len(text) < 500
    return text


def behind(*nodes: onnx.NodeProto, **values: Any) -> onnx.ModelProto:
    """x (n, 8) -> MatMul -> a -> the nodes -> y."""
    arrays = {name: np.asarray(value) for name, value in values.items()}
    model = model_of([helper.make_node("MatMul", ["x", "w"], ["a"], "mm"), *nodes], {"x": ("n", 8)}, {"y": ("n", 6)}, {"w": W, **arrays})
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return model


def endless() -> onnx.ModelProto:
    """A Loop of 2 ** 62 turns."""
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["more"]), helper.make_node("Relu", ["s"], ["r"])],
        "body",
        [value("i", TensorProto.INT64, []), value("c", TensorProto.BOOL, []), value("s", TensorProto.FLOAT, ["n", 6])],
        [value("more", TensorProto.BOOL, []), value("r", TensorProto.FLOAT, ["n", 6])],
    )
    return behind(helper.make_node("Loop", ["times", "go", "a"], ["y"], "loop", body=body), times=np.int64(2**62), go=np.bool_(True))


CRASHES = {
    "Einsum": helper.make_node("Einsum", ["a", ""], ["y"], "odd", equation="ij,jk->ik"),
    "Sum": helper.make_node("Sum", ["a", ""], ["y"], "odd"),
    "Max": helper.make_node("Max", ["a", ""], ["y"], "odd"),
}


@pytest.mark.parametrize("op", CRASHES)
def test_a_kernel_that_crashes(op: str) -> None:
    """ONNX Runtime 1.31 reads an input that is not there. A later one may refuse the model itself: one line as well."""
    text = refused(behind(CRASHES[op]), repair="none")
    assert "crashes ONNX Runtime (SIG" in text or "odd" in text


def test_a_crash_is_told_with_its_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "CHILD", tmp_path / "child.py")
    (tmp_path / "child.py").write_text("import os; print(1, flush=True); os.abort()")
    text = refused(SUBJECTS["einsum"]().model, dict(SUBJECTS["einsum"]().samples))
    assert "crashes ONNX Runtime (SIGABRT)" in text and "because of Einsum 'ein'" in text and "--repair none" in text


def test_an_interpreter_that_cannot_start_a_child_is_no_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "CHILD", tmp_path / "gone.py")
    prune(SUBJECTS["einsum"]().model, dict(SUBJECTS["einsum"]().samples), sparsity=0.5)


def test_a_loop_without_an_end() -> None:
    start = time.perf_counter()
    text = refused(endless(), trial_seconds=0.7)
    assert time.perf_counter() - start < 10  # WAIT times a second, at most
    assert "did not run within 1 s" in text and "because of Loop 'loop'" in text and "--trial-seconds" in text


HUGE: dict[str, Callable[[], onnx.ModelProto]] = {
    "Tile": lambda: behind(helper.make_node("Tile", ["a", "r"], ["y"]), r=np.array([2**30, 1])),
    "Expand": lambda: behind(helper.make_node("Expand", ["a", "r"], ["y"]), r=np.array([2**36, 1, 1])),
    "ConstantOfShape": lambda: behind(
        helper.make_node("ConstantOfShape", ["r"], ["c"]),
        helper.make_node("ReduceSum", ["c"], ["s"], keepdims=0),
        helper.make_node("Add", ["a", "s"], ["y"]),
        r=np.array([2**40]),
    ),
    "Pad": lambda: behind(helper.make_node("Pad", ["a", "r"], ["y"]), r=np.array([0, 2**38, 0, 0])),
    "Resize": lambda: behind(helper.make_node("Resize", ["a", "", "r"], ["y"], mode="nearest"), r=np.array([1e6, 1e7], np.float32)),
}


@pytest.mark.parametrize("op", HUGE)
def test_a_tensor_larger_than_any_memory(op: str) -> None:
    text = refused(HUGE[op]())
    assert "needs more memory than is free" in text or "exceeds" in text or "overflow" in text.lower(), text


def test_a_batch_that_has_no_room_is_no_fault_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """One sample takes 0.1 GB, 32 of them 3 GB, and 0.5 GB is there."""
    monkeypatch.setattr(trial, "available", lambda: 2**29)
    model = behind(helper.make_node("Resize", ["a", "", "r"], ["b"], mode="nearest"), helper.make_node("Relu", ["b"], ["y"]),
                   r=np.array([1, 2_000_000], np.float32))  # fmt: skip
    with pytest.raises(OutOfMemory, match=r"needs more memory than is free \(0.5 GiB\) for a batch of 32 samples"):
        trial.try_first(model, {"x": np.ones((1, 8), np.float32)}, {"x": 0}, 32, 10.0)


def test_no_trial_where_the_model_is_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", lambda *given, **told: pytest.fail("a child was started"))
    prune(convnet(), image(), sparsity=0.5, batch_size=8)
    prune(SUBJECTS["einsum"]().model, dict(SUBJECTS["einsum"]().samples), sparsity=0.5, trial_seconds=0)


def test_an_unusual_model_passes_and_comes_out_as_without_a_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    made = SUBJECTS["inside_loop"]()
    started = []
    really = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *given, **told: started.append(1) or really(*given, **told))
    tried, plainly = (prune(made.model, dict(made.samples), sparsity=0.5, trial_seconds=seconds) for seconds in (20, 0))
    assert started == [1]
    assert data(tried.model) == data(plainly.model)


def test_an_error_of_the_runtime_keeps_its_own_words() -> None:
    """The child fails too, and leaves the words to the run."""
    model = mlp()
    model.graph.node[2].op_type = "Rely"
    assert "does not take the model" in (text := refused(model)) and "Rely" in text


def test_compare_tries_both_models(tmp_path: Path) -> None:
    onnx.save(mlp(), tmp_path / "dense.onnx")
    model = mlp()
    name = model.graph.node[-1].output[0]
    model.graph.node[-1].output[0] = "before"
    model.graph.node.append(CRASHES["Sum"])
    model.graph.node[-1].input[0], model.graph.node[-1].output[0] = "before", name
    onnx.save(model, tmp_path / "pruned.onnx")
    np.save(tmp_path / "x.npy", row()["x"])
    with pytest.raises(OnnxpruneError, match=r"crashes ONNX Runtime|odd"):
        compare_files(tmp_path / "dense.onnx", tmp_path / "pruned.onnx", [tmp_path / "x.npy"], Options(sparsity=0.0), QUIET)


def test_a_model_over_the_limit_of_protobuf_goes_through_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "MAX_PROTO", 100)
    made = SUBJECTS["einsum"]()
    prune(made.model, dict(made.samples), sparsity=0.5)
    assert "because of Loop" in refused(endless(), trial_seconds=0.7)


def test_a_child_that_waits_for_others_is_given_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seconds without computing, where it may compute for one; one that never ends is stopped all the same."""
    monkeypatch.setattr(trial, "CHILD", tmp_path / "child.py")
    made = SUBJECTS["einsum"]()
    (tmp_path / "child.py").write_text("import sys, time; sys.stdin.buffer.read(); time.sleep(2); print('sample')")
    prune(made.model, dict(made.samples), sparsity=0.5, trial_seconds=1)
    monkeypatch.setattr(trial, "WAIT", 1.5)
    (tmp_path / "child.py").write_text("import time; time.sleep(60)")
    assert "did not run within 1 s" in refused(made.model, dict(made.samples), trial_seconds=0.9)


def test_a_time_below_0_is_refused() -> None:
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="--trial-seconds"):
            Options(sparsity=0.5, trial_seconds=wrong)
