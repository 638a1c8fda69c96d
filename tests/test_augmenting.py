"""Mirror images and shifted ones as samples: which axes, in which batches, and what a repair makes of them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import build, node

import onnxprune
from onnxprune.augmenting import Variants, augmented, image_axes, shifted
from onnxprune.errors import UsageError
from onnxprune.report import CalibrationReport
from onnxprune.runtime.preprocess import InputSpec
from onnxprune.terminal import samples_used

FLOAT = np.dtype(np.float32)


def test_the_image_is_behind_the_channels_or_before_them():
    specs = [InputSpec("a", FLOAT, (None, 3, 8, 9)), InputSpec("b", FLOAT, (None, 8, 9, 1)), InputSpec("c", FLOAT, (None, 7))]
    assert image_axes(specs, "--mirror") == {"a": (2, 3), "b": (1, 2)}


@pytest.mark.parametrize("flag", ["--mirror", "--shift"])
@pytest.mark.parametrize("shape", [(None, 7), (None, 16, 8, 8), (None, 3, 8)])
def test_other_inputs_are_no_images(shape, flag):
    with pytest.raises(UsageError, match=rf"{flag} is for images.*x \["):
        image_axes([InputSpec("x", FLOAT, shape)], flag)


def made(batch, variants, size, moves=None):
    count = len(next(iter(batch.values())))
    return list(augmented([(batch, np.zeros((count, 2, 2), int) if moves is None else moves)], variants, size))


def test_each_sample_is_followed_by_its_mirror_image_by_hand():
    batch = {"x": np.arange(4.0).reshape(1, 1, 2, 2), "t": np.array([7.0])}
    variants = Variants({"x": (2, 3)}, mirror=True, shift=0, seed=0)
    (whole,) = made(batch, variants, 2)
    np.testing.assert_array_equal(whole["x"], [[[[0, 1], [2, 3]]], [[[1, 0], [3, 2]]]])
    np.testing.assert_array_equal(whole["t"], [7, 7])
    one, two = made(batch, variants, 1)  # a batch of one: the mirror image is a batch of its own
    np.testing.assert_array_equal(one["x"], batch["x"])
    np.testing.assert_array_equal(two["x"], [[[[1, 0], [3, 2]]]])


def test_what_a_shift_uncovers_is_filled_from_the_edge_by_hand():
    image = np.arange(1.0, 10.0).reshape(1, 1, 3, 3)
    down_right = shifted(np.array([[1, 1]]), image, (2, 3))
    np.testing.assert_array_equal(down_right[0, 0], [[1, 1, 2], [1, 1, 2], [4, 4, 5]])
    up = shifted(np.array([[-2, 0]]), image.transpose(0, 2, 3, 1), (1, 2))
    np.testing.assert_array_equal(up[0, :, :, 0], [[7, 8, 9]] * 3)
    still, left = shifted(np.array([[0, 0], [0, -1]]), np.concatenate([image, image]), (2, 3))
    np.testing.assert_array_equal(still, image[0])
    np.testing.assert_array_equal(left[0], [[2, 3, 3], [5, 6, 6], [8, 9, 9]])


def test_with_both_there_are_four_of_each_by_hand():
    batch = {"x": np.arange(4.0).reshape(1, 1, 2, 2), "t": np.array([7.0])}
    variants = Variants({"x": (2, 3)}, mirror=True, shift=1, seed=0)
    moves = np.array([[[1, 0], [0, 1]]])  # the image one down, its mirror image one to the right
    wanted = [[[0, 1], [2, 3]], [[1, 0], [3, 2]], [[0, 1], [0, 1]], [[1, 1], [3, 3]]]
    for size, each in ((4, 4), (6, 2), (7, 1)):
        batches = made(batch, variants, size, moves)
        assert [len(some["x"]) for some in batches] == [each] * (4 // each)
        np.testing.assert_array_equal(np.concatenate([some["x"] for some in batches])[:, 0], wanted)
        np.testing.assert_array_equal(np.concatenate([some["t"] for some in batches]), [7] * 4)


@given(rows=st.integers(1, 40), shift=st.integers(1, 6), seed=st.integers(0, 5), mirror=st.booleans())
def test_moves_are_drawn_by_the_seed_within_the_shift(rows, shift, seed, mirror):
    variants = Variants({}, mirror, shift, seed)
    moves = variants.moves(rows)
    assert moves.shape == (rows, 1 + mirror, 2)
    assert abs(moves).max() <= shift
    np.testing.assert_array_equal(moves, variants.moves(rows))
    assert variants.count == len(moves[0]) * 2


def test_moves_reach_both_ends_of_the_shift():
    moves = Variants({}, False, 3, 0).moves(500)
    assert set(moves.ravel().tolist()) == set(range(-3, 4))
    assert (moves != Variants({}, False, 3, 1).moves(500)).any()


def network(batch):
    """conv -> relu -> conv, with random weights."""
    rng = np.random.default_rng(0)
    nodes = [
        node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1]),
        node("Relu", ["c"], ["r"]),
        node("Conv", ["r", "v"], ["y"], pads=[1, 1, 1, 1]),
    ]
    values = {"w": rng.standard_normal((8, 3, 3, 3)), "b": rng.standard_normal(8), "v": rng.standard_normal((4, 8, 3, 3))}
    return build(nodes, {name: value.astype(np.float32) for name, value in values.items()}, {"x": [batch, 3, 6, 5]}, ["y"])


@pytest.mark.parametrize("repair", ["channel", "reconstruct"])
@pytest.mark.parametrize(("batch", "size"), [("n", 8), ("n", 7), (4, 8), (1, 8)])
def test_it_is_as_if_the_mirror_images_had_been_given_too(repair, batch, size):
    x = np.random.default_rng(1).standard_normal((12, 3, 6, 5)).astype(np.float32)
    options = {"sparsity": 0.5, "alloc": "lamp", "repair": repair, "holdout": 0.0, "batch_size": size}
    with_option = onnxprune.prune(network(batch), x, mirror=True, **options)
    whole = onnxprune.prune(network(batch), np.concatenate([x, x[..., ::-1]]), **options)
    assert with_option.report.calibration.mirrored
    assert not whole.report.calibration.mirrored
    assert with_option.report.calibration.repair == 12
    if repair == "channel":  # reconstruction holds other batches out, so it takes other supports
        for a, b in zip(with_option.model.graph.initializer, whole.model.graph.initializer, strict=True):
            # the same statistics, summed in another order in float32
            np.testing.assert_allclose(np.frombuffer(a.raw_data, np.float32), np.frombuffer(b.raw_data, np.float32), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize(("batch", "size"), [("n", 8), ("n", 7), ("n", 6), (4, 8), (1, 8)])
def test_it_is_as_if_the_shifted_images_had_been_given_too(mirror, batch, size):
    x = np.random.default_rng(1).standard_normal((12, 3, 6, 5)).astype(np.float32)
    options = {"sparsity": 0.5, "alloc": "lamp", "holdout": 0.0, "batch_size": size}
    with_option = onnxprune.prune(network(batch), x, mirror=mirror, shift=2, **options)
    plain = [x, x[..., ::-1]] if mirror else [x]
    moves = Variants({}, mirror, 2, 0).moves(12)
    more = [shifted(moves[:, number], images, (2, 3)) for number, images in enumerate(plain)]
    whole = onnxprune.prune(network(batch), np.concatenate([*plain, *more]), **options)
    calibration = with_option.report.calibration
    assert (calibration.mirrored, calibration.shifted, calibration.repair) == (mirror, 2, 12)
    assert whole.report.calibration.shifted == 0
    for a, b in zip(with_option.model.graph.initializer, whole.model.graph.initializer, strict=True):
        # the same statistics, summed in another order in float32
        np.testing.assert_allclose(np.frombuffer(a.raw_data, np.float32), np.frombuffer(b.raw_data, np.float32), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("repair", ["channel", "reconstruct"])
def test_shifts_are_the_same_in_every_run(repair):
    """The dense and the current model are walked apart, and must see the same images."""
    x = np.random.default_rng(1).standard_normal((24, 3, 6, 5)).astype(np.float32)
    options = {"sparsity": 0.5, "repair": repair, "mirror": True, "shift": 2}
    runs = [onnxprune.prune(network("n"), x, seed=seed, **options) for seed in (3, 3, 4)]
    first, again, other = (run.model.SerializeToString(deterministic=True) for run in runs)
    assert first == again
    assert first != other
    if repair == "reconstruct":  # nothing pruned: what is solved for is there already, if both saw the same
        same = onnxprune.prune(network("n"), x, **{**options, "sparsity": 0.01})
        assert max(layer.relative_error_after or 0 for layer in same.report.layers) < 1e-3


def test_a_shift_that_leaves_nothing_is_refused():
    x = np.ones((12, 3, 6, 5), np.float32)
    with pytest.raises(UsageError, match=r"--shift 5 leaves nothing of images of 6 x 5 in x"):
        onnxprune.prune(network("n"), x, sparsity=0.5, shift=5)
    with pytest.raises(UsageError, match="--shift -1 is negative"):
        onnxprune.prune(network("n"), x, sparsity=0.5, shift=-1)


def test_a_model_without_images_is_refused():
    model = build([node("MatMul", ["x", "w"], ["y"])], {"w": np.ones((4, 4), np.float32)}, {"x": ["n", 4]}, ["y"])
    with pytest.raises(UsageError, match="--mirror"):
        onnxprune.prune(model, np.ones((9, 4), np.float32), sparsity=0.5, mirror=True)
    with pytest.raises(UsageError, match="--shift"):
        onnxprune.prune(model, np.ones((9, 4), np.float32), sparsity=0.5, shift=1)


@pytest.mark.parametrize(
    ("mirrored", "shifted", "more"),
    [
        (False, 0, ""),
        (True, 0, " (also mirrored)"),
        (False, 3, " (also shifted by up to 3 px)"),
        (True, 4, " (also mirrored and shifted by up to 4 px)"),
    ],
)
def test_the_summary_says_what_was_made_of_the_images(mirrored, shifted, more):
    used = CalibrationReport(("x.npz",), 100, 64, 16, 8, mirrored, shifted)
    assert samples_used(used) == f"64 for the repair{more}, 16 held out, of 100; batches of up to 8"
