"""The charts of the pages: layers from top to bottom in the order in which they run, and agreement against sparsity."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onnxprune.svg import COLOUR, drawing, shown, themed
from onnxprune.sweep_report import SweepReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

POINTS = 72  # an inch
WIDTH = 360  # points: a phone's width, and three of them a screen's
LETTERS = 24
"""So much of a name stands beside its row in the larger font."""
TOP, BOTTOM, RIGHT = 46, 26, 20
ROOMY = 60
"""Up to this many layers a row is 17 points high, above 12."""
ALLOC_STYLE = {
    "erk": ("s0", "o"),
    "lamp": ("s1", "^"),
    "uniform": ("s2", "|"),
    "global": ("s3", "D"),
    "error": ("s4", "s"),
    "rr": ("s5", "v"),
}
REPAIR_STYLE = {
    "none": ("muted", "x"),
    "bn": ("s1", "^"),
    "layer": ("s3", "D"),
    "channel": ("s0", "o"),
    "asr": ("s2", "v"),
    "reconstruct": ("s4", "s"),
}


@dataclass(frozen=True)
class Change:
    """One layer's measure before and after its repair; None where it was not measured."""

    before: float | None
    after: float | None


def density_chart(
    names: Sequence[str], density: Sequence[float], pruned: Sequence[bool], rule: str, others: Mapping[str, Sequence[float]]
) -> str:
    """Bars of the density of each layer, logarithmic, with a mark for what every other allocation would give it.

    ``density`` is kept / weights, 0 to 1; ``pruned`` is False for a layer that was left out, whose bar is grey. ``others``: name of the
    allocation -> densities. Both are in the layers' order.
    """
    everything = [value for values in (density, *others.values()) for value in values if value > 0]
    low = min(0.5, min(everything, default=1)) / 1.5
    own = COLOUR[ALLOC_STYLE.get(rule, ("s0", "o"))[0]]
    with drawing() as figure_class:
        figure, axes = _rows(figure_class, names)
        colours = [own if take else COLOUR["muted"] for take in pruned]
        ends = [max(value, low) for value in density]
        axes.hlines(range(len(names)), low, ends, colors=colours, linewidth=0.66 * _row(names), alpha=0.4)  # bars, in one piece
        handles = axes.plot([], [], linestyle="", marker="s", color=own, alpha=0.4, markersize=8, label=rule)
        for name, values in others.items():
            role, marker = ALLOC_STYLE[name]
            handles += axes.plot(
                [max(value, low) for value in values], range(len(names)), marker, color=COLOUR[role], label=name, markerfacecolor="none",
                markersize=8 if marker == "|" else 4.5, markeredgewidth=1.8 if marker == "|" else 1.2, clip_on=False,
            )  # fmt: skip
        axes.set_xscale("log")
        axes.set_xlim(low, 1)
        _ticks(axes, low, 1, lambda value: f"{100 * value:g} %")
        _legend(figure, handles)
        marks = {rule: density, **others}
        texts = [
            f"{number + 1} {shown(name)}\n" + "\n".join(f"{key}: {100 * values[number]:.2f} %" for key, values in marks.items())
            for number, name in enumerate(names)
        ]
        told = f"{len(names)} layers in the order in which they run; {100 * min(density):.2f} % to {100 * max(density):.2f} % kept."
        return themed(figure, "Density by layer", told, _bands(names, texts))


def change_chart(names: Sequence[str], changes: Sequence[Change], title: str, *, ratio: bool) -> str:
    """For each layer a line from the measure before its repair to the one after.

    ``ratio``: the measure is a ratio that should be 1, on a logarithmic scale; else an error that should be 0.
    """
    both = [
        (number, change.before, change.after)
        for number, change in enumerate(changes)
        if change.before is not None and change.after is not None and math.isfinite(change.before) and math.isfinite(change.after)
    ]
    values = [value for _, *pair in both for value in pair if value > 0]
    low = max(1e-6, min(0.5, min(values, default=1) / 1.2)) if ratio else 0.0
    high = min(1e6, max(2.0, max(values, default=1) * 1.2)) if ratio else max(values, default=1) * 1.08
    rows = [number for number, _, _ in both]
    before, after = ([min(max(entry[place], low), high) for entry in both] for place in (1, 2))
    with drawing() as figure_class:
        figure, axes = _rows(figure_class, names)
        if ratio:
            axes.axvline(1, color=COLOUR["muted"], linewidth=1, linestyle=(0, (3, 2)))
        axes.hlines(rows, before, after, color=COLOUR["muted"], linewidth=1.2)
        look: dict[str, Any] = {"markersize": 5, "markeredgewidth": 1.3, "clip_on": False}
        handles = axes.plot(before, rows, "o", color=COLOUR["s1"], markerfacecolor=COLOUR["surface"], label="before", **look)
        handles += axes.plot(after, rows, "o", color=COLOUR["s0"], label="after", **look)
        if ratio:
            axes.set_xscale("log")
        axes.set_xlim(low, high)
        if ratio:
            _ticks(axes, low, high, lambda value: f"{value:g}")
        _legend(figure, handles)
        texts = [
            f"{number + 1} {shown(names[number])}\nbefore: {_number(change.before)}\nafter: {_number(change.after)}"
            for number, change in enumerate(changes)
        ]
        told = f"{len(both)} of {len(names)} layers, before and after the repair."
        return themed(figure, title, told, _bands(names, texts))


