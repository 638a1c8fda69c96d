"""Every kind of model goes through prune(): its layers are pruned and repaired or named with a reason, and the file stays sound."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import zoo_exports  # noqa: F401 - enters its subjects
import zoo_odd  # noqa: F401
import zoo_strange  # noqa: F401
from invariants import check, check_identity, data, loaded, run, unmatched
from onnx import TensorProto, external_data_helper, helper
from zoo import SUBJECTS, Subject, convnet, image, mlp, row

from onnxprune import OnnxpruneError, Options, Result, prune
from onnxprune.drawing import draw
from onnxprune.graph.inlining import inlined
from onnxprune.numerics.allocation import ALLOCATIONS
from onnxprune.opening import tried
from onnxprune.options import REPAIRS

# Every subject meets every repair, and over the repairs every allocation and several sparsities.
PLANS = [
    {"repair": repair, "alloc": list(ALLOCATIONS)[number % len(ALLOCATIONS)], "sparsity": (0.5, 0.7, 0.3)[number % 3]}
    for number, repair in enumerate(REPAIRS)
]
"""The slow ones are the other allocations and sparsities."""
MORE = [
    {"repair": repair, "alloc": alloc, "sparsity": sparsity}
    for repair in ("none", "channel", "reconstruct")
    for alloc in ALLOCATIONS
    for sparsity in (0.2, 0.8)
]


def go(made: Subject, **options: Any) -> Result:
    """A run without a trial, which one test below makes once for every subject."""
    return prune(made.model, dict(made.samples), batch_size=made.batch, **{"trial_seconds": 0, **made.options, **options})


def every_way() -> Iterator[Any]:
    """Every subject by every plan. Fast are the last, reconstruct, which asks most, and one of the others by turns."""
    for number, name in enumerate(SUBJECTS):
        for turn, plan in enumerate(PLANS):
            marks = () if plan is PLANS[-1] or turn == number % (len(PLANS) - 1) else pytest.mark.slow
            yield pytest.param(name, plan, id=f"{name}-{plan['repair']}", marks=marks)


@pytest.mark.parametrize(("name", "plan"), list(every_way()))
def test_a_subject_goes_through(name: str, plan: dict[str, Any]) -> None:
    made = SUBJECTS[name]()
    result = go(made, **plan)
    check(made.model, result, made.feed(), plan)
    report = result.report
    assert sum(entry.pruned for entry in report.layers) == made.layers, [entry.name for entry in report.layers]
    reasons = [entry.reason for entry in report.skipped]
    skipped = made.skipped if plan["repair"] == "none" else [word for word in made.skipped if word not in made.opened]
    for word in skipped:
        assert any(word in reason for reason in reasons), reasons
    weightless = "both sides are computed at run time"  # attention's products hold no weight
    assert len([reason for reason in reasons if reason != weightless]) == len(skipped), reasons
    if plan["repair"] not in ("none",):
        bare = [entry for entry in report.layers if entry.kept < entry.weights and entry.repair == "none"]
        assert all(entry.notes for entry in bare), [entry.name for entry in bare]
        assert len(bare) <= made.unrepaired, [(entry.name, entry.notes) for entry in bare]


@pytest.mark.parametrize("name", SUBJECTS)
def test_sparsity_0_and_the_same_again(name: str) -> None:
    made = SUBJECTS[name]()
    before = data(made.model)
    check_identity(made.model, lambda sparsity: go(made, sparsity=sparsity, repair="channel"))
    one, other = (go(made, sparsity=0.5, repair="channel", alloc="lamp") for _ in range(2))
    assert data(one.model) == data(other.model)
    assert data(made.model) == before


@pytest.mark.slow
@pytest.mark.parametrize("name", SUBJECTS)
def test_sparsity_0_is_the_same_solved_again(name: str) -> None:
    made = SUBJECTS[name]()
    before = data(made.model)
    check_identity(made.model, lambda sparsity: go(made, sparsity=sparsity, repair="reconstruct"))
    assert data(made.model) == before


@pytest.mark.parametrize("name", SUBJECTS)
def test_a_channel_repair_gives_the_variances_back(name: str) -> None:
    """Seen from outside: both models run on the samples, the layers' own outputs are compared."""
    made = SUBJECTS[name]()
    result = go(made, sparsity=0.5, repair="channel", holdout=0)
    assert unmatched(made.model, result, made.samples, made.batch) == []


@pytest.mark.slow
def test_every_subject_passes_its_trial() -> None:
    """Those that are out of the ordinary, that is; the others run none."""
    for build in SUBJECTS.values():
        made = build()
        taken = draw(dict(made.samples), inlined(made.model), Options(sparsity=0.5, batch_size=made.batch), "cpu", holdout=0.2)
        tried(inlined(made.model), taken, Options(sparsity=0.5, trial_seconds=60))


