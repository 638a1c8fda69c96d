"""--memory: the same result with and without, from one end to the other; sizes, what is free, errors; and the peak of real runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from networks import model_of, samples, twins
from onnx import helper

from onnxprune import Options, memory, prune
from onnxprune.errors import UsageError
from onnxprune.memory import budget, free, in_bytes
from onnxprune.options import REPAIRS
from onnxprune.sampling import rows_of

GIB = 1 << 30


@pytest.mark.parametrize("form", [0, 1])
@pytest.mark.parametrize("repair", [repair for repair in REPAIRS if repair != "none"])
def test_a_run_that_spills_gives_the_same_bytes(repair: str, form: int) -> None:
    model = twins()[form]
    runs = [prune(model, samples(), sparsity=0.9, repair=repair, batch_size=4, device="cpu", memory=size) for size in ("1GB", "60KB", 1)]
    plenty, some, none = (result.report.memory for result in runs)
    assert plenty is not None and some is not None and none is not None
    assert (plenty.budget, some.budget, none.budget) == (10**9, 60_000, 1)
    assert 0 == plenty.spilled < some.spilled < none.spilled
    assert runs[0].report.notes == ()
    assert "of live tensors went through a temporary file" in runs[2].report.notes[-1]
    assert len({result.model.SerializeToString() for result in runs}) == 1
    assert len({str(result.report.layers) for result in runs}) == 1


@pytest.mark.parametrize("alloc", ["error", "rr"])
def test_measured_allocations_spill_too(alloc: str) -> None:
    runs = [prune(twins()[0], samples(), sparsity=0.9, alloc=alloc, batch_size=4, device="cpu", memory=size) for size in ("1GB", 1)]
    plenty, none = (result.report.memory for result in runs)
    assert plenty is not None and none is not None
    assert 0 == plenty.spilled < none.spilled
    assert runs[0].model.SerializeToString() == runs[1].model.SerializeToString()


def test_both_walks_of_a_reconstruction_share_one_budget() -> None:
    """A budget between the peak of one and of two walks: were it for each, nothing would spill."""

    def peak(repair: str, size: int | None = None) -> tuple[int, int]:
        report = prune(twins()[0], samples(), sparsity=0.9, repair=repair, batch_size=4, device="cpu", memory=size).report.memory
        assert report is not None
        return report.peak, report.spilled

    both, _ = peak("reconstruct", 10**9)
    assert peak("reconstruct", both)[1] == 0
    assert peak("reconstruct", both * 2 // 3)[1] > 0


def test_a_sweep_gives_the_same_rows_within_any_budget(onnxprune, tmp_path: Path) -> None:
    onnx.save(twins()[0], tmp_path / "net.onnx")
    np.save(tmp_path / "x.npy", samples())
    rows = []
    for number, size in enumerate(("1GB", "1KB")):
        report = tmp_path / f"{number}.json"
        ran = onnxprune(
            *("sweep", tmp_path / "net.onnx", "--calib", tmp_path / "x.npy", "--sparsity", "0.9", "--alloc", "erk", "--jobs", 1),
            *("--repair", "bn,channel,asr,reconstruct", "--batch-size", 4, "--memory", size, "-o", report, "--device", "cpu"),
        )
        assert ran.code == 0, ran.err
        rows.append([{**row, "seconds": 0} for row in json.loads(report.read_text())["rows"]])
    assert rows[0] == rows[1]  # the keys too: a sweep goes on under another budget


@pytest.mark.parametrize("repair", ["channel", "reconstruct"])
def test_a_temporary_folder_that_is_not_there_is_one_line_and_nothing_is_written(onnxprune, tmp_path, monkeypatch, repair) -> None:
    onnx.save(twins()[0], tmp_path / "net.onnx")
    np.save(tmp_path / "x.npy", samples())
    monkeypatch.setenv("TMPDIR", str(tmp_path / "none"))
    words = (tmp_path / "net.onnx", "--calib", tmp_path / "x.npy", "--sparsity", "0.9", "--repair", repair, "--memory", "1KB")
    ran = onnxprune(*words, "--device", "cpu")
    assert ran.code == 1
    assert ran.err.count("\n") == 1
    assert f"{tmp_path}/none: no place for the live tensors beyond --memory" in ran.err
    assert names(tmp_path) == {"net.onnx", "x.npy"}


def test_a_folder_that_fills_up_is_one_line(tmp_path: Path) -> None:
    """A file-size limit of the process stands for the full disk."""
    script = f"""
