"""Cost of the whole command against the floor: one dense and one pruned forward pass over the same samples.

    python tools/bench_repair.py [cifar10/resnet18.onnx ...] [--repeat 3]

The floor runs in this process with the runtime's default options, sessions built and samples loaded before the clock starts.
The command is a process of its own, from start to exit. Both take turns in one run; shown are medians, their ratio, where the
command's time goes (from its report), and its peak memory. The pruned model of the floor is the one the command wrote.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime
import reference

MODELS = ["cifar10/resnet18.onnx", "cifar10/resnet18_folded.onnx", "cifar10/resnet56.onnx", "cifar10/resnet56_folded.onnx"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--options", default="", help="more options for the command, as one string")
    args = parser.parse_args()
    reference.require()
    print("| model | floor s | command s | ratio | peak MB | where the time goes, s |")
    print("|---|---|---|---|---|---|")
    for name in args.models:
        print(row(name, args.repeat, args.samples, args.options.split()), flush=True)


def row(name: str, repeat: int, count: int, options: list[str]) -> str:
    with tempfile.TemporaryDirectory() as folder:
        target, report = Path(folder) / "pruned.onnx", Path(folder) / "report.json"
        path = reference.FOLDER / name
        command = [sys.executable, "-m", "onnxprune", str(path), "--sparsity", "0.95", "--samples", str(count), "--device", "cpu"]
        command += ["-q", "--force", "-o", str(target), "--report", str(report), *reference.calib_options(name), *options]
        timed(command)  # warms the disk cache, and makes the pruned model
        batches = load(name, path, count)
        floors, ours, peaks, phases = [], [], [], []
        for _ in range(repeat):
            floors.append(forward(path, batches) + forward(target, batches))
            seconds, peak = timed(command)
            ours.append(seconds)
            peaks.append(peak)
            phases.append(json.loads(report.read_text())["seconds"])
    floor, own = statistics.median(floors), statistics.median(ours)
    where = ", ".join(f"{phase} {statistics.median(entry[phase] for entry in phases):.2f}" for phase in phases[0])
    return f"| {name} | {floor:.2f} | {own:.2f} | {own / floor:.2f} | {max(peaks) / 1e6:.0f} | {where} |"


def load(name: str, path: Path, count: int) -> list[dict[str, np.ndarray]]:
    """The first samples of the suite in batches of 32, in model units."""
    feed = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).get_inputs()[0].name
    if reference.suite(name) == "cifar10":
        images = reference.samples(name)[:count]
    else:
        from PIL import Image

        files = sorted((reference.FOLDER / "imagenet" / "calib").glob("*.jpg"))[:count]
        stored = np.stack([np.asarray(Image.open(file).convert("RGB"), np.float32) for file in files])
        images = np.ascontiguousarray(((stored - 127) / 128).transpose(0, 3, 1, 2))
    return [{feed: images[at : at + 32]} for at in range(0, len(images), 32)]


def forward(path: Path, batches: list[dict[str, np.ndarray]]) -> float:
    """Seconds of one plain pass, session built before."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    start = time.perf_counter()
    for batch in batches:
        session.run(None, batch)
    return time.perf_counter() - start


def timed(command: list[str]) -> tuple[float, int]:
    """Wall seconds and peak resident bytes of a command."""
    start = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}")
    return time.perf_counter() - start, usage.ru_maxrss * 1024


if __name__ == "__main__":
    main()
