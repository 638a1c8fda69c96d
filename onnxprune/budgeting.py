"""What the allocations "error" and "rr" share the sparsity out by, measured on the dense model layer by layer.

"error" takes error curves. One stream walks through the dense model. At a layer, sampled rows of its input and output make the moments
that least squares needs; its support is thinned from half the layer down to a fraction of its likely share, a few rounds of conjugate
gradients each time, and the error of every size is measured on rows that were not solved on. That is what reconstruction will do there,
in short.

An error of one layer is not worth that of another. At two of the sizes the layer alone is replaced, and the rest of the model run from
there to the outputs: their relative error tells the layer's importance, and by which power the outputs follow its own error.
Related: SPDY, arXiv 2201.13096; optimal brain compression, 2208.11580.

The allocation "rr" walks the same way and measures one number a layer instead: with the layer alone masked as "erk" would, its error after
a channel repair over its error before. After Zhan 2026, arXiv 2605.25508, of which the abstract alone is published; the reading is ours.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxprune.errors import ModelError
from onnxprune.feeding import Axes
from onnxprune.graph import affine, geometry, layers
from onnxprune.graph.complete import size_of as bytes_of
from onnxprune.graph.geometry import Geometry
from onnxprune.graph.points import Point
from onnxprune.graph.points import points as points_of
from onnxprune.graph.tensors import Constants
from onnxprune.judging import Outputs, paired, size_of, stacked
from onnxprune.masking import Decided
from onnxprune.numerics import thinning
from onnxprune.numerics.budget import Curve, Measured, fitted
from onnxprune.numerics.gram import Gram, ridge_of
from onnxprune.numerics.ridges import RIDGE
from onnxprune.numerics.targets import channel_gains
from onnxprune.options import RESIDUAL, Options, fixed_sparsity
from onnxprune.reconstructing import shape_of
from onnxprune.runtime.device import Device
from onnxprune.runtime.session import MAX_PROTO
from onnxprune.runtime.spilling import Memory
from onnxprune.runtime.stream import Batch, Stream
from onnxprune.sampling import dense_rows, gram_of, input_of
from onnxprune.writing import write_layer

NO_SAMPLES = "--alloc {} measures the layers on calibration samples; give --calib PATH to prune (--dry-run shows the allocation)"
STILL = "its output does not vary on the samples, or is not finite"
SAMPLES = 192
"""Samples the curves are measured on, of those that repair."""
JUDGED = 4
"""One batch in so many is not solved on: errors, and what they do to the outputs, are measured on it."""
ROWS = 8_000
FACTOR = 1.7
"""Each support is 1/FACTOR of the one before,"""
BELOW = 12.0
"""from half of the layer, or of all that the layers may keep if that is less, to a part so small of its share at one density for all."""
EFFORT = (12, 1e-2)
"""Iterations of conjugate gradients at most and their tolerance. With 4, errors of large supports came out double, and the curves bent."""
NEAR = 0.12
"""The outputs are measured at the first size whose error is no less, and two sizes before."""
WORST = 1e6
"""An error of the outputs that counts as any larger one."""
FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16)

Weights = NDArray[np.float64]


def chosen_samples(rows: NDArray[np.intp], batch_size: int, most: int = SAMPLES, batches: int = 1) -> NDArray[np.intp]:
    """At most so many of the samples, evenly spread, in whole batches if there are that many; so many batches at least."""
    most = max(most // batch_size, batches) * batch_size
    return rows if len(rows) <= most else rows[np.arange(most) * len(rows) // most]


def measure(
    dense: onnx.ModelProto,
    found: Decided,
    options: Options,
    batches: Callable[[], Iterable[Batch]],
    axes: Axes,
    device: Device,
    told: Callable[[int], Callable[[], None]],
    memory: Memory | None = None,
) -> dict[str, Measured]:
    """By a weight's name, the error curve or the residual ratio of its layer, or why it has none; for those that share the common sparsity.

    ``found`` tells which layers there are, and the masks that a residual ratio is measured with; ``told`` takes the number of layers
    and gives what is called after each.

    Raises:
        ModelError: the model is too large to be cut into stages.
    """
    if bytes_of(dense) > MAX_PROTO:
        raise ModelError(f"--alloc {options.alloc} measures the layers in stages, which are limited to 2 GiB; choose another --alloc")
    fixed = fixed_sparsity(found.found.layers, found.chosen, options)
    free = [layer.weight for number, layer in enumerate(found.found.layers) if found.chosen[number] and number not in fixed]
    model = onnx.ModelProto()
    model.CopyFrom(dense)
    constants = Constants(model)
    measured: dict[str, Measured] = dict.fromkeys(free, "no place of repair lies behind it")

    def places() -> list[tuple[Point, Geometry]]:
        there = []
        for point in points_of(layers.find(model, options.include)):
            if point.layer is not None and point.layer.weight in measured:
                shape = shape_of(constants, point)
                measured[point.layer.weight] = shape if isinstance(shape, str) else "it was not measured"
                there += [(point, shape)] if isinstance(shape, Geometry) else []
        return sorted(there, key=lambda place: place[0].use.node if place[0].use else 0)

    affine.insert(model, affine.give_biases(constants, [point for point, _ in places()]))
    taken = places()
    outputs = [value.name for value in model.graph.output if value.type.tensor_type.elem_type in FLOATS]
    goals = [name for point, _ in taken for name in (input_of(model, point), point.dense_tensor)]
    stream = Stream(model, batches(), [*goals, *outputs], device, memory)
    rng = np.random.default_rng(options.seed)
    counts = [size_of(batch, axes) for batch in batches()]
    judged = max(1, round(len(counts) / JUDGED))
    masks = {found.found.layers[number].weight: mask for number, mask in found.masks.items()}
    density, total = 1 - options.sparsity, sum(point.layer.size for point, _ in taken if point.layer)
    tick = told(len(taken))

    def run() -> Outputs:
        made = stream.finish(outputs, judged) if outputs else []
        values = ([value.numpy() for value in batch] for batch in made)
        return stacked(outputs, zip(islice(counts, len(made)), values, strict=True), axes)

    def effect() -> float:
        return _error(seen[0], run())

    seen: list[Outputs] = []  # of the dense model, once the stream has begun
    for point, shape in taken:
        assert point.layer is not None
        rows = dense_rows(model, point, shape, stream, ROWS, rng, device)
        if options.alloc == RESIDUAL:
            measured[point.layer.weight] = _ratio(constants, point, shape, gram_of(rows, shape.group, device), masks[point.layer.weight])
            tick()
            continue
        seen = seen or [run()]
        held = gram_of(rows[:judged], shape.group, device)
        fit = gram_of(rows[judged:], shape.group, device) if len(rows) > judged else held
        del rows
        sizes = sizes_of(point.layer.size, point.channels, density, density * total)
        measured[point.layer.weight] = _curve(constants, point, shape, fit, held, sizes, effect)
        tick()
    return measured


def _curve(
    constants: Constants, point: Point, shape: Geometry, fit: Gram, held: Gram, sizes: Sequence[int], outputs: Callable[[], float]
) -> Curve | str:
    """The curve of one layer, from the moments of the rows solved on and of those measured on; ``outputs`` gives the outputs' error."""
    assert point.layer is not None
    finite = all(np.isfinite(part).all() for gram in (fit, held) for part in (gram.xx, gram.xy, gram.yy))
    if not (finite and fit.count and _varies(held)):
        return STILL
    gain, _ = affine.folded(constants, point)
    dense = geometry.to_matrix(constants.read(point.layer.seen), shape) * gain[:, None]
    lam = ridge_of(fit, RIDGE)
    rhs, _ = thinning.right_side(fit.xy / fit.count, lam, dense)
    mask, weight = np.ones(dense.shape, np.bool_), dense
    errors: list[float] = []
    last: deque[tuple[float, Weights]] = deque(maxlen=3)
    for size in sizes:
        mask = thinning.select(np.abs(weight), size, mask)
        weight = thinning.solve(fit.xx, rhs, lam, mask, weight, rows=fit.count, effort=EFFORT)
        errors.append(held.error(weight, fit.shift(weight)))
        if len(last) < (last.maxlen or 0) or last[-1][0] < NEAR:
            last.append((errors[-1], weight))
    costs = []
    for _, weight in (last[-1], last[0]):
        with _replaced(constants, point, shape, weight, fit.shift(weight)):
            costs.append(outputs())
    importance, power = fitted((last[-1][0], last[0][0]), (costs[0], costs[1]))
    return Curve(tuple(sizes)[::-1], tuple(errors[::-1]), importance, power)


