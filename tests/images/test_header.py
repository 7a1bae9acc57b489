"""Sizes read from headers, against files that OpenCV wrote or that are put together by hand."""

from __future__ import annotations

import struct
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from int8calib.images import UnreadableImageError
from int8calib.images.decode import decode_image, read_image
from int8calib.images.find import IMAGE_SUFFIXES
from int8calib.images.header import NoSizeError, read_header
from int8calib.limits import MAX_PIXELS

RNG = np.random.default_rng(43)
HEIGHT, WIDTH = 67, 83
NAMES = {
    ".jpg": "JPEG",
    ".jpe": "JPEG",
    ".png": "PNG",
    ".gif": "GIF",
    ".bmp": "BMP",
    ".dib": "BMP",
    ".webp": "WebP",
    ".tif": "TIFF",
    ".pbm": "PNM",
    ".pgm": "PNM",
    ".ppm": "PNM",
    ".pnm": "PNM",
    ".pam": "PAM",
    ".pfm": "PFM",
    ".hdr": "HDR",
    ".pic": "HDR",
    ".sr": "Sun raster",
    ".ras": "Sun raster",
    ".jp2": "JPEG 2000",
    ".avif": "AVIF",
}


def written(suffix: str, height: int = HEIGHT, width: int = WIDTH) -> bytes:
    """A picture in the format of `suffix`; skips where this OpenCV does not write it."""
    coarse = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    image: np.ndarray = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    if suffix in (".pgm", ".pbm"):
        image = image[:, :, 0]
    if suffix in (".pfm", ".hdr", ".pic"):
        image = image.astype(np.float32)
    try:
        done, data = cv2.imencode(suffix, image)
    except cv2.error:
        done = False
    if not done:
        pytest.skip(f"this OpenCV does not write {suffix}")
    content: bytes = data.tobytes()
    return content


@pytest.mark.parametrize("suffix", NAMES)
def test_what_opencv_writes(suffix: str) -> None:
    content = written(suffix)
    assert suffix in IMAGE_SUFFIXES
    assert read_header(content) == (NAMES[suffix], HEIGHT, WIDTH, True)


@pytest.mark.parametrize("suffix", sorted({*NAMES, ".pfm"} - {".pbm"}))
def test_every_format_is_an_image(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(written(suffix))
    image = read_image(path)
    expected = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if suffix == ".pgm":
        assert expected.shape == (HEIGHT, WIDTH, 3)
    np.testing.assert_array_equal(image, expected)


def test_the_first_frame_of_an_animation() -> None:
    if not hasattr(cv2, "Animation"):
        pytest.skip("this OpenCV knows no animations")
    frames = [np.full((HEIGHT, WIDTH, 3), value, np.uint8) for value in (0, 255)]
    animation = cv2.Animation()
    animation.frames, animation.durations = frames, [100, 100]
    done, data = cv2.imencodeanimation(".gif", animation)
    assert done
    np.testing.assert_array_equal(decode_image(data.tobytes()), frames[0])


def chunk(kind: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + kind + body + bytes(4)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"P5\n# made by # hand\n 12 #\n\t345\n255\n", ("PNM", 345, 12)),
        (b"P4 0000000017 5 ", ("PNM", 5, 17)),
        (b"Pf\n11 13\n-1.0\n", ("PFM", 13, 11)),
        (b"GIF87a" + struct.pack("<HH", 513, 7), ("GIF", 7, 513)),
        (b"BM" + bytes(12) + struct.pack("<IHH", 12, 300, 2), ("BMP", 2, 300)),
        (b"BM" + bytes(12) + struct.pack("<Iii", 40, 19, -23), ("BMP", 23, 19)),
        (b"RIFF\0\0\0\0WEBPVP8X" + bytes(8) + b"\x0a\0\0\x14\0\1", ("WebP", 65557, 11)),
        (b"RIFF\0\0\0\0WEBPVP8 " + bytes(10) + b"\x0b\x40\x0d\x80", ("WebP", 13, 11)),
        (
            b"MM\0*" + struct.pack(">IH", 8, 2)
            # ImageWidth as SHORT stands in the upper half.
            + struct.pack(">HHIHH", 256, 3, 1, 37, 0) + struct.pack(">HHII", 257, 4, 1, 41),
            ("TIFF", 41, 37),
        ),
        (
            b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 2)
            + struct.pack("<HHQQ", 256, 16, 1, 70_001) + struct.pack("<HHQQ", 257, 3, 1, 41),
            ("TIFF", 41, 70_001),
        ),
        (b"\xff\x4f\xff\x51\0\x29\0\0" + struct.pack(">II", 31, 29), ("JPEG 2000", 29, 31)),
        (b"P7\nHEIGHT 5\nDEPTH 3\nWIDTH 7\nMAXVAL 255\nENDHDR\n", ("PAM", 5, 7)),
        (
            b"\x76\x2f\x31\x01\x02\0\0\0dataWindow\0box2i\0\x10\0\0\0" + struct.pack("<4i", -2, 3, 4, 13),
            ("OpenEXR", 11, 7),
        ),
        (b"\x59\xa6\x6a\x95" + struct.pack(">II", 9, 11), ("Sun raster", 11, 9)),
    ],
)  # fmt: skip
def test_headers_made_by_hand(content: bytes, expected: tuple[str, int, int]) -> None:
    assert read_header(content) == (*expected, True)