def sweep_chart(sweep: SweepReport, alloc: str) -> str:
    """Agreement against sparsity under one allocation, a line for each repair; the transition regime is shaded."""
    found = [(row.repair, row.sparsity_asked, row.score) for row in sweep.rows if row.alloc == alloc and row.score is not None]
    asked = sorted({row.sparsity_asked for row in sweep.rows})
    low = math.floor(10 * min((row.score for row in sweep.rows if row.score is not None), default=0)) / 10
    middles = [(one + other) / 2 for one, other in itertools.pairwise(asked)] or [asked[0] + 0.01]
    edges = [2 * asked[0] - middles[0], *middles, 2 * asked[-1] - middles[-1]] if len(asked) > 1 else [asked[0] - 0.01, *middles]
    height = 264
    with drawing() as figure_class:
        figure = figure_class(figsize=(WIDTH / POINTS, height / POINTS))
        axes = figure.add_axes((40 / WIDTH, 72 / height, (WIDTH - 52) / WIDTH, (height - 82) / height))
        regime = {point.sparsity_asked for entry in sweep.regimes if entry.alloc == alloc for point in entry.points}
        handles: list[Any] = []
        repairs = list(dict.fromkeys(name for name, _, _ in found))
        for number, repair in enumerate(repairs):
            over = len(repairs) - 1 - number  # lines that lie over this one, which is wider: where they agree, all are seen
            line = sorted((100 * sparsity, score) for name, sparsity, score in found if name == repair)
            role, marker = REPAIR_STYLE.get(repair, ("ink", "o"))
            x, y = [point[0] for point in line], [point[1] for point in line]
            handles += axes.plot(
                x, y, marker=marker, color=COLOUR[role], markersize=4.5 + over, linewidth=1.4 + 0.6 * over, label=repair, clip_on=False
            )
        told = f"Agreement with the dense model at {len(asked)} sparsities for {len(handles)} repairs."
        bands = [
            axes.axvspan(
                100 * edges[run[0]], 100 * edges[run[-1] + 1], color=COLOUR["band"], linewidth=0, zorder=0, label="transition regime"
            )
            for run in _runs([number for number, sparsity in enumerate(asked) if sparsity in regime])
        ]
        if bands:
            told += f" The transition regime: {', '.join(f'{100 * sparsity:g} %' for sparsity in asked if sparsity in regime)}."
        axes.set_xlim(100 * edges[0], 100 * edges[-1])
        axes.set_ylim(low, 1)
        axes.grid(axis="y")
        axes.set_xlabel("sparsity in %")
        axes.tick_params(axis="y", labelcolor=COLOUR["muted"], length=0)
        places = asked[:: math.ceil(len(asked) / 7)]
        axes.set_xticks([100 * value for value in places], [f"{100 * value:g}" for value in places])
        figure.legend(
            handles=[*handles, *bands[:1]], loc="lower center", ncols=4, fontsize=9, handlelength=1.6, columnspacing=1.2, borderpad=0
        )
        return themed(figure, f"Agreement against sparsity, allocation {alloc}", told)


def _runs(numbers: Sequence[int]) -> list[list[int]]:
    """Ascending numbers, those that follow each other together."""
    groups = itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])
    return [[number for _, number in group] for _, group in groups]


def _rows(figure_class: type[Figure], names: Sequence[str]) -> tuple[Figure, Axes]:
    """A figure with one row for each layer, the first on top, its name to the left."""
    row = _row(names)
    size = 10 if row > 12 else 8.5
    labels = [f"{_short(shown(name), round(LETTERS * 10 / size))}  {number + 1}" for number, name in enumerate(names)]
    left = 0.56 * size * max((len(label) for label in labels), default=0) + 10
    height = TOP + row * len(names) + BOTTOM
    figure = figure_class(figsize=(WIDTH / POINTS, height / POINTS))
    axes = figure.add_axes((left / WIDTH, BOTTOM / height, (WIDTH - left - RIGHT) / WIDTH, row * len(names) / height))
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_yticks([])
    for number, label in enumerate(labels):  # ticks with labels take three times as long
        axes.text(
            -6 / (WIDTH - left - RIGHT),
            number,
            label,
            fontsize=size,
            ha="right",
            va="center_baseline",
            transform=axes.get_yaxis_transform(),
        )
    axes.tick_params(axis="x", top=True, labeltop=True, length=0)
    axes.grid(axis="x")
    axes.spines["bottom"].set_visible(False)
    return figure, axes


def _row(names: Sequence[str]) -> int:
    return 17 if len(names) <= ROOMY else 12


def _bands(names: Sequence[str], texts: Sequence[str]) -> list[tuple[float, float, str]]:
    """The rows of `_rows` as bands for `themed`."""
    return [(TOP + number * _row(names), _row(names), text) for number, text in enumerate(texts)]


def _short(name: str, letters: int) -> str:
    """The end of a long name: it tells layers apart, where the beginning says what they are part of."""
    return name if len(name) <= letters else f"…{name[1 - letters :]}"


def _ticks(axes: Axes, low: float, high: float, text: Any) -> None:
    """Ticks of a logarithmic scale at 1, 2 and 5, or at powers of ten alone where that is more than six."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        places = [digit * 10.0**power for power in decades for digit in steps if low <= digit * 10.0**power <= high * 1.0001]
        if len(places) <= 5:
            break
    places = places[:: max(1, math.ceil(len(places) / 6))]
    axes.set_xticks(places, [text(float(f"{value:.6g}")) for value in places])
    axes.minorticks_off()


def _legend(figure: Figure, handles: list[Any]) -> None:
    look: dict[str, float] = {"fontsize": 9.5, "handlelength": 1, "handletextpad": 0.4, "columnspacing": 1.3, "borderpad": 0.2}
    figure.legend(handles=handles, loc="upper right", ncols=6, **look)


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4g}"
