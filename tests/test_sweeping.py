"""onnxprune sweep: its rows are those of single runs, it goes on where it was, and it says where bn falls."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import pytest
from networks import run, samples, twins
from rich.console import Console

from onnxprune import Options, bars, prune, sweep_report, sweeping
from onnxprune.errors import CalibrationError, ModelError
from onnxprune.flags import grid
from onnxprune.regimes import best_of, regimes_of
from onnxprune.resuming import keeping, known_rows, state_of
from onnxprune.sweep_report import SweepRow
from onnxprune.sweeping import Sweep, sweep

X = samples(96, seed=5)
QUICK = ("--batch-size", 16, "--device", "cpu", "--jobs", 1)


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with net.onnx, calib.npy and labels.txt, the dense model's classes; the current one."""
    model = twins(4)[0]
    onnx.save(model, str(tmp_path / "net.onnx"))
    np.save(tmp_path / "calib.npy", X)
    (logits,) = run(model, {"x": X}).values()
    (tmp_path / "labels.txt").write_text("".join(f"{label}\n" for label in logits.argmax(1)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def asked(**named: Any) -> Sweep:
    given = {"allocs": ("erk", "lamp"), "sparsities": (0.5, 0.8), "repairs": ("none", "bn", "channel"), **named}
    return Sweep(Path("net.onnx"), (Path("calib.npy"),), options=Options(sparsity=0.0, batch_size=16, device="cpu"), **given)


def timeless(text: str) -> Any:
    """A report without its seconds."""

    def walk(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: walk(entry) for key, entry in value.items() if key != "seconds"}
        return [walk(entry) for entry in value] if isinstance(value, list) else value

    return walk(json.loads(text))


# ---- the rows


@pytest.mark.parametrize("allocs", [("erk",), pytest.param(("erk", "error"), marks=pytest.mark.slow)])
def test_a_row_is_what_a_single_run_gives(net: Path, allocs: tuple[str, ...]) -> None:
    report = sweep(asked(allocs=allocs, repairs=("none", "bn", "channel", "reconstruct")))
    assert [(row.alloc, row.sparsity_asked, row.repair) for row in report.rows][:5] == [
        ("erk", 0.5, "none"), ("erk", 0.5, "bn"), ("erk", 0.5, "channel"), ("erk", 0.5, "reconstruct"), ("erk", 0.8, "none"),
    ]  # fmt: skip
    assert len({row.key for row in report.rows}) == len(report.rows) == 8 * len(allocs)
    for row in report.rows:
        told = {"alloc": row.alloc, "sparsity": row.sparsity_asked, "repair": row.repair}
        single = prune("net.onnx", "calib.npy", batch_size=16, device="cpu", **told).report
        assert single.agreement is not None
        (output,) = single.agreement.repaired
        assert (row.kept, row.weights, row.sparsity) == (single.kept, single.weights, single.sparsity)
        assert (row.score, row.dead_channels) == (single.agreement.score, single.dead_channels)
        # Statistics that are probed together differ from those probed alone by float32's rounding, by what the runtime then fuses.
        np.testing.assert_allclose([row.kl, row.cosine, row.sqnr_db], [output.kl, output.cosine, output.sqnr_db], rtol=1e-3, atol=1e-6)


def test_what_is_shared_runs_once(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def counted(name: str) -> None:
        plain = getattr(sweeping, name)
        monkeypatch.setattr(sweeping, name, lambda *given, **named: ran.append(name) or plain(*given, **named))

    for name in ("open_bench", "dense_outputs", "dense_statistics", "decided", "carried_out"):
        counted(name)
    sweep(asked())
    assert {name: ran.count(name) for name in ran} == {
        "open_bench": 1, "dense_outputs": 1, "dense_statistics": 1, "decided": 4, "carried_out": 12,
    }  # fmt: skip


def test_statistics_that_are_there_are_not_made_again(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxprune import running

    passes = []
    plain = running.dense_moments
    monkeypatch.setattr(running, "dense_moments", lambda *given: passes.append(1) or plain(*given))
    sweep(asked())
    assert len(passes) == 1


def test_gradients_that_are_known_are_not_measured_again(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxprune import metrics

    asked_for: list[set[str]] = []
    plain = metrics.gradient_moments

    def measured(dense: Any, points: Any, *given: Any) -> Any:
        asked_for.append({point.dense_tensor for point in points})
        return plain(dense, points, *given)

    monkeypatch.setattr(metrics, "gradient_moments", measured)
    sweep(asked(repairs=("reconstruct",)))
    assert len(asked_for) == 4
    assert asked_for[0]
    assert not any(asked_for[1:])


def test_a_combination_that_fails_is_a_row_with_its_error(net: Path) -> None:
    report = sweep(asked(sparsities=(0.5, 0.999)))
    failed = [row for row in report.rows if row.error]
    assert {row.sparsity_asked for row in failed} == {0.999}
    assert all("lower the sparsity" in (row.error or "") and row.score is None for row in failed)
    assert [entry.sparsity_asked for entry in report.best] == [0.5]
    with pytest.raises(ModelError, match="no combination could be run"):
        sweep(asked(sparsities=(0.999,)))


# ---- labels


def test_labels_are_drawn_with_their_samples_and_change_no_choice(net: Path) -> None:
    report = sweep(asked(labels=Path("labels.txt")))
    assert report.dense_accuracy == 1.0  # the labels are the dense model's own classes
    assert all(row.accuracy == row.score for row in report.rows)
    (net / "labels.txt").write_text("0\n" * 96)
    other = sweep(asked(labels=Path("labels.txt")))
    assert [entry.repair for entry in other.best] == [entry.repair for entry in report.best]
    assert [row.score for row in other.rows] == [row.score for row in report.rows]


@pytest.mark.parametrize(
    ("text", "word"), [("1\n2\n", "96 samples"), ("x\n" * 96, "labels.txt"), ("-1\n" * 96, "0 or more"), ("7\n" * 96, "classes 0 to 4")]
)
def test_labels_that_do_not_fit_are_refused(net: Path, text: str, word: str) -> None:
    (net / "labels.txt").write_text(text)
    with pytest.raises(CalibrationError, match=word):
        sweep(asked(labels=Path("labels.txt")))


# ---- what the rows tell


def made(alloc: str, sparsity: float, repair: str, score: float | None, sqnr: float = 0.0) -> SweepRow:
    return SweepRow(f"{alloc}{sparsity}{repair}", alloc, sparsity, repair, score=score, sqnr_db=sqnr)


def test_the_best_row_agrees_most_and_of_equals_has_the_smaller_error() -> None:
    rows = [made("erk", 0.9, "bn", 0.5, 1.0), made("lamp", 0.9, "bn", 0.5, 1.1), made("lamp", 0.9, "asr", 0.4, 2.0),
            made("erk", 0.8, "bn", None), made("erk", 0.7, "bn", 0.0)]  # fmt: skip
    for count in (None, 200):  # of 200, shares of .5 and .4 are more than a standard error apart: .074
        found = [(entry.sparsity_asked, entry.alloc, entry.score) for entry in best_of(rows, count)]
        assert found == [(0.9, "lamp", 0.5), (0.7, "erk", 0.0)]
    assert [entry.repair for entry in best_of(rows, 100)] == ["asr", "bn"]  # of 100 they are not: .105


def test_the_transition_regime_is_where_bn_has_fallen_and_another_holds() -> None:
    scores = {0.7: (0.9, 0.95, 0.9), 0.8: (0.79, 0.8, 0.81), 0.9: (0.5, 0.8, 0.2), 0.95: (0.1, 0.79, 0.1)}
    repairs = ("bn", "channel", "asr")
    rows = [made("erk", at, repair, score) for at, there in scores.items() for repair, score in zip(repairs, there, strict=True)]
    (regime,) = regimes_of(rows, 0.8, 0.8)
    assert (regime.alloc, regime.first, regime.last) == ("erk", 0.8, 0.9)
    assert [(point.sparsity_asked, point.bn, point.repair, point.score) for point in regime.points] == [
        (0.8, 0.79, "asr", 0.81), (0.9, 0.5, "channel", 0.8),
    ]  # fmt: skip
    (none,) = regimes_of(rows, 0.1, 0.8)
    assert (none.first, none.last, none.points) == (None, None, ())
    assert regimes_of([row for row in rows if row.repair != "bn"], 0.8, 0.8) == ()
    assert regimes_of([row for row in rows if row.repair == "bn"], 0.8, 0.8) == ()


# ---- going on


def test_an_interrupted_sweep_goes_on_and_ends_with_the_same_files(
    net: Path, onnxprune: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("sweep", "net.onnx", "--calib", "calib.npy", "--alloc", "erk,error", "--sparsity", "0.5,0.8", "--repair", "none,bn", *QUICK)
    assert onnxprune(*words, "-o", "whole.json", "--csv", "whole.csv").code == 0
    plain = sweeping._row
    done: list[str] = []

    def stopping(*given: Any) -> SweepRow:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(given[2])
        return plain(*given)

    monkeypatch.setattr(sweeping, "_row", stopping)
    ran = onnxprune(*words, "-o", "parts.json", "--csv", "parts.csv")
    assert ran.code == 130
    assert "parts.json.rows" in ran.err
    assert sorted(path.name for path in net.iterdir() if path.name.startswith("parts")) == ["parts.json.rows"]
    with (net / "parts.json.rows").open("a") as handle:
        handle.write('{"key": "cut')  # a line that the disk did not take whole
    again: list[str] = []
    monkeypatch.setattr(sweeping, "_row", lambda *given: again.append(given[2]) or plain(*given))
    ran = onnxprune(*words, "-o", "parts.json", "--csv", "parts.csv")
    assert ran.code == 0
    assert len(again) == 5
    assert not set(again) & set(done)
    assert sorted(path.name for path in net.iterdir() if path.name.startswith("parts")) == ["parts.csv", "parts.json"]
    assert timeless((net / "parts.json").read_text()) == timeless((net / "whole.json").read_text())
    table = [list(csv.DictReader((net / name).read_text().splitlines())) for name in ("parts.csv", "whole.csv")]
    assert [{**row, "seconds": ""} for row in table[0]] == [{**row, "seconds": ""} for row in table[1]]
    assert len(table[0]) == 8


def test_rows_of_other_samples_or_options_are_not_taken(net: Path) -> None:
    first = {row.key for row in sweep(asked(allocs=("erk",))).rows}
    assert {row.key for row in sweep(asked(allocs=("erk",), sparsities=(0.8, 0.5))).rows} == first
    other = dataclasses.replace(asked(allocs=("erk",)), options=Options(sparsity=0.0, batch_size=16, device="cpu", seed=1))
    assert not first & {row.key for row in sweep(other).rows}
    np.save(net / "calib.npy", X + 1)
    assert not first & {row.key for row in sweep(asked(allocs=("erk",))).rows}


def test_rows_come_back_as_they_were_and_failed_ones_do_not(tmp_path: Path) -> None:
    state = state_of(tmp_path / "s.json")
    rows = [made("erk", 0.9, "bn", 0.1 + 0.2, 1e-17), dataclasses.replace(made("erk", 0.9, "asr", None), error="no")]
    assert known_rows(state) == {}
    with keeping(state) as keep:
        assert not state.exists()
        for row in rows:
            keep(row)
    assert known_rows(state) == {rows[0].key: rows[0]}


# ---- the command


@pytest.mark.parametrize(
    ("text", "values"),
    [("0.9", (0.9,)), ("0.9,0.95", (0.9, 0.95)), ("0.8:0.98:0.02", (0.8, 0.82, 0.84, 0.86, 0.88, 0.9, 0.92, 0.94, 0.96, 0.98)),
     ("0.5:0.6:0.04", (0.5, 0.54, 0.58)), ("0.5:0.5:1,0.7", (0.5, 0.7)), ("0.5,0.5", (0.5,))],
)  # fmt: skip
def test_sparsities_by_hand(text: str, values: tuple[float, ...]) -> None:
    assert grid(None, None, text) == values  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "x", "0.5:0.6", "0.6:0.5:0.1", "0.5:0.6:0", "0:1:0.0001", "nan", "0:inf:1"])
def test_sparsities_that_are_none(text: str) -> None:
    with pytest.raises(click.BadParameter):
        grid(None, None, text)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("words", "word"),
    [
        (("--sparsity", "1.5"), "not in 0 <= S < 1"),
        (("--alloc", "best"), "--alloc 'best' is not known"),
        (("--repair", "bn,bn"), "each once"),
        (("--alloc", ","), "got none"),
        (("--holds", "2"), "--holds 2.0"),
        (("--holdout", "0"), "--holdout above 0"),
        (("-o", "net.onnx"), "is an input"),
        (("-o", "a", "--csv", "a"), "written twice"),
        (("-o", "calib.npy", "--force"), "is an input"),
        (("--jobs", "2", "--scheduler", "tcp://127.0.0.1:1"), "give one of them"),
        (("--alloc", "auto"), "--alloc 'auto' is not known"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(net: Path, onnxprune: Callable[..., Any], words: tuple[str, ...], word: str) -> None:
    before = sorted(net.iterdir())
    ran = onnxprune("sweep", "net.onnx", "--calib", "calib.npy", "--sparsity", "0.5", *words)
    assert ran.code == 2
    assert ran.err.count("\n") == 1
    assert word in ran.err
    assert sorted(net.iterdir()) == before


def test_the_tables_name_the_best_and_the_regime(net: Path, onnxprune: Callable[..., Any]) -> None:
    words = ("--alloc", "erk", "--sparsity", "0.5,0.9", "--repair", "bn,channel", "--fallen", "1", "--holds", "0", "--labels", "labels.txt")
    ran = onnxprune("sweep", "net.onnx", "--calib", "calib.npy", *words, *QUICK)
    assert (ran.code, ran.err) == (0, "")
    assert "accuracy" in ran.out
    assert sum(line.rstrip().endswith("best") for line in ran.out.splitlines()) == 2
    assert "transition regime of erk (bn below 1" in ran.out
    assert onnxprune("sweep", "net.onnx", "--calib", "calib.npy", *words, *QUICK, "-q").out == ""


def test_every_field_of_a_sweep_is_documented() -> None:
    text = (Path(__file__).resolve().parent.parent / "docs" / "choosing.md").read_text(encoding="utf-8")
    kinds = [kind for kind in vars(sweep_report).values() if dataclasses.is_dataclass(kind) and kind.__module__ == sweep_report.__name__]
    assert len(kinds) == 5
    for kind in kinds:
        for field in dataclasses.fields(kind):  # type: ignore[arg-type]
            assert f"`{field.name}`" in text, (kind, field.name)


def test_the_bar_tells_the_row_and_the_time_left(net: Path, onnxprune: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("sweep", "net.onnx", "--calib", "calib.npy", "--alloc", "erk", "--sparsity", "0.5,0.8", "--repair", "none,bn", *QUICK, "-q")
    assert onnxprune(*words).err == ""
    monkeypatch.setattr(bars, "_console", lambda: Console(force_terminal=True, width=120, stderr=True))
    ran = onnxprune(*words[:-1])
    assert "net.onnx: erk 0.8 bn" in ran.err
    assert "4/4" in ran.err
    assert "left" in ran.err
    assert onnxprune(*words).err == ""


def test_a_file_that_the_checker_refuses_and_that_breaks_a_run_is_blamed(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = onnx.load("net.onnx")
    model.graph.output[0].ClearField("type")  # the checker's complaint; the runtime takes it
    onnx.save(model, "net.onnx")

    def broken(*given: Any) -> Any:
        raise IndexError

    monkeypatch.setattr(sweeping, "carried_out", broken)
    with pytest.raises(ModelError, match=r"onnx.checker says"):
        sweep(asked())
