"""The fields of protobuf bytes, as spans of the same bytes.

Nothing is copied and no number is unpacked, so walking over 100 MB of weights costs as much as
stepping over their headers. Source: protobuf.dev, "Encoding".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

__all__ = ["I32", "I64", "LEN", "VARINT", "Field", "WireError", "encode_varint", "fields", "varint"]

VARINT, I64, LEN, I32 = 0, 1, 2, 5  # the wire types in use
_WIDTHS = {I64: 8, I32: 4}


class WireError(ValueError):
    """The bytes are no protobuf message, or end too early."""


class Field(NamedTuple):
    """One field: its number, its wire type, and where its payload begins and ends.

    Equal fields of a fixed width that follow each other count as one. The payload then runs from
    the first number to the last, with one byte of key before each further number.
    """

    number: int
    wire: int
    start: int
    stop: int


def varint(data: memoryview, at: int, stop: int) -> tuple[int, int]:
    """Read a variable-length integer.

    Parameters
    ----------
    data
        The bytes.
    at, stop
        Where it begins, and where it must have ended.

    Returns
    -------
    tuple of int
        The integer, and the offset behind it.

    Raises
    ------
    WireError
        It runs past `stop`, or over 64 bits.
    """
    value = shift = 0
    while at < stop and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise WireError(f"a number at byte {at} does not end")


def encode_varint(value: int) -> bytes:
    """Return the bytes of a variable-length integer."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def fields(data: memoryview, start: int, stop: int) -> Iterator[Field]:
    """Walk over the fields of a message.

    Parameters
    ----------
    data
        The bytes.
    start, stop
        The offsets between which the message lies.

    Yields
    ------
    Field
        In the order of the bytes.

    Raises
    ------
    WireError
        A field that protobuf does not have, or that runs past the message's end.
    """
    at = start
    while at < stop:
        begin = at
        key, at = varint(data, at, stop)
        number, wire = key >> 3, key & 7
        if wire == LEN:
            size, at = varint(data, at, stop)
            end = at + size
        elif wire == VARINT:
            end = varint(data, at, stop)[1]
        elif wire in _WIDTHS:
            width = _WIDTHS[wire]
            end = at + width
            if at - begin == 1:
                end += (width + 1) * _repeats(data, end, stop, key, width + 1)
        else:
            raise WireError(f"byte {begin} begins no field of protobuf")
        if number == 0:
            raise WireError(f"byte {begin} begins no field of protobuf")
        if end > stop:
            raise WireError(f"the field at byte {begin} runs to byte {end}, past byte {stop}")
        yield Field(number, wire, at, end)
        at = end


def _repeats(data: memoryview, at: int, stop: int, key: int, step: int) -> int:
    """Count the whole records of ``step`` bytes from ``at`` on that begin with the key."""
    records = max(stop - at, 0) // step
    count, window = 0, 1
    # Windows that double: looking at all that is left would make many short runs quadratic.
    while count < records:
        window = min(2 * window, records - count)
        keys = np.frombuffer(data, np.uint8, window * step, at + count * step)[::step]
        others = np.flatnonzero(keys != key)
        if others.size:
            return count + int(others[0])
        count += window
    return count
