"""A dependency file for make: from which files a target was made, so that it is made again when one of them changes.

After GNU make's manual, "Rule Syntax" and "Using Wildcard Characters in File Names", and gcc's -MMD -MP. Every prerequisite but the
first also stands as a target of its own without prerequisites, so that make does not stop when it is gone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from onnxprune.errors import UsageError

UNWRITABLE = re.compile(r"[\t\n\r\0;=%|]|^~|[ \\&]$|\(.*\)$|\\.*[*?\[]|[*?\[].*\\")
"""What no escape carries through make: its separators, patterns and assignments, members of archives, wildcards beside backslashes."""


def rules(target: str, prerequisites: Iterable[str]) -> str:
    """The text of the dependency file; of a prerequisite that comes twice, the first counts.

    Raises:
        UsageError: make cannot read one of the names, however it is written.
    """
    names = list(dict.fromkeys(prerequisites))
    first = " \\\n  ".join([f"{escaped(target)}:", *map(escaped, names)])
    return "\n\n".join([first, *(f"{escaped(name)}:" for name in names[1:])]) + "\n"


def escaped(name: str) -> str:
    """A file name as make reads it in a rule: a backslash before what has a meaning, and before the backslashes ahead of that; $ twice.

    Raises:
        UsageError: make cannot read the name.
    """
    found = UNWRITABLE.search(name)
    if found:
        raise UsageError(f"--depfile: make cannot read the file name {name!r} because of {found[0]!r}; rename it")
    text = re.sub(r"(\\*)([ #:*?\[])", lambda part: part[1] * 2 + "\\" + part[2], name)
    return text.replace("$", "$$")
