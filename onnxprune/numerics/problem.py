"""Least squares of all output channels of a layer together, where their errors count as a metric says: what is given and asked for."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from onnxprune.numerics.elimination import Floats
from onnxprune.numerics.gram import Gram, ridge_of
from onnxprune.numerics.metric import Metric
from onnxprune.numerics.thinning import single


@dataclass(frozen=True, eq=False)
class Problem:
    """Least squares of all channels: G (K, K) float64, summed over ``rows`` rows; R and w0 (C, K) float64, the mean and the dense weights;
    lam > 0, the ridge."""

    G: Floats
    R: Floats
    w0: Floats
    lam: float
    rows: int
    metric: Metric

    @cached_property
    def single(self) -> npt.NDArray[np.float32]:
        """The mean of G, (K, K) float32."""
        return single(self.G, self.rows)

    def joined(self, values: npt.NDArray[np.float32] | Floats) -> Floats:
        """M times values (C, K)."""
        along = self.metric.along
        return np.asarray(self.metric.own[:, None] * values + along @ (along.T @ values))

    def goal(self, places: npt.NDArray[np.intp]) -> Floats:
        """What each channel by itself asks for at places (n,) of (C, K), flat: R + lam w0."""
        return np.asarray(self.R.ravel()[places] + self.lam * self.w0.ravel()[places])

    @cached_property
    def asked(self) -> npt.NDArray[np.float32]:
        """What the directions of M ask for, (r, K): U' R."""
        return np.asarray(self.metric.along.T.astype(np.float32) @ self.R.astype(np.float32))


def problem_of(gram: Gram, w0: Floats, ridge: float, metric: Metric) -> Problem:
    """The least squares of a layer without groups whose channels are solved together."""
    R = np.divide(gram.xy[0].T, gram.count, order="C")  # read row by row at every solve
    return Problem(gram.xx[0], R, w0, float(ridge_of(gram, ridge)[0]), gram.count, metric)
