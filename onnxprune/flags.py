"""The options that several commands share, and what their values become; cli.py has the commands."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import click

from onnxprune.memory import in_bytes
from onnxprune.options import ALLOCS, AUTO, DEFAULT_ALLOC, DEFAULT_REPAIR, REPAIRS, SEARCHED, TRIAL_SECONDS, Options
from onnxprune.runtime.calibration import Preprocess

FILE = click.Path(path_type=Path)
MOST = 1000  # numbers of one LOW:HIGH:STEP
Decorator = Callable[[Callable[..., None]], Callable[..., None]]


def numbers(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    """The numbers of A,B,C."""
    if value is None:
        return None
    try:
        return tuple(float(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a number or A,B,C") from None


def named(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, float]:
    """The pairs of NAME=S; the last = counts, for a layer name may hold one."""
    pairs = {}
    for value in values:
        name, equals, number = value.rpartition("=")
        try:
            pairs[name] = float(number)
        except ValueError:
            equals = ""
        if not (name and equals):
            raise click.BadParameter(f"{value!r} is not NAME=S, such as 'fc=0.5'")
    return pairs


def one_sparsity(context: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    """A number, or what "auto" stands for."""
    if value is None:
        return None
    try:
        number = SEARCHED if value == AUTO else float(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a valid float, nor {AUTO}") from None
    if number == SEARCHED and value != AUTO:  # infinity, written out
        raise click.BadParameter(f"sparsity {value} is not in 0 <= S < 1; 0.95 removes 95 % of the weights")
    return number


def words(context: click.Context, parameter: click.Parameter, value: str) -> tuple[str, ...]:
    """The words of A,B,C."""
    return tuple(word.strip() for word in value.split(",") if word.strip())


def grid(context: click.Context, parameter: click.Parameter, value: str) -> tuple[float, ...]:
    """The numbers of A,B,C, where each may be LOW:HIGH:STEP; in decimal digits, so that 0.8:0.98:0.02 ends with 0.98."""
    found: list[Decimal] = []
    for part in value.split(","):
        try:
            ends = [Decimal(word) for word in part.split(":")]
        except InvalidOperation:
            ends = []
        if len(ends) == 1 and ends[0].is_finite():
            found += ends
        elif len(ends) == 3 and all(end.is_finite() for end in ends) and ends[2] > 0 and 0 <= (ends[1] - ends[0]) / ends[2] < MOST:
            found += [ends[0] + step * ends[2] for step in range(int((ends[1] - ends[0]) / ends[2]) + 1)]
        else:
            raise click.BadParameter(f"{part!r} is no number and no LOW:HIGH:STEP, such as 0.8:0.98:0.02, with a STEP above 0")
    return tuple(dict.fromkeys(map(float, found)))


def size(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """The bytes of a size."""
    return None if value is None else in_bytes(value)


def with_options(*options: Decorator) -> Decorator:
    """A decorator that adds the options, in the order in which --help shows them."""

    def add(command: Callable[..., None]) -> Callable[..., None]:
        for option in reversed(options):
            command = option(command)
        return command

    return add


ALLOCATION = (
    click.option("--alloc", type=click.Choice([*ALLOCS, AUTO]), default=DEFAULT_ALLOC, show_default=True,
                 help="How the kept weights are shared out over the layers."),
    click.option("--include", multiple=True, metavar="REGEX", help="Prune only layers whose name matches. May repeat."),
    click.option("--exclude", multiple=True, metavar="REGEX", help="Leave layers whose name matches dense. May repeat."),
    click.option("--layer-sparsity", multiple=True, metavar="NAME=S", callback=named,
                 help="Sparsity of one layer, which leaves the common budget. May repeat."),
    click.option("--unfold/--no-unfold", default=True, show_default=True,
                 help="Where BatchNorm was folded into convolutions, rank weights with its scale taken out."),
)  # fmt: skip
SAMPLES = (
    click.option("--calib", multiple=True, type=FILE, metavar="PATH",
                 help="Unlabelled samples: .npy, .npz (an array an input), .jsonl, an ONNX test data set, an image, or a folder of one "
                      "of these. May repeat."),
    click.option("--samples", default=512, show_default=True, metavar="N", help="Use at most N samples, drawn by --seed."),
    click.option("--batch-size", type=int, metavar="N", help="Samples a run, at most. Left out: 32, or fewer large ones."),
    click.option("--mean", callback=numbers, metavar="A,B,C", help="Subtract from the stored values, one or one a channel."),
    click.option("--std", callback=numbers, metavar="A,B,C", help="Then divide by, one or one a channel."),
    click.option("--layout", type=click.Choice(["nhwc", "nchw"]), help="Where stored arrays have their channels."),
    click.option("--resize", type=click.IntRange(1), metavar="N", help="Images: scale the short side to N, then crop the centre."),
    click.option("--device", default="auto", show_default=True, metavar="NAME", help="auto, cpu, cuda or cuda:N."),
    click.option("--threads", default=0, metavar="N", help="Compute with at most N threads on the CPU.  [default: all cores]"),
    click.option("--trial-seconds", default=TRIAL_SECONDS, show_default=True, metavar="S",
                 help="How long an unusual model may take for its first sample, in a process of its own; 0: no such trial."),
    click.option("--seed", default=0, show_default=True, metavar="N", help="Draws the samples and the held-out share."),
)  # fmt: skip

MEMORY = (
    click.option("--memory", metavar="SIZE", help="Hold at most SIZE, such as 2GB, of the tensors that later layers read in memory, "
                 "the rest in a temporary file.  [default: half of what is free]"),
)  # fmt: skip
REPAIR = (
    click.option("--repair", type=click.Choice([*REPAIRS, AUTO]), default=DEFAULT_REPAIR, show_default=True,
                 help="What is done for the layers after the masks."),
    click.option("--mirror", is_flag=True, help="Repair from each image and its mirror image, left to right: twice the samples."),
    click.option("--shift", default=0, metavar="N",
                 help="Repair from each image and the same shifted by up to N pixels, drawn by --seed: twice the samples."),
)  # fmt: skip
JUDGE = (
    click.option("--holdout", default=0.2, show_default=True, metavar="F",
                 help="Share of samples kept out of the repair, to measure agreement on."),
    click.option("--min-agreement", type=float, metavar="A",
                 help="Write nothing and exit with 3 when the agreement on held-out samples is below A."),
)  # fmt: skip
EXECUTOR = (
    click.option("--jobs", type=click.IntRange(1), metavar="N",
                 help="Processes that work at the same time; the cores are divided among them. A sweep takes one a core unasked."),
    click.option("--scheduler", metavar="tcp://HOST:PORT", help="Run on a Dask cluster, whose workers see the same paths."),
)  # fmt: skip


def to_options(values: dict[str, Any]) -> Options:
    """The command line's values as Options; those that say how samples are read go together."""
    if values["sparsity"] is None:
        del values["sparsity"]
    told = {name: values.pop(name) for name in ("mean", "std", "layout", "resize")}
    return Options(preprocess=Preprocess(**told), **values)
