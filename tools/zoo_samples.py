"""Samples for the real files: drawn text and pages, photographs where there are any, sounds out of a wheel, bytes of files."""

from __future__ import annotations

import os
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from onnxprune.feeding import fixed_batch, input_specs

COUNT = 64
Array = NDArray[Any]


def photographs(height: int, width: int) -> NDArray[np.float32]:
    """RGB images 0..255, NCHW: the reference photographs where the folder is there, else smooth noise."""
    folder = Path(os.environ.get("ONNXPRUNE_REFERENCE", "/nowhere")) / "imagenet" / "calib"
    paths = sorted(folder.glob("*.jpg"))[:COUNT]
    if len(paths) == COUNT:
        arrays = [np.asarray(Image.open(path).convert("RGB").resize((width, height))) for path in paths]
        return np.stack(arrays).transpose(0, 3, 1, 2).astype(np.float32)
    rng = np.random.default_rng(0)
    arrays = []
    for _ in range(COUNT):
        small = rng.uniform(0, 255, (8, 8, 3)).astype(np.uint8)
        arrays.append(np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)))
    return np.stack(arrays).transpose(0, 3, 1, 2).astype(np.float32)


def text(height: int, width: int, *, turned: bool = False) -> NDArray[np.float32]:
    """Lines of text, RGB 0..255, NCHW; every other one upside down with ``turned``."""
    rng = np.random.default_rng(1)
    arrays = []
    for number in range(COUNT):
        image = Image.new("RGB", (width, height), tuple(int(value) for value in rng.integers(180, 256, 3)))
        words = "".join(rng.choice(list("abcdefghijkmnpqrstuvwxyzABCDEFGHJKLMN 0123456789"), rng.integers(6, 16)))
        draw = ImageDraw.Draw(image)
        font = ImageFont.load_default(int(height * rng.uniform(0.45, 0.75)))
        draw.text((int(rng.integers(1, 10)), int(rng.integers(0, height // 4))), words, tuple(int(v) for v in rng.integers(0, 90, 3)), font)
        arrays.append(np.asarray(image.rotate(180) if turned and number % 2 else image))
    return np.stack(arrays).transpose(0, 3, 1, 2).astype(np.float32)


def pages(size: int) -> NDArray[np.float32]:
    """Pages with some lines of text, RGB 0..255, NCHW."""
    rng = np.random.default_rng(2)
    arrays = []
    for _ in range(COUNT):
        image = Image.new("RGB", (size, size), tuple(int(value) for value in rng.integers(170, 256, 3)))
        draw = ImageDraw.Draw(image)
        for line in range(int(rng.integers(2, 6))):
            words = "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz   0123456789"), rng.integers(8, 22)))
            place = (int(rng.integers(2, size // 3)), int(line * size / 6 + rng.integers(0, 12)))
            draw.text(place, words, tuple(int(v) for v in rng.integers(0, 100, 3)), ImageFont.load_default(int(rng.integers(12, 30))))
        arrays.append(np.asarray(image))
    return np.stack(arrays).transpose(0, 3, 1, 2).astype(np.float32)


def sounds(length: int) -> NDArray[np.float32]:
    """Windows of the tones in pipecat's wheel, at their own rate, with noise of several levels: (COUNT, length)."""
    folder = Path(__file__).resolve().parent.parent / "build" / "zoo" / "files" / "pipecat-ai"
    parts = []
    for path in sorted(folder.rglob("*.wav")):
        with wave.open(str(path)) as sound:
            parts.append(np.frombuffer(sound.readframes(sound.getnframes()), np.int16).astype(np.float32) / 32768)
    track = np.concatenate(parts)
    track = np.tile(track, 1 + (length * 2) // len(track))
    rng = np.random.default_rng(3)
    starts = rng.integers(0, len(track) - length, COUNT)
    clean = np.stack([track[start : start + length] for start in starts])
    return (clean * rng.uniform(0.2, 1, (COUNT, 1)) + rng.normal(0, 0.02, clean.shape) * rng.uniform(0, 1, (COUNT, 1))).astype(np.float32)


def mel(bands: int, frames: int) -> NDArray[np.float32]:
    """Something like whisper's log-mel of sounds: smooth over time and bands, about -1 to 1.5."""
    rng = np.random.default_rng(4)
    coarse = rng.normal(0, 0.6, (COUNT, bands // 8 + 2, frames // 16 + 2))
    fine = coarse.repeat(8, 1).repeat(16, 2)[:, :bands, :frames] + rng.normal(0, 0.15, (COUNT, bands, frames))
    return np.clip(fine + 0.1, -1, 1.5).astype(np.float32)


def contents(length: int) -> NDArray[np.int32]:
    """The first and last bytes of source files and others of this Python, as magika reads them: 256 stands for nothing."""
    half = length // 2
    paths = sorted(Path(os.__file__).parent.rglob("*"), key=lambda path: (path.suffix, path.name))
    paths = [path for path in paths if path.is_file() and path.stat().st_size > 200]
    out = np.full((COUNT, length), 256, np.int32)
    for number, at in enumerate(np.linspace(0, len(paths) - 1, COUNT).astype(int)):
        raw = paths[at].read_bytes().strip()
        start, end = np.frombuffer(raw[:half], np.uint8), np.frombuffer(raw[-half:], np.uint8)
        out[number, : len(start)] = start
        out[number, length - len(end) :] = end
    return out


def grey(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """One channel, -1 to 1."""
    return (images.mean(axis=1, keepdims=True) / 127.5 - 1).astype(np.float32)


# File stem -> its samples by input, and the batch size.
KNOWN: dict[str, Callable[[], tuple[dict[str, Array], int]]] = {
    "320n": lambda: ({"images": photographs(320, 320) / 255}, 8),
    "model": lambda: ({"bytes": contents(2048)}, 8),
    "ch_ppocr_mobile_v2.0_cls_infer": lambda: ({"x": text(48, 192, turned=True) / 127.5 - 1}, 8),
    "ch_PP-OCRv4_rec_infer": lambda: ({"x": text(48, 320) / 127.5 - 1}, 8),
    "ch_PP-OCRv4_det_infer": lambda: ({"x": pages(320) / 127.5 - 1}, 4),
    "nmp": lambda: ({"serving_default_input_2:0": sounds(43844)[:, :, None]}, 4),
    "smart-turn-v3.2-cpu": lambda: ({"input_features": mel(80, 800)}, 4),
    "common": lambda: ({"input1": grey(text(64, 160))}, 1),
    "common_old": lambda: ({"input1": grey(text(64, 160))}, 1),
    "common_det": lambda: ({"images": pages(416)}, 1),
    "silero_vad": lambda: ({"input": sounds(576), "state": np.zeros((2, COUNT, 128), np.float32), "sr": np.array(16000)}, 8),
    "silero_vad_16k_op15": lambda: ({"input": sounds(576), "state": np.zeros((2, COUNT, 128), np.float32), "sr": np.array(16000)}, 8),
    "silero_vad_op18_ifless": lambda: ({"input": sounds(576), "state": np.zeros((2, COUNT, 128), np.float32), "sr": np.array(16000)}, 8),
    "silero_vad_16k_sequence": lambda: (
        {"input": sounds(576), "h": np.zeros((1, 1, 128), np.float32), "c": np.zeros((1, 1, 128), np.float32)},
        8,
    ),
}


def samples_of(path: Path, model: onnx.ModelProto) -> tuple[dict[str, Array], int]:
    """The samples of a file by input name, and the batch size that it takes."""
    beside = path.with_suffix(".npz")
    if beside.exists():
        with np.load(beside) as stored:
            return {name: stored[name][:COUNT] for name in stored.files}, fixed_batch(input_specs(model)) or 8
    found, batch = KNOWN[path.stem]()
    names = [value.name for value in model.graph.input]
    return {name: np.ascontiguousarray(values) for name, values in found.items() if name in names or len(names) > 1}, batch
