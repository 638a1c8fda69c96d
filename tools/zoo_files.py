"""Prune real ONNX files from wheels and from torch's exporters, check what comes out, and write docs/zoo.md.

    python tools/zoo_files.py                 all of it (make zoo)
    python tools/zoo_files.py --only nudenet  the files whose name matches
    python tools/zoo_files.py --one FILE RULE SPARSITY REPAIR   one run, its result as JSON

The wheels are downloaded and unzipped, not installed. torch goes into an environment of its own, build/zoo/venv. Every run is a process
of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tools"), str(ROOT)]

import zoo_page  # noqa: E402
import zoo_samples  # noqa: E402
from invariants import check, data, loaded, weighted  # noqa: E402
from zoo import batch_of  # noqa: E402

from onnxprune import OnnxpruneError, prune  # noqa: E402

BUILD = ROOT / "build" / "zoo"
WHEELS = (
    "nudenet==3.4.2",
    "magika==1.0.3",
    "rapidocr-onnxruntime==1.4.4",
    "silero-vad==6.2.3",
    "basic-pitch==0.4.0",
    "pipecat-ai==1.14.0",
    "ddddocr==1.6.1",
)
TORCH = ("torch", "onnxscript", "onnx", "onnxruntime", "scikit-learn", "skl2onnx")
RUNS = [(alloc, sparsity, repair) for alloc in ("erk", "lamp") for sparsity in (0.5, 0.9) for repair in ("channel", "reconstruct")]
LIMIT_S, LIMIT_GB = 600, 4.0
ONLY_ONE = ("silero_vad_half", "silero_vad_openvino_16k")
"""Files that are left out: the same network as another of the wheel's files."""


def fetch() -> None:
    """Download the wheels, take the .onnx and .wav files out of them, and make the torch exports."""
    wheels = BUILD / "wheels"
    wheels.mkdir(parents=True, exist_ok=True)
    for wanted in WHEELS:
        name, version = wanted.split("==")
        if not list(wheels.glob(f"{name.replace('-', '_')}-{version}-*.whl")):
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "-d", str(wheels), wanted]
            subprocess.run(pip, check=True)
        wheel = next(wheels.glob(f"{name.replace('-', '_')}-{version}-*.whl"))
        target = BUILD / "files" / name
        if not target.is_dir():
            with zipfile.ZipFile(wheel) as archive:
                inside = [entry for entry in archive.namelist() if entry.endswith((".onnx", ".wav"))]
                archive.extractall(target, inside)
    if not (BUILD / "files" / "torch").is_dir():
        python = BUILD / "venv" / "bin" / "python"
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", str(BUILD / "venv")], check=True)
            subprocess.run([str(python), "-m", "pip", "install", "--quiet", *TORCH], check=True)
        subprocess.run([str(python), str(ROOT / "tools" / "zoo_torch.py"), str(BUILD / "files" / "torch")], check=True)


def files() -> list[Path]:
    """Every ONNX file, once."""
    found: dict[bytes, Path] = {}
    for path in sorted((BUILD / "files").rglob("*.onnx")):
        if path.stem not in ONLY_ONE:
            found.setdefault(path.read_bytes(), path)
    return list(found.values())


