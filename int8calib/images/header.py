"""The size that an image file declares, read from its first bytes without decoding anything.

Each reader follows the format's own specification. Where a file could declare its size several
times, the largest counts, so that what is decoded is never larger than what was read here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import islice
from typing import NamedTuple


class Header(NamedTuple):
    """What an image file says about itself, in pixels as stored (before any EXIF rotation).

    `complete` is false for a JPEG or PNG file whose end is missing; other formats do not tell.
    """

    format: str
    height: int
    width: int
    complete: bool = True


class NoSizeError(Exception):
    """The file begins as one of the formats, but its size cannot be found."""


Size = tuple[int, int]


def read_header(data: bytes) -> Header | None:
    """Read the format and size of an image file.

    Parameters
    ----------
    data
        The bytes of the file.

    Returns
    -------
    Header or None
        None for a format that is not known here.

    Raises
    ------
    NoSizeError
        With the format's name, for a file of a known format that holds no size.
    """
    if data.startswith(_JPEG):
        return _read_jpeg(data)
    if data.startswith(_PNG):
        return _read_png(data)
    for signature, name, read in _FORMATS:
        if signature.match(data):
            try:
                height, width = read(data)
            except (ValueError, IndexError):
                raise NoSizeError(name) from None
            return Header(name, height, width)
    return None


# --- JPEG: ITU-T T.81, annex B. A segment is FF, a marker byte and a big-endian length that counts
# itself; the frame header (SOF) holds height and width; the file ends with FF D9.
_JPEG = b"\xff\xd8\xff"
_NOT_FILL = re.compile(rb"[^\xff]", re.DOTALL)
# SOF0..SOF15 without the three numbers in that range that mean something else.
_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_WITHOUT_LENGTH = frozenset({0x00, 0x01, *range(0xD0, 0xD9)})
_END_OF_IMAGE = b"\xff\xd9"
_MOST_SEGMENTS = 1 << 16
_MOST_ENTRIES = 1 << 12
# How far the text of a header is searched.
_HEAD = 1 << 16


def _read_jpeg(data: bytes) -> Header:
    at = 2
    for _ in range(_MOST_SEGMENTS):
        # Like libjpeg's next_marker, this passes over stray and fill bytes between segments.
        start = data.find(b"\xff", at)
        match = _NOT_FILL.search(data, start + 1) if start >= 0 else None
        if match is None or match.end() + 7 > len(data):
            break
        marker, at = match[0][0], match.end()
        if marker in _FRAME_HEADERS:
            height, width = _big(data, at + 3, 2), _big(data, at + 5, 2)
            # The marker cannot occur inside coded data, where FF is always followed by 00 or
            # a restart marker; a thumbnail's own end marker lies before the frame header.
            return Header("JPEG", height, width, data.rfind(_END_OF_IMAGE, at) >= 0)
        if marker not in _WITHOUT_LENGTH:
            at += max(2, _big(data, at, 2))
    raise NoSizeError("JPEG")


# --- PNG: W3C's specification, 5.3 and 11.2. A chunk is a big-endian length, four letters, as many
# bytes, and a checksum; the first one holds the size, the last one is IEND.
_PNG = b"\x89PNG\r\n\x1a\n"


def _read_png(data: bytes) -> Header:
    if data[12:16] != b"IHDR" or len(data) < 33:
        raise NoSizeError("PNG")
    at = 8
    for _ in range(_MOST_SEGMENTS):
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        # OpenCV asks for as much memory as a chunk claims to hold.
        if kind == b"IEND" or at + 12 + length > len(data):
            break
        at += 12 + length
    return Header("PNG", _big(data, 20, 4), _big(data, 16, 4), kind == b"IEND")


def _big(data: bytes, at: int, count: int) -> int:
    """A big-endian number of `count` bytes."""
    return _number(data, at, count, "big")


def _little(data: bytes, at: int, count: int) -> int:
    return _number(data, at, count, "little")


def _number(data: bytes, at: int, count: int, order: str) -> int:
    part = data[at : at + count]
    if len(part) < count:
        raise IndexError(at)
    return int.from_bytes(part, "big" if order == "big" else "little")


def _gif(data: bytes) -> Size:
    """The logical screen. Source: GIF89a specification, 18."""
    return _little(data, 8, 2), _little(data, 6, 2)


def _bmp(data: bytes) -> Size:
    """BITMAPCOREHEADER or one of its successors; a negative height is stored from the top."""
    if _little(data, 14, 4) == 12:
        return _little(data, 20, 2), _little(data, 18, 2)
    height, width = _little(data, 22, 4), _little(data, 18, 4)
    return min(height, (1 << 32) - height), width


def _webp(data: bytes) -> Size:
    """VP8, VP8L or VP8X, the first chunk. Source: RFC 9649."""
    kind = data[12:16]
    if kind == b"VP8 ":
        return _little(data, 28, 2) & 0x3FFF, _little(data, 26, 2) & 0x3FFF
    if kind == b"VP8L":
        bits = _little(data, 21, 4)
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    if kind == b"VP8X":
        return _little(data, 27, 3) + 1, _little(data, 24, 3) + 1
    raise ValueError(kind)


def _tiff(data: bytes) -> Size:
    """ImageLength and ImageWidth of the first directory. Source: TIFF 6.0, section 2; BigTIFF."""
    order = "little" if data[:1] == b"I" else "big"
    wide = _number(data, 2, 2, order) == 43
    start, count_bytes, entry = (8, 8, 20) if wide else (4, 2, 12)
    at = _number(data, start, 8 if wide else 4, order)
    # Entries stand in ascending order of their tags, so these two are among the first.
    count = min(_number(data, at, count_bytes, order), _MOST_ENTRIES)
    sizes = {256: 0, 257: 0}
    for place in range(at + count_bytes, at + count_bytes + count * entry, entry):
        tag, kind = _number(data, place, 2, order), _number(data, place + 2, 2, order)
        if tag in (256, 257):
            value = place + (12 if wide else 8)
            size = _number(data, value, {3: 2, 16: 8}.get(kind, 4), order)
            sizes[tag] = max(sizes[tag], size)
    return sizes[257], sizes[256]


# Comments may stand between the numbers.
_BETWEEN = rb"(?:\s|#[^\n]*\n)+"
_PNM_SIZE = re.compile(
    rb"P[1-6fF]" + _BETWEEN + rb"(\d{1,10})" + _BETWEEN + rb"(\d{1,10})(?=[\s#])"
)


def _pnm(data: bytes) -> Size:
    """Width and height as text. Source: Netpbm's pbm(5), pgm(5), ppm(5), pfm(5)."""
    match = _PNM_SIZE.match(data[:_HEAD])
    if match is None:
        raise ValueError("no size")
    return int(match[2]), int(match[1])


