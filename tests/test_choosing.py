"""auto: candidates are judged by samples that neither repair nor choose, and a searched sparsity is the highest that passes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import mlp, samples, twins

from onnxprune import Options, Result, choosing, prune
from onnxprune.errors import GateError, UsageError
from onnxprune.pipeline import plan

X = samples(96, seed=5)


def auto(**named: Any) -> Result:
    return prune(twins(4)[0], X, **{"sparsity": 0.7, "batch_size": 16, "device": "cpu", "holdout": 0.5, **named})


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two allocations and two repairs to choose from, so that a test is quick."""
    monkeypatch.setattr(choosing, "ALLOCS", ("erk", "lamp"))
    monkeypatch.setattr(choosing, "REPAIRS", ("bn", "channel"))


def test_the_best_candidate_goes_out_as_if_it_had_been_asked_for(few: None) -> None:
    result = auto(alloc="auto", repair="auto")
    choice = result.report.choice
    assert choice is not None
    assert (choice.asked, choice.resolution, choice.split) == (("alloc", "repair"), None, True)
    assert [(entry.alloc, entry.repair) for entry in choice.candidates] == [
        ("erk", "bn"), ("erk", "channel"), ("lamp", "bn"), ("lamp", "channel"),
    ]  # fmt: skip
    (chosen,) = [entry for entry in choice.candidates if entry.chosen]
    top = max(entry.score or 0 for entry in choice.candidates)
    near = [entry for entry in choice.candidates if top - entry.score <= ((1 - top + 1 - entry.score) / 24) ** 0.5]
    assert chosen == max(near, key=lambda entry: entry.sqnr_db)
    assert (result.report.options["alloc"], result.report.options["repair"]) == (chosen.alloc, chosen.repair)
    asked = auto(alloc=chosen.alloc, repair=chosen.repair)
    for one, other in zip(result.model.graph.initializer, asked.model.graph.initializer, strict=True):
        # the dense statistics were probed with those of other candidates: equal up to float32's rounding
        np.testing.assert_allclose(onnx.numpy_helper.to_array(one), onnx.numpy_helper.to_array(other), rtol=1e-4, atol=1e-5)


def test_no_sample_repairs_chooses_and_judges(few: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 48 held-out samples 24 choose and 24 judge: what happens to the latter moves no candidate's figures."""
    plain = auto(alloc="auto").report
    assert plain.choice is not None
    assert plain.agreement is not None
    assert plain.calibration is not None
    assert (plain.calibration.repair, plain.choice.samples, plain.choice.judged, plain.agreement.samples) == (48, 24, 24, 24)
    held = np.sort(np.random.default_rng(0).permutation(96)[:48])
    spoilt = X.copy()
    spoilt[held[1::2]] = 50 * X[held[1::2], ::-1]  # those that judge
    other = prune(twins(4)[0], spoilt, sparsity=0.7, batch_size=16, device="cpu", holdout=0.5, alloc="auto").report
    assert other.choice is not None
    assert [(entry.score, entry.kl) for entry in other.choice.candidates] == [(entry.score, entry.kl) for entry in plain.choice.candidates]
    assert other.agreement != plain.agreement


def test_a_model_that_gives_a_batch_one_output_is_judged_by_what_chose(few: None) -> None:
    model = mlp()
    model.graph.node.append(onnx.helper.make_node("ReduceMean", ["logits"], ["whole"], keepdims=0))
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info("whole", onnx.TensorProto.FLOAT, ()))
    x = np.random.default_rng(0).standard_normal((20, 8)).astype(np.float32)
    report = prune(model, x, sparsity=0.5, alloc="auto", batch_size=16, device="cpu").report
    assert report.choice is not None
    assert not report.choice.split
    assert any("a little too high" in note for note in report.notes)