def one(path: Path, alloc: str, sparsity: float, repair: str) -> dict[str, Any]:
    """One run with the invariants checked; errors are results."""
    out: dict[str, Any] = {"file": path.name}
    model = loaded(path)
    samples, batch = zoo_samples.samples_of(path, model)
    options: dict[str, Any] = {"alloc": alloc, "sparsity": sparsity, "repair": repair, "samples": 64, "batch_size": batch, "holdout": 0.25}
    out["weighted"] = len(list(weighted(model)))
    before = data(model)
    start = time.perf_counter()
    try:
        result = prune(model, samples, **options)
    except OnnxpruneError as error:
        return {**out, "error": str(error), "seconds": time.perf_counter() - start}
    report = result.report
    out["seconds"] = time.perf_counter() - start
    out["peak_gb"] = peak_gb()
    out["layers"] = [
        [entry.name, entry.op, list(entry.shape), entry.weights, entry.kept, entry.repair, entry.variance_error_after, list(entry.notes)]
        for entry in report.layers
    ]
    out["norms"] = [[entry.name, entry.op, entry.repair] for entry in report.norms]
    out["skipped"] = [[entry.name, entry.op, entry.reason] for entry in report.skipped]
    out["sparsity"] = report.sparsity
    if report.agreement is not None:
        masked, repaired = report.agreement.masked, report.agreement.repaired
        out["measure"] = report.agreement.measure
        out["score"] = [report.agreement.masked_score, report.agreement.score]
        out["sqnr"] = [min(entry.sqnr_db for entry in masked), min(entry.sqnr_db for entry in repaired)]
        out["main"] = [next(entry.sqnr_db for entry in side if entry.output == report.agreement.output) for side in (masked, repaired)]
    assert data(model) == before, "the given model was changed"
    try:
        check(model, result, batch_of(samples, 0, batch, zoo_samples.COUNT), options)
    except AssertionError as error:
        out["violation"] = str(error)[:600]
    if repair == "channel" and alloc == "erk" and sparsity == 0.5:
        if data(prune(model, samples, **{**options, "sparsity": 0.0}).model) != before:
            out["violation"] = "sparsity 0 is not the identity"
        if data(prune(model, samples, **options).model) != data(result.model):
            out["violation"] = "the same run gives other bytes"
    return out


def peak_gb() -> float:
    """The most memory that this process has held; Linux' own ru_maxrss starts at what the parent had."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1e6  # type: ignore[index]


def measure(path: Path, alloc: str, sparsity: float, repair: str) -> dict[str, Any]:
    """one() in a process of its own."""
    command = [sys.executable, __file__, "--one", str(path), alloc, str(sparsity), repair]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return {"file": path.name, "error": f"took over {LIMIT_S} s"}
    if done.returncode:
        return {"file": path.name, "error": f"exit {done.returncode}", "trace": done.stderr[-2000:]}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--one", nargs=4)
    parser.add_argument("--only", default="")
    parser.add_argument("--fresh", action="store_true", help="forget the results of earlier runs")
    given = parser.parse_args()
    if given.one:
        path, alloc, sparsity, repair = given.one
        print(json.dumps(one(Path(path), alloc, float(sparsity), repair)))
        return 0
    fetch()
    store = BUILD / "results.json"
    results: dict[str, dict[str, Any]] = json.loads(store.read_text()) if store.exists() and not given.fresh else {}
    for path in files():
        name = f"{path.relative_to(BUILD / 'files').parts[0]}/{path.stem}"
        if not re.search(given.only, name):
            continue
        for alloc, sparsity, repair in RUNS:
            run = measure(path, alloc, sparsity, repair)
            results[f"{name}|{alloc}|{sparsity}|{repair}"] = run
            trouble = run.get("error") or run.get("violation") or ""
            score = " -> ".join(f"{value:.3f}" for value in run.get("score", ()))
            sqnr = " -> ".join(f"{value:.1f}" for value in run.get("main", ()))
            print(
                f"{name:44s} {alloc:5s} {sparsity} {repair:12s} {len(run.get('layers', ())):3d} layers {run.get('seconds', 0):6.1f} s "
                f"{run.get('peak_gb', 0):.2f} GB  {score}  {sqnr} dB  {trouble[:160]}",
                flush=True,
            )
            if trouble.startswith("nothing to prune"):
                break
        store.write_text(json.dumps(results))
    (ROOT / "docs" / "zoo.md").write_text(zoo_page.page(results, WHEELS))
    bad = [key for key, run in results.items() if "error" in run or "violation" in run or run.get("peak_gb", 0) > LIMIT_GB]
    return int(bool(bad))


if __name__ == "__main__":
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    sys.exit(main())
