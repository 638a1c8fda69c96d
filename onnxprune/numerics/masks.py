"""Weight and keep count -> mask. A mask is True where a weight is kept.

The largest absolute values stay. Everything is chosen by count: a threshold keeps too many where values are equal.
"""

from collections.abc import Iterable, Iterator, Mapping
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Packed(Mapping[int, NDArray[np.bool_]]):
    """Masks by a number, kept as bits; each is made anew, bool, when it is asked for."""

    def __init__(self, masks: Iterable[tuple[int, NDArray[np.bool_]]]) -> None:
        self._held = {number: (mask.shape, np.packbits(mask)) for number, mask in masks}

    def __getitem__(self, number: int) -> NDArray[np.bool_]:
        shape, bits = self._held[number]
        return np.unpackbits(bits, count=prod(shape)).view(np.bool_).reshape(shape)

    def __iter__(self) -> Iterator[int]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)


def magnitude(weight: NDArray[Any]) -> NDArray[Any]:
    """Return ``|weight|`` as a new flat array (N,) in C order, float32 if that is exact for the dtype, else float64."""
    exact = np.float32 if np.can_cast(weight.dtype, np.float32, "safe") else np.float64
    values: NDArray[Any] = np.abs(weight.astype(exact, copy=False)).ravel()
    return values


def top(weight: NDArray[Any], keep: int) -> NDArray[np.bool_]:
    """Return the mask of the ``keep`` largest ``|weight|``: bool, of the weight's shape, exactly ``keep`` True.

    Of equal values the one with the lower flat (C order) index stays. ``weight`` is any float array.
    Raises ValueError for NaN in the weight, and for ``keep`` outside 0..N.
    """
    size = weight.size
    if not 0 <= keep <= size:
        raise ValueError(f"keep {keep} does not fit a weight of shape {weight.shape}: expected 0 to {size}")
    values = magnitude(weight)
    _refuse_nan(values, weight.shape)
    if keep in (0, size):
        return np.full(weight.shape, keep > 0)
    smallest_kept = np.partition(values, size - keep)[size - keep]
    mask: NDArray[np.bool_] = values > smallest_kept
    ties = np.flatnonzero(values == smallest_kept)
    mask[ties[: keep - np.count_nonzero(mask)]] = True
    return mask.reshape(weight.shape)


def n_m(weight: NDArray[Any], n: int, m: int, axis: int) -> NDArray[np.bool_]:
    """Return the mask of the ``n`` largest ``|weight|`` in every ``m`` consecutive along ``axis``: bool, same shape.

    Of equal values the one with the lower index stays. N:M sparsity as in Mishra 2021, arXiv 2104.08378.
    Raises ValueError for NaN in the weight, for n outside 1..m, and where m does not divide the axis.
    """
    if not 1 <= n <= m:
        raise ValueError(f"{n}:{m} sparsity makes no sense: expected 1 <= n <= m, such as 2:4")
    if not -weight.ndim <= axis < weight.ndim:
        raise ValueError(f"axis {axis} does not exist in a weight of shape {weight.shape}")
    if weight.shape[axis] % m:
        raise ValueError(
            f"{n}:{m} sparsity needs an axis that {m} divides: axis {axis} of shape {weight.shape} has "
            f"{weight.shape[axis]} values; leave this layer out or choose another m"
        )
    values = magnitude(weight)
    _refuse_nan(values, weight.shape)
    last = np.moveaxis(values.reshape(weight.shape), axis, -1)
    groups = last.reshape(-1, m)
    order = np.argsort(-groups, axis=1, kind="stable")[:, :n]
    mask = np.zeros(groups.shape, np.bool_)
    np.put_along_axis(mask, order, True, axis=1)
    return np.ascontiguousarray(np.moveaxis(mask.reshape(last.shape), -1, axis))


def _refuse_nan(values: NDArray[Any], shape: tuple[int, ...]) -> None:
    if values.size and np.isnan(values.max()):  # max hands NaN on, without a second array
        raise ValueError(f"{np.count_nonzero(np.isnan(values))} NaN in a weight of shape {shape}; repair the model first")


def balance(norms: NDArray[Any]) -> NDArray[np.float64]:
    """Factors per output channel that take most of a folded BatchNorm's scale out of the channel's magnitudes, float64 (C,).

    ``norms`` (C,) are the L2 norms of the channels' weights. Folding multiplies channel c by gamma_c / sigma_c, which says nothing of
    the weights within it but decides which channels survive a magnitude ranking. The scale itself is lost. In networks that have both
    forms, log |w_c| of the explicit one follows log |w_c| of the folded one over the channels of a layer with a mean slope of 0.04
    (digits), 0.29 (ResNet-18), 0.51 (ResNet-20) and 0.55 (ResNet-56), about 1/3 in the middle (tools/fold_slope.py), so the ranking of
    the explicit form is best restored by w_c / |w_c|^(1 - slope):

        factor = (rms of the norms / norm)^(2/3)

    A channel of zeros has factor 1. The rms leaves the layer's scale as it was.
    """
    values = np.asarray(norms, np.float64)
    factors = np.ones(values.shape)
    alive = values > 0
    if alive.any():
        factors[alive] = (np.sqrt(np.mean(values[alive] ** 2)) / values[alive]) ** (2 / 3)
    return factors
