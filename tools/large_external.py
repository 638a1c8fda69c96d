"""Prune a model of more than 2 GB whose data lies in several files, and check and measure the result.

    python tools/large_external.py FOLDER                     8 MatMuls of 8,192 x 8,192 in float32, 2.1 GB, in 3 files
    python tools/large_external.py FOLDER --layers 3 --width 256    a small one

Needs as much disk as two models; the check of a result takes two models of memory. Each repair is a process of its own, so that its peak
memory is its own.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

FILES = 3


def make(path: Path, layers: int, width: int) -> None:
    """x (N, width) -> MatMul, Relu, ... -> y, the weights one after the other in `FILES` files; one layer in memory at a time."""
    nodes, tensors, name = [], [], "x"
    rng = np.random.default_rng(0)
    for file in range(FILES):
        (path.parent / f"part{file}.bin").write_bytes(b"")
    for number in range(layers):
        location = f"part{number % FILES}.bin"
        with (path.parent / location).open("ab") as handle:
            offset = handle.tell()
            values = rng.standard_normal((width, width), np.float32)
            values *= np.float32(np.sqrt(2 / width))
            handle.write(values.tobytes())
        tensor = TensorProto(name=f"w{number}", data_type=TensorProto.FLOAT, dims=[width, width], data_location=TensorProto.EXTERNAL)
        for key, value in (("location", location), ("offset", str(offset)), ("length", str(values.nbytes))):
            tensor.external_data.add(key=key, value=value)
        tensors.append(tensor)
        last = number == layers - 1
        nodes.append(helper.make_node("MatMul", [name, f"w{number}"], ["y" if last else f"m{number}"], f"layer{number}"))
        if not last:
            name = f"a{number}"
            nodes.append(helper.make_node("Relu", [f"m{number}"], [name], f"relu{number}"))
    value = helper.make_tensor_value_info
    shape = ["N", width]
    graph = helper.make_graph(nodes, "large", [value("x", 1, shape)], [value("y", 1, shape)], tensors)
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString())


def prune(path: Path, repair: str, sparsity: float) -> dict[str, object]:
    """One run from the command line: seconds, and its peak memory in GB as the system tells it."""
    target = path.with_name(f"{repair}.onnx")
    calib = [] if repair == "none" else ["--calib", str(path.with_name("x.npy")), "--batch-size", "16"]
    words = ["--sparsity", str(sparsity), "--repair", repair, *calib, "--quiet", "--force", "-o", str(target)]
    code = (
        "import re, sys; from pathlib import Path; from onnxprune.cli import cli; from onnxprune.errors import OnnxpruneError\n"
        "cli.main(args=sys.argv[1:], standalone_mode=False)\n"
        r"print(re.search(r'VmHWM:\s+(\d+)', Path('/proc/self/status').read_text())[1])"
    )
    start = time.perf_counter()
    ran = subprocess.run([sys.executable, "-c", code, str(path), *words], capture_output=True, text=True, check=False)
    if ran.returncode:
        raise SystemExit(ran.stderr)
    return {"repair": repair, "seconds": round(time.perf_counter() - start, 1), "peak_gb": round(int(ran.stdout.split()[-1]) / 1e6, 2)}


def check(path: Path, target: Path, sparsity: float) -> dict[str, object]:
    """Load the result with the checker and ONNX Runtime, count its zeros, and compare a run with the dense model's."""
    onnx.checker.check_model(str(target))
    x = np.load(path.with_name("x.npy"))[:4]
    outputs = []
    for file in (path, target):
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        outputs.append(ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0])
    dense, pruned = (values.astype(np.float64).ravel() for values in outputs)
    model = onnx.load(target, load_external_data=False)
    zeros = total = 0
    for tensor in model.graph.initializer:
        if not re.match(r"w\d+$", tensor.name):
            continue
        entry = {item.key: item.value for item in tensor.external_data}
        values = np.fromfile(target.with_name(entry["location"]), np.float32, int(entry["length"]) // 4, offset=int(entry.get("offset", 0)))
        zeros, total = zeros + int((values == 0).sum()), total + values.size
    assert np.isfinite(pruned).all()
    assert total - zeros == round((1 - sparsity) * total), f"{total - zeros} of {total} weights are there"
    names = {item.value for tensor in model.graph.initializer for item in tensor.external_data if item.key == "location"}
    return {"files": len(names), "cosine": round(float(dense @ pruned / np.linalg.norm(dense) / np.linalg.norm(pruned)), 4)}


def main() -> int:
    """Make the model, prune it without and with a repair, and print a line of JSON for each."""
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("folder", type=Path)
    ask.add_argument("--layers", type=int, default=8)
    ask.add_argument("--width", type=int, default=8192)
    ask.add_argument("--sparsity", type=float, default=0.5)
    ask.add_argument("--repairs", nargs="+", default=["none", "channel"])
    told = ask.parse_args()
    told.folder.mkdir(parents=True, exist_ok=True)
    path = told.folder / "large.onnx"
    make(path, told.layers, told.width)
    np.save(told.folder / "x.npy", np.random.default_rng(1).normal(0.2, 1, (48, told.width)).astype(np.float32))
    for repair in told.repairs:
        found = prune(path, repair, told.sparsity)
        target = told.folder / f"{repair}.onnx"
        print(json.dumps({**found, **check(path, target, told.sparsity)}), flush=True)
        for file in told.folder.glob(f"{target.name}*"):
            file.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
