"""Decoding against cv2.imread on files that cv2 itself wrote, and what cannot be decoded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from int8calib.errors import ImageError
from int8calib.images import UnreadableImageError
from int8calib.images.decode import decode_image, read_image, resize_bilinear
from int8calib.images.header import NoSizeError, read_header

FORMATS = [".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".JPG", ".PNG"]


def picture(height: int, width: int, channels: int = 3, seed: int = 5) -> NDArray[np.uint8]:
    """A smooth picture with some noise, different in every channel and corner."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (5, 7, channels), dtype=np.uint8)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    noise = rng.integers(-9, 10, (height, width, channels))
    mixed: NDArray[np.uint8] = np.clip(
        smooth.reshape(height, width, channels) + noise, 0, 255
    ).astype(np.uint8)
    return mixed


def with_orientation(jpeg: bytes, orientation: int) -> bytes:
    """Put an EXIF segment that holds only the orientation behind the JPEG's start marker."""
    tiff = b"MM\x00*\x00\x00\x00\x08\x00\x01\x01\x12\x00\x03\x00\x00\x00\x01"
    tiff += bytes([0, orientation, 0, 0]) + b"\x00\x00\x00\x00"
    body = b"Exif\x00\x00" + tiff
    return jpeg[:2] + b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body + jpeg[2:]


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("gray", [False, True])
def test_decodes_as_imread(tmp_path: Path, suffix: str, gray: bool) -> None:
    path = tmp_path / f"bild ünïcode 図{suffix}"
    path.write_bytes(cv2.imencode(suffix.lower(), picture(31, 43))[1].tobytes())
    plain = tmp_path / f"plain{suffix}"
    plain.write_bytes(path.read_bytes())
    expected = cv2.imread(str(plain), cv2.IMREAD_GRAYSCALE if gray else cv2.IMREAD_COLOR)
    image = read_image(path, gray=gray)
    assert image.dtype == np.uint8
    assert image.shape == ((31, 43) if gray else (31, 43, 3))
    np.testing.assert_array_equal(image, expected)


def test_lossless_pixels_come_back_in_bgr_order(tmp_path: Path) -> None:
    image = picture(17, 23)
    cv2.imwrite(str(tmp_path / "a.png"), image)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), image)


def test_alpha_is_dropped_and_gray_is_spread_to_three_channels(tmp_path: Path) -> None:
    image = picture(17, 23, channels=4)
    cv2.imwrite(str(tmp_path / "alpha.png"), image)
    np.testing.assert_array_equal(read_image(tmp_path / "alpha.png"), image[:, :, :3])
    gray = picture(17, 23, channels=1)
    cv2.imwrite(str(tmp_path / "gray.png"), gray)
    np.testing.assert_array_equal(read_image(tmp_path / "gray.png"), np.repeat(gray, 3, axis=2))


