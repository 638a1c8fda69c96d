"""Does agreement with the dense model pick what labels would pick? Tables for docs/choosing.md.

    python tools/table_agreement.py cifar10/resnet18.onnx cifar10/resnet20.onnx cifar10/resnet56.onnx --sparsity 0.9,0.95,0.98

Every combination of allocation and repair is repaired from 410 calibration samples; top-1 is measured on the labelled images. Then some of
the other unlabelled samples, drawn --draws times, pick one combination, by the rule of onnxprune.picking and by others. Shown are the
mean over the draws and, behind a slash, the ninth decile of the regret: the points of top-1 lost by taking what was picked in place of what
labels say is best; and the mean of Spearman's rank correlation of agreement and top-1 over the combinations. Outputs are kept in --cache,
so that a table that was interrupted goes on where it was.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import reference

import onnxprune
from onnxprune.numerics.agreement import Agreement, agreement
from onnxprune.picking import Rated, best

REPAIRING = 410
HELD = (51, 102, 410)
RULES: dict[str, Callable[[Sequence[Agreement]], int]] = {
    "as built": lambda found: best([Rated(one.score, one.sqnr_db) for one in found], found[0].samples),
    "agreement, then KL": lambda found: min(range(len(found)), key=lambda place: (-found[place].score, found[place].kl or 0.0)),
    "KL": lambda found: min(range(len(found)), key=lambda place: found[place].kl or 0.0),
    "SQNR": lambda found: max(range(len(found)), key=lambda place: found[place].sqnr_db),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--sparsity", default="0.9,0.95,0.98")
    parser.add_argument("--alloc", default="global,erk,lamp,error")
    parser.add_argument("--repair", default="bn,channel,reconstruct")
    parser.add_argument("--draws", type=int, default=300)
    parser.add_argument("--cache", type=Path, default=Path("build/agreement"))
    args = parser.parse_args()
    reference.require()
    args.cache.mkdir(parents=True, exist_ok=True)
    combinations = [(alloc, repair) for repair in args.repair.split(",") for alloc in args.alloc.split(",")]
    print(f"| model | sparsity | best by labels | spread | samples | ρ | {' | '.join(RULES)} |")
    print("|---|---|---|---|---|---|" + "---|" * len(RULES))
    for name in args.models:
        for sparsity in map(float, args.sparsity.split(",")):
            for line in rows(name, sparsity, combinations, args.cache, args.draws):
                print(line, flush=True)


def rows(name: str, sparsity: float, combinations: list[tuple[str, str]], cache: Path, draws: int) -> list[str]:
    """A line of the table for each number of samples."""
    dense = outputs(onnx.load(reference.FOLDER / name), samples(name)[1])
    made = [once(name, sparsity, alloc, repair, cache) for alloc, repair in combinations]
    labels = np.array([top1 for _, top1 in made])
    top = int(labels.argmax())
    lines = []
    for held in HELD:
        regrets: dict[str, list[float]] = {rule: [] for rule in RULES}
        order = []
        rng = np.random.default_rng(0)
        for _ in range(draws):
            drawn = rng.choice(len(dense), held, replace=False)
            found = [agreement(dense[drawn], given[drawn]) for given, _ in made]
            order.append(spearman(np.array([one.score for one in found]), labels))
            for rule, pick in RULES.items():
                regrets[rule].append(100 * float(labels[top] - labels[pick(found)]))
        told = [f"{np.mean(regret):.2f} / {np.quantile(regret, 0.9):.2f}" for regret in regrets.values()]
        what = f"{'+'.join(combinations[top])} {labels[top]:.4f} | {100 * (labels.max() - labels.min()):.1f}"
        lines.append(f"| {Path(name).stem} | {sparsity} | {what} | {held} | {np.nanmean(order):.2f} | {' | '.join(told)} |")
    return lines


def once(name: str, sparsity: float, alloc: str, repair: str, cache: Path) -> tuple[np.ndarray, float]:
    """The outputs on the samples that did not repair, and top-1 on the labelled ones."""
    file = cache / f"{Path(name).stem}-{sparsity}-{alloc}-{repair}.npz"
    if not file.exists():
        repairing, others = samples(name)
        model = onnxprune.prune(
            reference.FOLDER / name, repairing, sparsity=sparsity, alloc=alloc, repair=repair, holdout=0.0, device="cpu"
        ).model
        np.savez(file, outputs=outputs(model, others), top1=reference.top1(model, name))
    with np.load(file) as stored:
        return stored["outputs"], float(stored["top1"])


def samples(name: str) -> tuple[np.ndarray, np.ndarray]:
    """The calibration samples that repair, and all others, in an order drawn once."""
    found = reference.samples(name)
    order = np.random.default_rng(0).permutation(len(found))
    return found[order[:REPAIRING]], found[order[REPAIRING:]]


def outputs(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feed = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {feed: images[at : at + 117]})[0] for at in range(0, len(images), 117)])


def spearman(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's rank correlation: Pearson's of the ranks, equal values sharing the mean of theirs; NaN where one side is constant."""
    with np.errstate(invalid="ignore"):
        return float(np.corrcoef(ranks(one), ranks(other))[0, 1])


def ranks(values: np.ndarray) -> np.ndarray:
    """The rank of every value, from 0, equal ones with the mean of their ranks."""
    _, where, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[where]


if __name__ == "__main__":
    main()
