"""--repair reconstruct where the channels of a layer make up for each other: the file against a slow oracle, and what it is worth."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx
import pytest
from networks import model_of, run, tensors
from numpy.typing import NDArray
from onnx import helper

from onnxprune import prune, reconstructing
from onnxprune.numerics import together
from onnxprune.numerics.metric import Metric

INPUTS, HIDDEN, OUTPUTS = 20, 24, 2


def bottleneck(act: str) -> onnx.ModelProto:
    """x (20) -> 24 -> act -> 2: most directions in which the first layer errs reach no output."""
    rng = np.random.default_rng(0)
    values = {"w0": rng.normal(0, 0.3, (INPUTS, HIDDEN)), "w1": rng.normal(0, 0.3, (HIDDEN, OUTPUTS))}
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["a"], "first"),
        helper.make_node(act, ["a"], ["h"], "act"),
        helper.make_node("MatMul", ["h", "w1"], ["y"], "second"),
    ]
    held = {name: value.astype(np.float32) for name, value in values.items()}
    return model_of(nodes, {"x": ("batch", INPUTS)}, {"y": ("batch", OUTPUTS)}, held)


def data(seed: int, count: int = 512) -> NDArray[np.float32]:
    mix = np.random.default_rng(9).normal(size=(INPUTS, INPUTS)) / np.sqrt(INPUTS)
    return (np.random.default_rng(seed).normal(size=(count, INPUTS)) @ mix + 0.5).astype(np.float32)


def test_the_file_holds_the_solution_of_all_equations(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a metric known and many iterations: one system of all weights of the support, of the file's own mask and the report's ridge."""
    rng = np.random.default_rng(4)
    metric = Metric(rng.uniform(0.3, 1, HIDDEN), rng.normal(0, 0.5, (HIDDEN, OUTPUTS)))
    monkeypatch.setattr(reconstructing, "metric_of", lambda cosines, prior: metric)
    monkeypatch.setattr(together, "LAST", 300)
    dense = bottleneck("Identity")
    x = data(1)
    result = prune(dense, x, sparsity=0.7, exclude=["second"], repair="reconstruct", holdout=0)
    entry = next(layer for layer in result.report.layers if layer.weight == "w0")
    assert entry.repair == "reconstruct"
    assert entry.ridge is not None
    found, w0 = (tensors(model)["w0"].T.astype(np.float64) for model in (result.model, dense))
    mask = found != 0
    assert mask.sum() == entry.kept == round(0.3 * INPUTS * HIDDEN)
    rows = x.astype(np.float64) - x.mean(0, dtype=np.float64)
    G, M = rows.T @ rows / len(x), np.diag(metric.own) + metric.along @ metric.along.T
    own = entry.ridge * np.diag(G).mean() * np.diag(np.repeat(np.diag(M), INPUTS))
    on = np.flatnonzero(mask.ravel())
    wanted = np.linalg.solve((np.kron(M, G) + own)[np.ix_(on, on)], ((M @ w0 @ G).ravel() + own @ w0.ravel())[on])
    np.testing.assert_allclose(found[mask], wanted, rtol=5e-3, atol=5e-3)  # float32 products, a condition of some thousands