def test_a_candidate_that_fails_is_named_and_the_others_go_on(few: None, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = choosing.carried_out

    def failing(dense: Any, kept: Any, options: Options, tools: Any) -> Any:
        if options.alloc == "erk":
            raise UsageError("not here")
        return plain(dense, kept, options, tools)

    monkeypatch.setattr(choosing, "carried_out", failing)
    report = auto(alloc="auto").report
    assert report.choice is not None
    assert [(entry.alloc, entry.error, entry.chosen) for entry in report.choice.candidates] == [
        ("erk", "not here", False), ("lamp", None, True),
    ]  # fmt: skip
    monkeypatch.setattr(choosing, "ALLOCS", ("erk",))
    with pytest.raises(UsageError, match="no candidate could be run, the first because: not here"):
        auto(alloc="auto")


# ---- the sparsity


@settings(max_examples=40, deadline=None)
@given(edge=st.integers(0, 199), judge=st.integers(0, 199))
def test_the_highest_sparsity_that_passes_on_both_halves_is_found(edge: int, judge: int) -> None:
    """Against the definition, with scores that fall at two edges: one for the half that chooses, one for the half that judges."""
    runs = []

    class Found:
        top1, cosine, kl = 1.0, 1.0, 0.0

    def run(options: Options) -> choosing.Trial:
        level = round(options.sparsity / choosing.STEP)
        runs.append(level)
        found = Found()
        found.top1 = 1.0 if level <= edge else 0.0
        done = choosing.Done(options, None, None, (), None)  # type: ignore[arg-type]
        return choosing.Trial(done, found, 1.0 if level <= judge else 0.0)  # type: ignore[arg-type]

    search = choosing.Search(None, Options(sparsity="auto", min_agreement=0.9), {}, None)  # type: ignore[arg-type]
    search.run = run  # type: ignore[method-assign]
    highest = min(edge, judge)
    if not highest:
        with pytest.raises(GateError, match="no sparsity from"):
            choosing._highest(search)
        return
    assert choosing._highest(search).done.options.sparsity == pytest.approx(highest * choosing.STEP, abs=1e-12)
    assert len(runs) <= 8 + max(0, edge - judge)


def test_an_automatic_sparsity_keeps_the_agreement_and_one_step_more_does_not() -> None:
    report = auto(sparsity="auto", min_agreement=0.9).report
    assert report.choice is not None
    assert report.agreement is not None
    assert report.choice.resolution == 0.005
    assert report.agreement.score >= 0.9
    (chosen,) = [entry for entry in report.choice.candidates if entry.chosen]
    assert report.sparsity_asked == chosen.sparsity_asked
    assert (chosen.score or 0) >= 0.9
    above = [entry for entry in report.choice.candidates if entry.sparsity_asked > chosen.sparsity_asked]
    assert min(entry.sparsity_asked for entry in above) == pytest.approx(chosen.sparsity_asked + 0.005, abs=1e-12)


# ---- refusals


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"sparsity": "auto"}, "needs --min-agreement"),
        ({"sparsity": "auto", "min_agreement": 0.5, "layer_sparsity": {"conv1": 0.1}}, "excludes --layer-sparsity"),
        ({"sparsity": 0.5, "alloc": "auto", "holdout": 0.0}, "give --holdout above 0"),
        ({"sparsity": float("nan"), "alloc": "auto"}, "not in 0 <= S < 1"),
        ({"pattern": "2:4", "alloc": "auto"}, "leaves nothing to allocate"),
    ],
)
def test_what_cannot_be_chosen_is_refused(options: dict[str, Any], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        prune(twins(4)[0], X, batch_size=16, device="cpu", **options)


def test_auto_needs_samples_and_has_no_plan() -> None:
    with pytest.raises(UsageError, match="--alloc auto compares candidates on calibration samples"):
        prune(twins(4)[0], sparsity=0.5, alloc="auto", repair="none")
    with pytest.raises(UsageError, match="--dry-run"):
        plan(twins(4)[0], Options(sparsity=0.5, repair="auto"))


def test_a_pattern_may_have_its_repair_chosen(few: None) -> None:
    report = prune(twins(4)[0], X, pattern="2:4", repair="auto", batch_size=16, device="cpu").report
    assert report.sparsity_asked == 0.5
    assert report.options["pattern"] == "2:4"


def test_the_command_shows_what_was_tried(few: None, tmp_path: Path, onnxprune: Callable[..., Any]) -> None:
    path, calib = tmp_path / "net.onnx", tmp_path / "calib.npy"
    onnx.save(twins(4)[0], str(path))
    np.save(calib, X)
    words = ("--alloc", "auto", "--repair", "auto", "--sparsity", "auto", "--min-agreement", "0.6", "--calib", calib, "--batch-size", 16)
    ran = onnxprune(path, *words, "--device", "cpu", "--report", tmp_path / "r.json")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.count("<- chosen") == 1
    told = json.loads((tmp_path / "r.json").read_text())
    assert told["choice"]["asked"] == ["alloc", "repair", "sparsity"]
    assert told["agreement"]["score"] >= 0.6
    assert onnxprune(path, "--sparsity", "some", "--calib", calib).code == 2
