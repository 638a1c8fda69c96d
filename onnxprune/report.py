"""What a run did, as frozen dataclasses, and as JSON. The README documents every field; a change of meaning raises SCHEMA."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SCHEMA = 1


@dataclass(frozen=True)
class LayerReport:
    """One prunable weight. ``pruned`` is False for a layer left out by --include or --exclude; it keeps all its weights.

    ``importance`` is the outputs' relative error over the layer's own, of an allocation by measured errors, None without one.
    ``nonzero`` counts the values in the file that goes out; it is below ``kept`` where kept weights were zero already.
    Variance errors are root mean squares over channels of log(v_current / v_dense), variance ratios geometric means of v_current / v_dense,
    None where the repair did not touch the layer.
    A reconstruction also gives its relative errors, sum |dense - current|^2 / sum |dense - mean|^2 over rows that were held out, with the
    masked weights and with the solved ones; the ridge, and the support sizes it went through. They are None and empty otherwise.
    """

    name: str
    op: str
    weight: str
    shape: tuple[int, ...]
    weights: int
    kept: int
    nonzero: int
    density: float
    importance: float | None
    pruned: bool
    repair: str
    channels: int
    dead_channels: int
    gain_min: float | None
    gain_max: float | None
    variance_error_before: float | None
    variance_error_after: float | None
    variance_ratio_before: float | None
    variance_ratio_after: float | None
    relative_error_before: float | None
    relative_error_after: float | None
    ridge: float | None
    steps: tuple[int, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class NormReport:
    """A normalisation that belongs to no layer and was repaired on its own."""

    name: str
    op: str
    repair: str
    channels: int
    dead_channels: int
    variance_error_before: float | None
    variance_error_after: float | None
    variance_ratio_before: float | None
    variance_ratio_after: float | None


@dataclass(frozen=True)
class SkippedReport:
    """A node with weights that was left as it was, and why."""

    name: str
    op: str
    reason: str


@dataclass(frozen=True)
class OutputAgreement:
    """How near one output is to the dense model's on the held-out samples. ``top1`` is the share of samples with the same class."""

    output: str
    samples: int
    top1: float | None
    kl: float | None
    cosine: float
    sqnr_db: float


@dataclass(frozen=True)
class AgreementReport:
    """Agreement with the dense model on samples that took no part in the repair.

    ``masked`` is the model with masks alone, ``repaired`` the one that goes out. ``score`` is what --min-agreement is held
    against: the measure named by ``measure`` on the output named by ``output``.
    """

    samples: int
    measure: str
    output: str
    masked_score: float
    score: float
    masked: tuple[OutputAgreement, ...]
    repaired: tuple[OutputAgreement, ...]


@dataclass(frozen=True)
class CandidateReport:
    """One combination that auto tried, with its agreement on the samples that choose; None where it failed by ``error``."""

    alloc: str
    repair: str
    sparsity_asked: float
    seconds: float
    score: float | None = None
    kl: float | None = None
    cosine: float | None = None
    sqnr_db: float | None = None
    chosen: bool = False
    error: str | None = None


@dataclass(frozen=True)
class ChoiceReport:
    """What auto chose from. ``asked``: which of alloc, repair and sparsity. ``samples`` held-out samples chose, ``judged`` others gave the
    report's agreement; without ``split`` they are the same, and it is a little too high. ``resolution``: the step of a found sparsity."""

    asked: tuple[str, ...]
    samples: int
    judged: int
    split: bool
    resolution: float | None
    candidates: tuple[CandidateReport, ...]


@dataclass(frozen=True)
class FileReport:
    """A model file: its bytes (external data included), what gzip -6 (within a percent) and zstd -3 make of them, and their SHA-256.

    ``sparse_bytes`` is what they are when initializers are stored as int64 COO wherever that takes fewer bytes.
    """

    path: str
    files: tuple[str, ...]
    bytes: int
    gzip_bytes: int
    zstd_bytes: int
    sparse_bytes: int
    sha256: str


@dataclass(frozen=True)
class CalibrationReport:
    """The samples a run used: how many were there, repaired the model and judged it; ``mirrored`` and ``shifted`` (pixels) as asked."""

    paths: tuple[str, ...]
    available: int
    repair: int
    holdout: int
    batch_size: int
    mirrored: bool
    shifted: int


@dataclass(frozen=True)
class ChangesReport:
    """Everything that is different between the file that came in and the one that went out.

    ``values``: tensors with new values. ``initializers`` and ``nodes``: added; an added Add takes over the output name of the
    node before it. ``rewired``: nodes that read an added initializer, or what an added node gives, now. ``sparse``: initializers that
    were dense and are stored sparse.
    """

    values: tuple[str, ...]
    initializers: tuple[str, ...]
    nodes: tuple[str, ...]
    rewired: tuple[str, ...]
    sparse: tuple[str, ...] = ()


@dataclass(frozen=True)
class MemoryReport:
    """Bytes of live tensors: the ``budget``, the ``peak`` at once, in memory and in the file, and what was ``spilled`` to the file."""

    budget: int
    peak: int
    spilled: int


@dataclass(frozen=True)
class Report:
    """One run. ``weights`` and ``kept`` count the layers that are pruned; ``sparsity`` = 1 - kept / weights.
    ``seconds`` is wall time by phase. ``provider`` is the execution provider that really ran, None when nothing did.
    """

    options: Mapping[str, Any]
    versions: Mapping[str, str]
    input: FileReport | None
    output: FileReport | None
    provider: str | None
    sparsity_asked: float
    sparsity: float
    weights: int
    kept: int
    layers: tuple[LayerReport, ...]
    norms: tuple[NormReport, ...]
    skipped: tuple[SkippedReport, ...]
    calibration: CalibrationReport | None
    agreement: AgreementReport | None
    choice: ChoiceReport | None
    changes: ChangesReport
    seconds: Mapping[str, float]
    notes: tuple[str, ...]
    memory: MemoryReport | None = None
    schema: int = SCHEMA

    @property
    def dead_channels(self) -> int:
        """Channels that no longer vary, over all layers and normalisations."""
        return sum(layer.dead_channels for layer in self.layers) + sum(norm.dead_channels for norm in self.norms)


def not_judged(report: Report) -> str:
    """Why a report has no agreement."""
    if report.calibration is None:
        return "not measured: no calibration samples"
    return "not measured: no samples were held out" if not report.calibration.holdout else "not measured: no float output"


def to_json(report: Any) -> str:
    """The report (any of these dataclasses, or a plain structure of them) as indented JSON; infinities and NaN become null.

    A file name that is not UTF-8 comes as the escapes by which Python and JSON carry its bytes.
    """
    text = json.dumps(_plain(report), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode("utf-8", "backslashreplace").decode()


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"schema": fields.pop("schema"), **fields} if "schema" in fields else fields
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if hasattr(value, "item"):  # a number of numpy, such as an option may be
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
