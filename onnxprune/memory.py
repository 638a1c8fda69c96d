"""How much memory a run may fill with live tensors: of the device they are on."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from onnxprune.errors import UsageError
from onnxprune.numerics.threads import allowed, there
from onnxprune.runtime.device import Device
from onnxprune.runtime.device_memory import free_on
from onnxprune.runtime.spilling import Memory

UNITS = {"": 1, "B": 1}
for power, letter in enumerate("KMGT", 1):
    UNITS |= {f"{letter}B": 1000**power, f"{letter}IB": 1024**power}
UNKNOWN = 2 * 10**9
"""Bytes taken for free where the system does not tell."""
SIDE_BY_SIDE, PART = 4, 8
ROOT = Path("/")


def in_bytes(text: str | int) -> int:
    """The bytes of a size such as 500MB, 1.5GB or 2GiB; a plain number is bytes.

    Raises:
        UsageError: it is not of that form, or less than one byte.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]?I?B|)", str(text).strip().upper())
    size = int(float(found[1]) * UNITS.get(found[2], 0)) if found else 0
    if size < 1:
        raise UsageError(f"--memory {text!r} is not a size above 0, such as 500MB or 2GB")
    return size


def memory_for(asked: int | None, device: Device) -> Memory:
    """The memory of a run's live tensors: as asked, else half of what is free on their device.

    One that was asked for holds live tensors alone: what a batch takes on its way comes on top of it, and nothing is kept for others.
    Where the driver of a CUDA device does not tell, half of what is free on the host stands for it.
    """
    on_device = free_on(device.index) // 2 if asked is None and device.kind == "cuda" else 0
    return Memory(on_device or budget(asked), roomy=asked is None)


def budget(asked: int | None) -> int:
    """The bytes of live tensors that a run may hold: as asked, else half of what is free.

    A process that may use a part of the cores alone, as one of several side by side, takes such a part of it.
    """
    if asked is not None:
        return asked
    return max(1, free() * allowed() // there() // 2)


def at_once(cores: int, held: int | None) -> int:
    """How many batches run side by side: a divisor of the cores that compute, `SIDE_BY_SIDE` at most.

    One where it is not known what a batch takes (``held``, bytes); together they take one part in `PART` of the budget at most.
    """
    if held is None:
        return 1
    most = min(SIDE_BY_SIDE, budget(None) // PART // max(held, 1))
    return max((count for count in range(1, most + 1) if cores % count == 0), default=1)


def free(root: Path = ROOT) -> int:
    """The bytes of memory that are free by /proc/meminfo, or by the limits of the control groups of this process if that is less."""
    found = []
    with contextlib.suppress(OSError):
        told = re.search(r"^MemAvailable:\s+(\d+) kB", (root / "proc/meminfo").read_text(), re.MULTILINE)
        found += [int(told[1]) * 1024] if told else []
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, kinds, name = line.split(":", 2)
            if not kinds:
                found += _left(root / "sys/fs/cgroup", name, "memory.max", "memory.current")
            elif "memory" in kinds.split(","):
                found += _left(root / "sys/fs/cgroup/memory", name, "memory.limit_in_bytes", "memory.usage_in_bytes")
    return max(0, min(found, default=UNKNOWN))


def _left(top: Path, name: str, limit: str, usage: str) -> list[int]:
    """What is left of the limit of a control group and of all above it; pages of files that can be dropped count as free."""
    found = []
    group = top / name.lstrip("/")
    for folder in (group, *group.parents):
        with contextlib.suppress(OSError, ValueError):  # no limit, "max", or a group of another namespace
            most, used = int((folder / limit).read_text()), int((folder / usage).read_text())
            dropped = re.search(r"^(?:total_)?inactive_file (\d+)", (folder / "memory.stat").read_text(), re.MULTILINE)
            found.append(most - used + (int(dropped[1]) if dropped else 0))
        if folder == top:
            break
    return found
