"""Least squares on supports by conjugate gradients, all output channels of a layer at once: each by itself, or as one problem.

The first problem is (1) of `thinning`. An iteration is one product of all channels' directions with the matrix that they share, masked to
their supports. Channels come near their solutions after unlike numbers of iterations, and those that are there are left out.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune.numerics.elimination import Bools, Floats
from onnxprune.numerics.threads import one_each, product

Singles = npt.NDArray[np.float32]
ROUNDING = 1e-11
"""The share of the weights' squared norm, or of the first residual's, below which a residual is but the rounding of float32 products."""
FEWER = 0.75
"""The share of channels at work from which on the others leave the products: to move what is left takes as long as an iteration's rest."""
FIRST = 4
"""Iterations that all channels take: where few only decide what to drop, they decide it for all alike."""


def solve_iterative(G: Singles, rhs: Floats, lam: Floats, mask: Bools, start: Floats, iterations: int, tolerance: float) -> Floats:
    """About the weights of `thinning.solve_exact`, by conjugate gradients from ``start`` (C, K), in float32.

    Preconditioned with the diagonal (Jacobi), where the residual's norm falls to ``tolerance`` of the right side's in
    every channel, or ``iterations`` are done, it ends.
    """
    C, K = mask.shape
    shape = (len(G), C // len(G), K)
    m = mask.reshape(shape).astype(np.float32)
    shift = lam.astype(np.float32)[:, None, None]
    scale = np.einsum("gkk->gk", G)[:, None, :] + shift
    weight = W = start.reshape(shape).astype(np.float32) * m
    b = rhs.reshape(shape).astype(np.float32) * m
    tiny = np.float32(1e-30)
    work = np.arange(shape[1])
    with one_each() as (pool, _):
        r: npt.NDArray[Any] = b - (product(pool, W, G) + shift * W) * m
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
            q = (product(pool, p, G) + shift * p) * m
            step = (rz / (np.einsum("gck,gck->gc", p, q) + tiny))[:, :, None]
            W += step * p
            r -= step * q
            np.divide(r, scale, out=z)
            new = np.einsum("gck,gck->gc", r, z)
            p *= (new / (rz + tiny))[:, :, None]
            p += z
            rz = new
    weight[:, work] = W
    return weight.reshape(C, K).astype(np.float64)


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
