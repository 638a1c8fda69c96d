from fractions import Fraction
from itertools import product
from math import floor

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.errors import AllocationError
from onnxprune.numerics.allocation import ALLOCATIONS, allocate, erk, global_magnitude, keep_total, lamp, uniform

FLOATS = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]


def of_shapes(*shapes, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


shapes = st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple), min_size=1, max_size=4)


@st.composite
def layers_and_total(draw):
    """Small integer weights, where every score is the correctly rounded value of its fraction, and many are tied."""
    layers = draw(st.lists(st.lists(st.integers(-4, 4), min_size=1, max_size=8), min_size=1, max_size=5))
    return layers, draw(st.integers(0, sum(map(len, layers))))


# keep_total


@pytest.mark.parametrize(
    ("sizes", "sparsity", "expected"),
    [
        ([1000], 0.9, 100),
        ([1000], 0.0, 1000),
        ([600, 400], 0.955, 45),
        ([10], 0.75, 2),  # 2.5: half to even
        ([30], 0.85, 4),  # 4.5: half to even; the floats give (1 - 0.85) * 30 = 4.500000000000001, so 5
        ([30], 0.55, 14),  # 13.5: half to even; the floats give 13.499999999999998, so 13
        ([10**17 + 1], 0.9, 10**16),  # floats hold 53 bits
        ([7, 0, 0], 0.8, 1),  # an empty layer needs no weight
        ([], 0.9, 0),
    ],
)
def test_keep_total(sizes, sparsity, expected):
    assert keep_total(sizes, sparsity) == expected


def test_keep_total_reads_the_digits_of_numpy_floats():
    assert keep_total([1000], np.float64(0.95)) == keep_total([1000], np.float32(0.95)) == 50


@pytest.mark.parametrize("sparsity", [float("nan"), -0.1, 1.0, 95, float("inf")])
def test_keep_total_refuses_a_sparsity_out_of_range(sparsity):
    with pytest.raises(AllocationError, match=r"out of range: expected 0 <= sparsity < 1"):
        keep_total([100], sparsity)


def test_keep_total_refuses_less_than_a_weight_each_and_names_what_works():
    message = r"keeps 2 weights for 3 layers.*lower the sparsity to 0\.97 or less"
    with pytest.raises(AllocationError, match=message):
        keep_total([50, 30, 20], 0.98)
    assert keep_total([50, 30, 20], 0.97) == 3


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=30))
def test_the_named_sparsity_works(sizes):
    with pytest.raises(AllocationError) as caught:
        keep_total(sizes, 0.99999999999)
    highest = float(str(caught.value).split(" to ")[-1].split()[0])
    assert len(sizes) <= keep_total(sizes, highest) <= len(sizes) + 1  # +1 from cutting the digits


# Every rule


@pytest.mark.parametrize("rule", ALLOCATIONS)
@given(shapes=shapes, share=st.floats(0, 1), seed=st.integers(0, 9), dtype=st.sampled_from(FLOATS))
@settings(max_examples=60, deadline=None)
def test_counts_add_up_and_fit(rule, shapes, share, seed, dtype):
    weights = of_shapes(*shapes, seed=seed, dtype=dtype)
    total = round(share * sum(weight.size for weight in weights))
    keep = ALLOCATIONS[rule](weights, total)
    assert sum(keep) == total
    assert all(type(count) is int and 0 <= count <= weight.size for count, weight in zip(keep, weights, strict=True))
    if rule != "global" and total >= len(weights):
        assert min(keep) >= 1


@pytest.mark.parametrize("rule", ALLOCATIONS)
def test_a_total_that_does_not_fit_is_refused(rule):
    for total in (-1, 7):
        with pytest.raises(AllocationError, match=rf"cannot keep {total} of 6 weights"):
            ALLOCATIONS[rule](of_shapes((2, 3)), total)


@pytest.mark.parametrize("rule", ALLOCATIONS)
def test_no_layers_and_empty_layers(rule):
    assert ALLOCATIONS[rule]([], 0) == ()
    assert ALLOCATIONS[rule](of_shapes((0, 3), (2, 2), (0,)), 2) == (0, 2, 0)


