"""What a run is asked to do, checked before anything is read."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from onnxprune.errors import UsageError
from onnxprune.graph.layers import Layer
from onnxprune.memory import in_bytes
from onnxprune.numerics.allocation import ALLOCATIONS
from onnxprune.runtime.calibration import Preprocess

REPAIRS = ("none", "bn", "layer", "channel", "asr", "reconstruct")
UNSET = -math.inf  # no sparsity was given
AUTO = "auto"
"""The allocation, the repair or the sparsity that stands for the one that suits the model."""
SEARCHED = math.inf  # the sparsity "auto"
RESIDUAL = "rr"
MEASURED = {"error": "lamp", RESIDUAL: "erk"}
"""The allocations that need samples, and the one that counts for a layer that cannot be measured."""
ALLOCS = (*ALLOCATIONS, *MEASURED)
DEFAULT_ALLOC = "erk"
DEFAULT_REPAIR = "channel"
TRIAL_SECONDS = 6.0
"""The time of a trial, plus 1 s for every 20 MB (runtime.trial): a file that never ends is refused within 10 s."""


@dataclass(frozen=True)
class Options:
    """The options of a run; the command line and the README say what each means.

    ``sparsity`` is the share of weights to remove over all layers together, 0 <= sparsity < 1. ``pattern`` is "N:M" instead: of every M
    weights along a layer's input channels N stay, and the sparsity follows. "auto" as an allocation, a repair or a sparsity has it chosen.
    ``threads`` bounds what a run computes with on the CPU, 0 for all cores. ``batch_size`` is the most samples of a run, None for 32, or
    for fewer on the CPU where they are large (drawing.CACHED).
    ``memory`` bounds the live tensors of the repair, in bytes or as a text such as "2GB"; None for half of what is free.

    Raises:
        UsageError: a value is out of its range or not one of its choices.
    """

    sparsity: float = UNSET
    pattern: str | None = None
    alloc: str = DEFAULT_ALLOC
    repair: str = DEFAULT_REPAIR
    unfold: bool = True
    samples: int = 512
    batch_size: int | None = None
    device: str = "auto"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    layer_sparsity: Mapping[str, float] = field(default_factory=dict)
    preprocess: Preprocess = field(default_factory=Preprocess)
    holdout: float = 0.2
    mirror: bool = False
    shift: int = 0
    seed: int = 0
    min_agreement: float | None = None
    threads: int = 0
    sparse_initializers: bool = False
    trial_seconds: float = TRIAL_SECONDS
    memory: int | None = None

    def __post_init__(self) -> None:
        for name in ("include", "exclude"):  # one pattern, or any sequence of them
            given = getattr(self, name)
            object.__setattr__(self, name, (given,) if isinstance(given, str) else tuple(given))
        if self.memory is not None:
            object.__setattr__(self, "memory", in_bytes(self.memory))
        if self.n_m is not None:
            n, m = self.n_m
            if self.sparsity != UNSET or self.layer_sparsity:
                raise UsageError(f"--pattern {self.pattern} sets the sparsity of every layer; leave --sparsity and --layer-sparsity out")
            object.__setattr__(self, "sparsity", 1 - n / m)
        elif self.sparsity == UNSET:
            raise UsageError("Missing option '--sparsity': give 0 <= S < 1, or --pattern N:M in its place")
        if self.sparsity == AUTO:  # type: ignore[comparison-overlap]  # a caller from Python may write it so
            object.__setattr__(self, "sparsity", SEARCHED)
        if self.sparsity == SEARCHED and (self.min_agreement is None or self.layer_sparsity):
            why = "needs --min-agreement, the agreement that must remain" if self.min_agreement is None else "excludes --layer-sparsity"
            raise UsageError(f"--sparsity auto {why}")
        for name, value in [("--sparsity", self.sparsity), *self.layer_sparsity.items()]:
            searched = name == "--sparsity" and value == SEARCHED
            if not (0 <= value < 1 or searched):  # false for nan too
                raise UsageError(f"{name}: sparsity {value} is not in 0 <= S < 1; 0.95 removes 95 % of the weights")
        for flag, word, choices in (("--alloc", self.alloc, ALLOCS), ("--repair", self.repair, REPAIRS)):
            if word not in (*choices, AUTO):
                raise UsageError(f"{flag} {word!r} is not known; choose one of {', '.join(choices)}, {AUTO}")
        if self.alloc == AUTO and self.pattern is not None:
            raise UsageError(f"--pattern {self.pattern} leaves nothing to allocate; leave --alloc auto out")
        if not (math.isfinite(self.holdout) and 0 <= self.holdout < 1):
            raise UsageError(f"--holdout {self.holdout} is not in 0 <= F < 1; it is the share of samples kept out of the repair")
        for flag, number in (("--samples", self.samples), ("--batch-size", self.batch_size)):
            if number is not None and number < 1:
                raise UsageError(f"{flag} {number} is not a positive number")
        if not (math.isfinite(self.trial_seconds) and self.trial_seconds >= 0):
            raise UsageError(f"--trial-seconds {self.trial_seconds} is not 0 or more; it is how long the first sample may take")
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise UsageError(f"--device {self.device!r} is not known; use auto, cpu, cuda or cuda:N")
        if self.threads < 0:
            raise UsageError(f"--threads {self.threads} is negative; give 1 or more, or 0 for all cores")
        if self.shift < 0:
            raise UsageError(f"--shift {self.shift} is negative; give how many pixels images are shifted by at most, or 0 for not at all")
        if self.seed < 0:
            raise UsageError(f"--seed {self.seed} is negative; give 0 or more")
        if self.min_agreement is not None:
            if not 0 <= self.min_agreement <= 1:
                raise UsageError(f"--min-agreement {self.min_agreement} is not in 0 <= A <= 1; it is a share of the samples")
            if self.holdout == 0:
                raise UsageError("--min-agreement needs held-out samples to measure; give --holdout above 0")
        for flag, patterns in (("--include", self.include), ("--exclude", self.exclude)):
            for pattern in patterns:
                try:
                    re.compile(pattern)
                except re.error as error:
                    raise UsageError(f"{flag} {pattern!r} is not a regular expression: {error}") from None

    def but(self, **fields: Any) -> Self:
        """These options with other values in some fields; where there is a pattern, the sparsity still follows from it."""
        return dataclasses.replace(self, **{**fields, **({"sparsity": UNSET} if self.pattern is not None else {})})

    @property
    def auto(self) -> tuple[str, ...]:
        """Which of alloc, repair and sparsity are to be chosen."""
        found = {"alloc": self.alloc == AUTO, "repair": self.repair == AUTO, "sparsity": self.sparsity == SEARCHED}
        return tuple(name for name, asked in found.items() if asked)

    @property
    def measured(self) -> bool:
        """True where the layers must be measured before the sparsity can be shared out."""
        return self.alloc in MEASURED and self.n_m is None and self.sparsity > 0

    @property
    def n_m(self) -> tuple[int, int] | None:
        """The two numbers of the pattern N:M, None without one.

        Raises:
            UsageError: it is not of that form, or not 0 < N < M.
        """
        if self.pattern is None:
            return None
        found = re.fullmatch(r"(\d{1,6}):(\d{1,6})", self.pattern)
        if found is None or not 0 < int(found[1]) < int(found[2]):
            raise UsageError(f"--pattern {self.pattern!r} is not N:M with 0 < N < M, such as 2:4")
        return int(found[1]), int(found[2])


def selected(layers: Sequence[Layer], options: Options) -> list[bool]:
    """For every layer, whether it is pruned: it matches an --include (or there is none) and no --exclude.

    Raises:
        UsageError: a pattern matches no layer, or no layer is left.
    """
    names = [layer.name for layer in layers]
    for flag, patterns in (("--include", options.include), ("--exclude", options.exclude)):
        for pattern in patterns:
            if not any(re.search(pattern, name) for name in names):
                raise UsageError(f"{flag} {pattern!r} matches none of the {len(names)} layers, such as {names[0]!r}")
    chosen = [
        (not options.include or any(re.search(pattern, name) for pattern in options.include))
        and not any(re.search(pattern, name) for pattern in options.exclude)
        for name in names
    ]
    if not any(chosen):
        raise UsageError(f"--include and --exclude leave none of the {len(names)} layers to prune")
    return chosen


def fixed_sparsity(layers: Sequence[Layer], chosen: Sequence[bool], options: Options) -> dict[int, float]:
    """Layer number -> the sparsity that --layer-sparsity gives it.

    NAME is a layer's whole name or, when no layer has that name, a regular expression. A whole name goes before an expression;
    of two expressions, the later one counts.

    Raises:
        UsageError: a name meets no layer that is pruned.
    """
    fixed: dict[int, float] = {}
    names = {layer.name for layer in layers}
    for name, value in sorted(options.layer_sparsity.items(), key=lambda pair: pair[0] in names):
        hits = [number for number, layer in enumerate(layers) if layer.name == name]
        if not hits:
            try:
                hits = [number for number, layer in enumerate(layers) if re.search(name, layer.name)]
            except re.error as error:
                raise UsageError(f"--layer-sparsity {name!r} is no layer and no regular expression: {error}") from None
        if not hits:
            raise UsageError(f"--layer-sparsity {name!r} matches none of the {len(layers)} layers, such as {layers[0].name!r}")
        left_out = [layers[number].name for number in hits if not chosen[number]]
        if left_out:
            raise UsageError(f"--layer-sparsity {name!r}: layer {left_out[0]!r} is left out by --include or --exclude")
        fixed.update(dict.fromkeys(hits, value))
    return fixed
