"""Does agreement with the dense model pick what labels would pick? Tables for docs/choosing.md.

    python tools/table_agreement.py cifar10/resnet18.onnx cifar10/resnet20.onnx cifar10/resnet56.onnx --sparsity 0.9,0.95,0.98

Every combination of allocation and repair is repaired from 410 calibration samples. The agreement is measured on others of the unlabelled
samples, 51 to 1,638 of them, and top-1 on the labelled test images. Shown are Spearman's rank correlation of agreement and top-1 over the
combinations, and the regret: the points of top-1 lost by taking what agrees best in place of what labels say is best. Outputs are kept in
--cache, so that a table that was interrupted goes on where it was.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import reference

import onnxprune
from onnxprune.numerics.agreement import agreement

REPAIRING = 410
HELD = (51, 102, 512, 1638)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--sparsity", default="0.9,0.95,0.98")
    parser.add_argument("--alloc", default="global,erk,lamp,error")
    parser.add_argument("--repair", default="bn,channel,reconstruct")
    parser.add_argument("--cache", type=Path, default=Path("build/agreement"))
    args = parser.parse_args()
    reference.require()
    args.cache.mkdir(parents=True, exist_ok=True)
    combinations = [(alloc, repair) for repair in args.repair.split(",") for alloc in args.alloc.split(",")]
    print(f"| model | sparsity | best by labels | {' | '.join(f'{held}: ρ, regret, picks' for held in HELD)} | by KL, {HELD[1]} | spread |")
    print("|---|---|---|" + "---|" * (len(HELD) + 2))
    for name in args.models:
        for sparsity in map(float, args.sparsity.split(",")):
            print(row(name, sparsity, combinations, args.cache), flush=True)


def row(name: str, sparsity: float, combinations: list[tuple[str, str]], cache: Path) -> str:
    dense = outputs(onnx.load(reference.FOLDER / name), samples(name)[1])
    made = [once(name, sparsity, alloc, repair, cache) for alloc, repair in combinations]
    labels = np.array([top1 for _, top1 in made])
    best = int(labels.argmax())
    cells = [f"{'+'.join(combinations[best])} {labels[best]:.4f}"]
    for held in HELD:
        found = [agreement(dense[:held], given[:held]) for given, _ in made]
        scores = np.array([entry.score for entry in found])
        pick = min(range(len(made)), key=lambda place: (-scores[place], found[place].kl))
        cells.append(f"{spearman(scores, labels):.2f}, {100 * (labels[best] - labels[pick]):.2f}, {'+'.join(combinations[pick])}")
    divergence = np.array([agreement(dense[: HELD[1]], given[: HELD[1]]).kl for given, _ in made])
    pick = int(divergence.argmin())
    cells.append(f"{spearman(-divergence, labels):.2f}, {100 * (labels[best] - labels[pick]):.2f}, {'+'.join(combinations[pick])}")
    return f"| {Path(name).stem} | {sparsity} | {' | '.join(cells)} | {100 * (labels.max() - labels.min()):.1f} |"


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
