"""Try a model in a process of its own before it runs in this one: a crash, no end or no memory there is one line here.

ONNX Runtime is C++ in this process. A kernel that crashes takes the process with it, a Loop may never end, and a Resize may take all
memory; none of that can be caught. So the model runs one sample in a child first, with a limit of time and of memory, if
`onnxprune.graph.plain` says that there is a reason. Measured on one core that others use too, a child costs 0.25 to 0.35 s, most of it
the import of onnxruntime, and then what a session and one sample take; the plain models, which are most, cost 1 to 20 ms. Errors
that ONNX Runtime reports are left to the run itself, which has the better words. The child runs on the CPU, whatever the device.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import Any

import onnx
from numpy.typing import NDArray

from onnxprune.errors import ModelError, OutOfMemory
from onnxprune.graph.complete import size_of
from onnxprune.graph.mapped import has_mapped
from onnxprune.graph.model import save
from onnxprune.graph.plain import unusual
from onnxprune.runtime.session import MAX_PROTO
from onnxprune.runtime.shortage import WORDS

CHILD = Path(__file__).with_name("child.py")
RATE = 20e6
"""Bytes of a model, or of its samples, for which a second is added to the time."""
BUSY, WAIT = 0.8, 5
"""A child is out of time when it has computed for this share of it, or after so many times as long: an honest one may have to wait."""
NO_MEMORY = re.compile(rf"{WORDS.pattern}|length_error|vector::", re.IGNORECASE)
AWAY = "masks alone, --repair none without --calib, need no run"


def try_first(
    model: onnx.ModelProto, sample: Mapping[str, NDArray[Any]], axes: Mapping[str, int | None], batch: int, seconds: float, threads: int = 0
) -> None:
    """Run one sample in a child process, if there is a reason to; 0 ``seconds`` leave the trial out.

    ``axes`` says where each input has its batch; a whole batch of ``batch`` samples runs too where its memory is in doubt. The child
    computes with so many ``threads``; 0 leaves it to ONNX Runtime.

    Raises:
        ModelError: the child crashed, or did not end in time, or not even one sample fits in the memory that is free.
        OutOfMemory: one sample fits, the batch does not.
    """
    if not seconds or not sys.executable or getattr(sys, "frozen", False):
        return
    why = unusual(model, {name: many(value.shape, axes[name], batch) for name, value in sample.items()}, batch)
    if not why:
        return
    memory = available()
    size = size_of(model)
    patience = seconds + (size + sum(value.nbytes for value in sample.values()) * max(batch, 1)) / RATE
    with contextlib.ExitStack() as stack:
        told: dict[str, Any] = {"feed": dict(sample), "axes": dict(axes), "batch": batch, "threads": threads}
        told |= {"memory": memory, "seconds": patience}
        if size < MAX_PROTO and not has_mapped(model):
            told["model"] = model.SerializeToString()
        else:
            told["model"] = str(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="onnxprune-"))) / "model.onnx")
            save(model, Path(told["model"]), external=True)
        data = pickle.dumps(told, protocol=5)
        told.clear()
        lines, code = _run(data, patience)
    tried = f"its first sample was run in a process of its own, because of {why}"
    if code is None and "sample" not in lines:
        raise ModelError(
            f"the model did not run within {patience:.0f} s: {tried}; give --trial-seconds more if it is slow, else mend it; {AWAY}"
        )
    if code and lines:  # without a line it was no child of ours: an interpreter that starts something else
        raise ModelError(f"the model crashes ONNX Runtime ({_named(code)}): {tried}; mend the model or update onnxruntime; {AWAY}")
    last = lines[-1] if lines else ""
    if last.startswith("error") and NO_MEMORY.search(last):
        told_free = f"the model needs more memory than is free ({memory / 2**30:.1f} GiB) for"
        if "sample" in lines:
            raise OutOfMemory(f"{told_free} a batch of {batch} samples; {AWAY}")
        raise ModelError(f"{told_free} one sample: {tried}; mend the model; {AWAY}")


def many(shape: tuple[int, ...], axis: int | None, batch: int) -> tuple[int, ...]:
    """The shape of a batch, from that of one sample."""
    return shape if axis is None else (*shape[:axis], shape[axis] * batch, *shape[axis + 1 :])


def available() -> int:
    """The memory in bytes that a process can get without swapping, 0 where the system does not tell."""
    try:
        found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


def _run(data: bytes, seconds: float) -> tuple[list[str], int | None]:
    """What the child wrote, line by line, and its exit code, None when it was stopped.

    It is stopped after so many seconds if it computed for most of them; on a machine that others use too it may take `WAIT` times as many.
    """
    start, given = time.monotonic(), data or None
    with subprocess.Popen([sys.executable, "-P", CHILD], stdin=PIPE, stdout=PIPE, stderr=DEVNULL) as child:
        try:
            while True:
                spent = time.monotonic() - start
                try:
                    written, _ = child.communicate(given, timeout=max(seconds - spent, 0.2))
                    return written.decode(errors="replace").splitlines(), child.returncode
                except subprocess.TimeoutExpired as error:
                    given, spent = None, time.monotonic() - start
                    if spent >= seconds and (spent >= WAIT * seconds or _computed(child.pid, spent) >= BUSY * seconds):
                        return (error.stdout or b"").decode(errors="replace").splitlines(), None
        finally:
            child.kill()


def _computed(pid: int, spent: float) -> float:
    """The seconds that a process has computed for, over all of its threads; ``spent`` where the system does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return spent


def _named(code: int) -> str:
    """An exit code in words."""
    with contextlib.suppress(ValueError):
        name = signal.Signals(-code).name
        return f"{name}, as when memory runs out" if name == "SIGKILL" else name
    return f"exit code {code}"