import resource, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from networks import samples, twins
import onnxprune
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    onnxprune.prune(twins()[0], samples(), sparsity=0.9, device="cpu", memory=1)
except onnxprune.OnnxpruneError as error:
    print(error)
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment(tmp_path))
    assert "no place for the live tensors beyond --memory: File too large; set TMPDIR" in ran.stdout, ran.stderr
    assert not names(tmp_path)


def names(folder: Path) -> set[str]:
    """What a run left in the folder; .ses is ONNX Runtime's own."""
    return {path.name for path in folder.iterdir()} - {".ses"}


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "TMPDIR": str(folder), "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}


# ---- sizes, and what is free


@pytest.mark.parametrize(
    ("text", "size"),
    [("500MB", 5 * 10**8), ("2gb", 2 * 10**9), ("1.5 GB", 15 * 10**8), ("1GiB", GIB), ("3kib", 3072), ("7", 7), (7, 7), ("1B", 1)],
)
def test_sizes(text: str | int, size: int) -> None:
    assert in_bytes(text) == size
    assert Options(sparsity=0.5, memory=text).memory == size  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "0", "0GB", "-1GB", "much", "1XB", "1e3", "0.5B", "IB", "1IB"])
def test_what_is_no_size_is_said(text: str) -> None:
    with pytest.raises(UsageError, match=r"--memory .* is not a size above 0, such as 500MB or 2GB"):
        in_bytes(text)


