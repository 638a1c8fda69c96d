"""Least squares on supports by conjugate gradients, all output channels of a layer at once: each by itself, or as one problem.

The first problem is (1) of `thinning`. An iteration is a product of the channels' directions with the matrix that they share, masked to
their supports; a thread takes some channels through all of theirs. Channels come near their solutions after unlike numbers of iterations,
and those that are there are left out.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune.numerics.elimination import Bools, Floats
from onnxprune.numerics.threads import one_each, shared

Singles = npt.NDArray[np.float32]
ROUNDING = 1e-11
"""The share of the weights' squared norm, or of the first residual's, below which a residual is but the rounding of float32 products."""
FEWER = 0.75
"""The share of channels at work from which on the others leave the products: to move what is left takes as long as an iteration's rest."""
SHARES, FEWEST, MOST = 4, 64, 128
"""A thread takes one in so many channels at a time, so many at least and at most: the products of more are faster, as BLAS lays out the
matrix for each anew (4,608 inputs, 512 channels: 64 at a time 160 ms, 128 147 ms), of fewer there is one for each thread."""
FIRST = 4
"""Iterations that all channels take: where few only decide what to drop, they decide it for all alike."""


def solve_iterative(G: Singles, rhs: Floats, lam: Floats, mask: Bools, start: Floats, iterations: int, tolerance: float) -> Floats:
    """About the weights of `thinning.solve_exact`, by conjugate gradients from ``start`` (C, K), in float32.

    Preconditioned with the diagonal (Jacobi), where the residual's norm falls to ``tolerance`` of the right side's in
    every channel, or ``iterations`` are done, it ends.
    """
    K = mask.shape[1]
    shape = (len(G), len(mask) // len(G), K)
    weight = np.empty(shape)
    values, asked = (part.reshape(shape) for part in (start, rhs))
    high = min(max(shape[1] // SHARES, FEWEST), MOST)
    wide = max(1, high // shape[1])

    def some(part: tuple[slice, slice]) -> None:
        weight[part] = _each_channel(G[part[0]], asked[part], lam[part[0]], mask.reshape(shape)[part], values[part], iterations, tolerance)

    parts = [(slice(g, g + wide), slice(at, at + high)) for g in range(0, len(G), wide) for at in range(0, shape[1], high)]
    with one_each() as threads:
        shared(threads, some, parts, 2.0 * mask.size * K)
    return weight.reshape(mask.shape)


def _each_channel(G: Singles, rhs: Floats, lam: Floats, mask: Bools, start: Floats, iterations: int, tolerance: float) -> Singles:
    """`solve_iterative` for some channels of some groups, by one thread: G (g, K, K), lam (g,), the others (g, n, K)."""
    m = mask.astype(np.float32)
    shift = lam.astype(np.float32)[:, None, None]
    scale = np.einsum("gkk->gk", G)[:, None, :] + shift
    weight = W = start.astype(np.float32) * m
    b = rhs.astype(np.float32) * m
    tiny = np.float32(1e-30)
    work = np.arange(mask.shape[1])
    r: npt.NDArray[Any] = b - (W @ G + shift * W) * m
    z: npt.NDArray[Any] = r / scale
    p = z.copy()
    rz: npt.NDArray[Any] = np.einsum("gck,gck->gc", r, z)
    enough: npt.NDArray[Any] = tolerance**2 * np.einsum("gck,gck->gc", b, b / scale)
    for number in range(iterations):
        far = rz > enough
        if not far.any():
            break
        if number >= FIRST and len(G) == 1 and far.sum() <= FEWER * far.size:
            weight[:, work] = W
            work = work[far[0]]
            W, r, p, m, z = (part[:, far[0]] for part in (W, r, p, m, z))
            rz, enough = rz[:, far[0]], enough[:, far[0]]
        q = (p @ G + shift * p) * m
        step = (rz / (np.einsum("gck,gck->gc", p, q) + tiny))[:, :, None]
        W += step * p
        r -= step * q
        np.divide(r, scale, out=z)
        new = np.einsum("gck,gck->gc", r, z)
        p *= (new / (rz + tiny))[:, :, None]
        p += z
        rz = new
    weight[:, work] = W
    return weight


def descended(
    residual: Floats, preconditioned: Callable[[Floats], Floats], image: Callable[[Floats, Floats], Floats], iterations: int, power: float
) -> tuple[Floats, Floats]:
    """How far so many iterations of conjugate gradients move, and the preconditioner's matrix times that, both like the residual.

    image: the equations' matrix times a way, whose product with the preconditioner's matrix it gets too. ``power``: the squared norm of
    where it begins, by that matrix; it ends where what is left is but rounding.
    """
    near = preconditioned(residual)
    way, before = near, residual
    moved, moved_before = np.zeros_like(residual), np.zeros_like(residual)
    left = float(np.vdot(residual, near))
    enough = ROUNDING * max(left, power)
    for number in range(iterations):
        if number:
            last, near = left, preconditioned(residual)
            left = float(np.vdot(residual, near))
            way, before = near + (left / last) * way, residual + (left / last) * before
        if left <= enough:
            break
        made = image(way, before)
        step = left / np.vdot(way, made)
        moved += step * way
        moved_before += step * before
        residual = residual - step * made
    return moved, moved_before
