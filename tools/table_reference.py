"""Top-1 of allocation x repair on the reference models, as Markdown tables for the README.

    python tools/table_reference.py cifar10/resnet20.onnx cifar10/resnet56.onnx --sparsity 0.6,0.8,0.9
    python tools/table_reference.py cifar10/resnet18.onnx cifar10/resnet18_folded.onnx --sparsity 0.9,0.95,0.98 --alloc erk,lamp
    python tools/table_reference.py imagenet/efficientnet_lite0.onnx --sparsity 0.5 --samples 128

Samples are drawn with --seed as the command line does, a fifth of them held out.
"""

from __future__ import annotations

import argparse

import reference

import onnxprune

REPAIRS = "none,bn,layer,channel,asr"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--sparsity", required=True)
    parser.add_argument("--alloc", default="uniform,global,erk,lamp")
    parser.add_argument("--repair", default=REPAIRS)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--seeds", default="0", help="the mean over these draws is shown")
    args = parser.parse_args()
    reference.require()
    repairs = args.repair.split(",")
    for name in args.models:
        path = reference.FOLDER / name
        print(f"\n**{name}**, dense {reference.top1(path, name):.4f}, {args.samples} samples, draws {args.seeds}\n")
        print("| sparsity | allocation | " + " | ".join(repairs) + " |")
        print("|---|---|" + "---|" * len(repairs))
        for sparsity in map(float, args.sparsity.split(",")):
            for alloc in args.alloc.split(","):
                row = [f"{mean(name, sparsity, alloc, repair, args):.4f}" for repair in repairs]
                print(f"| {sparsity} | {alloc} | " + " | ".join(row) + " |", flush=True)


def mean(name: str, sparsity: float, alloc: str, repair: str, args: argparse.Namespace) -> float:
    """The mean top-1 over the draws; masks alone do not depend on them."""
    seeds = [0] if repair == "none" else [int(seed) for seed in args.seeds.split(",")]
    return sum(once(name, sparsity, alloc, repair, args.samples, seed) for seed in seeds) / len(seeds)


def once(name: str, sparsity: float, alloc: str, repair: str, samples: int, seed: int) -> float:
    flags = reference.calib_options(name)
    told = {
        flag.lstrip("-"): tuple(map(float, value.split(",")))
        for flag, value in zip(flags[::2], flags[1::2], strict=True)
        if flag in ("--mean", "--std")
    }
    layout = flags[flags.index("--layout") + 1] if "--layout" in flags else None
    result = onnxprune.prune(
        reference.FOLDER / name,
        None if repair == "none" else flags[1],
        sparsity=sparsity,
        alloc=alloc,
        repair=repair,
        samples=samples,
        seed=seed,
        device="cpu",
        preprocess=onnxprune.Preprocess(layout=layout, **told),
    )
    return reference.top1(result.model, name)


if __name__ == "__main__":
    main()