@pytest.mark.parametrize("rule", ALLOCATIONS)
def test_weights_are_left_alone(rule):
    weights = [np.array([-3.0, 2, -1], dtype) for dtype in FLOATS]
    ALLOCATIONS[rule](weights, 5)
    for weight in weights:
        np.testing.assert_array_equal(weight.astype(float), [-3, 2, -1])


# uniform and erk


def test_uniform_by_hand():
    assert uniform(of_shapes((50,), (30,), (20,)), 10) == (5, 3, 2)
    assert uniform(of_shapes((5,), (5,), (5,)), 4) == (2, 1, 1)  # equal remainders: the earlier layer
    assert uniform(of_shapes((990,), (10,)), 5) == (4, 1)  # 0.05 of a weight is lifted to 1
    assert uniform(of_shapes((10,), (10,), (10,)), 2) == (1, 1, 0)  # fewer weights than layers


def test_erk_by_hand():
    # shares 20 and 200: 110 weights go 10 : 100
    assert erk(of_shapes((10, 10), (100, 100)), 110) == (10, 100)
    # shares 5 and 40: of 90 weights 10 would go to the first layer of 6, which is full, so 84 to the second
    assert erk(of_shapes((2, 3), (20, 20)), 90) == (6, 84)


def solve_bounds(sizes, shares, total):
    """Oracle: try every choice of empty, full and free layers, take the one whose level is consistent, then round."""
    lows = [1 if total >= len(sizes) else 0] * len(sizes)
    for states in product(("low", "free", "full"), repeat=len(sizes)):
        free = [i for i, state in enumerate(states) if state == "free"]
        rest = total - sum({"low": lows[i], "full": sizes[i], "free": 0}[state] for i, state in enumerate(states))
        if free:
            levels = [Fraction(rest, sum(shares[i] for i in free))]
        elif rest == 0:  # any level between the highest that fills "low" and the lowest that empties "full" does
            levels = [Fraction(low, share) for low, share in zip(lows, shares, strict=True)]
            levels += [Fraction(size, share) for size, share in zip(sizes, shares, strict=True)]
        else:
            continue
        for level in levels:
            exact = [min(max(level * share, low), size) for low, share, size in zip(lows, shares, sizes, strict=True)]
            if sum(exact) == total:
                keep = [floor(value) for value in exact]
                order = sorted(range(len(keep)), key=lambda i: (-(exact[i] - floor(exact[i])), i))
                for i in order[: total - sum(keep)]:
                    keep[i] += 1
                return tuple(keep)
    raise AssertionError("no consistent level")


@given(shapes=shapes, data=st.data())
@settings(max_examples=150, deadline=None)
def test_erk_and_uniform_match_the_definition(shapes, data):
    weights = of_shapes(*shapes)
    sizes = [weight.size for weight in weights]
    total = data.draw(st.integers(0, sum(sizes)))
    assert erk(weights, total) == solve_bounds(sizes, [sum(shape) for shape in shapes], total)
    assert uniform(weights, total) == solve_bounds(sizes, sizes, total)


def erk_by_the_paper(shapes, total):
    """Oracle: density eps * sum(shape) / prod(shape); layers above 1 become dense, eps is solved again for the rest."""
    sizes = [int(np.prod(shape)) for shape in shapes]
    dense = set()
    while True:
        others = [i for i in range(len(shapes)) if i not in dense]
        eps = Fraction(total - sum(sizes[i] for i in dense), sum(sum(shapes[i]) for i in others) or 1)
        above = {i for i in others if eps * sum(shapes[i]) > sizes[i]}
        if not above:
            return [Fraction(sizes[i]) if i in dense else eps * sum(shapes[i]) for i in range(len(shapes))]
        dense |= above


RESNET18 = {"conv1": (64, 3, 3, 3)}
for stage, (before, width) in enumerate([(64, 64), (64, 128), (128, 256), (256, 512)], 1):
    RESNET18 |= {f"layer{stage}.0.conv1": (width, before, 3, 3), f"layer{stage}.0.conv2": (width, width, 3, 3)}
    if stage > 1:
        RESNET18[f"layer{stage}.down"] = (width, before, 1, 1)
    RESNET18 |= {f"layer{stage}.1.conv1": (width, width, 3, 3), f"layer{stage}.1.conv2": (width, width, 3, 3)}
RESNET18["fc"] = (10, 512)


