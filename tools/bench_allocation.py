"""Time of allocation and masks against one sort of all weights.

    python tools/bench_allocation.py [--weights 11000000] [--layers 20] [--dtype float32] [--repeat 5]

Layers of normally distributed weights, each with its own scale; without options about as many as a ResNet-18 has. Each line is the least
of some runs: the sort of all weights in one array by numpy, then for every rule the counts, and the masks made from them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np

from onnxprune.numerics import allocation, masks


def least(repeat: int, work: Callable[[], object]) -> float:
    """The least seconds of some runs."""
    found = []
    for _ in range(repeat):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return min(found)


def main() -> None:
    """Print a table."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--weights", type=int, default=11_000_000)
    ask.add_argument("--layers", type=int, default=20)
    ask.add_argument("--dtype", default="float32")
    ask.add_argument("--sparsity", type=float, default=0.95)
    ask.add_argument("--repeat", type=int, default=5)
    told = ask.parse_args()
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.ones(told.layers))
    weights = [
        (rng.standard_normal((max(1, round(share * told.weights / 64)), 64), np.float32) * rng.uniform(0.01, 0.1)).astype(told.dtype)
        for share in shares
    ]
    whole = np.concatenate([weight.ravel() for weight in weights])
    sort = least(told.repeat, lambda: np.sort(whole))
    print(f"{whole.size} weights in {len(weights)} layers, {told.dtype}, sparsity {told.sparsity}: one np.sort takes {sort:.3f} s")
    print("| rule | allocation s | masks s | both, in sorts |")
    print("|---|---|---|---|")
    for rule in allocation.ALLOCATIONS:
        counts = allocation.allocate(rule, weights, told.sparsity)
        shared = least(told.repeat, lambda rule=rule: allocation.allocate(rule, weights, told.sparsity))
        masked = least(told.repeat, lambda counts=counts: [masks.top(*pair) for pair in zip(weights, counts, strict=True)])
        print(f"| {rule} | {shared:.3f} | {masked:.3f} | {(shared + masked) / sort:.2f} |", flush=True)


if __name__ == "__main__":
    main()
