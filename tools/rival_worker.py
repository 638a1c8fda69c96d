"""One run of onnxsim's pruning, inside the environment that holds it; bench_rival.py starts this, and onnxprune is not imported.

    python rival_worker.py MODEL --method wanda --recovery bn-seq+block --sparsity 0.95 --calib calib.npy --output pruned.onnx

A recovery is a chain of steps joined by "+" (STEPS below); "none" is the masks alone. With several recoveries, joined by ",", the model
is pruned once and every common beginning of two chains is run once; each gets its own JSON line and its own file, OUTPUT with the
recovery in its name. ``seconds`` is the CPU time from reading the model to the end of the chain, as if the chain had been run alone;
importing and writing are left out. ``sparsity`` counts exact zeros in the weights of Conv, ConvTranspose, Gemm and MatMul, as onnxprune
counts.

Every step but the pruning works on the model as onnxsim.simplify folds it: its own recovery of BatchNorm is made for folded models, and
its block fine-tuning cannot differentiate through a BatchNorm that keeps statistics.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxsim
from onnx import numpy_helper

BATCH = 32
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
RECOVERED = "_pre_bn_recovery"  # the suffix that its BatchNorm recovery gives the output of a convolution
Feeds = list[dict[str, np.ndarray]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--method", required=True, choices=METHODS)
    parser.add_argument("--recovery", default="none", help=f"chains of {', '.join(STEPS)}, joined by '+'; several, joined by ','")
    parser.add_argument("--sparsity", type=float, required=True)
    parser.add_argument("--calib", type=Path, required=True, help=".npy, float32 in model units, samples first")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--iterations", type=int, default=300, help="Adam steps a block")
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate of the block fine-tuning")
    parser.add_argument("--rows", type=int, default=32, help="samples a step of the block fine-tuning")
    parser.add_argument("--statistics", type=int, default=128, help="the first so many samples for each of the many passes of bn-seq")
    parser.add_argument("--threads", type=int, default=0, help="threads a session; 0 leaves ONNX Runtime its default")
    args = parser.parse_args()
    chains = [[] if name == "none" else name.split("+") for name in args.recovery.split(",")]
    for step in {step for chain in chains for step in chain}:
        if step not in STEPS:
            parser.error(f"recovery step {step!r} is not known; use {', '.join(STEPS)}")
    if args.threads:
        limit_threads(args.threads)
    start = time.process_time()
    dense = onnx.load(args.model)
    samples = np.load(args.calib)
    feed = dense.graph.input[0].name
    feeds = [{feed: samples[at : at + BATCH]} for at in range(0, len(samples), BATCH)]
    pruned = METHODS[args.method](dense, feeds, args.sparsity)
    run = Run(dense, feeds, args)
    done: dict[tuple[str, ...], tuple[onnx.ModelProto, float]] = {(): (pruned, time.process_time() - start)}
    for chain in chains:
        for length in range(1, len(chain) + 1):
            key = tuple(chain[:length])
            if key not in done:
                before, spent = done[key[:-1]]
                start = time.process_time()
                after = STEPS[key[-1]](run, before)
                done[key] = after, spent + time.process_time() - start
        model, seconds = done[tuple(chain)]
        name = "+".join(chain) or "none"
        target = args.output if len(chains) == 1 else args.output.with_stem(f"{args.output.stem}.{name}")
        onnx.save(model, target)
        zeros, weights = count(model)
        line = {"method": args.method, "recovery": name, "asked": args.sparsity, "sparsity": zeros / weights, "zeros": zeros}
        line |= {"weights": weights, "seconds": seconds, "samples": len(samples), "output": str(target), "onnxsim": onnxsim.__version__}
        print(json.dumps(line), flush=True)


class Run:
    """What the recovery steps need beside the pruned model."""

    def __init__(self, dense: onnx.ModelProto, feeds: Feeds, args: argparse.Namespace) -> None:
        self.dense = dense
        self.feeds = feeds
        self.args = args
        self._folded: onnx.ModelProto | None = None

    @property
    def folded(self) -> onnx.ModelProto:
        """The dense model as its own simplify folds it."""
        if self._folded is None:
            self._folded = simplified(self.dense)
        return self._folded

    def graft(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """The folded dense graph with the weights and biases of ``model``: one topology and one set of names for every step."""
        found = {}
        model = simplified(model)
        values = {tensor.name: tensor for tensor in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type in WEIGHTED:
                found[node.output[0].removesuffix(RECOVERED)] = [values.get(name) for name in node.input[1:]]
        result = onnx.ModelProto()
        result.CopyFrom(self.folded)
        names = {tensor.name: tensor for tensor in result.graph.initializer}
        for node in result.graph.node:
            if node.op_type in WEIGHTED:
                for name, value in zip(node.input[1:], found[node.output[0]], strict=True):
                    if name in names and value is not None:
                        names[name].CopyFrom(value)
                        names[name].name = name
        return result


def magnitude(model: onnx.ModelProto, feeds: Feeds, sparsity: float) -> onnx.ModelProto:
    return onnxsim.apply_magnitude_pruning(model, sparsity=sparsity)


def magnitude_global(model: onnx.ModelProto, feeds: Feeds, sparsity: float) -> onnx.ModelProto:
    return onnxsim.apply_magnitude_pruning(model, sparsity=sparsity, global_sparsity=True)


def wanda(model: onnx.ModelProto, feeds: Feeds, sparsity: float) -> onnx.ModelProto:
    return onnxsim.apply_wanda_pruning(model, calibration_data=feeds, sparsity=sparsity)


def wanda_global(model: onnx.ModelProto, feeds: Feeds, sparsity: float) -> onnx.ModelProto:
    return onnxsim.apply_wanda_pruning(model, calibration_data=feeds, sparsity=sparsity, global_sparsity=True)


def sparsegpt(model: onnx.ModelProto, feeds: Feeds, sparsity: float) -> onnx.ModelProto:
    return onnxsim.apply_sparsegpt_pruning(model, calibration_data=feeds, sparsity=sparsity)


def bias(run: Run, model: onnx.ModelProto) -> onnx.ModelProto:
    """Per channel, the mean error of every layer against the dense model, added after the layer; all layers from one pass."""
    return onnxsim.correct_bias(run.folded, run.graft(model), calibration_data=run.feeds)


def bn(run: Run, model: onnx.ModelProto) -> onnx.ModelProto:
    """A BatchNorm after every convolution, fitted to the dense mean and variance; all of them from one pass."""
    fitted = onnxsim.recover_batch_norm(run.graft(model), calibration_data=run.feeds, target_model=run.folded)
    return run.graft(fitted)


def bn_seq(run: Run, model: onnx.ModelProto) -> onnx.ModelProto:
    """The same, one BatchNorm after the other in graph order, so that each is fitted to what the repaired network feeds it."""
    fitted, inserted = onnxsim.insert_identity_bn(run.graft(model))
    feeds = run.feeds[: -(-run.args.statistics // BATCH)]
    for node in inserted:
        fitted = onnxsim.calibrate_recovered_bn(fitted, calibration_data=feeds, target_model=run.folded, node_names=[node.node_name])
    return run.graft(fitted)


def block(run: Run, model: onnx.ModelProto, layers: int = 2) -> onnx.ModelProto:
    """Adam on the kept weights of one block after the other, to the dense block's output on the tuned network's own inputs."""
    tuned, results = onnxsim.apply_block_finetune_all_blocks(
        run.folded,
        run.graft(model),
        calibration_data=run.feeds,
        num_iterations=run.args.iterations,
        learning_rate=run.args.rate,
        batch_size=min(run.args.rows, sum(len(next(iter(feed.values()))) for feed in run.feeds)),
        preserve_sparsity=True,
        max_layers_per_block=layers,
    )
    for result in results:
        if result.skipped_reason:
            print(f"block {result.block.output_name} skipped: {result.skipped_reason}", file=sys.stderr)
        else:
            print(f"block {result.block.output_name}: loss {result.initial_loss:.4g} to {result.final_loss:.4g}", file=sys.stderr)
    return tuned


def layer(run: Run, model: onnx.ModelProto) -> onnx.ModelProto:
    """The same with one layer a block, where the graph can be cut there."""
    return block(run, model, layers=1)


def whole(run: Run, model: onnx.ModelProto) -> onnx.ModelProto:
    """The same with the whole network as one block."""
    return block(run, model, layers=1_000_000)


METHODS: dict[str, Callable[[onnx.ModelProto, Feeds, float], onnx.ModelProto]] = {
    "magnitude": magnitude,
    "magnitude-global": magnitude_global,
    "wanda": wanda,
    "wanda-global": wanda_global,
    "sparsegpt": sparsegpt,
}
STEPS: dict[str, Callable[[Run, onnx.ModelProto], onnx.ModelProto]] = {
    "bias": bias,
    "bn": bn,
    "bn-seq": bn_seq,
    "block": block,
    "layer": layer,
    "whole": whole,
}


def simplified(model: onnx.ModelProto) -> onnx.ModelProto:
    return onnxsim.simplify(model)[0]


def count(model: onnx.ModelProto) -> tuple[int, int]:
    """Exact zeros and all entries of the constant weights of every weighted layer, a shared tensor once."""
    values = {tensor.name: tensor for tensor in model.graph.initializer}
    names = {node.input[1] for node in model.graph.node if node.op_type in WEIGHTED and node.input[1] in values}
    arrays = [numpy_helper.to_array(values[name]) for name in sorted(names)]
    return sum(int((array == 0).sum()) for array in arrays), sum(array.size for array in arrays)


def limit_threads(number: int) -> None:
    """Give every ONNX Runtime session that this process starts that many threads; onnxsim has no option for it."""
    import onnxruntime

    session = onnxruntime.InferenceSession

    class Limited(session):  # type: ignore[misc, valid-type]
        def __init__(self, model: Any, sess_options: Any = None, **options: Any) -> None:
            sess_options = sess_options or onnxruntime.SessionOptions()
            sess_options.intra_op_num_threads = number
            super().__init__(model, sess_options=sess_options, **options)

    onnxruntime.InferenceSession = Limited


if __name__ == "__main__":
    main()