@pytest.mark.parametrize(
    ("sparsity", "dense", "stage1", "down3", "down4", "conv4"),
    [
        (0.90, {"conv1", "fc", "layer2.down", "layer3.down"}, 0.480, 1.0, 0.775, 0.058),
        (0.95, {"conv1", "fc", "layer2.down"}, 0.233, 0.754, 0.376, 0.028),
        (0.955, {"conv1", "fc", "layer2.down"}, 0.209, 0.677, 0.337, 0.025),
    ],
)
def test_erk_on_resnet18(sparsity, dense, stage1, down3, down4, conv4):
    weights = [np.empty(shape, np.float16) for shape in RESNET18.values()]
    sizes = [weight.size for weight in weights]
    assert sum(sizes) == 11_164_352
    total = keep_total(sizes, sparsity)
    keep = erk(weights, total)
    density = dict(zip(RESNET18, np.divide(keep, sizes), strict=True))
    assert {name for name, value in density.items() if value == 1} == dense
    stage1_names = [name for name in RESNET18 if name.startswith("layer1")]
    found = [density[name] for name in (*stage1_names, "layer3.down", "layer4.down", "layer4.1.conv2")]
    np.testing.assert_allclose(found, [stage1] * 4 + [down3, down4, conv4], atol=5e-4)  # given to three digits
    exact = erk_by_the_paper(list(RESNET18.values()), total)
    assert all(abs(count - value) < 1 for count, value in zip(keep, exact, strict=True))


def test_erk_keeps_a_depthwise_kernel_dense():
    # shares 39 and 96, sizes 288 and 2048: at density 1/2 the kernel would get 337 of 1168
    assert erk(of_shapes((32, 1, 3, 3), (64, 32, 1, 1)), 1168) == (288, 880)


# global


def test_global_by_hand():
    weights = [np.array([1.0, -5, 2]), np.array([[4.0], [-3]])]
    assert [global_magnitude(weights, total) for total in range(6)] == [(0, 0), (1, 0), (1, 1), (1, 2), (2, 2), (3, 2)]


def test_ties_go_to_the_earlier_layer():
    ones = [np.ones(3, np.float32)] * 3
    assert global_magnitude(ones, 5) == (3, 2, 0)
    assert global_magnitude([np.zeros(3, np.float32)] * 2, 4) == (3, 1)
    assert lamp([np.array([1.0, 2]), np.array([3.0, 6])], 3) == (2, 1)  # scores 1/5 and 1 in both


def first_of_all(scores, total):
    """Oracle: a stable sort of every (score, layer)."""
    order = sorted(((score, layer) for layer, row in enumerate(scores) for score in row), key=lambda x: (-x[0], x[1]))
    return tuple(sum(layer == one for _, layer in order[:total]) for one in range(len(scores)))


@given(layers_and_total(), st.lists(st.sampled_from(FLOATS), min_size=5, max_size=5))
@settings(max_examples=200, deadline=None)
def test_global_matches_a_full_sort(case, dtypes):
    layers, total = case
    weights = [np.array(row, dtype) for row, dtype in zip(layers, dtypes, strict=False)]
    assert global_magnitude(weights, total) == first_of_all([[abs(w) for w in row] for row in layers], total)


def test_global_on_extreme_values():
    tiny, huge = np.float32(1e-45), np.float32(3e38)
    weights = [np.array([tiny, 0, -0.0], np.float32), np.array([huge, tiny * 2, 0], np.float32)]
    assert [global_magnitude(weights, total) for total in range(5)] == [(0, 0), (0, 1), (0, 2), (1, 2), (2, 2)]
    near = [np.array([1.0]), np.array([1 + 2**-52])]  # a float32 sort would call them equal
    assert global_magnitude(near, 1) == (0, 1)
    assert global_magnitude([near[0].astype(np.float32), near[1]], 1) == (0, 1)


# lamp


def test_lamp_by_hand():
    # scores: 9/9, 4/13, 1/14 and 100/100, 100/200; ascending order gives tied weights places of their own
    weights = [np.array([1.0, -3, 2]), np.array([[10.0], [-10]])]
    assert [lamp(weights, total) for total in range(6)] == [(0, 0), (1, 0), (1, 1), (1, 2), (2, 2), (3, 2)]


