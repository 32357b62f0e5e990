"""`tf.train.Example`, the record of TensorFlow's datasets, read and written without TensorFlow.

The message is that of tensorflow/core/example/example.proto and feature.proto, in the wire format of Protocol Buffers
(https://protobuf.dev/programming-guides/encoding): a map from names to a list of bytes, of float32 or of int64.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

VARINT, EIGHT, BYTES, FOUR = 0, 1, 2, 5  # wire types
KINDS = {1: "bytes", 2: "floats", 3: "ints"}
LONGEST = 10  # bytes of a number


def parse_example(data: bytes) -> dict[str, Any]:
    """Name -> value: one of a list of one, None of an empty list, else a list of bytes, float32 [N] or int64 [N].

    Raises:
      ValueError: the bytes are no such message.
    """
    found: dict[str, Any] = {}
    for number, features in _fields(data):
        if number != 1 or not isinstance(features, bytes):
            raise ValueError(f"field {number} of the example is none of tf.train.Example")
        for inner, entry in _fields(features):
            if inner != 1 or not isinstance(entry, bytes):
                raise ValueError(f"field {inner} of the features is none of tf.train.Example")
            parts = dict(_fields(entry))
            name, feature = parts.get(1, b""), parts.get(2, b"")
            if not isinstance(name, bytes) or not isinstance(feature, bytes) or parts.keys() - {1, 2}:
                raise ValueError("an entry of the features is no name and value")
            found[name.decode("utf-8")] = _feature(feature)
    return found


def example_bytes(values: Mapping[str, Any]) -> bytes:
    """The message of named values: texts, bytes, whole numbers, floats (kept as float32), or lists or arrays [N] of these.

    None is left out. The same values give the same bytes.

    Raises:
      ValueError: another value, a list of several kinds, an array of several dimensions, or a number beyond 64 bits.
    """
    entries = []
    for name in sorted(values):
        if values[name] is not None:
            feature = _feature_bytes(name, values[name])
            entries.append(_message(1, _message(1, name.encode()) + _message(2, feature)))
    return _message(1, b"".join(entries))


def _feature(data: bytes) -> Any:
    value: Any = None
    for number, content in _fields(data):
        if number not in KINDS or not isinstance(content, bytes):
            raise ValueError(f"field {number} of a feature is no list of bytes, floats or ints")
        value = {1: _list_of_bytes, 2: _list_of_floats, 3: _list_of_ints}[number](content)
    if value is None or not len(value):
        return None
    if len(value) > 1:
        return value
    return value[0] if isinstance(value, list) else value[0].item()


def _list_of_bytes(data: bytes) -> list[bytes]:
    return [content for _, content in _of_kind(data, bytes)]


def _list_of_floats(data: bytes) -> np.ndarray:
    packed = [content for _, content in _of_kind(data, bytes)]  # one that is not packed is its four bytes too
    if any(len(content) % 4 for content in packed):
        raise ValueError("a list of floats ends within one")
    return np.frombuffer(b"".join(packed), "<f4").astype(np.float32)


def _list_of_ints(data: bytes) -> np.ndarray:
    found: list[int] = []
    for _, content in _of_kind(data, bytes | int):
        if isinstance(content, int):
            found.append(content)
            continue
        place = 0
        while place < len(content):
            number, place = _varint(content, place)
            found.append(number)
    return np.array(found, np.uint64).astype(np.int64)


def _of_kind(data: bytes, kind: Any) -> Iterator[tuple[int, Any]]:
    for number, content in _fields(data):
        if number != 1 or not isinstance(content, kind):
            raise ValueError("a list holds something else than its values")
        yield number, content


def _fields(data: bytes) -> Iterator[tuple[int, bytes | int]]:
    """(field number, content) of a message: bytes, or the number of a varint."""
    place = 0
    while place < len(data):
        tag, place = _varint(data, place)
        number, kind = tag >> 3, tag & 7
        if kind == VARINT:
            value, place = _varint(data, place)
            yield number, value
            continue
        if kind == BYTES:
            size, place = _varint(data, place)
        elif kind in (FOUR, EIGHT):
            size = 4 if kind == FOUR else 8
        else:
            raise ValueError(f"byte {place}: the wire type {kind}")
        if place + size > len(data):
            raise ValueError(f"byte {place}: {size} bytes are said to follow, and {len(data) - place} do")
        yield number, data[place : place + size]
        place += size


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """A number from 0 to 2^64 - 1, and where it ends."""
    value = 0
    for step in range(LONGEST):
        if place + step >= len(data):
            raise ValueError(f"byte {place}: a number is cut")
        value |= (data[place + step] & 0x7F) << 7 * step
        if data[place + step] < 0x80:
            if value >= 2**64:
                break
            return value, place + step + 1
    raise ValueError(f"byte {place}: a number of more than 64 bits")


def _feature_bytes(name: str, value: Any) -> bytes:
    if isinstance(value, np.ndarray) and value.ndim > 1:
        raise ValueError(f"{name!r} has the shape {list(value.shape)}, and a list has one dimension: write its file, or a list")
    several = list(value) if isinstance(value, list | tuple | np.ndarray) and np.ndim(value) else [value]
    if all(isinstance(one, bytes | str) for one in several):
        return _message(1, b"".join(_message(1, one.encode() if isinstance(one, str) else one) for one in several))
    if all(isinstance(one, int | np.integer | bool | np.bool_) for one in several):
        return _message(3, _message(1, b"".join(_number(name, int(one)) for one in several)))
    if all(isinstance(one, int | float | np.integer | np.floating) for one in several):
        return _message(2, _message(1, np.array(several, "<f4").tobytes()))
    kinds = ", ".join(sorted({type(one).__name__ for one in several}))
    raise ValueError(f"{name!r} holds {kinds}: write texts, bytes, whole numbers or floats, one or a list of one kind")


def _number(name: str, value: int) -> bytes:
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"{name!r} holds {value}, which 64 bits do not hold")
    return _varint_bytes(value % 2**64)


def _message(number: int, content: bytes) -> bytes:
    return _varint_bytes(number << 3 | BYTES) + _varint_bytes(len(content)) + content


def _varint_bytes(value: int) -> bytes:
    found = bytearray()
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])
