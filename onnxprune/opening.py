"""What a run begins with: the model as it was given, the device, and the trial of the first sample."""

from __future__ import annotations

from pathlib import Path

import onnx

from onnxprune.drawing import Taken
from onnxprune.graph import model as files
from onnxprune.graph import sparse
from onnxprune.graph.doubt import doubt_of
from onnxprune.numerics.threads import allowed, bound
from onnxprune.options import Options
from onnxprune.runtime.device import Device
from onnxprune.runtime.session import choose_device, session_of
from onnxprune.runtime.trial import try_first


def device_of(options: Options) -> Device:
    """Where sessions run, with no more threads than cores: more would wait for each other by spinning."""
    return choose_device(options.device, min(options.threads, allowed()))


def proof(model: onnx.ModelProto) -> None:
    """Raises ModelError when ONNX Runtime does not take the model."""
    with session_of(model, Device("cpu")):
        pass


def tried(model: onnx.ModelProto, taken: Taken, options: Options) -> None:
    """Raises ModelError when the model crashes, or takes too long or too much memory, in a process of its own; see runtime.trial."""
    batch, threads = 1 if taken.least > 1 else taken.batch_size, bound(options.threads) or allowed()
    try_first(model, taken.first(), taken.axes.inputs, batch, options.trial_seconds, threads)


def opened(model: str | Path | onnx.ModelProto, *, mapped: int | None) -> files.Loaded:
    """The model with what the checker holds against it.

    Raises:
        ModelError: the file is damaged, or the model in memory was loaded without its external data.
    """
    if not isinstance(model, onnx.ModelProto):
        return files.load(Path(model), mapped=mapped)
    files.check_model(model)
    doubt = doubt_of(model)
    model, held = sparse.made_dense(model)
    return files.Loaded(model, (), {}, held, doubt)