@pytest.mark.parametrize("act", ["Identity", "Relu", "Tanh"])
def test_the_outputs_come_nearer_than_with_channels_by_themselves(act: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On fresh samples; the second layer stays dense, so that it makes up for nothing."""
    dense, fresh = bottleneck(act), data(2)
    wanted = run(dense, {"x": fresh})["y"]
    errors = []
    for known in (True, False):
        if not known:
            monkeypatch.setattr(reconstructing, "metrics", lambda *given: {})
        result = prune(dense, data(1), sparsity=0.8, exclude=["second"], repair="reconstruct", holdout=0)
        errors.append(float(((run(result.model, {"x": fresh})["y"] - wanted) ** 2).mean()))
    assert errors[0] < 0.8 * errors[1]  # measured: .07, .57, .63


def test_the_steps_are_in_the_report() -> None:
    """From 1.6 times the last size on in five steps, each smaller, the last what is kept."""
    result = prune(bottleneck("Relu"), data(1), sparsity=0.8, exclude=["second"], repair="reconstruct")
    entry = next(layer for layer in result.report.layers if layer.weight == "w0")
    assert list(entry.steps) == sorted(set(entry.steps), reverse=True)
    assert entry.steps[-1] == entry.kept
    assert sum(entry.kept < step <= 1.61 * entry.kept for step in entry.steps) == 5


def test_elimination_leaves_what_they_choose_from() -> None:
    """In steps of 1.1 here, from four times that on, which magnitude leaves."""
    result = prune(bottleneck("Relu"), data(1), sparsity=0.95, exclude=["second"], repair="reconstruct")
    entry = next(layer for layer in result.report.layers if layer.weight == "w0")
    assert entry.steps[0] == pytest.approx(4 * 1.6 * entry.kept / 1.1, rel=0.01)
    assert sum(1.61 * entry.kept < step for step in entry.steps) == 14  # ln 4 / ln 1.1 = 14.5, in 15 steps, of which the last is 1.6 times


def test_the_same_input_gives_the_same_bytes() -> None:
    dense = bottleneck("Relu")
    one, two = (prune(dense, data(1), sparsity=0.8, repair="reconstruct").model for _ in range(2))
    assert one.SerializeToString(deterministic=True) == two.SerializeToString(deterministic=True)


def test_weights_too_large_for_their_type_leave_the_last_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A solution of all channels beyond float32 is not written: the layer takes the channel repair."""
    solve = reconstructing.reconstruct

    def beyond(*given: object, **named: object) -> object:
        found = solve(*given, **named)  # type: ignore[arg-type]
        return dataclasses.replace(found, weight=found.weight * 1e39)

    monkeypatch.setattr(reconstructing, "reconstruct", beyond)
    result = prune(bottleneck("Relu"), data(1), sparsity=0.8, exclude=["second"], repair="reconstruct")
    entry = next(layer for layer in result.report.layers if layer.weight == "w0")
    assert entry.repair == "channel"
    assert any("do not fit their type" in note for note in entry.notes)
    assert all(np.isfinite(value).all() for value in tensors(result.model).values())


@pytest.mark.parametrize(("batch_size", "count"), [(32, 128), (50, 100), (300, 600)])
def test_gradients_are_of_few_samples_evenly_spread(batch_size: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 128 in whole batches, and of two batches at least: one alone would not tell what is chance."""
    seen: list[NDArray[np.float32]] = []
    measured = reconstructing.metrics

    def metrics(dense: onnx.ModelProto, points: Any, batches: Any, *rest: Any) -> Any:
        kept = list(batches)
        seen.extend(batch["x"] for batch in kept)
        found = measured(dense, points, kept, *rest)
        assert found["a"] is not None
        return found

    monkeypatch.setattr(reconstructing, "metrics", metrics)
    x = data(1, 1000)
    prune(bottleneck("Relu"), x, sparsity=0.8, repair="reconstruct", holdout=0, samples=1000, batch_size=batch_size)
    assert len(seen) > 1
    np.testing.assert_array_equal(np.concatenate(seen), x[np.arange(count) * 1000 // count])


def test_gradients_are_of_the_images_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of their mirror images beside them, which would leave fewer images."""
    counts: list[int] = []
    monkeypatch.setattr(reconstructing, "metrics", lambda dense, points, batches, *rest: counts.extend(len(b["x"]) for b in batches) or {})
    images = np.random.default_rng(0).normal(size=(24, 3, 8, 8)).astype(np.float32)
    weight = np.random.default_rng(1).normal(size=(4, 3, 3, 3)).astype(np.float32)
    model = model_of(
        [helper.make_node("Conv", ["x", "w"], ["y"], "conv")], {"x": ("batch", 3, 8, 8)}, {"y": ("batch", 4, 6, 6)}, {"w": weight}
    )
    prune(model, images, sparsity=0.5, repair="reconstruct", holdout=0, mirror=True, shift=1)
    assert sum(counts) == 24
