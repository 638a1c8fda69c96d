"""Sessions of ONNX Runtime on a chosen device; the only module that imports onnxruntime.

The list of available providers names CUDA on machines without a GPU, and a session that is asked for CUDA falls back to the CPU
without an exception. So the device is settled by building a tiny session and reading back what really runs.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
import tempfile
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi.onnxruntime_pybind11_state import OrtValueVector

from onnxprune.errors import ModelError, RuntimeFailure, UsageError
from onnxprune.graph.complete import fits
from onnxprune.graph.handed import LEAST, apart
from onnxprune.graph.mapped import has_mapped
from onnxprune.graph.model import save
from onnxprune.runtime.device import CPU, CUDA, Device
from onnxprune.runtime.shortage import failure, short_of_memory

CUDA_OPTIONS = {"use_tf32": 0, "cudnn_conv_algo_search": "HEURISTIC", "arena_extend_strategy": "kSameAsRequested"}
"""Statistics are those of float32. cuDNN's kernels are not chosen by a race, which would be run anew in every stage and decided by chance.
The arena is as large as what is in it, so that all but the live tensors can be given back."""
HANDED = {"cpu": LEAST, "cuda": 2**63}
"""By the kind of device, from how many bytes on values in memory are handed over beside the model: to CUDA they are copied in any case."""
MAX_PROTO = 2**31 - 2**20  # protobuf's limit, less a little for what the stage builder adds


def choose_device(asked: str, threads: int = 0) -> Device:
    """The device for "auto", "cpu", "cuda" or "cuda:N", for sessions of so many threads on the CPU (0: as many as it has cores).

    "auto" takes CUDA where a CUDA session really starts and the CPU otherwise, and says so in the note.

    Raises:
        UsageError: for another word.
        RuntimeFailure: CUDA was asked for by name and does not start here.
    """
    if asked == "cpu":
        return Device("cpu", threads=threads)
    match = re.fullmatch(r"auto|cuda(?::(\d+))?", asked)
    if match is None:
        raise UsageError(f"--device {asked!r} is not known; use auto, cpu, cuda or cuda:N")
    index = int(match.group(1) or 0)
    if _cuda_starts(index):
        return Device("cuda", index, threads=threads)
    if asked == "auto":
        return Device("cpu", note="no CUDA device could be started; running on the CPU", threads=threads)
    raise RuntimeFailure(
        f"--device {asked}: ONNX Runtime {ort.__version__} could not start CUDA device {index} here; "
        f"check the driver and `pip install onnxprune[cuda]`, or use --device cpu"
    )


@functools.cache
def _cuda_starts(index: int) -> bool:
    """True when a one-node session really runs on that CUDA device; quiet when it does not."""
    if CUDA not in ort.get_available_providers():
        return False
    ort.set_default_logger_severity(4)  # 3 still lets the loader's lines through
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            preload = getattr(ort, "preload_dlls", None)  # since 1.21
            if preload is not None:
                preload()
        value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
        out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
        graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "probe", [value], [out])
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=7)
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        session = ort.InferenceSession(model.SerializeToString(), options, providers=providers_of(Device("cuda", index)))
        if session.get_providers()[0] != CUDA:
            return False
        session.run(None, {"x": np.ones(1, np.float32)}, run_options(Device("cuda", index)))  # a card too old, or full, shows here
        return True
    except Exception:  # any failure to load CUDA means the same: it does not start
        return False
    finally:
        ort.set_default_logger_severity(2)


def providers_of(device: Device) -> list[Any]:
    """What ONNX Runtime takes as ``providers``; what CUDA has no kernel for runs on the CPU."""
    return [(CUDA, {"device_id": device.index, **CUDA_OPTIONS}), CPU] if device.kind == "cuda" else [CPU]


def run_options(device: Device) -> Any:
    """None on the CPU; on CUDA, that the session's arena gives back what is free in it at the end of a run.

    A live tensor keeps the session that it is from, whose arena would keep all that its runs needed.
    """
    if device.kind != "cuda":
        return None
    options = ort.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", f"gpu:{device.index}")
    return options


def open_session(
    model: bytes | Path | onnx.ModelProto, device: Device, *, lean: bool = False, arena: bool = False, turns: bool = False
) -> Any:
    """An ``onnxruntime.InferenceSession`` of a model, serialized or not, or of a file, on the device.

    Values that were left in files (graph.mapped) are read into memory for as long as the session is there.

    ``lean`` frees every tensor as soon as it is used (no memory pattern, priority-based order): 2 to 3 times less peak memory. With
    ``arena`` its place is kept for the next one, else it goes back to the system, whose new pages take efficientnet_lite0's channel
    repair from 13.5 to 17.5 s. ``turns``: its threads stop spinning when a run ends, so that another session's find the cores free.

    Raises:
        ModelError: ONNX Runtime does not take the model.
        OutOfMemory: there is no room for it.
        RuntimeFailure: the session does not run on the asked device.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4
    told = os.environ.get("ONNXPRUNE_THREADS", "")  # as numerics.threads.cores reads it
    options.intra_op_num_threads = device.threads or (int(told) if told.isdigit() else 0)
    if lean:
        options.enable_cpu_mem_arena = arena
        options.enable_mem_pattern = False
        options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
        # Threads of one session that spin take the cores from the next one, stage by stage.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if turns:
        options.add_session_config_entry("session.force_spinning_stop", "1")
    options.use_deterministic_compute = device.kind == "cuda"
    held: dict[str, ort.OrtValue] = {}
    if isinstance(model, onnx.ModelProto):
        model, held = _handed(model, HANDED[device.kind])
        if held:
            options.add_external_initializers(list(held), list(held.values()))
    source = str(model) if isinstance(model, Path) else model
    try:
        session = ort.InferenceSession(source, options, providers=providers_of(device), enable_fallback=0)
    except Exception as error:  # ONNX Runtime raises a dozen unrelated classes here
        if short_of_memory(error):
            raise failure(error, f"a session of the model does not fit: {one_line(error)}") from error
        raise ModelError(f"ONNX Runtime {ort.__version__} does not take the model: {one_line(error)}") from error
    session.held = held  # the session reads them where they are
    if session.get_providers()[0] != device.provider:
        raise RuntimeFailure(f"the session runs on {session.get_providers()[0]}, not on {device.provider}; use --device cpu")
    return session


