"""Time of one sweep against the time of the same runs one by one.

    python tools/bench_sweep.py [cifar10/resnet20.onnx] [--repair none,bn,channel] [--jobs 1]

The sweep is a process of its own, from start to exit. The runs are calls of onnxprune.prune in one process that has imported everything,
which is the hardest to beat, and with --commands also commands, which is what a shell loop does. Shown are wall and CPU seconds and ratios.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import reference

import onnxprune


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="cifar10/resnet20.onnx")
    parser.add_argument("--alloc", default="uniform,global,erk,lamp")
    parser.add_argument("--sparsity", default="0.8,0.85,0.9,0.95")
    parser.add_argument("--repair", default="none,bn,channel")
    parser.add_argument("--jobs", default="1")
    parser.add_argument("--commands", action="store_true", help="also time the runs as commands")
    args = parser.parse_args()
    reference.require()
    flags = [*reference.calib_options(args.model), "--device", "cpu"]
    grid = list(itertools.product(args.alloc.split(","), args.sparsity.split(","), args.repair.split(",")))
    path = reference.FOLDER / args.model
    words = ["sweep", str(path), "--alloc", args.alloc, "--sparsity", args.sparsity, "--repair", args.repair, "--jobs", args.jobs, *flags]
    with tempfile.TemporaryDirectory() as folder:
        took = {f"sweep, --jobs {args.jobs}": command([*words, "-q", "-o", f"{folder}/sweep.json"])}
        took["prune() one by one"] = calls(path, flags, grid)
        if args.commands:
            each = [
                command(["prune", str(path), "--alloc", alloc, "--sparsity", sparsity, "--repair", repair, *flags, "-q", "--force",
                         "-o", f"{folder}/pruned.onnx"])
                for alloc, sparsity, repair in grid
            ]  # fmt: skip
            took["commands one by one"] = tuple(map(sum, zip(*each, strict=True)))
    swept = next(iter(took.values()))
    print(f"{args.model}: {len(grid)} combinations, {args.alloc} at {args.sparsity} with {args.repair}")
    for name, (wall, cpu) in took.items():
        share = "" if (wall, cpu) == swept else f"; the sweep takes {swept[0] / wall:.2f} and {swept[1] / cpu:.2f} of them"
        print(f"{name}: {wall:.1f} s, {cpu:.1f} s of CPU{share}")


def clock() -> tuple[float, float]:
    """Wall and CPU seconds by now, those of ended children among the latter; wall time alone says little on a machine that others use."""
    times = os.times()
    return time.perf_counter(), times.user + times.system + times.children_user + times.children_system


def since(begin: tuple[float, float]) -> tuple[float, float]:
    wall, cpu = clock()
    return wall - begin[0], cpu - begin[1]


def command(words: list[str]) -> tuple[float, float]:
    begin = clock()
    subprocess.run([sys.executable, "-m", "onnxprune", *words], check=True)
    return since(begin)


def calls(path: Path, flags: list[str], grid: list[tuple[str, str, str]]) -> tuple[float, float]:
    told = dict(zip(flags[::2], flags[1::2], strict=True))
    numbers = {name: tuple(map(float, told[f"--{name}"].split(","))) for name in ("mean", "std")}
    preprocess = onnxprune.Preprocess(layout=told.get("--layout"), **numbers)
    begin = clock()
    for alloc, sparsity, repair in grid:
        onnxprune.prune(path, told["--calib"], alloc=alloc, sparsity=float(sparsity), repair=repair, preprocess=preprocess, device="cpu")
    return since(begin)


if __name__ == "__main__":
    main()
