"""Top-1, the layers' relative error on held-out rows (geometric mean) and seconds of the reconstruction, its settings changed one by one.

    python tools/ablate_reconstruct.py cifar10/resnet18.onnx --sparsity 0.98 --alloc lamp --start 10
    python tools/ablate_reconstruct.py cifar10/resnet18.onnx --pattern 2:4

The settings are constants of the package, not options: this script reaches behind the public interface.
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np
import reference

import onnxprune
from onnxprune import reconstructing, sampling
from onnxprune.numerics import reconstruct as numerics
from onnxprune.numerics.agreement import agreement

LAYER = numerics.reconstruct


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--sparsity", type=float)
    parser.add_argument("--pattern")
    parser.add_argument("--alloc", default="lamp")
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--holdout", type=float, default=0.2)
    parser.add_argument("--mirror", action="store_true")
    parser.add_argument("--shift", type=int, default=0)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--start", type=float, default=numerics.START)
    parser.add_argument("--factor", type=float, default=numerics.FACTOR)
    parser.add_argument("--fine", type=float, default=numerics.FINE, help="1: no elimination")
    parser.add_argument("--ridges", help="0.003,0.01,0.03; left out: as the package chooses")
    parser.add_argument("--rounds", type=int, default=reconstructing.ROUNDS, help="moves of the target to the flat side")
    parser.add_argument("--rows", type=int, default=sampling.ROWS, help="rows a layer at most (sampling.rows_of)")
    args = parser.parse_args()
    reference.require()
    ridges = tuple(map(float, args.ridges.split(","))) if args.ridges else None
    reconstructing.reconstruct = lambda *rest, **named: LAYER(
        *rest, **{**named, "start": args.start, "factor": args.factor, "fine": args.fine, "ridges": ridges}
    )
    reconstructing.ROUNDS, sampling.ROWS = args.rounds, args.rows
    flags = reference.calib_options(args.model)
    told = {name.lstrip("-"): value for name, value in zip(flags[::2], flags[1::2], strict=True)}
    how = onnxprune.Preprocess(
        mean=tuple(map(float, told["mean"].split(","))), std=tuple(map(float, told["std"].split(","))), layout=told.get("layout")
    )
    amount = {"pattern": args.pattern} if args.pattern else {"sparsity": args.sparsity}
    for seed in map(int, args.seeds.split(",")):
        start, used = time.perf_counter(), time.process_time()
        result = onnxprune.prune(
            reference.FOLDER / args.model,
            flags[1],
            alloc=args.alloc,
            repair="reconstruct",
            samples=args.samples,
            holdout=args.holdout,
            mirror=args.mirror,
            shift=args.shift,
            seed=seed,
            device="cpu",
            preprocess=how,
            **amount,
        )
        seconds, used = time.perf_counter() - start, time.process_time() - used
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
        errors = [layer.relative_error_after for layer in result.report.layers if layer.relative_error_after]
        found, labels = reference.outputs(result.model, args.model)
        near = agreement(reference.outputs(reference.FOLDER / args.model, args.model)[0], found)
        curves = result.report.seconds.get("error curves", 0.0)
        print(
            f"seed {seed}: top-1 {(found.argmax(1) == labels).mean():.4f}, agreement {near.top1:.4f}, KL {near.kl:.4f}, "
            f"layer error {np.exp(np.mean(np.log(errors))):.4f}, sparsity {result.report.sparsity:.4f}, "
            f"{seconds:.1f} s ({used:.0f} CPU s, {curves:.1f} s of curves), peak {peak:.0f} MB",
            flush=True,
        )


if __name__ == "__main__":
    main()