# ---- what is left dense unless it is asked for


def test_an_embedding_is_pruned_when_it_is_included() -> None:
    made = SUBJECTS["embedding_stays_dense"]()
    options = {"sparsity": 0.5, "repair": "channel", "include": ("embed", "mm", "head")}
    result = go(made, **options)
    check(made.model, result, made.feed(), options)
    entry = next(entry for entry in result.report.layers if entry.name == "embed")
    assert (entry.op, entry.weights, entry.pruned) == ("Gather", 180, True)
    assert entry.kept < 180


# ---- files


@pytest.mark.parametrize("parts", [1, 3])
def test_external_data_in_several_files(tmp_path: Path, parts: int) -> None:
    model = convnet()
    for number, tensor in enumerate(model.graph.initializer):
        external_data_helper.set_external_data(tensor, f"part{number % parts}.bin")
    (tmp_path / "in").mkdir()
    onnx.save(model, tmp_path / "in" / "m.onnx")
    before = {path.name: path.read_bytes() for path in (tmp_path / "in").iterdir()}
    assert len(before) == parts + 1
    options = {"sparsity": 0.5, "repair": "channel"}
    result = prune(tmp_path / "in" / "m.onnx", image(), batch_size=8, **options)
    check(loaded(tmp_path / "in" / "m.onnx"), result, {"x": image()["x"][:8]}, options)
    result.save(tmp_path / "out.onnx")
    assert {path.name: path.read_bytes() for path in (tmp_path / "in").iterdir()} == before
    again = loaded(tmp_path / "out.onnx")
    feed = {"x": image()["x"][:8]}
    np.testing.assert_array_equal(run(again, feed)["y"], run(result.model, feed)["y"])
    onnx.checker.check_model(str(tmp_path / "out.onnx"), full_check=True)


# ---- models that cannot be run: one line that says why


def refused(model: onnx.ModelProto, samples: Any, **options: Any) -> str:
    with pytest.raises(OnnxpruneError) as error:
        prune(model, samples, **{"sparsity": 0.5, **options})
    text = str(error.value)
    assert text and "\n" not in text and "Traceback" not in text
    return text


def foreign() -> onnx.ModelProto:
    model = mlp()
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    model.graph.node[2].domain, model.graph.node[2].op_type = "com.example", "Wobble"
    return model


def test_an_operator_that_the_runtime_lacks_is_named() -> None:
    text = refused(foreign(), row())
    assert "Wobble" in text and "com.example" in text


def test_masks_need_no_runtime() -> None:
    """Without a repair nothing runs, so that an unknown operator is no hindrance."""
    model = foreign()
    report = prune(model, sparsity=0.5, repair="none").report
    assert [entry.name for entry in report.layers] == ["mm1", "mm2"]


@pytest.mark.parametrize("version", [99, 2**31])
def test_an_ir_version_from_the_future_is_refused(version: int) -> None:
    model = mlp()
    model.ir_version = version
    text = refused(model, row())
    assert str(version) in text and "::" not in text  # not the runtime's C++ signature


def test_an_opset_from_the_future_is_refused() -> None:
    model = mlp()
    model.opset_import[0].version = 999
    assert "999" in refused(model, row())


def test_two_nodes_of_one_name_are_the_runtimes_to_refuse() -> None:
    model = convnet()
    for node in model.graph.node:
        node.name = "node"
    assert "node" in refused(model, image())
    report = prune(model, sparsity=0.5, repair="none").report
    assert len({entry.name for entry in report.layers}) == len(report.layers) == 3


def test_an_input_that_is_a_sequence_is_refused() -> None:
    model = mlp()
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    model.graph.input[0].CopyFrom(helper.make_value_info("x", kind))
    assert "'x'" in refused(model, row())


def test_an_input_of_strings_is_refused() -> None:
    model = mlp()
    model.graph.input.append(helper.make_tensor_value_info("words", TensorProto.STRING, ["N"]))
    assert "'words' takes strings" in refused(model, row())
    assert len(prune(model, sparsity=0.5, repair="none").report.layers) == 2


@pytest.mark.slow
@pytest.mark.parametrize("plan", MORE, ids=lambda plan: "-".join(map(str, plan.values())))
@pytest.mark.parametrize("name", SUBJECTS)
def test_a_subject_goes_through_all_allocations(name: str, plan: dict[str, Any]) -> None:
    made = SUBJECTS[name]()
    check(made.model, go(made, **plan), made.feed(), plan)