def lamp_scores_by_the_paper(row):
    """Oracle, O(n^2): w[u]^2 / sum over v >= u of w[v]^2, indices in ascending order of w^2."""
    squares = sorted(w * w for w in row)
    return [Fraction(squares[u], sum(squares[u:]) or 1) for u in range(len(squares))]


@given(layers_and_total(), st.lists(st.sampled_from(FLOATS), min_size=5, max_size=5))
@settings(max_examples=200, deadline=None)
def test_lamp_matches_the_definition(case, dtypes):
    layers, total = case
    weights = [np.array(row, dtype) for row, dtype in zip(layers, dtypes, strict=False)]
    assert lamp(weights, total) == first_of_all([lamp_scores_by_the_paper(row) for row in layers], total)


@given(st.integers(0, 2**32), st.integers(0, 60))
@settings(max_examples=60, deadline=None)
def test_lamp_matches_the_definition_on_gaussian_layers(seed, total):
    weights = of_shapes((5, 4), (10,), (2, 3, 5), seed=seed)
    rows = [[Fraction(float(w)) for w in weight.ravel()] for weight in weights]
    assert lamp(weights, total) == first_of_all([lamp_scores_by_the_paper(row) for row in rows], total)


@given(
    st.lists(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=6), min_size=1),
    st.sampled_from([np.float32, np.float64]),
)
@settings(max_examples=150, deadline=None)
def test_lamp_lets_no_layer_die(layers, dtype):
    weights = [np.array(row, dtype) for row in layers]
    keep = lamp(weights, len(weights))
    assert all(count >= 1 for count, row in zip(keep, layers, strict=True) if any(row))


@pytest.mark.parametrize(("dtype", "scale"), [(np.float32, 1e30), (np.float32, 1e-38), (np.float64, 1e300), (np.float64, 1e-300)])
def test_lamp_does_not_depend_on_a_layers_scale(dtype, scale):
    plain = of_shapes((40,), (50,), (60,), dtype=np.float64)
    scaled = [(plain[0] * scale).astype(dtype), plain[1], plain[2]]
    assert [lamp(scaled, total) for total in range(150)] == [lamp(plain, total) for total in range(150)]


def test_lamp_gives_a_layer_of_zeros_what_is_left():
    weights = [np.zeros(3), np.array([1.0, 2, 3])]
    assert [lamp(weights, total) for total in (2, 3, 5)] == [(0, 2), (0, 3), (2, 3)]


@pytest.mark.parametrize("rule", ["global", "lamp"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", FLOATS)
def test_non_finite_weights_are_refused(rule, bad, dtype):
    with pytest.raises(ValueError, match=r"layer index 1, shape \(2,\), has NaN or infinity"):
        ALLOCATIONS[rule]([np.ones(2, dtype), np.array([bad, 1], dtype)], 2)


# allocate


def test_allocate_gives_fixed_layers_their_own_sparsity():
    weights = of_shapes((10, 10), (50,), (30, 1), (20,))
    assert allocate("uniform", weights, 0.9, {0: 0.25, 3: 0.0}) == (75, 5, 3, 20)
    for rule, function in ALLOCATIONS.items():
        assert allocate(rule, weights, 0.9) == function(weights, 20)
        keep = allocate(rule, weights, 0.8, {1: 0.5})
        assert keep[1] == 25
        assert (keep[0], *keep[2:]) == function([weights[0], *weights[2:]], 30)


def test_allocate_with_every_layer_fixed():
    assert allocate("lamp", of_shapes((10,), (20,)), float("nan"), {1: 0.9, 0: 0.5}) == (5, 2)
    assert allocate("lamp", [], 0.9) == ()


def test_allocate_errors():
    weights = of_shapes((10,), (20,))
    with pytest.raises(ValueError, match="'magic' is unknown: choose from uniform, global, erk, lamp"):
        allocate("magic", weights, 0.5)
    with pytest.raises(ValueError, match="layer index 2: expected 0 to 1"):
        allocate("erk", weights, 0.5, {2: 0.5})
    with pytest.raises(AllocationError, match=r"layer index 1: sparsity 1\.5 is out of range"):
        allocate("erk", weights, 0.5, {1: 1.5})
    with pytest.raises(AllocationError, match=r"layer index 0: sparsity 0\.99 of 10 weights keeps 0 .* to 0\.9 or less"):
        allocate("erk", weights, 0.5, {0: 0.99})
