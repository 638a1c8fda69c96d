"""Images: sizing, cropping, orientation, channels, and one line for every file that does not serve."""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from onnxprune.errors import CalibrationError
from onnxprune.runtime.images import Frame, plan, read, remembering


def picture(path: Path, width: int, height: int, **save: object) -> np.ndarray:
    """Write a lossless image of which every pixel differs, and return its pixels."""
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([x * 3 % 256, y * 5 % 256, (x + y) % 256], axis=-1).astype(np.uint8)
    Image.fromarray(pixels).save(path, **save)
    return pixels


def frame(height: int, width: int, channels: int = 3, resize: int | None = None) -> Frame:
    return Frame(height, width, channels, True, resize, "model input 'x'")


def one_line(error: pytest.ExceptionInfo[CalibrationError], *parts: str) -> None:
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("shape", "layout", "expected"),
    [
        ((None, 3, 8, 6), None, (8, 6, 3, True)),
        ((None, 1, 8, 6), None, (8, 6, 1, True)),
        ((4, 8, 6, 3), None, (8, 6, 3, False)),
        ((4, 8, 6, 1), "nchw", (8, 6, 1, False)),  # the shape tells; the option is not needed
        ((None, None, 8, 6), "nchw", (8, 6, 3, True)),
        ((None, 8, 6, None), "nhwc", (8, 6, 3, False)),
        ((None, 3, None, None), None, (5, 7, 3, True)),  # the first image's own size
        ((None, 3, 9, None), None, (9, 7, 3, True)),
    ],
)
def test_plan_reads_the_channel_axis_and_size(tmp_path, shape, layout, expected):
    picture(tmp_path / "a.png", 7, 5)
    got = plan("x", shape, layout, None, tmp_path / "a.png")
    assert (got.height, got.width, got.channels, got.channels_first) == expected


def test_plan_fills_free_sizes_with_resize(tmp_path):
    got = plan("x", (None, 3, None, 20), None, 24, tmp_path / "never_opened.png")
    assert (got.height, got.width) == (24, 20)


@pytest.mark.parametrize(
    ("shape", "layout", "resize", "parts"),
    [
        ((None, 3, 8), None, None, ("a.png", "rank 4", "(?, 3, 8)")),
        ((None, None, None, None), None, None, ("a.png", "--layout nchw")),
        ((None, 4, 8, 8), "nchw", None, ("a.png", "1 or 3 channels")),
        ((None, 3, 32, 48), None, 31, ("--resize 31", "--resize 32 or more")),
    ],
)
def test_plan_refuses(tmp_path, shape, layout, resize, parts):
    with pytest.raises(CalibrationError) as error:
        plan("x", shape, layout, resize, tmp_path / "a.png")
    one_line(error, *parts)


def test_read_gives_the_stored_pixels(tmp_path):
    pixels = picture(tmp_path / "a.png", 7, 5)
    got = read(tmp_path / "a.png", frame(5, 7))
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, pixels)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1"])
@pytest.mark.parametrize("channels", [1, 3])
def test_read_converts_modes_to_the_models_channels(tmp_path, mode, channels):
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.new("RGB", (4, 4), (255, 255, 255)).convert(mode).save(path)
    got = read(path, frame(4, 4, channels))
    np.testing.assert_array_equal(got, np.full((4, 4, channels), 255))


def test_grey_of_a_coloured_image_is_luma(tmp_path):
    Image.new("RGB", (2, 2), (200, 100, 50)).save(tmp_path / "a.png")
    # ITU-R 601: 0.299 R + 0.587 G + 0.114 B = 124.2
    np.testing.assert_array_equal(read(tmp_path / "a.png", frame(2, 2, 1)), np.full((2, 2, 1), 124))