def _pam(data: bytes) -> Size:
    """WIDTH and HEIGHT lines. Source: Netpbm's pam(5)."""
    return _largest(rb"\bHEIGHT\s+(\d{1,10})\s", data), _largest(rb"\bWIDTH\s+(\d{1,10})\s", data)


def _largest(pattern: bytes, data: bytes) -> int:
    return max(int(match[1]) for match in re.finditer(pattern, data[:_HEAD]))


def _hdr(data: bytes) -> Size:
    """The resolution line. Source: Radiance's file format description."""
    matches = re.finditer(rb"[-+][XY]\s+(\d{1,10})\s+[-+][XY]\s+(\d{1,10})\s", data[:_HEAD])
    return max(
        ((int(size[1]), int(size[2])) for size in matches), key=lambda size: size[0] * size[1]
    )


def _sun(data: bytes) -> Size:
    """Source: Sun's rasterfile(5)."""
    return _big(data, 8, 4), _big(data, 4, 4)


def _jpeg2000(data: bytes) -> Size:
    """The SIZ segment, first in the codestream. Source: ITU-T T.800, A.5.1 and I.4."""
    at = 0
    for _ in range(_MOST_SEGMENTS):
        if data[at : at + 4] == b"\xff\x4f\xff\x51":
            return _big(data, at + 12, 4), _big(data, at + 8, 4)
        # A box; XLBox holds its length where LBox is 1, the contents of jp2c are the codestream.
        length, head = _big(data, at, 4), 8
        if length == 1:
            length, head = _big(data, at + 8, 8), 16
        at += head if data[at + 4 : at + 8] == b"jp2c" else max(length, 8)
    raise ValueError("no codestream")


def _avif(data: bytes) -> Size:
    """The largest of the `ispe` properties. Source: ISO/IEC 23008-12, 6.5.3."""
    sizes = [
        (_big(data, match.end() + 8, 4), _big(data, match.end() + 4, 4))
        for match in islice(re.finditer(rb"ispe", data), 10000)
    ]
    return max(sizes, key=lambda size: size[0] * size[1])


def _exr(data: bytes) -> Size:
    """The data window. Source: OpenEXR file layout."""
    match = re.search(rb"dataWindow\x00box2i\x00\x10\x00\x00\x00", data[:_HEAD])
    if match is None:
        raise ValueError("no size")
    left, top, right, bottom = (
        int.from_bytes(data[at : at + 4], "little", signed=True)
        for at in range(match.end(), match.end() + 16, 4)
    )
    return bottom - top + 1, right - left + 1


_FORMATS: tuple[tuple[re.Pattern[bytes], str, Callable[[bytes], Size]], ...] = tuple(
    (re.compile(signature, re.DOTALL), name, read)
    for signature, name, read in (
        (rb"GIF8[79]a", "GIF", _gif),
        (rb"BM", "BMP", _bmp),
        (rb"RIFF....WEBP", "WebP", _webp),
        (rb"II[*+]\x00|MM\x00[*+]", "TIFF", _tiff),
        (rb"P[1-6]\s", "PNM", _pnm),
        (rb"P[fF]\s", "PFM", _pnm),
        (rb"P7\s", "PAM", _pam),
        (rb"#\?R(ADIANC|GB)E", "HDR", _hdr),
        (rb"\x59\xa6\x6a\x95", "Sun raster", _sun),
        (rb"\x00\x00\x00\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51", "JPEG 2000", _jpeg2000),
        (rb"....ftyp(avif|avis|mif1|msf1|heic)", "AVIF", _avif),
        (rb"\x76\x2f\x31\x01", "OpenEXR", _exr),
    )
)
