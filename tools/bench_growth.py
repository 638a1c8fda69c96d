"""How time and memory grow with samples, layers and weights; writes docs/growth.svg and prints the table of docs/performance.md.

    python tools/bench_growth.py [--quick | --deep]

Every point is one run of the command on a synthetic residual network of 3 x 3 convolutions, one thread, in a process of its own from start
to exit: CPU seconds (user and system), wall seconds and peak resident memory. The networks are made in processes of their own too, since a
process hands the memory it has held down to those it starts. "Power" is that of the growth between the last two points, of what lies above
a run on next to nothing: 1 is linear.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TASKS = {"masks": "none", "channel": "channel", "reconstruct": "reconstruct"}
"""What is measured -> the repair. Masks alone read no samples, but for the agreement where samples are what grows."""
LABELS = {"samples": "calibration samples", "layers": "layers", "weights": "weights"}
SAMPLES, DEPTH, WIDTH, SIZE, SPARSITY = 128, 16, 32, 16, 0.9


@dataclass(frozen=True)
class Subject:
    """A network and its samples: so many layers of so many channels, on images of so many pixels a side."""

    samples: int = SAMPLES
    depth: int = DEPTH
    width: int = WIDTH
    size: int = SIZE

    @property
    def weights(self) -> int:
        """Of the convolutions and the head."""
        return 9 * self.width * (3 + (self.depth - 1) * self.width) + 10 * self.width


@dataclass(frozen=True)
class Point:
    """What one run took: CPU and wall seconds, megabytes."""

    at: int
    cpu: float
    wall: float
    peak: float


def subjects(what: str, task: str, quick: bool) -> list[tuple[int, Subject]]:
    """The values on the axis ``what``, and the subject of each."""
    if what == "samples":
        return [(count, Subject(samples=count)) for count in (64, 128, 256, 512, 1024)[: 2 if quick else None]]
    if what == "layers":
        return [(depth, Subject(depth=depth)) for depth in (4, 8, 16, 32, 64)[: 2 if quick else None]]
    most = 1.1e6 if task == "reconstruct" else 4e7
    widths = (40, 72, 125, 217, 388, 672)[: 2 if quick else None]
    found = [Subject(samples=64, depth=8, width=width, size=4) for width in widths]
    return [(subject.weights, subject) for subject in found if subject.weights < most]


def make(subject: Subject, folder: Path) -> None:
    """Write net.onnx and x.npy."""
    import numpy as np
    import onnx
    from onnx import helper, numpy_helper

    rng = np.random.default_rng(0)
    nodes, weights, last, width = [], {}, "x", 3
    for number in range(subject.depth):
        weights[f"w{number}"] = rng.normal(0, math.sqrt(2 / (9 * width)), (subject.width, width, 3, 3)).astype(np.float32)
        weights[f"b{number}"] = rng.normal(0, 0.1, subject.width).astype(np.float32)
        nodes.append(helper.make_node("Conv", [last, f"w{number}", f"b{number}"], [f"c{number}"], f"conv{number}", pads=[1, 1, 1, 1]))
        made = f"c{number}"
        if number > 1 and number % 2 == 0:  # a way around every two layers
            nodes.append(helper.make_node("Add", [made, f"h{number - 2}"], [f"a{number}"]))
            made = f"a{number}"
        nodes.append(helper.make_node("Relu", [made], [f"h{number}"]))
        last, width = f"h{number}", subject.width
    weights["head"] = rng.normal(0, 0.3, (10, width)).astype(np.float32)
    nodes += [helper.make_node("GlobalAveragePool", [last], ["mean"]), helper.make_node("Flatten", ["mean"], ["flat"])]
    nodes.append(helper.make_node("Gemm", ["flat", "head"], ["y"], "fc", transB=1))
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", 1, ["n", 3, subject.size, subject.size])],
        [helper.make_tensor_value_info("y", 1, ["n", 10])],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(folder / "net.onnx"))
    np.save(folder / "x.npy", rng.normal(0, 1, (subject.samples, 3, subject.size, subject.size)).astype(np.float32))


def measure(subject: Subject, what: str, task: str, at: int) -> Point:
    """One run of the command."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        told = [str(value) for value in (subject.samples, subject.depth, subject.width, subject.size)]
        subprocess.run([sys.executable, __file__, "--make", name, *told], check=True)
        words = [
            sys.executable,
            "-m",
            "onnxprune",
            str(folder / "net.onnx"),
            "--sparsity",
            str(SPARSITY),
            "--repair",
            TASKS[task],
            "--quiet",
        ]
        words += ["--threads", "1", "--device", "cpu", "--samples", str(subject.samples), "-o", str(folder / "out.onnx")]
        words += ["--calib", str(folder / "x.npy")] if task != "masks" or what == "samples" else []
        begin = time.perf_counter()
        process = subprocess.Popen(words, env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "ONNXPRUNE_THREADS": "1"})
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            sys.exit(f"{' '.join(words)} ended with {process.returncode}")
        return Point(at, usage.ru_utime + usage.ru_stime, time.perf_counter() - begin, usage.ru_maxrss / 1e3)


def power(points: Sequence[Point], least: Point, field: str) -> float:
    """The power by which CPU seconds or the peak grow between the last two points, above the smallest run's; NaN where nothing grows."""
    (before, last) = (getattr(point, field) - getattr(least, field) for point in points[-2:])
    floor = 0.2 if field == "cpu" else 20.0  # below that, chance
    if before < floor or last < floor:
        return math.nan
    return math.log(last / before) / math.log(points[-1].at / points[-2].at)


