"""One model file in, one model file and its report out: what the command line does for each model."""

from __future__ import annotations

import contextlib
import glob
import os
import threading
import time
from collections.abc import Callable, Container, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from onnxprune.clock import Progress
from onnxprune.drawing import Calib
from onnxprune.errors import ModelError, UsageError
from onnxprune.graph import model as files
from onnxprune.options import Options
from onnxprune.pipeline import Result, run
from onnxprune.report import FileReport, Report, to_json
from onnxprune.sizes import describe


@dataclass(frozen=True)
class Job:
    """Where one model comes from and goes to. ``report`` is the JSON file, None for none."""

    source: Path
    target: Path
    report: Path | None = None


def plan_jobs(sources: list[Path], output: Path | None, folder: Path | None, report: Path | None, *, force: bool) -> list[Job]:
    """The job of every model, checked against each other and the disk before anything runs.

    Raises:
        UsageError: options contradict each other, or a target is an input, exists without --force, or is named twice.
        ModelError: the folder of a target is missing or cannot be written to.
    """
    if len(sources) > 1 and output is not None:
        raise UsageError(f"-o takes one file, but {len(sources)} models were given; use --out-dir")
    if output is not None and folder is not None:
        raise UsageError("-o and --out-dir exclude each other; give one of them")
    if len(sources) > 1 and report is not None:
        raise UsageError(f"--report takes one file, but {len(sources)} models were given; prune them one by one")
    jobs = []
    for source in sources:
        target = output or (folder or source.parent) / f"{source.stem}.pruned.onnx"
        jobs.append(Job(source, target, report))
    inputs = {source.resolve() for source in sources}
    seen: dict[Path, Path] = {}
    for job in jobs:
        for path in (job.target, *([job.report] if job.report else [])):
            check_target(path, inputs, "-o, --out-dir or --report", seen, force=force)
            seen[path.resolve()] = job.source
    return jobs


def check_target(path: Path, inputs: Container[Path], flags: str, seen: Mapping[Path, Path] = {}, *, force: bool) -> None:
    """Refuse a target that cannot be written; ``inputs`` are resolved paths, ``seen`` other targets and what they are for.

    Raises:
        UsageError: it is an input, another target, or exists without ``force``.
        ModelError: its folder is missing or cannot be written to.
    """
    if path.resolve() in inputs:
        raise UsageError(f"{path} is an input; choose another name with {flags}")
    if path.resolve() in seen:
        raise UsageError(f"{path} would be written twice, the first time for {seen[path.resolve()]}")
    if path.exists() and not path.is_file():  # a folder, or a device that a rename would replace
        raise ModelError(f"{path}: cannot be written: it is {'a folder' if path.is_dir() else 'no regular file'}")
    if path.exists() and not force:
        raise UsageError(f"{path} exists; give --force to replace it")
    if not path.parent.is_dir():
        raise ModelError(f"{path}: cannot be written: the folder {path.parent} does not exist")
    files.check_writable(path)


def prune_file(job: Job, calib: Calib | None, options: Options, progress: Progress) -> Report:
    """Prune one file, write the model and its report, and return the report.

    Raises:
        OnnxpruneError: nothing was written; what was at the targets before is still there.
    """
    start = time.perf_counter()
    failed = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        # gzip needs no lock of ours and takes as long as a third of the repair, so it runs beside it.
        source = pool.submit(lambda: _describe_source(job, failed.is_set))
        try:
            result = run(job.source, calib, options, progress)
            return _write(job, result, source.result, start)
        finally:
            failed.set()


def _describe_source(job: Job, stop: Callable[[], bool]) -> FileReport:
    """The input's sizes and hash.

    Raises:
        UsageError: a target is one of the input's data files, or writing it would remove one: those of the form
            TARGET.<hash>.data are taken for an older version of the target.
    """
    names = files.files_of(job.source)
    targets = {path.resolve() for path in (job.target, job.report) if path is not None}
    for name in names[1:]:
        place = name.resolve()
        older = place.parent == job.target.parent.resolve() and place.match(f"{glob.escape(job.target.name)}.*.data")
        if place in targets or older:
            raise UsageError(f"{name} holds data of the input {job.source}; choose another name with -o, --out-dir or --report")
    return describe(job.source, names, names, stop)


def _write(job: Job, result: Result, source: Callable[[], FileReport], start: float) -> Report:
    """Write the model and the report: both are complete on the disk before either takes its name."""
    begin = time.perf_counter()
    report = result.report
    with contextlib.ExitStack() as stack:
        handle = stack.enter_context(files.replacing(job.report)) if job.report is not None else None

        def sealed(temporary: tuple[Path, ...]) -> None:
            nonlocal report
            output = describe(job.target, (job.target, *temporary[1:]), temporary)
            now = time.perf_counter()
            seconds = {**report.seconds, "save": now - begin, "total": now - start}
            report = replace(report, input=source(), output=output, seconds=seconds)
            if handle is not None:
                handle.write(to_json(report).encode())
                handle.flush()
                os.fsync(handle.fileno())  # a full disk shows here, before the model takes its name

        files.save(result.model, job.target, external=result.external, places=result.places, sealed=sealed)
    return report
