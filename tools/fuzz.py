"""Run onnxprune on damaged models and damaged calibration files, and count how it ends.

    python tools/fuzz.py --models 10000 --calib 1000 --seed 0 --keep /tmp/failures

Case number k of a seed is always the same. Subjects are the models of tests/zoo.py (a third of them with external data) and a
calibration file of every form. Each case runs in a worker process that is watched: it has 10 seconds and 6 GiB. It must end in one line
of OnnxpruneError, or in a model that onnx.checker and ONNX Runtime take, and leave no other file behind. Exit code 1 if one does not.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import traceback
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tools")]

import zoo  # noqa: E402
from mutate import mutated  # noqa: E402
from onnx import parser  # noqa: E402

from onnxprune.clock import Progress  # noqa: E402
from onnxprune.errors import OnnxpruneError  # noqa: E402
from onnxprune.job import Job, prune_file  # noqa: E402
from onnxprune.options import Options  # noqa: E402
from onnxprune.runtime.calibration import Preprocess  # noqa: E402
from onnxprune.runtime.device import Device  # noqa: E402
from onnxprune.runtime.session import open_session  # noqa: E402

SECONDS = 10.0
MEMORY = 6 * 2**30
GOOD = ("refused", "pruned", "pruned, refused by the checker before and after, as its note says")
REPAIRS = ("channel", "channel", "none", "bn", "reconstruct")
quiet: Progress = lambda phase, done, total: None  # noqa: E731


# ---- calibration files: a model, and how to write a sound file or folder for it


def _array(folder: Path) -> tuple[str, Path]:
    np.save(folder / "x.npy", zoo.data(8))
    return "float[n, 8]", folder / "x.npy"


def _folder(folder: Path) -> tuple[str, Path]:
    for number, size in enumerate((3, 5, 5, 4)):
        np.save(folder / f"{number}.npy", zoo.data(8, size, seed=number)[:6])
    return "float[n, 8, t]", folder


def _zipped(folder: Path) -> tuple[str, Path]:
    np.savez_compressed(folder / "x.npz", x=zoo.data(8), other=np.zeros(3))
    return "float[n, 8]", folder / "x.npz"


def _images(suffix: str) -> Callable[[Path], tuple[str, Path]]:
    def write(folder: Path) -> tuple[str, Path]:
        for number in range(6):
            pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.{suffix}")
        return "float[n, 3, 8, 8]", folder

    return write


def _lines(folder: Path) -> tuple[str, Path]:
    rng = np.random.default_rng(0)
    lines = [json.dumps({"x": rng.normal(size=8).round(3).tolist(), "more": [1]}) for _ in range(24)]
    (folder / "x.jsonl").write_text("\n".join(lines))
    return "float[n, 8]", folder / "x.jsonl"


def _sets(folder: Path) -> tuple[str, Path]:
    for number in range(6):
        (folder / f"test_data_set_{number}").mkdir()
        tensor = onnx.numpy_helper.from_array(zoo.data(8, seed=number)[:2], "x")
        (folder / f"test_data_set_{number}" / "input_0.pb").write_bytes(tensor.SerializeToString())
    return "float[n, 8]", folder


FORMS: dict[str, Callable[[Path], tuple[str, Path]]] = {
    "npy": _array,
    "folder": _folder,
    "npz": _zipped,
    "jsonl": _lines,
    "sets": _sets,
    **{suffix: _images(suffix) for suffix in ("png", "jpg", "gif", "bmp", "webp", "tiff")},
}


def model_for(shape: str) -> onnx.ModelProto:
    """A small model whose one input has that type."""
    rng = np.random.default_rng(0)
    dims = shape.count(",")
    op, size = ("MatMul", (8, 6)) if dims == 1 else ("Conv", (6, 8, 3)) if dims == 2 else ("Conv", (6, 3, 3, 3))
    pads = {1: "", 2: "<pads = [1, 1]>", 3: "<pads = [1, 1, 1, 1]>"}[dims]
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> g ({shape} x) => (float[] y) {{ y = {op} {pads} (x, w) }}')
    model.graph.initializer.append(onnx.numpy_helper.from_array(rng.normal(size=size).astype(np.float32), "w"))
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    model.graph.output[0].type.tensor_type.shape.dim.extend(onnx.TensorShapeProto.Dimension() for _ in range(dims + 1))
    return model


# ---- one case


def model_case(number: int, seed: int, folder: Path) -> tuple[Path, Any, Options]:
    """Write the damaged model of a case and return it with its samples and options."""
    rng = np.random.default_rng((seed, 0, number))
    name = sorted(zoo.SUBJECTS)[number % len(zoo.SUBJECTS)]
    subject = zoo.SUBJECTS[name]()
    path = folder / "model.onnx"
    if rng.random() < 1 / 3:
        onnx.save(subject.model, path, save_as_external_data=True, location="model.data", size_threshold=64)
        if rng.random() < 0.3 and (folder / "model.data").exists():
            (folder / "model.data").write_bytes(mutated((folder / "model.data").read_bytes(), rng))
    else:
        onnx.save(subject.model, path)
    path.write_bytes(mutated(path.read_bytes(), rng, onnx.ModelProto))
    repair = REPAIRS[int(rng.integers(len(REPAIRS)))]
    return path, dict(subject.samples), Options(sparsity=0.5, repair=repair, batch_size=subject.batch, device="cpu")


def calib_case(number: int, seed: int, folder: Path) -> tuple[Path, Any, Options]:
    """Write a model and its damaged samples."""
    rng = np.random.default_rng((seed, 1, number))
    form = list(FORMS)[number % len(FORMS)]
    (folder / "calib").mkdir()
    shape, calib = FORMS[form](folder / "calib")
    onnx.save(model_for(shape), folder / "model.onnx")
    files = sorted(file for file in (folder / "calib").rglob("*") if file.is_file())
    victim = files[int(rng.integers(len(files)))]
    victim.write_bytes(mutated(victim.read_bytes(), rng, onnx.TensorProto if victim.suffix == ".pb" else None))
    told = Preprocess((0.0,), (255.0,)) if calib.is_dir() and form not in ("folder", "sets") else Preprocess()
    return folder / "model.onnx", [calib], Options(sparsity=0.5, device="cpu", preprocess=told)


CASES = {"models": model_case, "calib": calib_case}


def outcome(kind: str, number: int, seed: int, folder: Path) -> tuple[str, str]:
    """How a case ends, and its words."""
    path, calib, options = CASES[kind](number, seed, folder)
    before = sorted(folder.rglob("*"))
    target = folder / "out.onnx"
    try:
        report = prune_file(Job(path, target), calib, options, quiet)
    except OnnxpruneError as error:
        text, left = str(error), sorted(folder.rglob("*"))
        if "\n" in text or len(text) > 1000:
            return "several lines", text
        return ("refused", text) if left == before else ("file left behind", str(left))
    except (OSError, MemoryError) as error:  # the command line gives one line for these
        return ("refused", repr(error)) if sorted(folder.rglob("*")) == before else ("file left behind", repr(error))
    except BaseException:
        return "traceback", traceback.format_exc()
    left = [file.name for file in folder.rglob("*") if file not in before and not file.name.startswith("out.onnx")]
    if left:
        return "file left behind", str(left)
    try:
        onnx.checker.check_model(str(target))
    except Exception as error:
        told = any("onnx.checker refuses" in note for note in report.notes)
        return ("pruned, refused by the checker before and after, as its note says" if told else "checker"), f"{error}"
    try:
        open_session(target, Device("cpu"))
    except OnnxpruneError as error:
        return "does not load", str(error)
    return "pruned", ""


# ---- workers


def _work(pipe: Any, seed: int, base: str) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    while (task := pipe.recv()) is not None:
        folder = Path(tempfile.mkdtemp(dir=base))
        try:
            found = outcome(*task, seed, folder)
        except BaseException:
            found = ("traceback", "in the fuzzer: " + traceback.format_exc())
        shutil.rmtree(folder, ignore_errors=True)
        pipe.send(found)


class Worker:
    """A process that runs cases one by one and is replaced when it hangs or dies."""

    def __init__(self, seed: int, base: str) -> None:
        self.seed, self.base, self.done = seed, base, 0
        self.process: Any = None

    def run(self, kind: str, number: int) -> tuple[str, str]:
        """The outcome of one case."""
        if self.process is None or self.done % 400 == 0:
            self.stop()
            context = multiprocessing.get_context("fork")
            self.pipe, other = context.Pipe()
            self.process = context.Process(target=_work, args=(other, self.seed, self.base), daemon=True)
            self.process.start()
            other.close()
        self.done += 1
        self.pipe.send((kind, number))
        try:
            if self.pipe.poll(SECONDS):
                found: tuple[str, str] = self.pipe.recv()
                return found
            self.stop()
            return "hang", f"over {SECONDS:g} s"
        except (EOFError, ConnectionResetError):
            self.process.join()
            code = self.process.exitcode
            self.stop()
            return "crash", f"exit code {code}"

    def stop(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.pipe.close()
            self.process = None


def main() -> int:
    """Run the cases asked for, print the counts and the failures, and return the exit code."""
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--models", type=int, default=0, help="damaged models")
    ask.add_argument("--calib", type=int, default=0, help="damaged calibration files")
    ask.add_argument("--seed", type=int, default=0)
    ask.add_argument("--start", type=int, default=0, help="number of the first case")
    ask.add_argument("--keep", type=Path, help="folder for the files of failures")
    told = ask.parse_args()
    bad = 0
    with tempfile.TemporaryDirectory(prefix="onnxprune-fuzz-") as base:
        worker = Worker(told.seed, base)
        for kind in CASES:
            counts: collections.Counter[str] = collections.Counter()
            seen: collections.Counter[int] = collections.Counter()
            for number in range(told.start, told.start + getattr(told, kind)):
                what, words = worker.run(kind, number)
                counts[what] += 1
                if what not in GOOD:
                    bad += 1
                    mark = zlib.crc32("".join(words.splitlines()[-3:]).encode())
                    seen[mark] += 1
                    if seen[mark] <= 2:
                        print(f"{kind} {number}: {what}: {words.strip()[-1500:]}", flush=True)
                        _keep(kind, number, told)
            if counts:
                print(
                    f"{kind}: {counts.total()} cases, seed {told.seed}: " + ", ".join(f"{n} {k}" for k, n in sorted(counts.items())),
                    flush=True,
                )
        worker.stop()
    return int(bad > 0)


def _keep(kind: str, number: int, told: argparse.Namespace) -> None:
    """Write the files of a case where they can be looked at."""
    if told.keep is not None:
        folder = told.keep / f"{kind}-{told.seed}-{number}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        with contextlib.suppress(Exception):
            CASES[kind](number, told.seed, folder)


if __name__ == "__main__":
    sys.exit(main())
