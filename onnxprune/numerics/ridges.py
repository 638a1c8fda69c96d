"""How strongly a layer's weights are drawn to the dense ones, in units of the mean of the diagonal of E[x x']: by how many rows it has."""

from collections.abc import Sequence

RIDGE = 1e-2
"""Where rows are many, or none are held out to choose by."""
Choice = tuple[float, Sequence[float]]
BY_ROWS: Sequence[tuple[float, Choice]] = (
    (6.0, (RIDGE, (RIDGE,))),
    (1.0, (3e-2, (1e-2, 3e-2, 1e-1))),
    (0.0, (3e-2, (3e-2, 1e-1, 1.0))),
)
"""From so many rows an input on: the ridge that the support is chosen with, and those of which the best is then taken."""
UNSEEN: Choice = (1.0, (1e-1, 1.0, 10.0))
"""With fewer rows than inputs, where the support sees no row that is held out."""


def candidates(rows: int, inputs: int, *, unseen: bool) -> Choice:
    """The ridge that the support is chosen with, and those of which the best on held-out rows is taken; ``rows`` are those solved on."""
    return UNSEEN if unseen else next(choice for least, choice in BY_ROWS if rows >= least * inputs)
