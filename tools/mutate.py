"""Damage to files, drawn from a random generator: bits, bytes, cuts, chunks, and single fields of a protobuf message."""

from __future__ import annotations

from typing import Any

import numpy as np
from google.protobuf.message import DecodeError, Message

NUMBERS = (0, 1, -1, 2, 3, 7, 8, 16, 127, 255, 2**31 - 1, -(2**31), 2**32, 2**40, 2**62, -(2**63), 2**63 - 1)
WORDS = ("", "x", "Conv", "Identity", "com.microsoft", "a" * 3000, "../x", "/etc/passwd", "\n", "ä", "tanh")


def mutated(data: bytes, rng: np.random.Generator, kind: type[Message] | None = None) -> bytes:
    """The bytes with one to three things changed; of a file that holds a message of ``kind``, seven times in ten its fields."""
    if kind is not None and rng.random() < 0.7:
        message = kind()
        try:
            message.ParseFromString(data)
        except DecodeError:
            return _bytes(data, rng)
        for _ in range(int(rng.integers(1, 4))):
            _field(message, rng)
        try:
            return message.SerializeToString()
        except Exception:  # a field that cannot be written: bytes then
            return _bytes(data, rng)
    return _bytes(data, rng)


def _bytes(data: bytes, rng: np.random.Generator) -> bytes:
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        if not out:
            break
        at, size = int(rng.integers(len(out))), int(rng.integers(1, 65))
        match int(rng.integers(6)):
            case 0:
                out[at] ^= 1 << int(rng.integers(8))
            case 1:
                out[at] = int(rng.integers(256))
            case 2:
                del out[at:]
            case 3:
                out[at:at] = out[at : at + size]
            case 4:
                del out[at : at + size]
            case 5:
                out[at : at + size] = rng.bytes(size)
    return bytes(out)


def _field(message: Message, rng: np.random.Generator) -> None:
    """Change one field of the message or of one below it."""
    places: list[tuple[Any, Any]] = []
    todo = [message]
    while todo:
        one = todo.pop()
        for field, value in one.ListFields():
            places.append((one, field))
            if field.message_type is not None:
                todo.extend(value if _many(value) else [value])
    if not places:
        return
    owner, field = places[int(rng.integers(len(places)))]
    value = getattr(owner, field.name)
    what = int(rng.integers(4))
    try:
        if what == 0:
            owner.ClearField(field.name)
        elif _many(value):
            at = int(rng.integers(len(value)))
            if what == 1:
                del value[at]
            elif what == 2 and field.message_type is not None:
                value.add().CopyFrom(value[at])
            elif field.message_type is None:
                value[at] = _other(value[at], rng)
        elif field.message_type is None:
            setattr(owner, field.name, _other(value, rng))
    except (ValueError, TypeError):  # the number is out of the field's range
        owner.ClearField(field.name)


def _many(value: Any) -> bool:
    return hasattr(value, "__len__") and not isinstance(value, (str, bytes))


def _other(value: Any, rng: np.random.Generator) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return int(NUMBERS[int(rng.integers(len(NUMBERS)))])
    if isinstance(value, float):
        return float((0.0, -1.0, 1e38, 1e-38, float("nan"), float("inf"))[int(rng.integers(6))])
    if isinstance(value, str):
        return WORDS[int(rng.integers(len(WORDS)))]
    return _bytes(value, rng)