def lie(content: bytes, suffix: str, height: int, width: int) -> bytes:
    """The file with another size in its header."""
    pairs = {".png": (16, ">II"), ".gif": (6, "<HH"), ".bmp": (18, "<ii"), ".sr": (4, ">II")}
    if suffix == ".jpg":
        at = content.index(b"\xff\xc0") + 5
        return content[:at] + struct.pack(">HH", height, width) + content[at + 4 :]
    if suffix == ".ppm":
        return content.replace(b"83 67", b"%d %d" % (width, height), 1)
    at, layout = pairs[suffix]
    sizes = struct.pack(layout, width, height)
    return content[:at] + sizes + content[at + len(sizes) :]


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".gif", ".bmp", ".sr", ".ppm"])
def test_too_many_pixels_are_refused_before_decoding(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = written(suffix)
    assert lie(content, suffix, HEIGHT, WIDTH) == content
    path = tmp_path / f"bomb{suffix}"
    path.write_bytes(lie(content, suffix, 20_000, 20_011))
    monkeypatch.setattr(cv2, "imdecode", None)
    message = rf"bomb\{suffix}: declares 20000x20011 \(HxW\), more than {MAX_PIXELS} pixels"
    with pytest.raises(UnreadableImageError, match=message):
        read_image(path)


@pytest.mark.parametrize(("height", "width"), [(0, 50), (50, 0)])
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".gif", ".bmp"])
def test_an_image_without_pixels(suffix: str, height: int, width: int) -> None:
    content = lie(written(suffix), suffix, height, width)
    # The reduction, which would divide by the size, is not asked.
    with pytest.raises(UnreadableImageError, match=rf"its size is {height}x{width} \(HxW\)"):
        decode_image(content, reduction=lambda height, width: 1 // (height * width))


@pytest.mark.parametrize("suffix", NAMES)
def test_headers_that_are_cut_off(suffix: str) -> None:
    content = written(suffix)
    for end in [*range(1, 40), 60, 90]:
        try:
            header = read_header(content[:end])
        except NoSizeError:
            continue
        assert header is None or (header.height, header.width) == (HEIGHT, WIDTH), end


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xd8\xff" + b"\xff" * 3_000_000,
        b"\xff\xd8\xff" + b"\xff\x00" * 1_500_000,
        b"\xff\xd8\xff" + b"\xff\xe0\x00\x00" * 750_000,
        b"P5 " + b" " * 3_000_000,
        b"P5 " + b"#\n" * 1_500_000,
        b"P5 " + b"1" * 3_000_000,
        b"P7\nWIDTH " + b"9" * 3_000_000,
        b"#?RADIANCE\n" + b"-Y 1 " * 600_000,
        b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0\0\0\x08free" * 375_000,
        b"\0\0\0\x1cftypavif" + b"ispe" * 750_000,
        b"II*\0\x08\0\0\0\xff\xff" + b"\0\1\3\0" * 750_000,
    ],
)
def test_long_nonsense_takes_no_time(content: bytes) -> None:
    started = time.process_time()
    with pytest.raises(UnreadableImageError, match=r"damaged|declares"):
        decode_image(content)
    assert time.process_time() - started < 3


def test_what_opencv_makes_of_it_must_be_what_was_asked_for() -> None:
    pfm = cv2.imencode(".pfm", RNG.random((7, 11, 3), np.float32))[1].tobytes()
    assert decode_image(pfm).shape == (7, 11, 3)
    with pytest.raises(
        UnreadableImageError, match=r"uint8 of shape \(7, 11, 3\).*expected .*\(H, W\)"
    ):
        decode_image(pfm, gray=True)


@pytest.mark.parametrize("cut", [0.2, 0.6, 0.99])
def test_a_png_that_is_cut_off_or_claims_more_than_there_is(
    cut: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    png = written(".png")
    assert png[-8:-4] == b"IEND"
    monkeypatch.setattr(cv2, "imdecode", None)
    # OpenCV would take 4 GB for the second one.
    claim = png.index(b"IDAT") - 4
    for content in (
        png[: int(len(png) * cut)],
        png[:claim] + b"\xff\xff\xff\xf0" + png[claim + 4 :],
        png[:-12],
    ):
        with pytest.raises(UnreadableImageError, match="the PNG file is cut off"):
            decode_image(content)
