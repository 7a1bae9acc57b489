"""The mean and norm of preprocessing, as float32 arrays that broadcast over (C, H, W)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from int8calib.arrays import MASKED, Array, is_masked
from int8calib.errors import ImageError, OptionError
from int8calib.files import open_regular
from int8calib.images.arrays import numbers, open_npy
from int8calib.images.resize import centered

MEAN_FILES = (".npy", ".binaryproto")


def read_mean(spec: str | Path | float | Sequence[str | float | Path]) -> Array:
    """Read what a user gives as the mean.

    Parameters
    ----------
    spec
        1 or 3 numbers, as numbers or text, several in one text parted by commas; or one .npy or
        .binaryproto file.

    Returns
    -------
    Array
        (1,) or (3,) for numbers; for a file its array without leading axes of length 1, at most
        (C, H, W). Whether it fits the input blob is `Preprocess`'s to check.

    Raises
    ------
    OptionError
        For numbers that cannot be read.
    ImageError
        For a file that cannot be read.
    """
    parts = [spec] if isinstance(spec, (str, Path, float, int)) else list(spec)
    if len(parts) == 1 and isinstance(parts[0], (str, Path)):
        path = Path(parts[0])
        if path.suffix.lower() in MEAN_FILES:
            return _read_mean_file(path)
    words = [word for part in parts for word in str(part).replace(",", " ").split()]
    try:
        values = [float(word) for word in words]
    except ValueError:
        raise OptionError(
            f"mean {' '.join(words)[:60]!r}: expected 1 or 3 numbers, or one .npy or .binaryproto "
            "file"
        ) from None
    if len(values) not in (1, 3):
        raise OptionError(f"mean: expected 1 or 3 numbers, found {len(values)}")
    with np.errstate(over="ignore"):
        return np.array(values, np.float32)


def _read_mean_file(path: Path) -> Array:
    try:
        open_regular(path).close()
        if path.suffix.lower() == ".npy":
            array = open_npy(path).read()
        else:
            from caffe_proto import read_blob

            array = read_blob(path)
    except (ImageError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error).removeprefix(f"{path}: ")
        raise ImageError(f"{path}: cannot be read as a mean: {reason}") from error
    shape = array.shape
    while array.ndim > 1 and array.shape[0] == 1 and array.ndim != 3:
        array = array[0]
    if array.ndim > 3 or array.size == 0:
        raise ImageError(f"{path}: a mean has the shape (C,), (C, 1, 1) or (C, H, W), not {shape}")
    return numbers(str(path), array)


def fit_mean(mean: ArrayLike, shape: tuple[int, int, int]) -> Array:
    """Bring a mean into the shape of a blob.

    Parameters
    ----------
    mean
        1 value, C values, or an array (C, 1, 1) or (C, H', W').
    shape
        (C, H, W) of the blob.

    Returns
    -------
    Array
        float32 (C, 1, 1) or (C, H, W). A spatial mean larger than the blob is cut in the middle,
        as Caffe's data_transformer.cpp cuts image and mean alike.

    Raises
    ------
    OptionError
        For a wrong count of values, or values that are not finite.
    ImageError
        For an array that does not fit.
    """
    _refuse_mask("mean", mean)
    array: Array = np.array(mean, np.float32)
    channels, height, width = shape
    if not np.isfinite(array).all():
        raise OptionError("the mean holds values that are not finite")
    if array.ndim <= 1:
        return _per_channel("mean", array, channels)
    if array.ndim == 2 and channels == 1:
        array = array[np.newaxis]
    fits = array.ndim == 3 and array.shape[0] == channels
    if fits and array.shape[1:] == (1, 1):
        return array
    if not fits or array.shape[1] < height or array.shape[2] < width:
        raise ImageError(
            f"the mean's shape {array.shape} does not fit the input blob {shape}: it must have "
            "the same channels and be as high and wide, or larger"
        )
    rows, columns = centered(height, array.shape[1]), centered(width, array.shape[2])
    cut: Array = array[:, rows, columns].copy()
    return cut


def fit_norm(norm: ArrayLike, channels: int) -> Array:
    """Bring the factors of the norm into the shape of a blob.

    Parameters
    ----------
    norm
        1 or C values.
    channels
        C.

    Returns
    -------
    Array
        float32 (C, 1, 1), none of them 0.

    Raises
    ------
    OptionError
        For a wrong count, a 0 or a value that is not finite.
    """
    _refuse_mask("norm", norm)
    array: Array = np.array(norm, np.float32)
    if array.ndim > 1:
        array = array.reshape(-1)
    if not np.isfinite(array).all() or not array.all():
        raise OptionError(
            f"norm {' '.join(map(str, array.ravel()))}: a factor of 0 or one that is not finite "
            "leaves nothing of the image; use 1 to leave the values as they are"
        )
    return _per_channel("norm", array, channels)


def _refuse_mask(what: str, values: ArrayLike) -> None:
    if is_masked(values):
        raise OptionError(f"the {what} is {MASKED}")


def _per_channel(what: str, values: Array, channels: int) -> Array:
    if values.size not in (1, channels):
        found = "1 channel" if channels == 1 else f"{channels} channels"
        wanted = "1 value" if channels == 1 else f"1 or {channels} values"
        raise OptionError(
            f"the {what} has {values.size} values, the input blob {found}; give {wanted}"
        )
    spread = np.empty((channels, 1, 1), np.float32)
    spread[...] = values.reshape(-1, 1, 1)
    return spread
