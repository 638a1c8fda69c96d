"""What a run changes in a model."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Changes:
    """What is different in the file that goes out: names of tensors with new values, of new initializers, and of new nodes."""

    values: set[str] = field(default_factory=set)
    initializers: set[str] = field(default_factory=set)
    nodes: set[str] = field(default_factory=set)
    inputs: set[str] = field(default_factory=set)
    """Nodes whose inputs were given another tensor."""

    def tell(self, holder: str) -> None:
        """Note that a tensor has new values; one that was added is named as such."""
        if holder not in self.initializers:
            self.values.add(holder)
