"""Every kind of model goes through prune(): its layers are pruned and repaired or named with a reason, and the file stays sound."""

from __future__ import annotations

from typing import Any

import onnx
import pytest
import zoo_exports  # noqa: F401 - enters its subjects
from invariants import check, check_identity, data
from zoo import SUBJECTS, Subject, convnet, image

from onnxprune import OnnxpruneError, Result, prune
from onnxprune.numerics.allocation import ALLOCATIONS
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


# What the engine does not do yet; each of these rows must fail.
PENDING: frozenset[str] = frozenset()


def rows() -> list[Any]:
    """Every subject's name, marked where the engine is known to fall short."""
    late = pytest.mark.xfail(reason="not supported yet", strict=False)
    return [pytest.param(name, marks=[late] if name in PENDING else []) for name in SUBJECTS]


def go(made: Subject, **options: Any) -> Result:
    return prune(made.model, dict(made.samples), batch_size=made.batch, **{**made.options, **options})


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: str(plan["repair"]))
@pytest.mark.parametrize("name", rows())
def test_a_subject_goes_through(name: str, plan: dict[str, Any]) -> None:
    made = SUBJECTS[name]()
    result = go(made, **plan)
    check(made.model, result, made.feed(), plan)
    report = result.report
    assert sum(entry.pruned for entry in report.layers) == made.layers, [entry.name for entry in report.layers]
    reasons = [entry.reason for entry in report.skipped]
    for word in made.skipped:
        assert any(word in reason for reason in reasons), reasons
    weightless = "both sides are computed at run time"  # attention's products hold no weight
    assert len([reason for reason in reasons if reason != weightless]) == len(made.skipped), reasons
    if plan["repair"] not in ("none",):
        bare = [entry for entry in report.layers if entry.kept < entry.weights and entry.repair == "none"]
        assert all(entry.notes for entry in bare), [entry.name for entry in bare]
        assert len(bare) <= made.unrepaired, [(entry.name, entry.notes) for entry in bare]


@pytest.mark.parametrize("name", rows())
def test_sparsity_0_and_the_same_again(name: str) -> None:
    made = SUBJECTS[name]()
    before = data(made.model)
    for repair in ("channel", "reconstruct"):
        check_identity(made.model, lambda sparsity, repair=repair: go(made, sparsity=sparsity, repair=repair))
    one, other = (go(made, sparsity=0.5, repair="channel", alloc="lamp") for _ in range(2))
    assert data(one.model) == data(other.model)
    assert data(made.model) == before


@pytest.mark.slow
@pytest.mark.parametrize("plan", MORE, ids=lambda plan: "-".join(map(str, plan.values())))
@pytest.mark.parametrize("name", rows())
def test_a_subject_goes_through_all_allocations(name: str, plan: dict[str, Any]) -> None:
    made = SUBJECTS[name]()
    check(made.model, go(made, **plan), made.feed(), plan)
