"""python -m onnxprune, and the console script."""

from __future__ import annotations

import gc
import os
import sys


def script() -> None:
    """The command in a process that begins and ends with it.

    What is imported stays until the end: looking for garbage in it, again and again, takes a tenth of the start. To take the interpreter
    and its libraries down at the end takes 0.06 s and more.
    """
    gc.disable()
    from onnxprune.cli import main

    gc.freeze()
    gc.enable()
    code = 0
    try:
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    for stream in filter(None, (sys.stdout, sys.stderr)):  # None where the caller has closed it
        try:
            stream.flush()
        except (OSError, ValueError):  # nobody reads any more, the disk is full, or it is closed
            code = code or 1
    os._exit(code)


if __name__ == "__main__":  # a worker process imports this module again
    script()
