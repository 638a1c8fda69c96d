"""Run models on held-out samples and compare what they give."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxprune.errors import RuntimeFailure
from onnxprune.feeding import Axes
from onnxprune.graph.stops import stops
from onnxprune.graph.views import FLOATS
from onnxprune.numerics.agreement import Agreement, agreement
from onnxprune.report import AgreementReport, OutputAgreement
from onnxprune.runtime.device import Device
from onnxprune.runtime.session import as_array, run_session
from onnxprune.runtime.several import several
from onnxprune.runtime.spilling import Memory
from onnxprune.runtime.stream import Batch, Stream

Outputs = dict[str, NDArray[Any]]


def collect(session: Any, batches: Iterable[Batch], axes: Axes, tick: Callable[[], None] = lambda: None, at_once: int = 1) -> Outputs:
    """Output name -> the values over all batches, (samples, ...), for the outputs that are float tensors; so many batches run at once.

    An output without a batch axis counts each batch as one sample, (1, 1, values): such a row holds no classes.
    """
    names = float_outputs(session)
    if not names:  # ONNX Runtime takes no names for all names
        return {}

    def made() -> Iterator[tuple[int, Sequence[NDArray[Any]]]]:
        for values in several(lambda batch: (size_of(batch, axes), run_session(session, batch, names)), batches, at_once):
            yield values
            tick()

    return stacked(names, made(), axes)


def float_outputs(session: Any) -> list[str]:
    """The names of the outputs that are float tensors."""
    return [value.name for value in session.get_outputs() if value.type in FLOAT_TYPES]


def collect_in_stages(model: onnx.ModelProto, batches: Iterable[Batch], axes: Axes, device: Device, memory: Memory) -> Outputs:
    """What collect gives, by a walk in stages: few of the weights that were left in files are in memory at a time."""
    names = [value.name for value in model.graph.output if value.type.tensor_type.elem_type in FLOATS]
    if not names:
        return {}
    sizes: list[int] = []

    def counted() -> Iterator[Batch]:
        for batch in batches:
            sizes.append(size_of(batch, axes))
            yield batch

    stream = Stream(model, counted(), names, device, memory)
    for stop in stops(model):
        stream.values([], stop)
    made = stream.values(names)
    return stacked(
        names, ((size, [as_array(batch[name].value()) for name in names]) for size, batch in zip(sizes, made, strict=True)), axes
    )


def size_of(batch: Batch, axes: Axes) -> int:
    """How many samples a batch has."""
    return next((batch[name].shape[axis] for name, axis in axes.inputs.items() if axis is not None), 1)


def stacked(names: Sequence[str], made: Iterable[tuple[int, Sequence[NDArray[Any]]]], axes: Axes) -> Outputs:
    """Output name -> the values over all batches, from each batch's number of samples and values; see collect."""
    parts: dict[str, list[NDArray[Any]]] = {name: [] for name in names}
    whole: set[str] = set()
    for size, values in made:
        for name, given in zip(names, values, strict=True):
            value = axes.output(name, given)
            by_sample = value.ndim > 0 and len(value) == size
            whole.update(() if by_sample else (name,))
            parts[name].append(value if by_sample else value.reshape(1, 1, -1))
    return {name: _joined(values, by_sample=name not in whole) for name, values in parts.items()}


FLOAT_TYPES = ("tensor(float)", "tensor(double)", "tensor(float16)", "tensor(bfloat16)")


def _joined(values: list[NDArray[Any]], *, by_sample: bool) -> NDArray[Any]:
    """The batches one after the other. Where their shapes differ (samples of several lengths), each sample is a row of its own, or each
    batch where there is no batch axis."""
    if len({value.shape[1:] for value in values}) == 1:
        return np.concatenate(values)
    rows = [row for value in values for row in (value if by_sample else [value])]
    width = max(row.size for row in rows)
    return np.concatenate([_row(row, width) for row in rows])


def _row(values: NDArray[Any], width: int) -> NDArray[np.float64]:
    """All values as one sample, filled up with zeros; (1, 1, width), for such a row holds no classes."""
    flat = values.astype(np.float64).ravel()
    return np.pad(flat, (0, width - flat.size)).reshape(1, 1, width)


def paired(values: NDArray[Any], theirs: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Two outputs in one shape: as they are, or, where the values decided their shapes, all of each as one sample."""
    if values.shape == theirs.shape:
        return values, theirs
    width = max(values.size, theirs.size)
    return _row(values, width), _row(theirs, width)


def compare_outputs(dense: Outputs, other: Outputs) -> tuple[OutputAgreement, ...]:
    """The agreement of every output. Where the values decide the shape (a detector's boxes), all of an output is one sample;
    an output in which the dense model gives no number is left out, and so is what is NaN or infinite in one (masked scores).

    Raises:
        RuntimeFailure: the dense model gives nothing but NaN or infinity, so nothing can be compared.
    """
    entries = []
    blank = ""
    for name, values in dense.items():
        if not values.size:
            continue
        values, theirs = _known(*paired(values, other[name]))
        if not values.size:
            blank = blank or name
            continue
        found: Agreement = agreement(values, theirs)
        entries.append(OutputAgreement(name, found.samples, found.top1, found.kl, found.cosine, found.sqnr_db))
    if blank and not entries:
        raise RuntimeFailure(f"output {blank!r} of the dense model has NaN or infinity alone on the calibration samples")
    return tuple(entries)


def _known(values: NDArray[Any], theirs: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Two outputs without what is NaN or infinite in the first: there both have its smallest number; samples without one are left out."""
    finite = np.isfinite(values.astype(np.float64))
    if finite.all():
        return values, theirs
    rows = finite.reshape(len(values), -1).any(axis=1)
    finite, values, theirs = finite[rows], values[rows], theirs[rows]
    low = values[finite].min() if len(values) else 0
    return np.where(finite, values, low), np.where(finite, theirs, low)


def unknown(dense: Outputs | None) -> list[str]:
    """Notes on the outputs in which the dense model gives NaN or infinity."""
    notes = []
    for name, values in (dense or {}).items():
        count = int((~np.isfinite(values.astype(np.float64))).sum())
        if count:
            notes.append(f"output {name!r}: {count} of {values.size} numbers of the dense model are NaN or infinite and are not compared")
    return notes


def judge(dense: Outputs, masked: Outputs, repaired: Outputs) -> AgreementReport | None:
    """The agreement before and after the repair, None when the model has no float output.

    The score is the top-1 agreement of the first output that has classes; without one, the cosine of the first output.
    """
    before, after = compare_outputs(dense, masked), compare_outputs(dense, repaired)
    if not after:
        return None
    place = next((number for number, entry in enumerate(after) if entry.top1 is not None), 0)
    return AgreementReport(
        samples=after[place].samples,
        measure="cosine" if after[place].top1 is None else "top1",
        output=after[place].output,
        masked_score=score(before[place]),
        score=score(after[place]),
        masked=before,
        repaired=after,
    )


def scored(entries: Sequence[OutputAgreement]) -> OutputAgreement:
    """The output that a score is read from: the first that has classes, else the first."""
    return next((entry for entry in entries if entry.top1 is not None), entries[0])


def score(entry: OutputAgreement) -> float:
    """Top-1 agreement where there are classes, else the cosine, in 0..1."""
    return entry.top1 if entry.top1 is not None else min(1.0, max(0.0, entry.cosine))
