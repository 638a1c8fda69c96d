"""Samples as model inputs: arithmetic, layouts, dtypes, order, splitting, and one line for all that does not fit."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from onnxprune.errors import CalibrationError
from onnxprune.runtime.calibration import InputSpec, Preprocess, from_arrays, open_samples, runs, split

REFERENCE = Path(os.environ.get("ONNXPRUNE_REFERENCE") or Path(__file__).resolve().parents[3] / "shared" / "reference")
AS_IS = Preprocess()
ONLY_CONVERT = Preprocess((0.0,), (1.0,))


def spec(*shape: int | None, dtype: object = np.float32, name: str = "x") -> InputSpec:
    return InputSpec(name, np.dtype(dtype), shape)


def store(folder: Path, arrays: Mapping[str, object]) -> list[Path]:
    """Write arrays and images by file name, and return their paths."""
    for name, array in arrays.items():
        if name.endswith(".npz"):
            np.savez(folder / name, **(array if isinstance(array, dict) else {"x": array}))
        elif name.endswith(".npy"):
            np.save(folder / name, array)
        else:
            Image.fromarray(array).save(folder / name)
    return [folder / name for name in arrays]


def refuses(act, *parts: object) -> None:
    with pytest.raises(CalibrationError) as error:
        act()
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message


# --- values ---


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(np.uint8, hnp.array_shapes(min_dims=4, max_dims=4, max_side=5)),
    st.data(),
)
def test_uint8_nhwc_to_nchw_float_is_the_hand_formula(stored, data):
    n, height, width, channels = stored.shape
    some = st.lists(st.floats(0, 255), min_size=channels, max_size=channels)
    mean, std = data.draw(some), [1 + s for s in data.draw(some)]
    indices = np.array(data.draw(st.lists(st.integers(0, n - 1), max_size=6)), dtype=np.intp)
    samples = from_arrays(stored, [spec(None, channels, height, width)], Preprocess(tuple(mean), tuple(std), "nhwc"))
    got = samples.take(indices)["x"]
    assert got.flags.c_contiguous
    expected = np.empty((len(indices), channels, height, width))
    for at, i in enumerate(indices):
        for c in range(channels):
            expected[at, c] = (stored[i, :, :, c].astype(float) - mean[c]) / std[c]
    # float32: |x - mean| <= 255 with a relative error of 2^-23 in mean, difference and quotient, and std >= 1
    np.testing.assert_allclose(got, expected, rtol=2**-21, atol=255 * 2**-22, strict=False)
    assert got.dtype == np.float32


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64, np.int32, np.uint8, np.bool_])
def test_matching_arrays_go_in_as_they_are(dtype):
    x = np.arange(12).reshape(4, 3).astype(dtype)
    got = from_arrays({"x": x}, [spec(None, 3, dtype=dtype)], AS_IS).take(np.array([3, 0]))["x"]
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, x[[3, 0]])


def test_big_endian_is_the_same_dtype(tmp_path):
    paths = store(tmp_path, {"a.npy": np.arange(3, dtype=">f4")})
    got = open_samples(paths, [spec(None, dtype="<f4")], AS_IS).take(np.arange(3))["x"]
    assert got.dtype == np.dtype("<f4")
    np.testing.assert_array_equal(got, [0, 1, 2])


@pytest.mark.parametrize(
    ("stored", "told", "shape", "expected"),
    [
        ([[1, 2]], Preprocess((1.0, 4.0), None), (None, 2), [[0, -2]]),  # only the mean
        ([[1, 2]], Preprocess(None, (2.0, 4.0)), (None, 2), [[0.5, 0.5]]),  # only the std
        ([3, 5], Preprocess((1.0,), (2.0,)), (None,), [1, 2]),
        ([[[1, 3], [2, 4]]], Preprocess((1.0, 2.0), (1.0,)), (None, 2, 2), [[[0, 2], [0, 2]]]),  # axis 1 of the batch
        ([[[[1]], [[2]]]], Preprocess((1.0, 0.0), (1.0,), "nchw"), (None, 1, 1, 2), [[[[0, 2]]]]),
    ],
)
def test_mean_and_std_by_hand(stored, told, shape, expected):
    got = from_arrays(np.array(stored), [spec(*shape)], told).take(np.arange(len(stored)))["x"]
    np.testing.assert_array_equal(got, np.array(expected, np.float32))


def test_working_precision_is_float32_and_float64_for_float64():
    x = np.array([2.0**30 + 1])
    for dtype, expected in ((np.float64, 1.0), (np.float32, 0.0)):  # float32 holds 24 bits of the sample
        got = from_arrays(x, [spec(None, dtype=dtype)], Preprocess((2.0**30,), (1.0,))).take(np.array([0]))["x"]
        np.testing.assert_array_equal(got, np.array([expected], dtype))
    # float16 rounds once, at the end: 2049 is no float16, 2049 - 2048 is
    got = from_arrays(np.array([2049]), [spec(None, dtype=np.float16)], Preprocess((2048.0,))).take(np.array([0]))["x"]
    np.testing.assert_array_equal(got, np.array([1], np.float16))


@pytest.mark.parametrize(
    ("stored", "layout", "shape", "moved"),
    [
        ((4, 5, 3), "nhwc", (None, 3, 4, 5), (2, 0, 1)),
        ((4, 5, 3), "nhwc", (None, 4, 5, 3), (0, 1, 2)),  # the model wants NHWC itself
        ((3, 4, 5), "nchw", (None, 4, 5, 3), (1, 2, 0)),
        ((3, 4, 5), "nchw", (None, 3, 4, 5), (0, 1, 2)),
        ((3, 4, 5), None, (None, 3, None, None), (0, 1, 2)),
        ((4, 5, 3), "nhwc", (None, None, None, None), (2, 0, 1)),  # the shape takes both: channels first
        ((3, 4, 5), "nchw", (None, None, None, None), (0, 1, 2)),
        ((4, 5, 6, 2), "nhwc", (None, 2, 4, 5, 6), (3, 0, 1, 2)),  # a volume
    ],
)
def test_layout_goes_by_what_the_model_takes(stored, layout, shape, moved):
    x = np.arange(np.prod(stored), dtype=np.float32).reshape(stored)
    got = from_arrays(x, [spec(*shape)], Preprocess(layout=layout)).take(np.array([0]))["x"]
    np.testing.assert_array_equal(got, x.transpose(moved)[None])
    assert got.flags.c_contiguous


def test_several_inputs_are_preprocessed_only_where_float_and_rank_3():
    x, ids, scale = np.full((2, 2, 2, 3), 5, np.uint8), np.arange(2), np.ones((2, 1), np.float32)
    specs = [spec(None, 3, 2, 2), spec(None, dtype=np.int64, name="ids"), spec(None, 1, name="scale")]
    samples = from_arrays({"x": x, "ids": ids, "scale": scale}, specs, Preprocess((1.0, 2.0, 3.0), (2.0,), "nhwc"))
    got = samples.take(np.array([1]))
    np.testing.assert_array_equal(got["x"][0, :, 0, 0], np.float32([2, 1.5, 1]))
    np.testing.assert_array_equal(got["ids"], [1])
    np.testing.assert_array_equal(got["scale"], np.ones((1, 1), np.float32))
    assert samples.shapes == ({"x": (3, 2, 2), "ids": (), "scale": (1,)},)


# --- several files ---


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 8), max_size=12))
def test_take_keeps_order_and_duplicates_across_files(tmp_path_factory, wanted):
    folder = tmp_path_factory.getbasetemp() / "many"
    if not folder.exists():
        folder.mkdir()
        store(folder, {"a.npy": np.float32([0, 1]), "b.npy": np.float32(2), "c.npz": np.float32([3, 4, 5])})
        store(folder, {"d.npy": np.float32([6, 7, 8])})
    samples = open_samples([folder], [spec(None)], AS_IS)
    assert samples.count == 9
    np.testing.assert_array_equal(samples.take(np.array(wanted, np.intp))["x"], np.float32(wanted))


def test_samples_name_files_and_notes(tmp_path):
    a, b = store(tmp_path, {"a.npz": {"x": np.ones((2, 3), np.float32), "y": np.zeros(1)}, "b.npz": np.ones((1, 3))})
    store(tmp_path, {"b.npz": {"x": np.ones((1, 3), np.float32), "y": np.zeros(1)}})
    samples = open_samples([tmp_path], [spec(None, 3)], AS_IS)
    assert samples.paths == (str(a), str(b))
    assert samples.notes == (f"{a} and 1 more: array 'y' not used, no model input has its name",)
    (tmp_path / "README").touch()
    assert "1 other file ignored (README)" in open_samples([tmp_path], [spec(None, 3)], AS_IS).notes[0]


@pytest.mark.parametrize("bad", [-1, 3])
def test_take_outside(bad):
    with pytest.raises(IndexError, match=r"0\.\.2"):
        from_arrays(np.ones(3), [spec(None, dtype=float)], AS_IS).take(np.array([0, bad]))


def test_batches_cover_the_indices_in_order():
    samples = from_arrays(np.arange(10.0), [spec(None, dtype=float)], AS_IS)
    got = [samples.take(run)["x"].tolist() for run in runs(samples, np.array([1, 3, 5, 7, 9]), 2)]
    assert got == [[1, 3], [5, 7], [9]]


@pytest.mark.parametrize(
    ("count", "most", "sizes"),
    [
        (410, 32, [26] * 10 + [25] * 6),  # 13 would do: three rounds of four and one of one
        (102, 32, [26, 26, 25, 25]),
        (512, 32, [32] * 16),
        (33, 32, [17, 16]),
        (26, 32, [13, 13]),
        (10, 32, [10]),
        (7, 32, [7]),
        (9, 4, [3, 3, 3]),
        (3, 1, [1, 1, 1]),
        (0, 32, []),
    ],
)
def test_batches_are_of_one_size_and_an_even_number(count, most, sizes):
    samples = from_arrays(np.arange(700.0), [spec(None, dtype=float)], AS_IS)
    rows = np.arange(700)[100 : 100 + count]
    made = runs(samples, rows, most)
    assert [len(run) for run in made] == sizes
    assert np.concatenate([*made, rows[:0]]).tolist() == rows.tolist()


def test_batches_of_a_fixed_size_have_it():
    samples = from_arrays(np.arange(40.0), [spec(None, dtype=float)], AS_IS)
    assert [len(run) for run in runs(samples, np.arange(39), 16, fixed=True)] == [16, 16, 7]


# --- images ---


def test_images_become_nchw_or_nhwc_and_mix_with_arrays(tmp_path):
    rng = np.random.default_rng(3)
    one, two = rng.integers(0, 256, (2, 5, 4, 3), np.uint8)
    (tmp_path / "set").mkdir()
    store(tmp_path / "set", {"1.png": one, "2.png": two})
    (array,) = store(tmp_path, {"a.npy": one[None]})
    told = Preprocess((1.0, 2.0, 3.0), (2.0,), "nhwc")
    expected = (np.stack([one, one, two]).astype(np.float32) - np.float32([1, 2, 3])) / 2
    samples = open_samples([array, tmp_path / "set"], [spec(None, 3, 5, 4)], told)
    np.testing.assert_array_equal(samples.take(np.arange(3))["x"], expected.transpose(0, 3, 1, 2))
    nhwc = open_samples([tmp_path / "set"], [spec(None, None, None, 3)], told).take(np.arange(2))["x"]
    np.testing.assert_array_equal(nhwc, expected[1:])
    as_is = open_samples([tmp_path / "set"], [spec(None, 3, 5, 4, dtype=np.uint8)], AS_IS).take(np.array([1]))["x"]
    np.testing.assert_array_equal(as_is, two.transpose(2, 0, 1)[None])


def test_opening_images_decodes_none(tmp_path, monkeypatch):
    store(tmp_path, {f"{i}.png": np.zeros((4, 4, 3), np.uint8) for i in range(3)})
    decoded = []
    real = Image.Image.convert
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    samples = open_samples([tmp_path], [spec(None, 3, None, None)], ONLY_CONVERT)
    monkeypatch.undo()
    monkeypatch.setattr(Image.Image, "convert", lambda self, mode: decoded.append(mode) or real(self, mode))
    samples.take(np.array([2]))
    assert decoded == ["RGB"]


@pytest.mark.parametrize(
    ("specs", "told", "parts"),
    [
        ([spec(None, 3, 4, 4)], AS_IS, ("1.png", "uint8", "float32", "--mean 123.675", "--mean 0 --std 1")),
        ([spec(None, 3, 4, 4, dtype=np.int32)], AS_IS, ("1.png", "uint8", "int32", "convert")),
        ([spec(None, 3, 4, 4), spec(None, name="y")], ONLY_CONVERT, ("1.png", "one input", "x, y", ".npz")),
        ([spec(None, 3, 4, 4)], Preprocess((0.0, 1.0)), ("1.png", "--mean has 2 values", "3 channels", "1 or 3")),
        ([spec(None, None, None, None)], ONLY_CONVERT, ("1.png", "--layout")),
        ([spec(None, 3, 8, 8)], Preprocess((0.0,), resize=4), ("--resize 4", "--resize 8 or more")),
    ],
)
def test_images_that_do_not_fit(tmp_path, specs, told, parts):
    store(tmp_path, {"1.png": np.zeros((4, 4, 3), np.uint8)})
    refuses(lambda: open_samples([tmp_path], specs, told), *parts)


def test_images_of_mixed_or_wrong_size(tmp_path):
    store(tmp_path, {"1.png": np.zeros((4, 4, 3), np.uint8), "2.png": np.zeros((5, 4, 3), np.uint8)})
    samples = open_samples([tmp_path], [spec(None, 3, None, None)], ONLY_CONVERT)
    refuses(lambda: samples.take(np.array([1])), "2.png: 4x5", "1.png has 4x4", "--resize 4")
    samples = open_samples([tmp_path], [spec(None, 3, 8, 8)], ONLY_CONVERT)
    refuses(lambda: samples.take(np.array([0])), "1.png: 4x4", "8x8", "--resize 8")
    resized = open_samples([tmp_path], [spec(None, 3, None, None)], Preprocess((0.0,), resize=4))
    assert resized.take(np.arange(2))["x"].shape == (2, 3, 4, 4)


# --- arrays that do not fit ---

HWC = np.zeros((2, 4, 5, 3), np.float32)


@pytest.mark.parametrize(
    ("stored", "want", "told", "parts"),
    [
        (HWC, spec(None, 3, 4, 5), AS_IS, ("(4, 5, 3)", "takes (3, 4, 5)", "--layout nhwc")),
        (HWC, spec(None, 3, 4, 5), Preprocess(layout="nchw"), ("--layout nhwc",)),
        (HWC.transpose(0, 3, 1, 2), spec(None, 4, 5, 3), AS_IS, ("(3, 4, 5)", "(4, 5, 3)", "--layout nchw")),
        (HWC, spec(None, 3, None, 9), AS_IS, ("takes (3, ?, 9)", "store samples of that shape")),
        (HWC, spec(None, 1, 4, 5), Preprocess(layout="nhwc"), ("(4, 5, 3)", "takes (1, 4, 5)", "store")),
        (HWC.astype(np.float64), spec(None, 4, 5, 3), AS_IS, ("float64", "float32", "--mean 0 --std 1")),
        (HWC.astype(np.uint8), spec(None, 4, 5, 3), AS_IS, ("uint8", "float32", "--mean 0 --std 1")),
        (HWC.astype(np.int64), spec(None, 4, 5, 3, dtype=np.int32), AS_IS, ("int64", "takes int32", "convert")),
        (HWC.astype(complex), spec(None, 4, 5, 3), AS_IS, ("complex128", "float32", "convert")),
        (HWC.astype(complex), spec(None, 4, 5, 3), ONLY_CONVERT, ("complex128", "--mean and --std", "convert")),
        (HWC, spec(None, 4, 5, 3), Preprocess((1.0, 2.0, 3.0)), ("--mean has 3 values", "4 channels", "--layout")),
        (HWC, spec(None, 3, 4, 5), Preprocess((1.0,), (1.0, 2.0), "nhwc"), ("--std has 2 values", "1 or 3 values")),
        (np.zeros((2, 3)), spec(None, 3), Preprocess((1.0, 2.0)), ("--mean has 2 values", "1 or 3 values")),
        (np.zeros(2), spec(None), Preprocess((1.0, 2.0)), ("--mean has 2 values", "with 1 or 1")),
        (HWC, spec(None, 4, 5, 3), Preprocess(resize=4), ("--resize is for images",)),
    ],
)
@pytest.mark.parametrize("file", ["a.npy", "a.npz", None])
def test_arrays_that_do_not_fit(tmp_path, stored, want, told, parts, file):
    if file is None:
        refuses(lambda: from_arrays(stored, [want], told), "calibration array", *parts)
    else:
        refuses(lambda: open_samples(store(tmp_path, {file: stored}), [want], told), tmp_path / file, *parts)


def test_dtype_of_an_unpreprocessed_input_of_several():
    arrays = {"x": np.zeros((1, 3), np.float64), "y": HWC[:1].astype(np.uint8)}
    specs = [spec(None, 4, 5, 3, name="y"), spec(None, 3, dtype=np.int64)]
    refuses(lambda: from_arrays(arrays, specs, ONLY_CONVERT), "'x'", "float64", "int64", "convert the stored array")


@pytest.mark.parametrize(
    ("specs", "told", "parts"),
    [
        ([], AS_IS, ("no inputs",)),
        ([spec()], AS_IS, ("'x' is a scalar", "batch axis")),
        ([spec(None)], Preprocess(()), ("--mean", "finite numbers")),
        ([spec(None)], Preprocess((float("nan"),)), ("--mean nan", "finite numbers")),
        ([spec(None)], Preprocess(None, (1.0, float("inf"))), ("--std 1,inf", "finite numbers")),
        ([spec(None)], Preprocess(None, (1.0, 0.0)), ("--std 1,0", "above 0")),
        ([spec(None)], Preprocess(None, (-1.0,)), ("--std -1", "above 0")),
        ([spec(None, 3, 2, 2)], Preprocess(layout="hwc"), ("--layout hwc", "nhwc or nchw")),
        ([spec(None, 3, 2, 2)], Preprocess(resize=0), ("--resize 0", "1 or more")),
        ([spec(None, dtype=np.int64)], ONLY_CONVERT, ("--mean and --std", "x int64 (?)", "drop them")),
        ([spec(None, 2, 2)], Preprocess(layout="nhwc"), ("--layout serves no input", "rank 4", "drop it")),
        ([spec(None, 3), spec(None, 2, name="y")], ONLY_CONVERT, ("serve no input", "x float32 (?, 3), y float32")),
    ],
)
def test_options_that_make_no_sense(specs, told, parts):
    refuses(lambda: from_arrays(np.zeros(2, np.float32), specs, told), *parts)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("told", [AS_IS, ONLY_CONVERT])
def test_values_that_are_not_finite_name_file_and_sample(tmp_path, value, told):
    x = np.zeros((5, 3), np.float32)
    x[3, 1] = value
    paths = store(tmp_path, {"a.npy": np.zeros((2, 3), np.float32), "b.npz": x})
    samples = open_samples(paths, [spec(None, 3)], told)
    samples.take(np.array([0, 2, 3, 4, 6]))
    refuses(lambda: samples.take(np.array([6, 1, 5, 2])), "b.npz: array 'x': sample 3", "NaN or infinity")


def test_overflow_of_the_inputs_dtype():
    samples = from_arrays(np.array([1.0, 1e6]), [spec(None, dtype=np.float16)], ONLY_CONVERT)
    refuses(lambda: samples.take(np.arange(2)), "sample 1", "float16", "--mean and --std")


def test_mixed_shapes_over_free_dimensions(tmp_path):
    ones = {f"{name}.npy": np.ones((2, side), np.float32) for name, side in (("a", 3), ("b", 3), ("c", 4))}
    paths = store(tmp_path, ones)
    samples = open_samples(paths, [spec(None, None)], AS_IS)
    assert samples.shapes == ({"x": (3,)}, {"x": (4,)})
    assert samples.kinds.tolist() == [0, 0, 0, 0, 1, 1]
    assert samples.notes == ("samples of 2 shapes: those of one shape run together, nothing is padded",)
    assert [rows.tolist() for rows in runs(samples, np.array([5, 0, 1, 4, 3]), 2)] == [[5, 4], [0, 1], [3]]
    assert [samples.take(run)["x"].shape for run in runs(samples, np.array([5, 0, 1, 4, 3]), 2)] == [(2, 4), (2, 3), (1, 3)]
    with pytest.raises(ValueError, match="2 shapes"):
        samples.take(np.array([0, 5]))


def test_resize_with_arrays_beside_images(tmp_path):
    paths = store(tmp_path, {"a.png": np.zeros((4, 4, 3), np.uint8), "b.npy": np.zeros((3, 4, 4), np.float32)})
    refuses(lambda: open_samples(paths, [spec(None, 3, 4, 4)], Preprocess((0.0,), resize=4)), "b.npy", "--resize")


# --- split ---


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.floats(0, 0.99), st.integers(0, 9), st.integers(1, 9) | st.none())
def test_split_is_disjoint_sized_sorted_and_deterministic(count, limit, holdout, seed, fixed):
    n, batch = min(count, limit), fixed or 1
    held = round(holdout * n) // batch * batch
    kept = (n - round(holdout * n)) // batch * batch
    options = {"limit": limit, "holdout": holdout, "seed": seed, "fixed_batch": fixed}
    if kept == 0 or (held == 0 and holdout > 0):
        refuses(lambda: split(count, **options), f"{n} of {count}", "--holdout 0" if holdout else "give ")
        return
    got = split(count, **options)
    assert (got.repair.size, got.holdout.size) == (kept, held)
    assert got.repair.dtype == got.holdout.dtype == np.intp
    both = np.concatenate([got.repair, got.holdout])
    assert np.unique(both).size == both.size
    assert both.min() >= 0
    assert both.max() < count
    assert (np.diff(got.repair) > 0).all()
    assert (np.diff(got.holdout) > 0).all()
    assert len(got.notes) == (kept + held < n)
    again = split(count, **options)
    np.testing.assert_array_equal(again.repair, got.repair)
    np.testing.assert_array_equal(again.holdout, got.holdout)


def test_split_draws_by_seed():
    one, two = (split(1000, limit=100, holdout=0.1, seed=seed, fixed_batch=None) for seed in (0, 1))
    assert set(one.repair) != set(two.repair)
    assert set(one.holdout) != set(two.holdout)
    assert one.repair.max() > 500  # not simply the first ones


def test_split_notes_what_a_fixed_batch_drops():
    got = split(100, limit=64, holdout=0.25, seed=0, fixed_batch=5)
    assert (got.repair.size, got.holdout.size) == (45, 15)  # of 48 and 16
    assert got.notes == ("4 of 64 samples dropped: the model takes batches of 5",)


@pytest.mark.parametrize(
    ("count", "limit", "holdout", "fixed", "parts"),
    [
        (
            3,
            100,
            0.1,
            None,
            ("3 of 3", "the holdout (share 0.1)", "6 are needed", "give more samples or", "--holdout 0"),
        ),
        (500, 12, 0.1, 8, ("12 of 500", "batches of 8", "76 are needed", "give --samples 76 or", "--holdout 0")),
        (50, 12, 0.1, 8, ("give more samples and --samples 76",)),
        (3, 100, 0.0, 8, ("3 of 3", "the repair side", "8 are needed", "give more samples")),
        (1, 100, 0.9, None, ("the repair side", "6 are needed")),
        (10, 0, 0.1, None, ("--samples 0", "1 or more")),
        (10, 10, 1.0, None, ("--holdout 1", "0 <= share < 1")),
        (10, 10, float("nan"), None, ("--holdout nan",)),
    ],
)
def test_split_that_leaves_a_side_empty(count, limit, holdout, fixed, parts):
    refuses(lambda: split(count, limit=limit, holdout=holdout, seed=0, fixed_batch=fixed), *parts)


@settings(max_examples=100, deadline=None)
@given(st.floats(0.01, 0.99), st.integers(1, 9))
@example(0.99, 1)  # 1 - 0.99 is a little above 0.01
def test_the_number_of_samples_the_error_asks_for_is_enough(holdout, batch):
    with pytest.raises(CalibrationError) as error:
        split(1, limit=10**6, holdout=holdout, seed=0, fixed_batch=batch)
    needed = int(str(error.value).split(" are needed")[0].rsplit(" ", 1)[1])
    got = split(needed, limit=10**6, holdout=holdout, seed=0, fixed_batch=batch)
    assert min(got.repair.size, got.holdout.size) >= batch


# --- real data ---


@pytest.mark.skipif(not REFERENCE.exists(), reason="reference data is not there")
def test_reference_data():
    told = Preprocess((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), "nhwc")
    samples = open_samples([REFERENCE / "cifar10/calib.npz"], [spec(None, 3, 32, 32, name="images")], told)
    got = samples.take(np.array([2000, 7]))["images"]
    x = np.load(REFERENCE / "cifar10/calib.npz")["x"][[2000, 7]] / 255
    expected = ((x - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(got, expected, atol=1e-6)  # values to 2.7, float32 against float64
    samples = open_samples([REFERENCE / "imagenet/calib"], [spec(None, 3, 224, 224)], Preprocess((127.0,), (128.0,)))
    assert samples.count == 256
    got = samples.take(np.array([255]))["x"]
    pixels = np.asarray(Image.open(samples.paths[255]), np.float64)
    np.testing.assert_allclose(got[0], (pixels.transpose(2, 0, 1) - 127) / 128, atol=1e-6)
