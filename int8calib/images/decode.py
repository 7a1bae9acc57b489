"""Image files decoded and resized by OpenCV: the only module that imports it, and only when called.

Decoding is that of `cv2.imread`, which Caffe and ncnn2table use: BGR or gray, alpha dropped,
16 bits reduced to 8, turned by the EXIF orientation, the first frame of several. Two differences
are on purpose: a JPEG or PNG that breaks off in the middle is refused, where `cv2.imread` fills
the rest of a JPEG with gray; and so is an image that declares more pixels than `MAX_PIXELS`,
before it is decoded.

libjpeg and libpng, inside of OpenCV, print what they find wrong to the process's stderr, without
the file's name: see `int8calib.complaints`.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from int8calib.complaints import complaints
from int8calib.errors import ImageError, UnreadableImageError
from int8calib.files import read_bounded
from int8calib.images.header import Header, NoSizeError, read_header
from int8calib.limits import MAX_IMAGE_BYTES, MAX_PIXELS

ImageU8 = NDArray[np.uint8]
Reduction = Callable[[int, int], int]

# Images above this many pixels are decoded one at a time, so that several threads do not need
# several times the memory of the largest.
_LARGE = 1 << 24
_one_large_image = threading.Lock()

_GIT_LFS = b"version https://git-lfs.github.com/spec"


def opencv() -> Any:
    """OpenCV's module; raises ImageError with advice where it cannot be imported."""
    try:
        import cv2
    except ImportError as error:
        raise ImageError(
            f"OpenCV cannot be imported ({error}); on a machine without a display run "
            "`pip install opencv-python-headless` in place of opencv-python"
        ) from error
    return cv2


def quiet_opencv() -> None:
    """Keep OpenCV's own log lines off the console: what goes wrong is said in our messages."""
    # Not every version of OpenCV has it.
    logging = getattr(getattr(opencv(), "utils", None), "logging", None)
    if logging is not None:
        logging.setLogLevel(logging.LOG_LEVEL_SILENT)


# What libjpeg says of a picture that it can decode in part only. libpng has no such case: its
# warnings are of color profiles and the like, and what damages a picture is an error.
_DAMAGE = re.compile(
    r"^(?:Corrupt JPEG|Premature end|Inconsistent|Invalid SOS|Application).*", re.M
)


def read_image(
    path: Path,
    *,
    gray: bool = False,
    reduction: Reduction | None = None,
    damage: Callable[[str], None] | None = None,
) -> ImageU8:
    """Decode one image file.

    Parameters
    ----------
    path
        A regular file of at most `MAX_IMAGE_BYTES`.
    gray
        Whether to decode as gray.
    reduction
        Maps a JPEG's stored height and width to 1, 2, 4 or 8: the file is then decoded at that
        fraction of its size, which costs less. Other formats ignore it.
    damage
        Told in libjpeg's words what is wrong with a picture that it can decode in part only, where
        these are caught.

    Returns
    -------
    ImageU8
        uint8 of shape (H, W, 3) in BGR order, or (H, W) where `gray` is set.

    Raises
    ------
    UnreadableImageError
        Naming the file, where it cannot be read or decoded.
    ImageError
        Where OpenCV itself is missing.
    """
    try:
        data = read_bounded(path, MAX_IMAGE_BYTES)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UnreadableImageError(f"{path}: cannot be read: {reason}") from error
    try:
        return decode_image(data, gray=gray, reduction=reduction, damage=damage)
    except UnreadableImageError as error:
        raise UnreadableImageError(f"{path}: {error}") from error


def decode_image(
    data: bytes,
    *,
    gray: bool = False,
    reduction: Reduction | None = None,
    damage: Callable[[str], None] | None = None,
) -> ImageU8:
    """Decode the bytes of one image file; as `read_image`, but the messages name no file."""
    cv2 = opencv()
    header = _checked_header(data)
    factor = 1
    if header is not None and header.format == "JPEG" and reduction is not None:
        factor = reduction(header.height, header.width)
    kind = "GRAYSCALE" if gray else "COLOR"
    flag = getattr(cv2, f"IMREAD_{kind}" if factor == 1 else f"IMREAD_REDUCED_{kind}_{factor}")
    large = header is None or header.height * header.width > _LARGE
    try:
        with _one_large_image if large else contextlib.nullcontext():
            image, printed = complaints.during(
                lambda: cv2.imdecode(np.frombuffer(data, np.uint8), flag)
            )
    except cv2.error as error:
        raise UnreadableImageError(f"OpenCV cannot decode it: {_reason(error)}") from error
    if image is None:
        raise UnreadableImageError(_what_it_is(data, header, cv2.__version__))
    # Some of OpenCV's readers pay no attention to the flag: PFM has three channels for ever.
    if image.dtype != np.uint8 or image.shape[2:] != (() if gray else (3,)) or not image.size:
        wanted = "(H, W)" if gray else "(H, W, 3)"
        raise UnreadableImageError(
            f"OpenCV makes {image.dtype} of shape {image.shape} of it; expected uint8 of {wanted}: "
            "save it as PNG"
        )
    found = _DAMAGE.search(printed)
    if found is not None and damage is not None:
        damage(found[0])
    decoded: ImageU8 = image
    return decoded


def _checked_header(data: bytes) -> Header | None:
    """What the file declares, None for an unknown format; raises UnreadableImageError."""
    if not data:
        raise UnreadableImageError("the file is empty")
    try:
        header = read_header(data)
    except NoSizeError as error:
        raise UnreadableImageError(f"a damaged {error} file: it holds no image size") from None
    if header is None:
        return None
    if header.height < 1 or header.width < 1:
        raise UnreadableImageError(
            f"a damaged {header.format} file: its size is {header.height}x{header.width} (HxW)"
        )
    if header.height * header.width > MAX_PIXELS:
        raise UnreadableImageError(
            f"declares {header.height}x{header.width} (HxW), more than {MAX_PIXELS} pixels (the "
            "limit); make it smaller"
        )
    if not header.complete:
        raise UnreadableImageError(f"the {header.format} file is cut off, its end is missing")
    return header


def resize_bilinear(image: ImageU8, height: int, width: int) -> ImageU8:
    """Resize an image with `cv2.INTER_LINEAR`.

    Parameters
    ----------
    image
        uint8 (H, W) or (H, W, 3).
    height, width
        The new size.

    Returns
    -------
    ImageU8
        uint8 (height, width) or (height, width, 3).

    Raises
    ------
    UnreadableImageError
        Where OpenCV cannot make an image of that size.
    """
    cv2 = opencv()
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


def _what_it_is(data: bytes, header: Header | None, version: str) -> str:
    """Why OpenCV may have refused `data`."""
    if data.startswith(_GIT_LFS):
        return "a Git LFS pointer, not the image itself; run `git lfs pull`"
    if data[:512].lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "an HTML page, not an image"
    if header is not None:
        return f"a damaged {header.format} file, or one that OpenCV {version} cannot decode"
    return "not an image that OpenCV can decode, or a damaged one"
