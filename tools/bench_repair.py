"""Cost of the whole command against the floor: one dense and one pruned forward pass over the same samples.

    python tools/bench_repair.py [cifar10/resnet18.onnx ...] [--repeat 3]

The floor runs in this process with the runtime's default options, sessions built and samples loaded before the clock starts.
The command is a process of its own, from start to exit. Both take turns in one run; shown are medians of wall and of CPU seconds,
their ratios, the command's peak memory, and where its wall time goes: start (the imports), and the phases of its report. The pruned
model of the floor is the one the command wrote. The second table has CPU seconds of one more run, in which the parts are timed
(bench_parts.py), and of the reductions: what a pass that gives the dense statistics takes more than a plain one, over all samples with
one thread.

On a machine that others use too the wall times say little, and the default sessions of the floor spin: they burn CPU time while they wait.
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

import bench_parts
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
    print("| model | floor s | command s | ratio | floor CPU s | command CPU s | ratio | peak MB | where the wall time goes, s |")
    print("|---|---|---|---|---|---|---|---|---|")
    parts = []
    for name in args.models:
        line, more = row(name, args.repeat, args.samples, args.options.split())
        print(line, flush=True)
        parts.append(f"| {name} | {more} |")
    print("\n| model | where the CPU time goes, s |\n|---|---|", *parts, sep="\n")


def row(name: str, repeat: int, count: int, options: list[str]) -> tuple[str, str]:
    """The row of a model, and its parts by CPU time."""
    with tempfile.TemporaryDirectory() as folder:
        target, report = Path(folder) / "pruned.onnx", Path(folder) / "report.json"
        path = reference.FOLDER / name
        words = [str(path), "--sparsity", "0.95", "--samples", str(count), "--device", "cpu"]
        words += ["-q", "--force", "-o", str(target), "--report", str(report), *reference.calib_options(name), *options]
        command = [sys.executable, "-m", "onnxprune", *words]
        peak = peak_of(command)  # warms the disk cache too, and makes the pruned model
        batches = load(name, path, count)
        floors, ours, phases = [], [], []
        for _ in range(repeat):
            floors.append(np.add(forward(path, batches), forward(target, batches)))
            *seconds, _ = timed(command)
            ours.append(seconds)
            told = json.loads(report.read_text())["seconds"]
            phases.append({"start": seconds[0] - told["total"], **told})
        parts = bench_parts.measured(words) | {"reductions in one pass": bench_parts.reductions(path, batches)}
    (floor, floor_cpu), (own, own_cpu) = np.median(floors, axis=0), np.median(ours, axis=0)
    where = ", ".join(f"{phase} {statistics.median(entry[phase] for entry in phases):.2f}" for phase in phases[0])
    times = f"{floor:.2f} | {own:.2f} | {own / floor:.2f} | {floor_cpu:.2f} | {own_cpu:.2f} | {own_cpu / floor_cpu:.2f}"
    return f"| {name} | {times} | {peak / 1e6:.0f} | {where} |", ", ".join(f"{part} {cpu:.2f}" for part, cpu in parts.items())


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


def forward(path: Path, batches: list[dict[str, np.ndarray]]) -> tuple[float, float]:
    """Wall and CPU seconds of one plain pass, session built before."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    start, cpu = time.perf_counter(), time.process_time()
    for batch in batches:
        session.run(None, batch)
    return time.perf_counter() - start, time.process_time() - cpu


PEAK = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
"""


def peak_of(command: list[str]) -> int:
    """Peak resident bytes of a command. It is begun by a small process, as Linux counts what its parent held at that time."""
    ran = subprocess.run([sys.executable, "-c", PEAK, *command], env=compiled(), check=True, stdout=subprocess.PIPE, text=True)
    return int(ran.stdout.splitlines()[-1])


def timed(command: list[str]) -> tuple[float, float, int]:
    """Wall and CPU seconds (those of its children too) and peak resident bytes of a command, or those of this process if they are more."""
    start = time.perf_counter()
    process = subprocess.Popen(command, env=compiled())
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}")
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def compiled() -> dict[str, str]:
    """The environment of a command whose modules are compiled, by the first run at the latest, as from an installed package."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


if __name__ == "__main__":
    main()
