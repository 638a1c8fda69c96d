"""Many runs in one process: memory stays where it is after the first ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

RUNS, WARM = 200, 20
FLAT = 0.05
SCRIPT = """
import json, sys
import numpy as np
import onnxprune
model, repair, runs = sys.argv[1], sys.argv[2], int(sys.argv[3])
samples = np.load(sys.argv[4])
calib = samples["image"][:48]
found = []
for _ in range(runs):
    onnxprune.prune(model, calib, sparsity=0.9, repair=repair, device="cpu")
    with open("/proc/self/status") as status:
        found.append(next(int(line.split()[1]) for line in status if line.startswith("VmRSS")))
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("repair", ["channel", "reconstruct"])
def test_memory_stays_flat_over_many_runs(digits: Path, repair: str) -> None:
    words = [sys.executable, "-c", SCRIPT, digits / "digits.onnx", repair, str(RUNS), digits / "calib.npz"]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    ran = subprocess.run(words, capture_output=True, text=True, env=env)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert len(found) == RUNS
    assert max(found[WARM:]) <= max(found[:WARM]) * (1 + FLAT), found[::10]
    assert sum(found[-WARM:]) <= sum(found[WARM : 2 * WARM]) * (1 + FLAT), found[::10]
