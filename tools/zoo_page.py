"""docs/zoo.md: what the runs over real files brought."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime

RUNS = [(alloc, sparsity) for alloc in ("erk", "lamp") for sparsity in (0.5, 0.9)]


def page(results: Mapping[str, Mapping[str, Any]], wheels: Sequence[str]) -> str:
    """The whole page as Markdown."""
    versions = f"numpy {np.__version__}, onnx {onnx.__version__}, onnxruntime {onnxruntime.__version__}"
    return "\n".join(
        [
            "# Real files",
            "",
            "    make zoo",
            "",
            f"writes this page ({versions}, {os.cpu_count()} cores).",
            "",
            "[models.md](models.md) is the table of what is supported.",
            "",
            "ONNX files out of wheels (downloaded, not installed) and exports from torch by both of its exporters are pruned with 64",
            "samples each, a quarter of them held out. Every result is checked: it loads, passes the checker, has the same signature, the",
            "counts are exact, only named tensors changed, every node with a weight is a layer or skipped with a reason, the same run",
            "gives the same bytes, and sparsity 0 is the identity.",
            "",
            f"Wheels: {', '.join(wheels)}.",
            "",
            *found(results),
            *brought(results),
            *failed(results),
        ]
    )


def told(reasons: Sequence[str]) -> str:
    """The reasons with how often each was given; | would end the cell."""
    return "; ".join(f"{count} × {reason}" if count > 1 else reason for reason, count in Counter(reasons).items()).replace("|", "\\|")


def found(results: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """A row for every file: what is in it and what was done with it."""
    yield "Weighted nodes are counted apart from the engine: nodes that read a constant weight, through any operators that fold. One layer"
    yield "may serve several of them, and a recurrent node has two. Repaired are the layers that `--repair channel` reached; a layer that"
    yield "keeps all its weights needs none. Seconds and peak memory are the largest of the file's eight runs."
    yield ""
    yield "| file | weighted nodes | layers pruned | repaired | norms repaired | left as it is, and why | seconds | peak GB |"
    yield "|---|---:|---:|---:|---:|---|---:|---:|"
    for name in names(results):
        runs = {key: run for key, run in results.items() if key.split("|")[0] == name}
        good = [run for run in runs.values() if "layers" in run]
        if not good:
            yield f"| {name} | | | | | {next(iter(runs.values()))['error']} | | |"
            continue
        first = next((run for key, run in runs.items() if key.endswith("0.9|channel") and "layers" in run), good[0])
        reasons = [reason for _, _, reason in first["skipped"]]
        bare = [layer for layer in first["layers"] if layer[5] == "none" and layer[4] < layer[3]]
        reasons += [note for layer in bare for note in layer[7] if note.startswith("pruned, not repaired")]
        cells = [first["weighted"], len(first["layers"]), len(first["layers"]) - len(bare), len(first["norms"]), told(reasons)]
        cells += [f"{max(run['seconds'] for run in good):.1f}", f"{max(run['peak_gb'] for run in good):.2f}"]
        yield f"| {name} | {' | '.join(map(str, cells))} |"
    yield ""


def brought(results: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """A row for every file, allocation and sparsity: agreement and SQNR with masks alone and repaired."""
    yield "### What the repair brings"
    yield ""
    yield "Agreement on the 16 held-out samples: top-1 of the first output with classes, else the cosine; and the SQNR in dB of the same"
    yield "output. With masks alone, repaired by `channel`, and by `reconstruct`. In bold where a repair is worse than masks alone by more"
    yield "than 0.05 or 1 dB."
    yield ""
    yield "| file | allocation | sparsity | measure | masks | channel | reconstruct | SQNR masks | SQNR channel | SQNR reconstruct |"
    yield "|---|---|---:|---|---:|---:|---:|---:|---:|---:|"
    for name in names(results):
        for alloc, sparsity in RUNS:
            pair = [results.get(f"{name}|{alloc}|{sparsity}|{repair}", {}) for repair in ("channel", "reconstruct")]
            good = [run for run in pair if "score" in run]
            if good:
                cells = row([run.get("score") for run in pair], good[0]["score"][0], 3, 0.05)
                cells += row([run.get("main") for run in pair], good[0]["main"][0], 1, 1.0)
                yield f"| {name} | {alloc} | {sparsity} | {good[0]['measure']} | {' | '.join(cells)} |"
    yield ""


def row(pairs: Sequence[Sequence[float] | None], masked: float, digits: int, slack: float) -> list[str]:
    """Masks alone, then each repair, in bold where it falls behind."""
    cells = [f"{masked:.{digits}f}"]
    for pair in pairs:
        text = "error" if pair is None else f"{pair[1]:.{digits}f}"
        cells.append(f"**{text}**" if pair is not None and pair[1] < masked - slack else text)
    return cells


def failed(results: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """What did not go through."""
    yield "### Runs that failed"
    yield ""
    bad = {key: run.get("error") or run.get("violation") for key, run in sorted(results.items()) if "error" in run or "violation" in run}
    yield from [f"- {key.replace('|', ', ')}: {text}" for key, text in bad.items()] or ["None."]
    yield ""


def names(results: Mapping[str, Any]) -> list[str]:
    """The files, in order."""
    return sorted({key.split("|")[0] for key in results})
