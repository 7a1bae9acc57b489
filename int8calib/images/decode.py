"""Files come in, uint8 images go out; the only module that imports OpenCV, and only when called.

Decoding is that of `cv2.imread`, which Caffe and ncnn2table use: BGR or gray, alpha dropped,
16 bits reduced to 8, turned by the EXIF orientation. One difference is on purpose: a JPEG that
breaks off in the middle is refused, where `cv2.imread` fills the rest with gray.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from int8calib.errors import ImageError
from int8calib.images.jpeg import is_jpeg, read_header

ImageU8 = NDArray[np.uint8]
Reduction = Callable[[int, int], int]

_GIT_LFS = b"version https://git-lfs.github.com/spec"


class UnreadableImageError(ImageError):
    """One image cannot be used; the others can."""


def _cv2() -> Any:
    """OpenCV's module; raises ImageError with advice where it cannot be imported."""
    try:
        import cv2
    except ImportError as error:
        raise ImageError(
            f"OpenCV cannot be imported ({error}); on a machine without a display run "
            "`pip install opencv-python-headless` in place of opencv-python"
        ) from error
    return cv2


def read_image(path: Path, *, gray: bool = False, reduction: Reduction | None = None) -> ImageU8:
    """Decode one image file.

    Returns uint8 of shape (H, W, 3) in BGR order, or (H, W) where `gray` is set. `reduction`
    maps a JPEG's stored height and width to 1, 2, 4 or 8: the file is then decoded at that
    fraction of its size, which costs less. Other formats ignore it.
    Raises UnreadableImageError, naming the file, where it cannot be read or decoded, and
    ImageError where OpenCV itself is missing.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UnreadableImageError(f"{path}: cannot be read: {reason}") from error
    try:
        return decode_image(data, gray=gray, reduction=reduction)
    except UnreadableImageError as error:
        raise UnreadableImageError(f"{path}: {error}") from error


def decode_image(data: bytes, *, gray: bool = False, reduction: Reduction | None = None) -> ImageU8:
    """Decode the bytes of one image file; as `read_image`, but the messages name no file."""
    cv2 = _cv2()
    if not data:
        raise UnreadableImageError("the file is empty")
    factor = 1
    if is_jpeg(data):
        header = read_header(data)
        if header is not None and not header.complete:
            raise UnreadableImageError("the JPEG file is cut off, its end is missing")
        if header is not None and reduction is not None:
            factor = reduction(header.height, header.width)
    kind = "GRAYSCALE" if gray else "COLOR"
    flag = getattr(cv2, f"IMREAD_{kind}" if factor == 1 else f"IMREAD_REDUCED_{kind}_{factor}")
    try:
        image: ImageU8 | None = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    except cv2.error as error:
        raise UnreadableImageError(f"OpenCV cannot decode it: {_reason(error)}") from error
    if image is None:
        raise UnreadableImageError(_what_it_is(data))
    return image


def resize_bilinear(image: ImageU8, height: int, width: int) -> ImageU8:
    """Resize (H, W) or (H, W, 3) to `height` x `width` with `cv2.INTER_LINEAR`.

    Raises UnreadableImageError where OpenCV cannot make an image of that size.
    """
    cv2 = _cv2()
    try:
        resized: ImageU8 = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    except cv2.error as error:
        raise UnreadableImageError(
            f"an image of {image.shape[0]}x{image.shape[1]} (HxW) cannot be resized to "
            f"{height}x{width}: {_reason(error)}"
        ) from error
    return resized


def _reason(error: Any) -> str:
    """OpenCV's own words in one line, without its file and line."""
    return " ".join(str(getattr(error, "err", "") or error).split())


def _what_it_is(data: bytes) -> str:
    """Why OpenCV may have refused `data`."""
    if data.startswith(_GIT_LFS):
        return "a Git LFS pointer, not the image itself; run `git lfs pull`"
    if data[:512].lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "an HTML page, not an image"
    return "not an image that OpenCV can decode, or a damaged one"