def table(found: dict[tuple[str, str], list[Point]], least: dict[str, Point]) -> str:
    """The rows for docs/performance.md."""
    lines = ["| against | run | values | CPU s | wall s | peak MB | power of CPU s | of memory |", "|---|---|---|---|---|---|---|---|"]

    def told(value: float) -> str:
        return "–" if math.isnan(value) else f"{value:.2f}"

    for (what, task), points in found.items():
        columns = [
            ", ".join(f"{point.at:,}".replace(",", " ") for point in points),
            ", ".join(f"{point.cpu:.1f}" for point in points),
            ", ".join(f"{point.wall:.1f}" for point in points),
            ", ".join(f"{point.peak:.0f}" for point in points),
            *(told(power(points, least[task], field)) for field in ("cpu", "peak")),
        ]
        lines.append(f"| {LABELS[what]} | {task} | {' | '.join(columns)} |")
    return "\n".join(lines)


def draw(found: dict[tuple[str, str], list[Point]], target: Path) -> None:
    """Six charts, time above memory, both axes logarithmic; the dotted lines are linear growth through the last point."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    from onnxprune.svg import COLOUR, drawing, themed

    def short(value: float, _: int) -> str:
        return f"{value / 1e6:g}M" if value >= 1e6 else f"{value / 1e3:g}k" if value >= 1e4 else f"{value:g}"

    with drawing() as figures:
        figure = figures(figsize=(9.6, 5.6))
        axes = figure.subplots(2, 3)
        for column, what in enumerate(LABELS):
            for row, (field, label) in enumerate((("cpu", "CPU seconds"), ("peak", "peak MB"))):
                chart = axes[row][column]
                for number, task in enumerate(TASKS):
                    points = found[what, task]
                    values = [getattr(point, field) for point in points]
                    at = [point.at for point in points]
                    colour = COLOUR[f"s{number}"]
                    chart.plot(at, values, color=colour, marker="osD"[number], markersize=4, linewidth=1.5, label=task)
                    chart.plot(at, [values[-1] * value / at[-1] for value in at], color=colour, linewidth=0.8, linestyle=":")
                chart.set_xscale("log")
                chart.set_yscale("log")
                chart.set_ylim(0.8 * min(getattr(point, field) for points in found.values() for point in points), None)
                chart.grid(True)
                for axis in (chart.xaxis, chart.yaxis):
                    axis.set_major_formatter(FuncFormatter(short))
                    axis.set_minor_locator(NullLocator())
                ticks = sorted({point.at for task in TASKS for point in found[what, task]})
                chart.set_xticks(ticks if what != "weights" else [10**5, 10**6, 10**7])
                if not row:
                    chart.set_title(f"against {LABELS[what]}", fontsize=10)
                if not column:
                    chart.set_ylabel(label)
        handles, labels = axes[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="lower center", ncols=3, fontsize=9)
        figure.tight_layout(rect=(0, 0.05, 1, 1))
        text = themed(figure, "Growth of time and memory", "CPU seconds and peak memory against samples, layers and weights")
    target.write_text(standing_alone(text), encoding="utf-8")


def standing_alone(svg: str) -> str:
    """The SVG with the colours and the font that a page would give it, light or dark as the reader's system is."""
    roles = ("ink", "muted", "grid", "surface", "s0", "s1", "s2")
    light = ("#1f2328", "#59636e", "#d1d9e0", "#ffffff", "#2563a8", "#c2571a", "#2e7d4f")
    dark = ("#f0f6fc", "#9198a1", "#3d444d", "#0d1117", "#6cb0f2", "#f0955a", "#67c88f")
    day, night = ("".join(f"--{role}:{colour};" for role, colour in zip(roles, theme, strict=True)) for theme in (light, dark))
    style = f"svg{{{day}font-family:sans-serif;background:var(--surface)}}@media(prefers-color-scheme:dark){{svg{{{night}}}}}"
    head, _, rest = svg.partition(">")
    return f"{head}><style>{style}</style>{rest}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two points a line, and no picture")
    parser.add_argument("--deep", action="store_true", help="only a channel repair of 64 to 512 layers of 8 channels")
    parser.add_argument("--make", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.make:
        make(Subject(*map(int, args.make[1:])), Path(args.make[0]))
        return
    if args.deep:
        deep = [measure(Subject(64, depth, 8, 8), "layers", "channel", depth) for depth in (64, 128, 256, 512)]
        print("| layers |", " | ".join(str(point.at) for point in deep), "|\n|---|" + "---|" * len(deep))
        print("| CPU s |", " | ".join(f"{point.cpu:.1f}" for point in deep), "|")
        return
    smallest = Subject(samples=8, depth=2, width=4, size=4)
    least = {task: measure(smallest, "samples", task, 0) for task in TASKS}
    found = {}
    for what in LABELS:
        for task in TASKS:
            found[what, task] = [measure(subject, what, task, at) for at, subject in subjects(what, task, args.quick)]
            print(what, task, *found[what, task], sep="\n  ", file=sys.stderr, flush=True)
    floors = ", ".join(f"{task} {point.cpu:.1f} s and {point.peak:.0f} MB" for task, point in least.items())
    print(f"A run on a network of two layers and eight samples: {floors}.\n\n{table(found, least)}")
    if not args.quick:
        draw(found, ROOT / "docs" / "growth.svg")


if __name__ == "__main__":
    main()
