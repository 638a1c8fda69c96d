"""The parts of a channel repair by CPU time, for bench_repair.py, which runs this file as a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def measured(words: list[str]) -> dict[str, float]:
    """Part of the command -> CPU seconds, on all threads, of one run with such words."""
    ran = subprocess.run([sys.executable, __file__, *words], check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(ran.stdout.splitlines()[-1])
    return found


def main() -> None:
    from onnxprune import cli, job, judging, meanwhile, pipeline, running
    from onnxprune.runtime import session, spilling, stream

    seconds = Counter({"imports": time.process_time()})

    def timing(part: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            start = time.thread_time()
            try:
                return work(*given, **named)
            finally:
                seconds[part] += time.thread_time() - start

        return call

    places = {
        "load": [(pipeline, "opened"), (pipeline, "tried"), (pipeline, "draw")],
        "allocation and masks": [(pipeline, "decide"), (pipeline, "masked"), (running, "masked")],
        "session builds": [(session, "open_session"), (stream, "open_session")],
        "runs for the dense statistics": [(stream, "run_session")],
        "runs of the stages": [(stream, "run_bound")],
        "live tensors": [(spilling, "_apart")],
        "runs for the agreement": [(judging, "run_session"), (meanwhile, "run_session")],
        "sizes and hashes": [(job, "describe")],
    }
    for part, names in places.items():
        for module, name in names:
            setattr(module, name, timing(part, getattr(module, name)))
    sys.argv[0] = "onnxprune"
    cli.main()
    rest = time.process_time() - sum(seconds.values())
    print(json.dumps({**seconds, "all else": rest}))


def reductions(path: Path, batches: list[dict[str, np.ndarray]]) -> float:
    """CPU seconds that the reductions of the dense statistics take, over all batches with one thread: a tapped pass less a plain one."""
    import onnx
    import onnxruntime as ort

    from onnxprune.graph import layers, stages
    from onnxprune.graph.points import points
    from onnxprune.graph.tensors import Constants
    from onnxprune.statistics import probe_of

    model = onnx.load(path)
    constants = Constants(model)
    probes = [probe_of(point, point.dense_tensor, constants) for point in points(layers.find(model, ()))]
    tapped = stages.tapped(model, probes, one_node=True)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    spent = []
    for graph in (model, tapped):
        session = ort.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
        session.run(None, batches[0])
        start = time.process_time()
        for batch in batches:
            session.run(None, batch)
        spent.append(time.process_time() - start)
    return spent[1] - spent[0]


if __name__ == "__main__":
    main()