def test_orientation_is_applied_and_known_from_the_header(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned a quarter clockwise
    pixels = picture(tmp_path / "a.png", 7, 5, exif=exif)
    got = plan("x", (None, 3, None, None), None, None, tmp_path / "a.png")
    assert (got.height, got.width) == (7, 5)
    np.testing.assert_array_equal(read(tmp_path / "a.png", got), np.rot90(pixels, -1))


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("L", (4, 4), value) for value in (10, 200)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(read(tmp_path / "a.gif", frame(4, 4, 1)), np.full((4, 4, 1), 10))


def test_plan_does_not_decode(tmp_path, monkeypatch):
    for suffix in ("png", "jpg", "webp"):
        picture(tmp_path / f"a.{suffix}", 7, 5)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    for suffix in ("png", "jpg", "webp"):
        assert plan("x", (None, 3, None, None), None, None, tmp_path / f"a.{suffix}").width == 7


def test_resize_at_the_stored_size_is_the_centre_crop(tmp_path):
    pixels = picture(tmp_path / "a.png", 30, 20)
    got = read(tmp_path / "a.png", frame(16, 12, resize=20))
    np.testing.assert_array_equal(got, pixels[2:18, 9:21])


def test_shrinking_averages_over_the_footprint(tmp_path):
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 200  # sampling single pixels would give 0 or 200
    Image.fromarray(stripes).save(tmp_path / "a.png")
    got = read(tmp_path / "a.png", frame(8, 8, 1, resize=8))
    assert np.abs(got.astype(int) - 100).max() <= 8  # the bilinear weights of the edge pixels are not even


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 40))
def test_short_side_always_covers_a_square_crop(tmp_path_factory, width, height, side):
    path = tmp_path_factory.getbasetemp() / "any.png"
    Image.new("RGB", (width, height), (7, 8, 9)).save(path)
    got = read(path, frame(side, side, resize=side))
    np.testing.assert_array_equal(got, np.broadcast_to(np.uint8([7, 8, 9]), (side, side, 3)))


def test_size_errors_name_the_flag(tmp_path):
    picture(tmp_path / "a.png", 30, 20)
    with pytest.raises(CalibrationError) as error:
        read(tmp_path / "a.png", frame(20, 24))
    one_line(error, "a.png", "30x20", "24x20", "--resize 24 or more", "model input 'x'")
    with pytest.raises(CalibrationError) as error:
        read(tmp_path / "a.png", frame(16, 40, resize=20))
    one_line(error, "a.png", "30x20", "--resize 20", "40x16", "larger --resize")


def _truncated(path: Path) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:900])


def _deep(path: Path) -> None:
    Image.fromarray(np.full((64, 64), 4000, np.uint16)).save(path)


@pytest.mark.parametrize(
    ("name", "make", "why"),
    [
        ("cut.jpg", _truncated, "truncated"),
        ("cut.png", _truncated, "replace or remove"),
        ("text.png", lambda path: path.write_text("not an image"), "cannot identify"),
        ("empty.jpg", lambda path: path.write_bytes(b""), "cannot identify"),
        ("missing.jpg", lambda path: None, "No such file"),
        ("deep.png", _deep, "8 bits"),
    ],
)
def test_unreadable_images(tmp_path, name, make, why):
    make(tmp_path / name)
    with pytest.raises(CalibrationError, match=re.escape(why)) as error:
        read(tmp_path / name, frame(64, 64))
    one_line(error, name)


@pytest.mark.parametrize("pixels", [1000, 2000])  # above twice the limit Pillow raises, above the limit it warns
def test_decompression_bombs_are_errors(tmp_path, monkeypatch, pixels):
    picture(tmp_path / "a.png", 50, 50)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pixels)
    for act in (
        lambda: read(tmp_path / "a.png", frame(50, 50)),
        lambda: plan("x", (None, 3, None, None), None, None, tmp_path / "a.png"),
    ):
        with pytest.raises(CalibrationError, match="bomb") as error:
            act()
        one_line(error, "a.png")


def test_images_that_come_first_are_decoded_once(tmp_path, monkeypatch):
    paths = [tmp_path / f"{number}.png" for number in range(4)]
    for number, path in enumerate(paths):
        picture(path, 6 + number // 3, 5)  # the last one does not fit
    opened = []
    plain = Image.open
    monkeypatch.setattr(Image, "open", lambda path: opened.append(path) or plain(path))
    remembered = remembering(frame(5, 6), most=2 * 5 * 6 * 3 + 89)  # two of them, and not quite a third
    for _ in range(2):
        for path in paths[:3]:
            np.testing.assert_array_equal(remembered(path), read(path, frame(5, 6)))
    assert [opened.count(path) - 2 for path in paths[:3]] == [1, 1, 2]  # two by ``read`` itself
    for _ in range(2):
        with pytest.raises(CalibrationError, match="7x5"):
            remembered(paths[3])
