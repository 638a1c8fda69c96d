"""Run a model once, in a process of its own: what `onnxprune.runtime.trial` starts, and nothing else imports.

Reads one pickled mapping from stdin: ``model`` (bytes, or the path of a file), ``feed`` (one sample by input name), ``axes`` (the axis of
the batch by input, None for none), ``batch`` (samples of a batch), ``memory`` (bytes it may take, 0 for any), ``seconds`` (after which it
will be stopped) and ``threads``. Writes a line when it has begun, when the session is there, when the sample and, where its memory asks
for it, the batch has run, and one for an error.

It imports onnxruntime and not the rest of the package, which would take longer than the run.
"""

from __future__ import annotations

import os
import pickle
import sys
from typing import Any

import numpy as np
import onnxruntime as ort

RISK = 4
"""A batch runs too when, by what its first sample took, it may need more than one part in so many of the memory."""
THREAD = 2**27
"""Addresses that a thread takes without using them: its stack and its heap."""


def limit(memory: int, seconds: float) -> None:
    """Let this process have ``memory`` bytes more than it has, and end it if nobody is left to stop it; no core file if it crashes."""
    try:
        import resource
    except ImportError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    if hard == resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) * (os.cpu_count() or 1) + 10, hard))
    try:
        with open("/proc/self/statm") as handle:
            held = int(handle.read().split()[0]) * resource.getpagesize()
    except OSError:
        return
    if memory:
        wanted = held + memory + THREAD * (os.cpu_count() or 1)
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


def peak() -> int:
    """The most memory this process has held, in bytes; 0 where the system does not tell."""
    try:
        with open("/proc/self/status") as handle:
            return next((int(line.split()[1]) * 1024 for line in handle if line.startswith("VmHWM")), 0)
    except OSError:
        return 0


def main(told: dict[str, Any]) -> None:
    """The session, the sample and maybe the batch."""
    limit(told["memory"], told["seconds"])
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = told["threads"]
    session = ort.InferenceSession(told["model"], options, providers=["CPUExecutionProvider"], enable_fallback=0)
    print("session", flush=True)
    before = peak()
    session.run(None, told["feed"])
    print("sample", flush=True)
    if told["batch"] * (peak() - before) * RISK > told["memory"] > 0:
        axes = told["axes"]
        many = {name: v if axes[name] is None else np.repeat(v, told["batch"], axes[name]) for name, v in told["feed"].items()}
        session.run(None, many)
        print("batch", flush=True)


if __name__ == "__main__":
    print("begun", flush=True)
    try:
        main(pickle.load(sys.stdin.buffer))
    except Exception as error:
        print("error", " ".join(str(error).split()) or type(error).__name__, flush=True)
    os._exit(0)  # what is left to tear down tells nothing, and takes time
