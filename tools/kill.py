"""Kill runs at random moments and look at what lies there afterwards: the old target or the new one, whole.

    python tools/kill.py MODEL --calib PATH [--times 50] [--seed 0]

Every run replaces the target, its report and its dependency file, by turns with 0.90 and 0.95 sparsity. Prints how many runs were killed
before and after their target was replaced; after the last one, a run that is left alone, and that no temporary file is left.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def command(model: Path, calib: Path, folder: Path, sparsity: float) -> list[str]:
    words = [sys.executable, "-m", "onnxprune", str(model), "--sparsity", str(sparsity), "--calib", str(calib), "--force", "--quiet"]
    return [*words, "-o", str(folder / "out.onnx"), "--report", str(folder / "out.json"), "--depfile", str(folder / "out.d")]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--calib", type=Path, required=True)
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    chance = random.Random(asked.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole: dict[float, str] = {}
        longest = 0.0
        for sparsity in (0.9, 0.95):
            start = time.perf_counter()
            subprocess.run(command(asked.model, asked.calib, folder, sparsity), check=True)
            longest = max(longest, time.perf_counter() - start)
            whole[sparsity] = digest(folder / "out.onnx")
        now, counts, left = 0.95, {"before": 0, "after": 0, "ended by itself": 0}, 0
        for number in range(asked.times):
            new = 0.9 if now == 0.95 else 0.95
            child = subprocess.Popen(command(asked.model, asked.calib, folder, new), stderr=subprocess.DEVNULL)
            begin = time.perf_counter()
            known = set(folder.glob(".*.tmp"))
            # Every second one while it writes: once its first temporary file is there, and 0 to 0.15 s later.
            while number % 2 == 0 and child.poll() is None and set(folder.glob(".*.tmp")) <= known:
                time.sleep(0.001)
            moment = chance.random() * (0.15 if number % 2 == 0 else longest)
            try:
                child.wait(moment)
                counts["ended by itself"] += 1
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            found = digest(folder / "out.onnx")
            if found not in whole.values():
                raise SystemExit(
                    f"run {number}, after {time.perf_counter() - begin:.2f} s: the target is neither the old file nor the new one"
                )
            if child.returncode:
                counts["after" if found == whole[new] else "before"] += 1
            now = new if found == whole[new] else now
            json.loads((folder / "out.json").read_text())
            left = max(left, len(list(folder.glob(".*.tmp"))))
        subprocess.run(command(asked.model, asked.calib, folder, now), check=True)
        names = sorted(entry.name for entry in folder.iterdir())
        if names != ["out.d", "out.json", "out.onnx"] or digest(folder / "out.onnx") != whole[now]:
            raise SystemExit(f"after a run that was left alone there are {names}")
        print(f"{asked.times} runs, each {longest:.1f} s if left alone: {counts}; at most {left} temporary files at once, none at the end")


if __name__ == "__main__":
    main()
