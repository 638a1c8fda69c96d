"""One model file in, one model file and its report out: what the command line does for each model."""

from __future__ import annotations

import contextlib
import glob
import os
import threading
import time
from collections.abc import Callable, Container, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from onnxprune.clock import Progress
from onnxprune.depfile import rules
from onnxprune.drawing import Calib
from onnxprune.errors import ModelError, UsageError
from onnxprune.graph import model as files
from onnxprune.graph.whole import alone, check_writable, replacing
from onnxprune.numerics.threads import allowed, bound
from onnxprune.options import Options
from onnxprune.pipeline import Result, run
from onnxprune.report import FileReport, Report, to_json
from onnxprune.runtime.device import Device
from onnxprune.runtime.finding import tensors_of
from onnxprune.runtime.session import open_session
from onnxprune.sizes import describe


@dataclass(frozen=True)
class Job:
    """Where one model comes from and goes to. ``reports`` are the files of its report: .html is a page, any other name JSON.

    ``depfile`` is the dependency file for make, None for none; ``command`` is the command line that a page shows.
    """

    source: Path
    target: Path
    reports: tuple[Path, ...] = ()
    depfile: Path | None = None
    command: str = ""

    @property
    def outputs(self) -> list[Path]:
        """The files that are asked for: external data comes beside the target."""
        return [self.target, *self.reports, *([self.depfile] if self.depfile is not None else [])]


def is_page(path: Path) -> bool:
    """True where the name of a report says that it is to be a page."""
    return path.suffix.lower() in (".html", ".htm")


def plan_jobs(
    sources: list[Path],
    output: Path | None,
    folder: Path | None,
    reports: Sequence[Path] = (),
    *,
    force: bool,
    depfile: Path | None = None,
    command: str = "",
) -> list[Job]:
    """The job of every model, checked against each other and the disk before anything runs.

    Raises:
        UsageError: options contradict each other, or a target is an input, exists without --force, or is named twice.
        ModelError: the folder of a target is missing or cannot be written to.
    """
    if len(sources) > 1 and output is not None:
        raise UsageError(f"-o takes one file, but {len(sources)} models were given; use --out-dir")
    if output is not None and folder is not None:
        raise UsageError("-o and --out-dir exclude each other; give one of them")
    for flag, given in (("--report", reports), ("--depfile", depfile)):
        if len(sources) > 1 and given:
            raise UsageError(f"{flag} takes one file, but {len(sources)} models were given; prune them one by one")
    jobs = []
    for source in sources:
        target = output or (folder or source.parent) / f"{source.stem}.pruned.onnx"
        jobs.append(Job(source, target, tuple(reports), depfile, command))
        if depfile is not None:
            rules(str(target), [str(source)])  # names that make cannot read
    inputs = {source.resolve() for source in sources}
    seen: dict[Path, Path] = {}
    for job in jobs:
        for path in job.outputs:
            check_target(path, inputs, "-o, --out-dir, --report or --depfile", seen, force=force)
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
    check_writable(path)


def prune_file(job: Job, calib: Calib | None, options: Options, progress: Progress) -> Report:
    """Prune one file, write the model and its reports, and return the report.

    Raises:
        OnnxpruneError: nothing was written; what was at the targets before is still there.
    """
    start = time.perf_counter()
    failed = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        # gzip needs no lock of ours and takes as long as a third of the repair, so it runs beside it; where threads are counted, behind it.
        def described() -> FileReport:
            return _describe_source(job, failed.is_set)

        limit = bound(options.threads)
        source = described if limit else pool.submit(described).result
        try:
            result = run(job.source, calib, options, progress, others=any(map(is_page, job.reports)), mapped=True)
            return _write(job, result, source, start, limit or allowed())
        finally:
            failed.set()


def _describe_source(job: Job, stop: Callable[[], bool]) -> FileReport:
    """The input's sizes and hash.

    Raises:
        UsageError: a target is one of the input's data files, or writing it would remove one: those of the form
            TARGET.<hash>.data are taken for an older version of the target.
    """
    names = files.files_of(job.source)
    targets = {path.resolve() for path in job.outputs}
    for name in names[1:]:
        place = name.resolve()
        older = place.parent == job.target.parent.resolve() and place.match(f"{glob.escape(job.target.name)}.*.data")
        if place in targets or older:
            raise UsageError(f"{name} holds data of the input {job.source}; choose another name with -o, --out-dir, --report or --depfile")
    return describe(job.source, names, names, stop)


def _write(job: Job, result: Result, source: Callable[[], FileReport], start: float, threads: int) -> Report:
    """Write the model and what belongs to it: all are complete on the disk before one takes its name.

    The dependency file takes its name first and the report last: a run that is killed between them leaves a target that is older than its
    prerequisites. Two runs for one folder take the names one after the other.
    """
    begin = time.perf_counter()
    report = result.report
    with contextlib.ExitStack() as turn, contextlib.ExitStack() as stack:
        if result.external or files.own_data_files(job.target):  # old data files are removed, which must not be somebody's new ones
            turn.enter_context(alone(job.target.parent))
        handles = [(path, stack.enter_context(replacing(path))) for path in job.reports]
        needs = stack.enter_context(contextlib.ExitStack())
        makefile = needs.enter_context(replacing(job.depfile)) if job.depfile is not None else None

        def sealed(temporary: tuple[Path, ...]) -> None:
            nonlocal report
            output = describe(job.target, (job.target, *temporary[1:]), temporary, saved=result.saved[1], at_once=threads)
            given = source()
            if report.changes.sparse:
                open_session(temporary[0], Device("cpu"))  # raises where ONNX Runtime does not take the file as it lies there
            now = time.perf_counter()
            seconds = {**report.seconds, "save": now - begin, "total": now - start}
            given = replace(given, sparse_bytes=given.bytes - result.saved[0])
            report = replace(report, input=given, output=output, seconds=seconds)
            texts = [(out, _page(report, result, job) if is_page(path) else to_json(report)) for path, out in handles]
            texts += [(makefile, _rules(job, report))] if makefile is not None else []
            for out, text in texts:
                out.write(text.encode("utf-8", "surrogateescape"))
                out.flush()
                os.fsync(out.fileno())  # a full disk shows here, before the model takes its name
            if not temporary[1:]:
                turn.enter_context(alone(job.target.parent))
            needs.close()

        files.save(result.model, job.target, external=result.external, places=result.places, sealed=sealed)
    return report


def _page(report: Report, result: Result, job: Job) -> str:
    from onnxprune.page import prune_page  # for a page alone

    return prune_page(report, result.allocations, job.command)


def _rules(job: Job, report: Report) -> str:
    """The dependency file: the target, and every file that was read for it."""
    if job.depfile is None or report.input is None:
        return ""
    samples = [Path(name) for name in (report.calibration.paths if report.calibration is not None else ())]
    read = [str(file) for path in samples for file in (tensors_of(path) if path.is_dir() else [path])]
    return rules(str(job.target), [*report.input.files, *read])
