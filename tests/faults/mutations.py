"""What may happen to a file: bits flip, parts are lost, come twice or change places, numbers become absurd."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

# Of 8 bytes or fewer: nothing, one, all ones, the largest with a sign, and their neighbours.
NUMBERS = (
    0,
    1,
    2,
    3,
    -1,
    -2,
    0x7F,
    0xFF,
    0x7FFF,
    0x8000,
    0xFFFF,
    0x7FFFFFFF,
    2**31,
    2**32 - 1,
    2**32,
    2**63 - 1,
    2**63,
)
# In the place of a value of JSON or YAML.
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 7, 2**31, 2**32, 2**63, 10**9, 10**18, 10**40, -(10**18)),
    *(0.5, -0.5, 1e-300, 1e300, float("inf"), float("-inf"), float("nan")),
    *("", "0", "-1", "text", "../../../etc/passwd", "/etc/passwd", "\0", "\x1b[2J\x07", "ä\ud800", "x" * 5000, "\n\n"),
    *([], {}, [[]], [None], [0], [1, 2, 3], ["a"], {"a": 1}, {"": None}, [{}], [10**9, 10**9], {"__class__": "os"}),
)


def changed_number(number: random.Random, width: int, before: int) -> int:
    """Another number of so many bytes: an extreme, a neighbour or any."""
    kind = number.randrange(4)
    value = number.choice(NUMBERS) if kind < 2 else before + number.choice((-2, -1, 1, 2)) if kind == 2 else -1
    return (value if kind < 3 else number.getrandbits(8 * width)) % 2 ** (8 * width)


def with_number(data: bytes, place: int, width: int, value: int, order: str) -> bytes:
    """The data with a whole number of so many bytes at a place; what is beyond the end is not written."""
    written = value.to_bytes(width, order)[: max(0, len(data) - place)]
    return data[:place] + written + data[place + len(written) :]


def flipped(number: random.Random, data: bytes) -> bytes:
    """Some bits of it flipped, at the beginning or anywhere."""
    result = bytearray(data)
    reach = number.choice((16, 64, 256, len(data), len(data)))
    for _ in range(number.choice((1, 1, 2, 8, 64, max(1, len(data) // 100)))):
        place = number.randrange(min(reach, len(data)))
        result[place] ^= 1 << number.randrange(8)
    return bytes(result)


def cut(number: random.Random, data: bytes) -> bytes:
    """The beginning of it: a few bytes, a header, a part, all but a little."""
    kind = number.randrange(4)
    if kind == 0:
        return data[: number.randrange(1, 64)]
    if kind == 1:
        return data[: number.randrange(1, min(len(data), 1000))]
    return data[: number.randrange(len(data))] if kind == 2 else data[: -number.randrange(1, min(len(data), 64))]


def rearranged(number: random.Random, data: bytes) -> bytes:
    """Two blocks change places, one comes again, is lost, or is made of one byte."""
    size = min(number.choice((1, 4, 16, 100, 1000, len(data) // 4)) or 1, len(data) // 2)
    first, second = sorted(number.randrange(len(data) - size + 1) for _ in range(2))
    one, other = data[first : first + size], data[second : second + size]
    kind = number.randrange(5)
    if kind == 0 and first + size <= second:
        return data[:first] + other + data[first + size : second] + one + data[second + size :]
    if kind == 1:
        return data[:first] + one * number.choice((2, 3, 10, 100)) + data[first + size :]
    if kind == 2:
        return data[:first] + data[first + size :]
    if kind == 3:
        return data[:second] + one + data[second:]
    return data[:first] + bytes([number.choice((0, 255, 10, 32))]) * size + data[first + size :]


def numbered(number: random.Random, data: bytes) -> bytes:
    """Numbers anywhere at the beginning, of any width, become others."""
    for _ in range(number.choice((1, 1, 2, 4))):
        width = number.choice((1, 2, 4, 8))
        place = number.randrange(min(len(data), number.choice((48, 128, 1024, len(data)))))
        order = number.choice(("little", "big"))
        before = int.from_bytes(data[place : place + width], order)
        data = with_number(data, place, width, changed_number(number, width, before), order)
    return data


def surrounded(number: random.Random, data: bytes) -> bytes:
    """Something before or behind it."""
    count = number.choice((1, 2, 10, 100, 5000, 70_000))
    other = number.choice((number.randbytes(count), bytes(count), b"\xff" * count, data[:count], b"RIFF" * count))
    return other + data if number.randrange(2) else data + other


DAMAGES: tuple[Callable[[random.Random, bytes], bytes], ...] = (flipped, cut, rearranged, numbered, surrounded)


def damaged(number: random.Random, data: bytes) -> bytes:
    """Data damaged in one of these ways."""
    return number.choice(DAMAGES)(number, data) if len(data) > 8 else data[:-1]


def changed_value(number: random.Random, value: Any) -> Any:
    """A table of JSON or YAML in which one value, or two, at any depth, is another, is gone, or is new."""
    value = copy.deepcopy(value)
    for _ in range(number.choice((1, 1, 1, 2))):
        holder, keys = value, list(value)
        key = number.choice(keys) if keys else "a"
        while isinstance(holder, dict | list) and number.random() < 0.6:
            inner = holder[key]
            if not isinstance(inner, dict | list) or not inner:
                break
            holder, key = inner, number.choice(list(inner) if isinstance(inner, dict) else range(len(inner)))
        kind = number.randrange(10)
        if kind == 0 and isinstance(holder, dict):
            holder.pop(key, None)
        elif kind == 1 and isinstance(holder, dict):
            holder[str(number.choice(("unknown", "", "__class__", f"{key}_", str(key).upper(), "\x1b[2J")))] = 1
        elif kind == 2 and isinstance(holder, dict) and type(holder.get(key)) in (int, float):
            holder[key] = holder[key] * number.choice((-1, 0.5, 2, 1000, 10**6, 10**12)) + number.choice((-1, 0, 1))
        elif kind == 3:
            holder[key] = nested(number.choice((10, 900, 5000)))
        else:
            holder[key] = copy.deepcopy(number.choice(VALUES))
    return value


def nested(depth: int) -> Any:
    """Lists in lists."""
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value
