from math import exp, inf, log, log10, nan, sqrt

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.numerics.agreement import Agreement, accuracy, agreement

CLOSE = 1e-12  # sums of a few float64 values of size ~1


def logits(seed, samples=7, classes=5, dtype=np.float64):
    return np.random.default_rng(seed).normal(0, 2, (samples, classes)).astype(dtype)


def test_by_hand():
    dense = np.array([[0, log(3)], [1, 0]])
    pruned = np.array([[log(3), 0], [2, 1]])  # the second differs by a constant: same softmax
    found = agreement(dense, pruned)
    assert found.samples == 2
    assert found.top1 == 0.5
    # KL of (1/4, 3/4) from (3/4, 1/4) is 1/4 log 1/3 + 3/4 log 3 = log(3) / 2; the other is 0
    assert found.kl == pytest.approx(log(3) / 4, rel=CLOSE)
    assert found.cosine == pytest.approx((0 + 2 / sqrt(5)) / 2, rel=CLOSE)
    assert found.sqnr_db == pytest.approx(10 * log10((log(3) ** 2 + 1) / (2 * log(3) ** 2 + 2)), rel=CLOSE)
    assert found.score == 0.5


def test_probabilities_are_compared_as_they_are():
    dense, pruned = np.array([[0.25, 0.75], [1, 0]]), np.array([[0.75, 0.25], [0.5, 0.5]])
    assert agreement(dense, pruned).kl == pytest.approx((log(3) / 2 + log(2)) / 2, rel=CLOSE)
    # a class the pruned model excludes costs log(1e-12), not infinity
    assert agreement(np.array([[0.5, 0.5]]), np.array([[1.0, 0]])).kl == pytest.approx(log(0.5) - log(1e-12) / 2)
    # one row that adds up to 1.01 makes all of them logits
    pruned[0] += 0.005
    assert agreement(dense, pruned).kl == pytest.approx(kl_by_definition(dense, pruned), rel=CLOSE)
    # so does a negative value in one array
    dense[1] = [1.5, -0.5]
    assert agreement(dense, dense[::-1]).kl == pytest.approx(kl_by_definition(dense, dense[::-1]), rel=CLOSE)


def kl_by_definition(dense, pruned):
    total = 0.0
    for a, b in zip(dense.astype(float).tolist(), pruned.astype(float).tolist(), strict=True):
        p = [exp(x) / sum(map(exp, a)) for x in a]
        q = [exp(x) / sum(map(exp, b)) for x in b]
        total += sum(x * log(x / y) for x, y in zip(p, q, strict=True))
    return total / len(dense)


@given(st.integers(0, 2**16), st.integers(1, 6), st.integers(2, 6))
@settings(max_examples=100, deadline=None)
def test_matches_the_definitions(seed, samples, classes):
    dense, pruned = logits(seed, samples, classes), logits(seed + 1, samples, classes)
    found = agreement(dense, pruned)
    top1 = [max(range(classes), key=a.__getitem__) == max(range(classes), key=b.__getitem__) for a, b in zip(dense, pruned, strict=True)]
    cosine = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(dense, pruned, strict=True)]
    noise = sum((a - b) ** 2 for a, b in zip(dense.ravel(), pruned.ravel(), strict=True))
    assert found.top1 == pytest.approx(sum(top1) / samples)
    assert found.kl == pytest.approx(kl_by_definition(dense, pruned), rel=1e-9, abs=1e-12)  # the oracle cancels digits
    assert found.cosine == pytest.approx(np.mean(cosine), rel=1e-9, abs=CLOSE)
    assert found.sqnr_db == pytest.approx(10 * log10(sum(x**2 for x in dense.ravel()) / noise), rel=1e-9, abs=1e-9)


@given(st.integers(0, 2**16), st.floats(0.01, 100))
@settings(max_examples=50, deadline=None)
def test_properties(seed, factor):
    dense, pruned = logits(seed), logits(seed + 1)
    found = agreement(dense, pruned)
    assert found.kl >= 0
    assert -1 <= found.cosine <= 1
    assert 0 <= found.score <= 1
    moved = agreement(dense + factor, pruned - factor)  # softmax and argmax do not see a constant
    assert moved.top1 == found.top1
    assert moved.kl == pytest.approx(found.kl, rel=1e-9)  # factor 100 costs two digits or three
    scaled = agreement(dense * factor, pruned * factor)
    assert scaled.cosine == pytest.approx(found.cosine, abs=CLOSE)
    assert scaled.sqnr_db == pytest.approx(found.sqnr_db, abs=1e-9)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64, np.int64])
@pytest.mark.parametrize("shape", [(4,), (4, 1), (4, 3), (4, 3, 2, 2), (1, 2)])
def test_equal_outputs_agree_in_everything(dtype, shape):
    x = np.random.default_rng(0).normal(0, 5, shape).astype(dtype)
    classes = len(shape) == 2 and shape[1] >= 2
    expected = Agreement(shape[0], 1.0 if classes else None, 0.0 if classes else None, 1.0, inf)
    assert agreement(x, x.copy()) == expected
    assert expected.score == 1