def test_sixteen_bits_become_eight(tmp_path: Path) -> None:
    deep = picture(17, 23).astype(np.uint16) * 256 + 77
    cv2.imwrite(str(tmp_path / "deep.png"), deep)
    image = read_image(tmp_path / "deep.png")
    np.testing.assert_array_equal(image, cv2.imread(str(tmp_path / "deep.png")))
    np.testing.assert_array_equal(image, deep >> 8)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_the_image(tmp_path: Path, orientation: int) -> None:
    jpeg = cv2.imencode(".jpg", picture(31, 43))[1].tobytes()
    path = tmp_path / "turned.jpg"
    path.write_bytes(with_orientation(jpeg, orientation))
    image = read_image(path)
    assert image.shape == ((43, 31, 3) if orientation >= 5 else (31, 43, 3))
    np.testing.assert_array_equal(image, cv2.imread(str(path)))
    plain = decode_image(jpeg)
    assert np.array_equal(image, plain) == (orientation == 1)


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
@pytest.mark.parametrize("gray", [False, True])
def test_reduced_jpeg_is_opencvs_reduced_decoding(factor: int, gray: bool) -> None:
    jpeg = cv2.imencode(".jpg", picture(127, 211))[1]
    seen: list[tuple[int, int]] = []

    def reduction(height: int, width: int) -> int:
        seen.append((height, width))
        return factor

    kind = "GRAYSCALE" if gray else "COLOR"
    flag = f"IMREAD_{kind}" if factor == 1 else f"IMREAD_REDUCED_{kind}_{factor}"
    image = decode_image(jpeg.tobytes(), gray=gray, reduction=reduction)
    np.testing.assert_array_equal(image, cv2.imdecode(jpeg, getattr(cv2, flag)))
    assert image.shape[:2] == (-(-127 // factor), -(-211 // factor))
    assert seen == [(127, 211)]


def test_other_formats_are_never_reduced() -> None:
    png = cv2.imencode(".png", picture(127, 211))[1].tobytes()
    assert decode_image(png, reduction=lambda height, width: 8).shape == (127, 211, 3)


@pytest.mark.parametrize("progressive", [0, 1])
def test_jpeg_header(progressive: int) -> None:
    options = [cv2.IMWRITE_JPEG_PROGRESSIVE, progressive, cv2.IMWRITE_JPEG_RST_INTERVAL, 3]
    jpeg = cv2.imencode(".jpg", picture(37, 53), options)[1].tobytes()
    # A thumbnail in an APP1 segment has frame header and end marker of its own.
    thumbnail = b"Exif\x00\x00" + cv2.imencode(".jpg", picture(8, 9))[1].tobytes()
    segment = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    whole = jpeg[:2] + b"\xff\xff\xff" + segment[1:] + jpeg[2:]
    assert read_header(jpeg) == ("JPEG", 37, 53, True)
    assert read_header(whole) == ("JPEG", 37, 53, True)
    assert read_header(whole + b"trailing bytes") == ("JPEG", 37, 53, True)
    assert read_header(whole[:-2]) == ("JPEG", 37, 53, False)
    for content in (whole[:40], b"\xff\xd8\xff" + bytes(100), b"\xff\xd8" + b"\xff" * 999):
        with pytest.raises(NoSizeError, match="JPEG"):
            read_header(content)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.99])
def test_a_cut_off_jpeg_is_unreadable(tmp_path: Path, share: float) -> None:
    jpeg = cv2.imencode(".jpg", picture(97, 113))[1].tobytes()
    path = tmp_path / "cut.jpg"
    path.write_bytes(jpeg[: int(len(jpeg) * share)])
    with pytest.raises(UnreadableImageError, match=r"cut\.jpg: (the JPEG file is cut|not an im)"):
        read_image(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"hello", "not an image that OpenCV can decode"),
        (b"\xff\xd8\xff\xe0 no jpeg at all", "a damaged JPEG file: it holds no image size"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
            "a Git LFS pointer.*lfs pull",
        ),
        (b"\n<!DOCTYPE html><html>404</html>", "an HTML page, not"),
    ],
)
def test_what_is_no_image_says_so(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(content)
    with pytest.raises(UnreadableImageError, match=rf"x\.jpg: {message}") as caught:
        read_image(path)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_opened_is_another_message(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImageError, match=r"gone\.jpg: cannot be read: No such file"):
        read_image(tmp_path / "gone.jpg")
    (tmp_path / "folder.jpg").mkdir()
    with pytest.raises(UnreadableImageError, match=r"folder\.jpg: cannot be read"):
        read_image(tmp_path / "folder.jpg")


def test_resize_is_opencvs_bilinear() -> None:
    image = picture(61, 83)
    expected = cv2.resize(image, (37, 29), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(resize_bilinear(image, 29, 37), expected)
    with pytest.raises(UnreadableImageError, match=r"61x83 .*cannot be resized to 0x37"):
        resize_bilinear(image, 0, 37)


def test_missing_opencv_gives_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ImageError, match="pip install opencv-python-headless") as caught:
        decode_image(b"x")
    assert not isinstance(caught.value, UnreadableImageError)


def test_broken_opencv_gives_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reason = "libGL.so.1: cannot open shared object file"
    (tmp_path / "cv2.py").write_text(f"raise ImportError({reason!r})")
    monkeypatch.delitem(sys.modules, "cv2")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ImageError, match=r"libGL\.so\.1.*opencv-python-headless"):
        decode_image(b"x")


def test_importing_the_package_does_not_import_cv2() -> None:
    code = (
        "import sys; from int8calib.images import Preprocess; "
        "Preprocess((3, 5, 7), mean=[1, 2, 3]); print('cv2' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
