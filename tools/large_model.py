"""Make a model of several GB, the MatMuls of transformer blocks with external data, and prune it in a process of its own.

    python tools/large_model.py FOLDER                          24 blocks of 12 x 2304^2 weights in float32, 6.1 GB
    python tools/large_model.py FOLDER --dtype float16 --width 3264    the same bytes in float16
    python tools/large_model.py FOLDER --blocks 4 --width 576   a small one
    python tools/large_model.py FOLDER --options "--repair channel --calib FOLDER/x.npy --samples 8"

Prints seconds and peak resident memory of the whole command. Needs as much disk as two models.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import onnx
from bench_repair import timed
from onnx import TensorProto, helper

KINDS = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}


def make(path: Path, blocks: int, width: int, dtype: str) -> int:
    """x (N, width) -> per block the projections q, k, v, o and two of a feed-forward net, added to what came in; the bytes of its data.

    There is no softmax: what counts here are the weights. One weight is in memory at a time.
    """
    kind, nodes, tensors, last = KINDS[dtype], [], [], "x"
    rng = np.random.default_rng(0)

    def matmul(name: str, source: str, rows: int, columns: int) -> str:
        values = (rng.standard_normal((rows, columns), np.float32) / np.float32(np.sqrt(rows))).astype(dtype)
        tensor = TensorProto(name=f"{name}.weight", data_type=kind, dims=[rows, columns], data_location=TensorProto.EXTERNAL)
        handle.write(b"\0" * (-handle.tell() % 4096))
        for key, value in (("location", handle_path.name), ("offset", str(handle.tell())), ("length", str(values.nbytes))):
            tensor.external_data.add(key=key, value=value)
        handle.write(values.tobytes())
        tensors.append(tensor)
        nodes.append(helper.make_node("MatMul", [source, tensor.name], [name], name))
        return name

    handle_path = path.with_name(f"{path.stem}.bin")
    with handle_path.open("wb") as handle:
        for number in range(blocks):
            at = f"block{number}"
            q, k, v = (matmul(f"{at}.{part}", last, width, width) for part in "qkv")
            nodes.append(helper.make_node("Mul", [q, k], [f"{at}.qk"]))
            nodes.append(helper.make_node("Sigmoid", [f"{at}.qk"], [f"{at}.gate"]))
            nodes.append(helper.make_node("Mul", [f"{at}.gate", v], [f"{at}.mixed"]))
            nodes.append(helper.make_node("Add", [last, matmul(f"{at}.o", f"{at}.mixed", width, width)], [f"{at}.seen"]))
            nodes.append(helper.make_node("Relu", [matmul(f"{at}.up", f"{at}.seen", width, 4 * width)], [f"{at}.act"]))
            nodes.append(helper.make_node("Add", [f"{at}.seen", matmul(f"{at}.down", f"{at}.act", 4 * width, width)], [f"{at}.sum"]))
            last = f"{at}.out" if number < blocks - 1 else "y"
            scale = f"{at}.half"
            tensors.append(onnx.numpy_helper.from_array(np.full((1,), 0.5, dtype), scale))
            nodes.append(helper.make_node("Mul", [f"{at}.sum", scale], [last]))
        size = handle.tell()
    value = helper.make_tensor_value_info
    graph = helper.make_graph(nodes, "large", [value("x", kind, ["N", width])], [value("y", kind, ["N", width])], tensors)
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString())
    return size


def main() -> int:
    """Make the model, prune it, and print a line of JSON."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("folder", type=Path)
    ask.add_argument("--blocks", type=int, default=24)
    ask.add_argument("--width", type=int, default=2304)
    ask.add_argument("--dtype", choices=KINDS, default="float32")
    ask.add_argument("--sparsity", default="0.9")
    ask.add_argument("--options", default="--repair none --alloc lamp", help="of the command, as one string")
    ask.add_argument("--keep", action="store_true", help="leave the files, and take the model that is there")
    told = ask.parse_args()
    told.folder.mkdir(parents=True, exist_ok=True)
    path, target, report = (told.folder / name for name in (f"large_{told.dtype}.onnx", "pruned.onnx", "pruned.json"))
    if not (told.keep and path.exists()):
        make(path, told.blocks, told.width, told.dtype)
    size = path.with_name(f"{path.stem}.bin").stat().st_size
    np.save(told.folder / "x.npy", np.random.default_rng(1).standard_normal((64, told.width)).astype(told.dtype))
    command = [sys.executable, "-m", "onnxprune", str(path), "--sparsity", told.sparsity, *told.options.split()]
    seconds, _, peak = timed([*command, "-q", "--force", "-o", str(target), "--report", str(report)])
    found = json.loads(report.read_text())
    assert found["weights"] - found["kept"] <= sum(layer["weights"] - layer["nonzero"] for layer in found["layers"])
    where = {phase: round(taken, 1) for phase, taken in found["seconds"].items()}
    print(json.dumps({"gb": round(size / 1e9, 2), "seconds": round(seconds, 1), "peak_gb": round(peak / 1e9, 2), "phases": where}))
    for file in [] if told.keep else [*told.folder.glob("pruned.*"), *told.folder.glob(f"{path.stem}.*"), told.folder / "x.npy"]:
        file.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
