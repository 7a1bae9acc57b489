"""A JPEG file's bytes come in; its size, and whether its end is there, go out, without decoding.

Facts are those of ITU-T T.81, annex B: a segment is FF, a marker byte and a big-endian length
that counts itself; the frame header (SOF) holds height and width; the file ends with FF D9.
"""

from __future__ import annotations

from typing import NamedTuple

# SOF0..SOF15 without the three numbers in that range that mean something else.
_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})
_END_OF_IMAGE = b"\xff\xd9"


class JpegHeader(NamedTuple):
    """What a JPEG file says about itself: pixels as stored (before any EXIF rotation)."""

    height: int
    width: int
    complete: bool
    """Whether the end marker stands somewhere behind the frame header."""


def is_jpeg(data: bytes) -> bool:
    """Whether `data` begins as a JPEG file does."""
    return data[:3] == b"\xff\xd8\xff"


def read_header(data: bytes) -> JpegHeader | None:
    """Find the frame header of the JPEG file `data`; None where there is none."""
    at = 2
    while at + 9 <= len(data):
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte before a marker
            at += 1
            continue
        if marker in _WITHOUT_LENGTH:
            at += 2
            continue
        if marker in _FRAME_HEADERS:
            height = int.from_bytes(data[at + 5 : at + 7], "big")
            width = int.from_bytes(data[at + 7 : at + 9], "big")
            # The marker cannot occur inside coded data, where FF is always followed by 00 or
            # a restart marker; a thumbnail's own end marker lies before the frame header.
            return JpegHeader(height, width, data.rfind(_END_OF_IMAGE, at) >= 0)
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None