def system(root: Path, **files: str) -> Path:
    for name, text in {"proc/meminfo": "MemTotal: 9 kB\nMemAvailable:    4194304 kB\n", **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_what_is_free_is_told_by_the_kernel(tmp_path: Path) -> None:
    assert free(system(tmp_path)) == 4 * GIB
    assert free(tmp_path / "none") == memory.UNKNOWN


@pytest.mark.parametrize(("above", "left"), [("max", 2 * GIB - GIB // 2), (f"{GIB}", GIB - GIB // 2)])
def test_the_lowest_limit_of_the_control_groups_counts(tmp_path: Path, above: str, left: int) -> None:
    files = {"proc/self/cgroup": "0::/a/b\n"}
    for name, limit in (("a", above), ("a/b", f"{2 * GIB}")):
        files[f"sys/fs/cgroup/{name}/memory.max"] = f"{limit}\n"
        files[f"sys/fs/cgroup/{name}/memory.current"] = f"{GIB}\n"
        files[f"sys/fs/cgroup/{name}/memory.stat"] = f"anon 5\ninactive_file {GIB // 2}\n"
    assert free(system(tmp_path, **files)) == left


def test_the_limit_of_the_first_kind_of_control_group_counts(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "4:cpu,memory:/a\n3:cpuset:/\n0::/\n"}
    for name, text in (("limit_in_bytes", 2 * GIB), ("usage_in_bytes", GIB)):
        files[f"sys/fs/cgroup/memory/a/memory.{name}"] = f"{text}\n"
    files["sys/fs/cgroup/memory/a/memory.stat"] = "total_inactive_file 0\n"
    assert free(system(tmp_path, **files)) == GIB


def test_the_budget_is_half_of_what_is_free_by_its_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free", lambda: 8 * GIB)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(4)), raising=False)
    monkeypatch.setenv("ONNXPRUNE_THREADS", "4")
    assert (budget(None), budget(5)) == (4 * GIB, 5)
    monkeypatch.setenv("ONNXPRUNE_THREADS", "1")  # as in one of four processes side by side
    assert budget(None) == GIB


@pytest.mark.parametrize(
    ("cores", "held", "count"),
    [
        (2, 1, 2),
        (1, 1, 1),
        (16, 1, 4),
        (6, 1, 3),
        (7, 1, 1),
        (2, None, 1),
        (2, GIB // 4, 2),
        (2, GIB // 4 + 1, 1),
        (4, 0, 4),
        (2, 9 * GIB, 1),
    ],
)
def test_batches_run_side_by_side_where_they_take_an_eighth_of_the_budget(
    monkeypatch: pytest.MonkeyPatch, cores: int, held: int | None, count: int
) -> None:
    monkeypatch.setattr(memory, "budget", lambda asked: 4 * GIB)
    assert memory.at_once(cores, held) == count


# ---- the peak of real runs


def peak_of(folder: Path, *words: object) -> tuple[int, dict[str, int]]:
    """Bytes a run of the command needed at most, and what it reports. Not getrusage alone: exec hands it the peak of the parent down."""
    script = (
        "import re, sys; from onnxprune.cli import main\n"
        "try:\n    main()\nfinally:\n"
        "    print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])"
    )
    told = [str(word) for word in (*words, "--quiet", "--report", folder / "r.json", "-o", folder / "out.onnx", "--device", "cpu")]
    ran = subprocess.run([sys.executable, "-c", script, *told], capture_output=True, text=True, env=environment(folder))
    assert ran.returncode == 0, ran.stderr
    return int(ran.stdout.split()[-1]) * 1024, json.loads((folder / "r.json").read_text())["memory"]


def wide(width: int = 256, size: int = 64) -> onnx.ModelProto:
    """Three depthwise layers with a way around them all: two tensors of 4 MB a sample are live between.

    Softplus is not run again in place of keeping what it gives, as a Relu behind a cheap convolution would be.
    """
    rng = np.random.default_rng(0)
    shapes = {"w0": (width, 3, 1, 1), "w1": (width, 1, 3, 3), "w2": (width, 1, 3, 3), "w3": (width, 1, 3, 3), "w4": (5, width)}
    weights = {name: rng.normal(0, 0.4, shape).astype(np.float32) for name, shape in shapes.items()}
    nodes = [helper.make_node("Conv", ["x", "w0"], ["c0"]), helper.make_node("Softplus", ["c0"], ["t0"])]
    for number in (1, 2, 3):
        nodes.append(helper.make_node("Conv", [f"t{number - 1}", f"w{number}"], [f"c{number}"], group=width, pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Softplus", [f"c{number}"], [f"t{number}"]))
    nodes += [helper.make_node("Add", ["t0", "t3"], ["sum"]), helper.make_node("GlobalAveragePool", ["sum"], ["mean"])]
    nodes += [helper.make_node("Flatten", ["mean"], ["flat"]), helper.make_node("Gemm", ["flat", "w4"], ["y"], transB=1)]
    return model_of(nodes, {"x": ("n", 3, size, size)}, {"y": ("n", 5)}, weights)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("repair", ["channel", "reconstruct"])
def test_a_net_that_does_not_fit_stays_within_the_budget_and_comes_out_the_same(tmp_path: Path, repair: str) -> None:
    onnx.save(wide(), tmp_path / "net.onnx")
    np.save(tmp_path / "x.npy", samples(160, (3, 64, 64)))
    words = (tmp_path / "net.onnx", "--calib", tmp_path / "x.npy", "--sparsity", "0.5", "--repair", repair, "--batch-size", 8)
    peak, told = peak_of(tmp_path, *words, "--memory", "100MB")
    assert told["peak"] > 1e9
    assert told["spilled"] > 1e9
    rows = 2 * 4 * 256 * 9 * rows_of(256 * 9) if repair == "reconstruct" else 0  # of one layer, and again group by group
    assert peak <= 1e8 + 2 * (tmp_path / "net.onnx").stat().st_size + 3e8 + rows
    assert names(tmp_path) == {"net.onnx", "x.npy", "r.json", "out.onnx"}
    spilled = (tmp_path / "out.onnx").read_bytes()
    _, told = peak_of(tmp_path, *words, "--memory", "4GB", "--force")
    assert told["spilled"] == 0
    assert (tmp_path / "out.onnx").read_bytes() == spilled


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("size", "more"), [("1GB", ()), ("400MB", ()), ("50MB", ("--batch-size", "8"))])
def test_a_real_network_stays_within_the_budget(reference: Path, tmp_path: Path, size: str, more: tuple[str, ...]) -> None:
    model = reference / "imagenet" / "efficientnet_lite0.onnx"
    words = (model, "--calib", reference / "imagenet" / "calib", "--mean", 127, "--std", 128, "--sparsity", "0.5", "--samples", 256)
    peak, told = peak_of(tmp_path, *words, *more, "--memory", size)
    assert (told["spilled"] > 0) == (size == "50MB")
    assert peak <= in_bytes(size) + 2 * model.stat().st_size + 3e8
    assert peak < 1e9
    if told["spilled"]:
        spilled = (tmp_path / "out.onnx").read_bytes()
        assert peak_of(tmp_path, *words, *more, "--memory", "1GB", "--force")[1]["spilled"] == 0
        assert (tmp_path / "out.onnx").read_bytes() == spilled
