"""How long models take on one batch, measured side by side."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.runtime.session import run_session

WARM_UP = 3
SECONDS = 4.0
"""Time for the measured runs of all models together; there are never fewer than LEAST nor more than MOST of each."""
LEAST, MOST = 7, 200


def race(sessions: Sequence[Any], feed: dict[str, NDArray[Any]]) -> NDArray[np.float64]:
    """Seconds of every run, float64 (models, runs), wall time of the same batch.

    The models take turns, so that a machine that gets slower or is used by others slows all of them alike, and every second round
    turns the order round. The first runs, which ONNX Runtime plans its memory with, do not count.

    Raises:
        RuntimeFailure: a node fails on this batch.
    """
    names = [[value.name for value in session.get_outputs()] for session in sessions]
    places = range(len(sessions))
    for _ in range(WARM_UP):
        for place in places:
            run_session(sessions[place], feed, names[place])
    rounds: list[list[float]] = []
    start = time.perf_counter()
    while len(rounds) < LEAST or (len(rounds) < MOST and time.perf_counter() - start < SECONDS):
        taken = [0.0] * len(sessions)
        for place in places if len(rounds) % 2 == 0 else reversed(places):
            begin = time.perf_counter()
            run_session(sessions[place], feed, names[place])
            taken[place] = time.perf_counter() - begin
        rounds.append(taken)
    return np.array(rounds).T