def _ratio(constants: Constants, point: Point, shape: Geometry, gram: Gram, mask: NDArray[np.bool_]) -> float | str:
    """RR of one layer: its error with the masked weights after a channel repair, over the error before; 1 where the mask does no harm."""
    assert point.layer is not None
    if not _varies(gram):
        return STILL
    gain, _ = affine.folded(constants, point)
    values = constants.read(point.layer.seen)
    dense, left = (geometry.to_matrix(weight, shape) * gain[:, None] for weight in (values, np.where(mask, values, 0)))
    repaired = left * channel_gains(gram, left)[:, None]
    raw, residual = gram.error(left, gram.shift(dense)), gram.error(repaired, gram.shift(repaired))
    return residual / raw if raw > 0 else 1.0


def _varies(gram: Gram) -> bool:
    return bool(gram.yy.sum() > 0 and np.isfinite(gram.yy).all())


def sizes_of(size: int, channels: int, density: float, total: float) -> list[int]:
    """The falling support sizes of a layer of ``size`` weights on which its error is measured, where all layers keep ``total``."""
    low = max(size * density / BELOW, channels / 2, 1.0)
    sizes = [min(size, total) / 2]
    while sizes[-1] / FACTOR >= low:
        sizes.append(sizes[-1] / FACTOR)
    return sorted({max(1, round(count)) for count in sizes}, reverse=True)


@contextlib.contextmanager
def _replaced(constants: Constants, point: Point, shape: Geometry, weight: Weights, shift: NDArray[np.float64]) -> Iterator[None]:
    """The model with another weight and bias in one layer; afterwards they are as before, bit by bit."""
    assert point.layer is not None
    node, at = affine.shift_input(constants, point)
    values, bias, data_type = constants.read(point.layer.seen), constants.read(node.input[at]), constants.data_type(node.input[at])
    write_layer(constants, point, shape, weight, shift)
    yield
    constants.write(point.layer.seen, values)
    constants.write_input(node, at, bias, data_type, "bias")


def _error(dense: Outputs, other: Outputs) -> float:
    """sum (other - dense)^2 / sum (dense - mean dense)^2, the mean over samples; over the outputs, the mean of those that vary."""
    errors = []
    for name, values in dense.items():
        ours, theirs = (array.astype(np.float64) for array in paired(values, other[name]))
        known = np.isfinite(ours)
        ours, theirs = np.where(known, ours, 0.0), np.where(known, np.nan_to_num(theirs), 0.0)
        centre = ours.mean(0) if len(ours) > 1 else ours.mean() if ours.size else 0.0
        power = float(((ours - centre) ** 2).sum())
        if power > 0:
            errors.append(min(float(((theirs - ours) ** 2).sum()) / power, WORST))
    return float(np.mean(errors)) if errors else 1.0
