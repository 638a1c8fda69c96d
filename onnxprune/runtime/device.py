"""Where sessions run."""

from __future__ import annotations

from dataclasses import dataclass, replace

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"


@dataclass(frozen=True)
class Device:
    """Where sessions run: ``kind`` is "cpu" or "cuda", ``index`` the CUDA ordinal, ``note`` what the user should know.

    ``threads`` is how many a session computes with on the CPU; 0 leaves it to ONNX Runtime (one a physical core). ``at_once``: how many
    batches run side by side where they do not depend on each other, with so many threads each. ``gaps``: what is needed later may be made
    beside that, by threads that leave the cores to the others (runtime.idle).
    """

    kind: str
    index: int = 0
    note: str = ""
    threads: int = 0
    at_once: int = 1
    gaps: bool = False

    @property
    def provider(self) -> str:
        """The execution provider of ONNX Runtime that runs the nodes."""
        return CUDA if self.kind == "cuda" else CPU

    @property
    def alone(self) -> Device:
        """The same for one batch at a time, which has all threads."""
        return self if self.at_once == 1 else replace(self, threads=self.threads * self.at_once, at_once=1)
