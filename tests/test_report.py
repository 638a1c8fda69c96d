"""The report as JSON: valid, complete, and its numbers add up."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from networks import mlp, samples, tensors, twins

from onnxprune import Options, Report, __version__, prune
from onnxprune.options import REPAIRS
from onnxprune.pipeline import plan
from onnxprune.report import SCHEMA, LayerReport, to_json


def strict(text: str) -> Any:
    """json.loads that takes what the standard takes: no NaN, no Infinity, no key twice."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len({key for key, _ in pairs}) == len(pairs)
        return dict(pairs)

    return json.loads(text, parse_constant=refuse, object_pairs_hook=once)


def checked(report: Report) -> dict[str, Any]:
    """The report's JSON, after everything that holds for every report."""
    found = strict(to_json(report))
    assert next(iter(found)) == "schema"
    assert found["schema"] == SCHEMA == 1
    assert set(found) == {field.name for field in dataclasses.fields(Report)}
    for entry in found["layers"]:
        assert set(entry) == {field.name for field in dataclasses.fields(LayerReport)}
        assert math.prod(entry["shape"]) == entry["weights"]
        assert 0 <= entry["nonzero"] <= entry["kept"] <= entry["weights"]
        assert entry["density"] == entry["kept"] / entry["weights"]
        assert entry["dead_channels"] <= entry["channels"]
        assert entry["pruned"] or entry["kept"] == entry["weights"]
        if entry["gain_min"] is not None:
            assert entry["gain_min"] <= entry["gain_max"]
    pruned = [entry for entry in found["layers"] if entry["pruned"]]
    assert found["weights"] == sum(entry["weights"] for entry in pruned)
    assert found["kept"] == sum(entry["kept"] for entry in pruned)
    assert found["sparsity"] == 1 - found["kept"] / found["weights"]
    assert found["versions"]["onnxprune"] == __version__
    assert {"python", "numpy", "onnx", "onnx-graphsurgeon"} <= set(found["versions"])
    assert set(found["options"]) == {field.name for field in dataclasses.fields(Options)}
    assert found["options"]["sparsity"] == found["sparsity_asked"]
    if found["calibration"] is not None:
        used = found["calibration"]
        assert used["repair"] + used["holdout"] <= min(used["available"], found["options"]["samples"])
        assert found["provider"] is not None
    if found["agreement"] is not None:
        assert found["agreement"]["samples"] <= found["calibration"]["holdout"]
        assert len(found["agreement"]["masked"]) == len(found["agreement"]["repaired"])
        assert 0 <= found["agreement"]["score"] <= 1
    assert all(value >= 0 for value in found["seconds"].values())
    return found


@pytest.mark.parametrize("form", ["digits.onnx", "digits_folded.onnx"])
@pytest.mark.parametrize("repair", [pytest.param(how, marks=pytest.mark.slow) if how == "reconstruct" else how for how in REPAIRS])
def test_a_run_reports_valid_json_that_adds_up(digits: Path, form: str, repair: str) -> None:
    result = prune(digits / form, digits / "calib.npz", sparsity=0.9, repair=repair, samples=64, exclude=("stem",))
    found = checked(result.report)
    values = tensors(result.model)
    for entry in found["layers"]:
        assert np.count_nonzero(values[entry["weight"]]) == entry["nonzero"]
    assert found["agreement"]["measure"] == "top1"
    assert found["agreement"]["score"] == found["agreement"]["repaired"][0]["top1"]
    assert found["agreement"]["masked_score"] == found["agreement"]["masked"][0]["top1"]
    alone = prune(digits / form, digits / "calib.npz", sparsity=0.9, repair="none", samples=64, exclude=("stem",)).report
    assert alone.agreement is not None
    assert result.report.agreement is not None
    assert result.report.agreement.masked == alone.agreement.repaired
    assert (repair == "none") == (result.report.agreement.masked == result.report.agreement.repaired)
    expected = {"load", "allocation", "agreement"} | ({"repair"} if repair != "none" else set())
    expected |= {"dense statistics"} if repair not in ("none", "reconstruct") else set()
    assert set(found["seconds"]) == expected


@settings(max_examples=15, deadline=None)
@given(
    sparsity=st.floats(0, 0.95),
    alloc=st.sampled_from(["uniform", "global", "erk", "lamp"]),
    repair=st.sampled_from(REPAIRS),
    seed=st.integers(0, 2**31),
)
def test_any_run_reports_valid_json_that_adds_up(sparsity: float, alloc: str, repair: str, seed: int) -> None:
    """Up to sparsities where most channels are dead and outputs are constant."""
    result = prune(mlp(seed=seed), samples(30, (8,)), sparsity=sparsity, alloc=alloc, repair=repair, seed=seed)
    checked(result.report)


def test_infinity_becomes_null() -> None:
    report = prune(mlp(), samples(30, (8,)), sparsity=0).report
    assert report.agreement is not None
    assert report.agreement.repaired[0].sqnr_db == math.inf
    assert checked(report)["agreement"]["repaired"][0]["sqnr_db"] is None


def test_a_plan_reports_what_a_run_would_keep() -> None:
    model = twins(depth=3)[0]
    options = Options(sparsity=0.7, alloc="lamp", layer_sparsity={"fc": 0.25}, exclude=("conv0",))
    found = checked(plan(model, options))
    run = checked(prune(model, samples(30), sparsity=0.7, alloc="lamp", layer_sparsity={"fc": 0.25}, exclude=("conv0",)).report)
    assert [entry["kept"] for entry in found["layers"]] == [entry["kept"] for entry in run["layers"]]
    assert (found["calibration"], found["agreement"], found["provider"]) == (None, None, None)
    assert found["options"]["layer_sparsity"] == {"fc": 0.25}


def test_the_skipped_are_there_with_their_reasons() -> None:
    model = mlp()
    model.graph.node[3].input[1] = "computed"
    model.graph.node.insert(3, onnx.helper.make_node("Abs", ["w1"], ["computed"], "abs"))
    found = checked(prune(model, sparsity=0.5, repair="none").report)
    assert [entry["name"] for entry in found["layers"]] == ["mm0"]
    assert found["skipped"] == [{"name": "mm1", "op": "MatMul", "reason": found["skipped"][0]["reason"]}]
    assert found["skipped"][0]["reason"]


def test_numbers_of_numpy_are_numbers() -> None:
    report = prune(
        mlp(),
        samples(30, (8,)),
        sparsity=np.float32(0.5),
        samples=np.int64(20),
        seed=np.int32(3),
        holdout=np.float16(0.25),
    ).report
    found = checked(report)
    assert (found["options"]["sparsity"], found["options"]["samples"], found["options"]["seed"]) == (0.5, 20, 3)


@example("caf\udce9 \u5c42")  # how Python carries a byte of a file name that is not UTF-8
@given(st.text(max_size=20))
def test_any_text_survives(text: str) -> None:
    assert strict(to_json({"name": text, "inner": (1.5, None, True, {"x": float("nan")})})) == {
        "name": text,
        "inner": [1.5, None, True, {"x": None}],
    }
    to_json([text]).encode("utf-8")
