"""An image file becomes a uint8 array of the size the model takes.

Sizing: without ``resize`` an image must have the wanted height and width. With ``resize`` its short side is scaled to
that many pixels (bilinear over the whole footprint, so shrinking does not alias) and the centre is cut out. EXIF
orientation is applied first. Pixels stay as stored, 0 to 255; nothing is decoded before ``read``. Pillow is imported where there is an
image.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from onnxprune.errors import CalibrationError

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff", ".gif")

KEPT = 64 << 20
"""Bytes of decoded images that a run keeps, where memory is not bounded."""

_MODES = {1: "L", 3: "RGB"}
_QUARTER_TURNS = (5, 6, 7, 8)  # EXIF orientations that swap width and height


@dataclass(frozen=True)
class Frame:
    """What every image is brought to: ``height`` by ``width`` pixels of ``channels`` (1: grey, 3: RGB).

    ``channels_first`` says how the model wants them; ``size_of`` names who set the size (a model input or the first
    image).
    """

    height: int
    width: int
    channels: int
    channels_first: bool
    resize: int | None
    size_of: str


def plan(name: str, shape: Sequence[int | None], layout: str | None, resize: int | None, first: Path) -> Frame:
    """Return the frame of the images for the model input ``name``, reading at most the header of the ``first`` image.

    ``shape`` is the input's shape with its batch axis, None = free. The channel axis is axis 1 if that is 1 or 3, else
    the last one if that is; where both are free, ``layout`` ("nchw" or "nhwc") tells and there are 3 channels. A free
    height or width is ``resize``, or without it that of the first image. Raises CalibrationError where the input takes
    no images or ``resize`` is below its size.
    """
    takes = f"model input {name!r} takes ({', '.join('?' if d is None else str(d) for d in shape)})"
    if len(shape) != 4:
        raise CalibrationError(f"{first}: images need an input of rank 4, {takes}: save the samples as .npy or .npz")
    at = {"nchw": 1, "nhwc": 3}
    told = next((key for key, axis in at.items() if shape[axis] in _MODES), layout)
    if told is None:
        raise CalibrationError(f"{first}: cannot tell the channel axis, {takes}: pass --layout nchw or --layout nhwc")
    channels = 3 if shape[at[told]] is None else shape[at[told]]
    if channels not in _MODES:
        raise CalibrationError(f"{first}: images have 1 or 3 channels, {takes}: save the samples as .npy or .npz")
    height, width = shape[2:4] if told == "nchw" else shape[1:3]
    size_of = f"model input {name!r}"
    if resize is not None:
        smallest = min(height or resize, width or resize)
        if resize < smallest:
            raise CalibrationError(f"--resize {resize} is smaller than what {takes[6:]}: pass --resize {smallest} or more")
        height, width = height or resize, width or resize
    elif height is None or width is None:
        size_of = str(first)
        width_0, height_0 = _header_size(first)
        height, width = height or height_0, width or width_0
    return Frame(height, width, channels, told == "nchw", resize, size_of)


def remembering(frame: Frame, most: int) -> Callable[[Path], NDArray[np.uint8]]:
    """`read` for images of one frame, which keeps those that come first, ``most`` bytes of them: a run reads each up to three times.

    What it gives is not to be changed.
    """
    kept: dict[Path, NDArray[np.uint8]] = {}
    size = frame.height * frame.width * frame.channels

    def remembered(path: Path) -> NDArray[np.uint8]:
        if path in kept:
            return kept[path]
        image = read(path, frame)
        if (len(kept) + 1) * size <= most:
            kept[path] = image
        return image

    return remembered


def read(path: Path, frame: Frame) -> NDArray[np.uint8]:
    """Return the decoded image, uint8 of shape (height, width, channels), 0 to 255.

    Raises CalibrationError, naming the file, if it is unreadable, truncated, too large for Pillow's safety limit,
    deeper than 8 bits, or not of the frame's size.
    """
    from PIL import Image, ImageOps

    try:
        with _strict_about_bombs(), Image.open(path) as stored:
            if stored.mode.startswith(("I", "F")):
                raise CalibrationError(f"{path}: pixels are deeper than 8 bits (Pillow mode {stored.mode}): save it with 8 bits")
            ImageOps.exif_transpose(stored, in_place=True)
            image = stored.convert(_MODES[frame.channels])  # a copy, which is there when the file is closed
            if frame.resize is not None:
                image = _short_side(image, frame.resize)
    except CalibrationError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on a damaged file
        raise _unreadable(path, error) from error
    width, height = image.size
    if frame.resize is not None:
        if height < frame.height or width < frame.width:
            raise CalibrationError(
                f"{path}: {width}x{height} after --resize {frame.resize}, {frame.size_of} needs "
                f"{frame.width}x{frame.height} (width x height): pass a larger --resize"
            )
        left, top = (width - frame.width) // 2, (height - frame.height) // 2
        image = image.crop((left, top, left + frame.width, top + frame.height))
    elif (height, width) != (frame.height, frame.width):
        raise CalibrationError(
            f"{path}: {width}x{height}, {frame.size_of} has {frame.width}x{frame.height} (width x height): "
            f"pass --resize {max(frame.height, frame.width)} or more to scale and crop"
        )
    return np.asarray(image, dtype=np.uint8).reshape(frame.height, frame.width, frame.channels)


def _short_side(image: Image.Image, pixels: int) -> Image.Image:
    from PIL import Image

    short = min(image.size)
    width, height = (max(pixels, round(side * pixels / short)) for side in image.size)
    if Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS:  # a sliver one pixel wide grows without end
        raise ValueError(f"scaled to {width}x{height} it has more than {Image.MAX_IMAGE_PIXELS} pixels")
    return image.resize((width, height), Image.Resampling.BILINEAR)


def _header_size(path: Path) -> tuple[int, int]:
    """Return (width, height) in pixels as displayed, without decoding."""
    from PIL import ExifTags, Image

    try:
        with _strict_about_bombs(), Image.open(path) as image:
            # For a PNG without EXIF before its pixels, getexif() would decode the pixels in search of one behind them.
            known = image.format != "PNG" or not {"exif", "Raw profile type exif"}.isdisjoint(image.info)
            turned = known and image.getexif().get(ExifTags.Base.Orientation) in _QUARTER_TURNS
            width, height = image.size
            return (height, width) if turned else (width, height)
    except Exception as error:  # as in read
        raise _unreadable(path, error) from error


@contextmanager
def _strict_about_bombs() -> Iterator[None]:
    """Make an absurdly large image an error, and keep Pillow's remarks on odd metadata off the terminal."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _unreadable(path: Path, error: Exception) -> CalibrationError:
    why = " ".join(str(error).split()) or type(error).__name__
    return CalibrationError(f"{path}: cannot be read as an image ({why}): replace or remove the file")
