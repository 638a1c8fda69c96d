"""onnxsim 0.8.1 against onnxprune: top-1 and CPU seconds at the sparsity that onnxsim reached, from the same calibration samples.

    python tools/bench_rival.py                                             # resnet18, 0.9 and 0.95, everything
    python tools/bench_rival.py --model cifar10/resnet18_folded.onnx --sparsity 0.9,0.95,0.98
    python tools/bench_rival.py --quick                                     # few samples, no fine-tuning: does it run at all

The first run makes build/rival-venv and installs onnxsim there; rival_worker.py runs in it, a process a method and sparsity, and prints
what it did. Then ours: allocations lamp and erk, repairs channel and reconstruct, asked for the highest sparsity that one of them reached.
Both sides get the same --samples, drawn once with --seed, as an array in model units. Seconds are CPU seconds of one thread on one core,
so that what else the machine does hardly counts; they run from reading the model to the finished model in memory: interpreter start,
imports and writing are left out on both sides. Its rows take hours: they are kept in build/rival and not made again; --fresh does.

What was chosen for onnxsim, so that it shows its best:

- Methods: magnitude and Wanda with the same share in every filter (its default) and with one global threshold (global_sparsity=True);
  SparseGPT with its defaults (percdamp .01, blocks of 128). It has no shares by layer and no gradual schedule of its own.
- Its recoveries without labels: "bias", correct_bias; "bn", recover_batch_norm towards the dense model; "block",
  apply_block_finetune_all_blocks with preserve_sparsity=True, as its documentation asks for unstructured masks, two layers a block
  (its default: a residual block here) and each block on the tuned network's own inputs (its default). Its closed-form
  apply_pruning_finetune knows removed channels of MatMul and Gemm alone and apply_norm_tweaking LayerNormalization alone, so neither has
  anything to do here.
- All BatchNorms fitted from one pass are wrong as soon as the earlier ones change what the later ones see: "bn" is at chance at high
  sparsity. "bn-seq" is the same calibrate_recovered_bn, one node after the other, which its node_names argument allows; the first
  --statistics samples serve each of these passes. "bn-seq+block" fine-tunes from there and "bn-seq+block+bn-seq" fits once more after.
- Fine-tuning: --iterations Adam steps a block (300, its documentation's example) on --rows samples (32) each, learning rate --rate: 1e-3,
  between its default of 1e-4 and its example's 2e-2 for a small MatMul. Not scanned here; give --rate to try others.
- It prunes the model as given. The recoveries run on its own folded form of it (onnxsim.simplify), as they are made for; a BatchNorm that
  was fitted is folded back in, so every step sees one topology.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import reference

import onnxprune

HERE = Path(__file__).resolve().parent
VENV = HERE.parent / "build" / "rival-venv"
KEPT = HERE.parent / "build" / "rival"
PACKAGES = ["onnxsim==0.8.1", "onnxruntime"]
METHODS = "magnitude,magnitude-global,wanda,wanda-global,sparsegpt"
RECOVERIES = "none,bias,bn,bn-seq,block,bn-seq+block,bn-seq+block+bn-seq"
OURS = "lamp+channel,erk+channel,lamp+reconstruct,erk+reconstruct"
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="cifar10/resnet18.onnx", help="of the reference folder, cifar10 only")
    parser.add_argument("--sparsity", default="0.9,0.95")
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--recoveries", default=RECOVERIES)
    parser.add_argument("--ours", default=OURS, help="our allocations and repairs; '' for none")
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0, help="of the draw of the samples")
    parser.add_argument("--iterations", type=int, default=300, help="Adam steps a block of the rival's fine-tuning")
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate of the rival's fine-tuning")
    parser.add_argument("--rows", type=int, default=32, help="samples a step of the rival's fine-tuning")
    parser.add_argument("--statistics", type=int, default=128, help="samples a pass of the rival's bn-seq")
    parser.add_argument("--core", type=int, default=-1, help="the core that both sides run on; -1: the last")
    parser.add_argument("--fresh", action="store_true", help="make the rival's rows again, also those that an earlier run has made")
    parser.add_argument("--quick", action="store_true", help="64 samples, magnitude, no fine-tuning, one sparsity")
    args = parser.parse_args()
    if args.quick:
        args.samples, args.statistics, args.sparsity = 64, 32, args.sparsity.split(",")[0]
        args.methods, args.recoveries = "magnitude", "none,bn"
    reference.require()
    onnxruntime.set_default_logger_severity(3)  # its pruned models carry initializers that nothing reads
    one_thread(args.core)
    python = environment()
    stored = reference.samples(args.model)
    samples = stored[np.sort(np.random.default_rng(args.seed).choice(len(stored), min(args.samples, len(stored)), replace=False))]
    print(f"**{args.model}**, dense {reference.top1(reference.FOLDER / args.model, args.model):.4f}, {len(samples)} samples\n")
    print("| who | method | recovery | sparsity reached | top-1 | CPU seconds |")
    print("|---|---|---|---|---|---|", flush=True)
    for sparsity in map(float, args.sparsity.split(",")):
        reached: list[float] = []
        for method in args.methods.split(","):
            for row in rival(python, method, sparsity, samples, args):
                show("onnxsim", method, row)
                reached.append(row["zeros"] / row["weights"])
        for pair in filter(None, args.ours.split(",")):
            alloc, repair = pair.split("+")
            show("onnxprune", alloc, ours(alloc, repair, max(reached), samples, args))


def one_thread(core: int) -> None:
    """Start this script again on one core with one BLAS thread, unless it runs so already; BLAS reads its variable when it is loaded."""
    told = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    if len(os.sched_getaffinity(0)) > 1 or any(os.environ.get(name) != value for name, value in told.items()):
        os.sched_setaffinity(0, [sorted(os.sched_getaffinity(0))[core]])
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **told})


def show(who: str, method: str, row: Row) -> None:
    print(f"| {who} | {method} | {row['recovery']} | {row['sparsity']:.6f} | {row['top1']:.4f} | {row['seconds']:.1f} |", flush=True)


def environment() -> Path:
    """The interpreter of the rival's environment, which is made when it is missing or half made."""
    python, ready = VENV / "bin" / "python", VENV / "ready"
    if not ready.exists():
        print(f"making {VENV} with {', '.join(PACKAGES)}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *PACKAGES], check=True)
        ready.write_text("\n".join(PACKAGES) + "\n")
    return python


def rival(python: Path, method: str, sparsity: float, samples: np.ndarray, args: argparse.Namespace) -> list[Row]:
    """One row a recovery; the model is pruned once for all of those that no earlier run has made."""
    settings = [f"{name}={getattr(args, name)}" for name in ("samples", "seed", "iterations", "rate", "rows", "statistics")]
    KEPT.mkdir(parents=True, exist_ok=True)
    places = {
        name: KEPT / (" ".join([args.model.replace("/", "_"), str(sparsity), method, name, *settings]) + ".json")
        for name in args.recoveries.split(",")
    }
    missing = [name for name, place in places.items() if args.fresh or not place.exists()]
    if missing:
        _make_rows(python, method, sparsity, samples, args, {name: places[name] for name in missing})
    return [json.loads(place.read_text()) for place in places.values()]


def _make_rows(python: Path, method: str, sparsity: float, samples: np.ndarray, args: argparse.Namespace, places: dict[str, Path]) -> None:
    """Run the recoveries that ``places`` names, and write each row there as soon as it is made."""
    with tempfile.TemporaryDirectory() as folder:
        calib = Path(folder) / "calib.npy"
        np.save(calib, samples)
        command = [str(python), str(HERE / "rival_worker.py"), str(reference.FOLDER / args.model), "--method", method]
        command += ["--recovery", ",".join(places), "--sparsity", str(sparsity), "--calib", str(calib)]
        command += ["--output", str(Path(folder) / "pruned.onnx"), "--threads", "1"]
        for name in ("iterations", "rate", "rows", "statistics"):
            command += [f"--{name}", str(getattr(args, name))]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
            for line in worker.stdout or ():
                if line.startswith("{"):
                    row = json.loads(line)
                    row["top1"] = reference.top1(Path(row["output"]), args.model)
                    places[row["recovery"]].write_text(json.dumps(row))
        if worker.returncode:
            sys.exit(f"{' '.join(command)} ended with {worker.returncode}")


def ours(alloc: str, repair: str, sparsity: float, samples: np.ndarray, args: argparse.Namespace) -> Row:
    """onnxprune from the same samples, at exactly that sparsity."""
    start = time.process_time()
    path = reference.FOLDER / args.model
    result = onnxprune.prune(path, samples, sparsity=sparsity, alloc=alloc, repair=repair, samples=len(samples), device="cpu")
    seconds = time.process_time() - start
    return {
        "recovery": repair,
        "sparsity": result.report.sparsity,
        "top1": reference.top1(result.model, args.model),
        "seconds": seconds,
    }


if __name__ == "__main__":
    main()
