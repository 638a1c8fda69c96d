"""What a sweep found, as frozen dataclasses; report.to_json writes them. docs/choosing.md documents every field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from onnxprune.report import CalibrationReport


@dataclass(frozen=True)
class SweepRow:
    """One combination of allocation, sparsity and repair.

    ``key`` is the SHA-256 of all that decides the row: model, samples, options, versions. ``weights`` and ``kept`` count the layers that
    are pruned; ``sparsity`` = 1 - kept / weights. ``score`` is the agreement with the dense model on the held-out samples, by the sweep's
    ``measure`` on its ``output``; ``kl``, ``cosine`` and ``sqnr_db`` are of that output too. ``accuracy`` is the share of held-out samples
    whose label is the pruned model's class, None without labels. ``batch_size`` is below the sweep's where memory ran out. A row that
    failed has its ``error``, and None for what was not measured.
    """

    key: str
    alloc: str
    sparsity_asked: float
    repair: str
    sparsity: float | None = None
    weights: int | None = None
    kept: int | None = None
    dead_channels: int | None = None
    score: float | None = None
    kl: float | None = None
    cosine: float | None = None
    sqnr_db: float | None = None
    accuracy: float | None = None
    seconds: float = 0.0
    error: str | None = None
    batch_size: int | None = None


@dataclass(frozen=True)
class Best:
    """The combination that agrees best with the dense model at one sparsity, by the rule of onnxprune.picking.

    It was chosen on the samples that ``score`` is measured on, so the score is a little too high. Labels take no part in the choice.
    """

    sparsity_asked: float
    alloc: str
    repair: str
    score: float
    kl: float | None
    accuracy: float | None


@dataclass(frozen=True)
class RegimePoint:
    """One sparsity of the transition regime: the score of bn, and the best repair that still holds, with its score."""

    sparsity_asked: float
    bn: float
    repair: str
    score: float


@dataclass(frozen=True)
class Regime:
    """The transition regime of one allocation: where bn's score is below ``fallen`` while that of a stronger repair is ``holds`` or more.

    ``first`` and ``last`` are the lowest and the highest of them, None where there is none.
    """

    alloc: str
    fallen: float
    holds: float
    first: float | None
    last: float | None
    points: tuple[RegimePoint, ...]


@dataclass(frozen=True)
class SweepReport:
    """A whole sweep. ``rows`` come by allocation, sparsity and repair, in the order asked for.

    ``model`` and ``sha256`` name the file, ``calibration`` the samples, ``labels`` the file of labels. ``measure`` is "top1" or "cosine" of
    ``output``, None where nothing could be compared. ``dense_accuracy`` is the dense model's on the held-out samples, None without labels.
    ``seconds`` adds up those of the rows.
    """

    model: str
    sha256: str
    options: Mapping[str, Any]
    versions: Mapping[str, str]
    provider: str
    calibration: CalibrationReport
    labels: str | None
    measure: str | None
    output: str | None
    dense_accuracy: float | None
    rows: tuple[SweepRow, ...]
    best: tuple[Best, ...]
    regimes: tuple[Regime, ...]
    seconds: float
    notes: tuple[str, ...]
    schema: int = 1