@contextlib.contextmanager
def session_of(model: onnx.ModelProto, device: Device, *, lean: bool = False, arena: bool = False, turns: bool = False) -> Iterator[Any]:
    """A session of a model; one that is over protobuf's limit in memory goes through a temporary file with external data."""
    if has_mapped(model) or fits(model, MAX_PROTO):
        yield open_session(model, device, lean=lean, arena=arena, turns=turns)
        return
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        path = Path(folder) / "model.onnx"
        save(model, path, external=True)
        yield open_session(path, device, lean=lean, arena=arena, turns=turns)


def _handed(model: onnx.ModelProto, least: int) -> tuple[bytes, dict[str, Any]]:
    """A serialized model without its large values, those of ``least`` bytes and more, and these by name."""
    slim, values = apart(model, least)
    made = ort.OrtValue.ortvalue_from_numpy_with_onnx_type
    return slim.SerializeToString(), {name: made(array, data_type) for name, (array, data_type) in values.items()}


def run_session(session: Any, feed: dict[str, NDArray[Any]], names: Sequence[str]) -> list[NDArray[Any]]:
    """The named outputs of the session as numpy arrays for one batch.

    Raises:
        RuntimeFailure: a node fails on this batch; OutOfMemory where it was for memory.
    """
    try:
        return list(session.run(list(names), feed))
    except Exception as error:
        shapes = ", ".join(f"{name} {value.dtype}{list(value.shape)}" for name, value in feed.items())
        raise failure(error, f"the model does not run on {shapes}: {one_line(error)}") from error


def run_bound(
    session: Any,
    feed: dict[str, Any],
    names: Sequence[str],
    device: Device,
    host: Container[str] = (),
    into: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """Output name -> ``OrtValue`` left on the device, or on the host if it is in ``host`` or is strings; the inputs are OrtValues too.

    Each is by itself: let go of, it takes nothing of the others along. Those in ``into`` are written there: OrtValues of their shapes.

    Raises:
        RuntimeFailure: a node fails on this batch; OutOfMemory where it was for memory.
    """
    binding = session.io_binding()
    for name, value in feed.items():
        binding.bind_ortvalue_input(name, value)
    types = {value.name: value.type for value in session.get_outputs()}
    for name in names:
        if name in into:
            binding.bind_ortvalue_output(name, into[name])
        else:
            binding.bind_output(name, *(("cpu", 0) if name in host or types[name] == "tensor(string)" else (device.kind, device.index)))
    try:
        session.run_with_iobinding(binding, run_options(device))
    except Exception as error:
        raise failure(error, f"a stage of the model does not run: {one_line(error)}") from error
    made = binding.get_outputs_as_ortvaluevector()
    return {name: into[name] if name in into else _alone(made[place], session) for place, name in enumerate(names)}


def _alone(value: Any, session: Any) -> Any:
    """An output by itself: an element of the vector that a run gives keeps all of it. It keeps the session, whose allocator it is from."""
    (vector := OrtValueVector()).push_back(value)
    return ort.OrtValue(vector[0], session)


def to_device(array: NDArray[Any], device: Device) -> Any:
    """An ``OrtValue`` with the array's values, on the device.

    Raises:
        OutOfMemory: it has no room there.
    """
    try:
        return ort.OrtValue.ortvalue_from_numpy(np.asarray(array, order="C"), device.kind, device.index)
    except Exception as error:
        raise failure(error, f"{array.dtype}{list(array.shape)} cannot be put on {device.kind}: {one_line(error)}") from error


def as_array(value: Any) -> NDArray[Any]:
    """A numpy array of an OrtValue; an array stays as it is."""
    return value if isinstance(value, np.ndarray) else np.asarray(value.numpy())


def one_line(error: BaseException) -> str:
    """The error's text on one line, without ONNX Runtime's code prefix and the place in its source, cut at 300 characters."""
    text = re.sub(r"\[ONNXRuntimeError\] : \d+ : \w+ : ", "", " ".join(str(error).split()))
    text = re.sub(r"/\S*onnxruntime\S*:\d+ .*?\) (?=[A-Z])", "", text)
    return text if len(text) <= 300 else text[:297] + "..."