def test_low_precision_outputs_are_summed_in_float64():
    dense = np.full((1, 100_000), 1, np.float16)  # its float16 sum of squares would be infinite
    assert agreement(dense, dense / 2).sqnr_db == pytest.approx(10 * log10(4), rel=CLOSE)


def test_zero_outputs():
    zero, one = np.zeros((2, 1, 3)), np.ones((2, 1, 3))
    assert agreement(zero, zero).cosine == 1
    assert agreement(zero, one).cosine == agreement(one, zero).cosine == 0
    assert (agreement(zero, zero).sqnr_db, agreement(zero, one).sqnr_db, agreement(one, zero).sqnr_db) == (inf, -inf, 0)


@pytest.mark.parametrize("scale", [1e200, 1e-200])
def test_cosine_of_extreme_values(scale):
    assert agreement(np.array([[1.0, 0], [1, 1]])[:, :, None] * scale, np.ones((2, 2, 1))).cosine == pytest.approx(
        (sqrt(0.5) + 1) / 2, rel=CLOSE
    )


def test_extreme_logits():
    found = agreement(np.array([[1e4, 0], [1e308, -1e308]]), np.array([[0, 1e4], [1e308, -1e308]]))
    assert found.kl == pytest.approx(5e3, rel=CLOSE)
    assert found.top1 == 0.5


@pytest.mark.parametrize("bad", [nan, inf, -inf])
def test_non_finite_pruned_outputs(bad):
    dense = np.array([[0.0, 1], [1, 0]])
    found = agreement(dense, np.array([[bad, bad], [1, 0]]))
    assert (found.kl, found.cosine, found.sqnr_db) == (inf, 0.5, -inf)
    # a row with NaN disagrees even where argmax, which takes NaN for the largest, hits the dense class
    assert agreement(dense, np.array([[0, nan], [1, 0]])).top1 == 0.5
    assert agreement(dense[:, :, None], np.array([[[0.0], [bad]], [[1], [0]]])).score == 0.5


def test_score_is_the_top1_even_where_it_is_zero():
    found = agreement(np.array([[2.0, 1]]), np.array([[1.0, 2]]))
    assert (found.top1, found.score) == (0, 0)
    assert found.cosine == pytest.approx(0.8, rel=CLOSE)


def test_score_without_classes_is_never_negative():
    assert agreement(np.ones((2, 1, 3)), -np.ones((2, 1, 3))).cosine == -1
    assert agreement(np.ones((2, 1, 3)), -np.ones((2, 1, 3))).score == 0


def test_errors():
    with pytest.raises(ValueError, match=r"dense outputs \(2, 3\) with pruned outputs \(2, 4\)"):
        agreement(np.ones((2, 3)), np.ones((2, 4)))
    for shape in ((0, 3), (2, 0), ()):
        with pytest.raises(ValueError, match="cannot compare"):
            agreement(np.ones(shape), np.ones(shape))
    with pytest.raises(ValueError, match="dense output of sample 1 has NaN or infinity"):
        agreement(np.array([[1.0], [nan]]), np.ones((2, 1)))


def test_one_number_a_sample_is_compared_by_how_it_moves_over_the_samples():
    dense = np.array([[0.9], [0.8], [0.1], [0.2]])  # about .5: .4, .3, -.4, -.3
    flat = np.full((4, 1), 0.5)
    np.testing.assert_allclose(agreement(dense, dense).cosine, 1.0, rtol=1e-12)
    np.testing.assert_allclose(agreement(dense, flat).cosine, 0.0, atol=1e-12)  # the plain cosine of positive numbers would be 1
    np.testing.assert_allclose(agreement(dense, 1 - dense).cosine, -1.0, rtol=1e-12)
    np.testing.assert_allclose(agreement(dense.ravel(), (dense + 0.1).ravel()).cosine, 0.5 / np.sqrt(0.5 * 0.54), rtol=1e-12)
    assert agreement(dense, np.array([[np.nan], [0.8], [0.1], [0.2]])).cosine == 0.0


# ---- against labels


def test_accuracy_by_hand():
    outputs = np.array([[0.0, 2.0, 1.0], [5.0, 5.0, 0.0], [nan, 0.0, 1.0], [-1.0, -3.0, -2.0]], np.float32)
    # right; the first of equals is 0 and right; no number, so wrong although 0 is numpy's argmax; wrong
    assert accuracy(outputs, np.array([1, 0, 0, 2])) == 0.5


@pytest.mark.parametrize(
    ("shape", "labels"),
    [((3, 2), [0, 1]), ((3,), [0, 0, 0]), ((3, 1), [0, 0, 0]), ((2, 2), [0, 2]), ((2, 2), [-1, 0]), ((0, 2), [])],
)
def test_accuracy_needs_one_class_of_the_outputs_a_row(shape, labels):
    with pytest.raises(ValueError, match="labels"):
        accuracy(np.zeros(shape), np.array(labels, np.int64))
