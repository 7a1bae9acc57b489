"""Limits of what files may ask for, and checks of the values that callers give.

Sizes are checked with overflow in mind before memory is taken.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any

import caffe_proto.limits
from int8calib.errors import OptionError, ShapeError

MAX_AXES = caffe_proto.limits.MAX_AXES
"""Axes of a blob. Source: kMaxBlobAxes in Caffe's include/caffe/blob.hpp."""

MAX_VALUES = caffe_proto.limits.MAX_VALUES
"""Values of a blob or weight (8 GiB of float32). Source: Blob::Reshape of Caffe's
src/caffe/blob.cpp, which refuses a count above INT_MAX."""

MAX_MODEL_BYTES = caffe_proto.limits.MAX_MODEL_BYTES
"""Bytes of a file of weights, Caffe's or ncnn's: 2 GiB."""

MAX_PIXELS = 1 << 27
"""Pixels of one image, as its file declares them and after resizing: 134 million."""

MAX_IMAGE_BYTES = 1 << 29
"""Bytes of one image file: 512 MiB, more than an uncompressed image of `MAX_PIXELS`."""

MAX_ARRAY_VALUES = 3 * MAX_PIXELS
"""Values of one input from an array file: as many as an image of `MAX_PIXELS` has."""

MAX_ARCHIVE_BYTES = 1 << 31
"""Bytes of one array of an .npz file, which is held in memory: 2 GiB."""

MAX_LIST_BYTES = 1 << 28
"""Bytes of a list of images or a file of labels: 256 MiB."""

MAX_ANNOTATION_BYTES = 1 << 29
"""Bytes of a JSON file of labeled boxes: 512 MiB; COCO's largest has 448 million."""

MAX_CONFIG_BYTES = 1 << 20
"""Bytes of a file of options: 1 MiB."""

MAX_INPUTS = 10_000_000
"""Inputs in one array file."""

MAX_WORKERS = 1024
"""Threads of a run: more than machines have cores."""

MAX_AHEAD_BYTES = 1 << 28
"""Bytes of inputs that wait, decoded, for the network: 256 MiB, or one input if it is larger."""

MAX_TABLE_BYTES = 1 << 28
"""Bytes of a calibration table; one of 10,000 layers with 1,000 channels each has 120 MB."""

MAX_STATISTICS_BYTES = 1 << 30
"""What a statistics file may unpack to: 64 KiB for each of 16,384 blobs."""


def check_shape(shape: Sequence[int], what: str) -> None:
    """Refuse a shape that no blob can have, before memory is asked for it.

    Parameters
    ----------
    shape
        The sizes of the axes, any Python integers.
    what
        What has that shape, for the message, such as ``"top 0"``.

    Raises
    ------
    ShapeError
        For more than `MAX_AXES` axes, a negative size, or more than `MAX_VALUES` values.
    """
    if len(shape) > MAX_AXES:
        raise ShapeError(f"{what} has {len(shape)} axes; at most {MAX_AXES} are supported")
    if any(size < 0 for size in shape):
        raise ShapeError(f"{what} has the shape {_text(shape)}; sizes must not be negative")
    if value_count(shape) > MAX_VALUES:
        raise ShapeError(
            f"{what} of shape {_text(shape)} has more than {MAX_VALUES} values (the limit)"
        )


def check_memory(values: int, what: str) -> None:
    """Refuse arrays that are larger than the machine, before memory is asked for them.

    Parameters
    ----------
    values
        How many float32 values they have together.
    what
        What they are, for the message, in the plural.

    Raises
    ------
    ShapeError
        Where they take more than the physical memory.
    """
    there = physical_memory()
    if 4 * values > there:
        raise ShapeError(
            f"{what} take {4 * values / 2**30:.1f} GiB, but this machine has {there / 2**30:.1f} "
            "GiB; give a smaller --input-shape, or fewer images to a --batch"
        )


@contextmanager
def within_memory(what: str) -> Iterator[None]:
    """Raise `ShapeError` where memory for `what` is asked for that the system does not give."""
    try:
        yield
    except MemoryError as error:
        reason = str(error) or "not enough memory"
        raise ShapeError(f"{what}: {reason}; give fewer images to a batch") from error


def physical_memory() -> int:
    """Bytes of memory that the machine has; 64 GiB where the system does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 64 << 30


def value_count(shape: Iterable[int]) -> int:
    """The product of the sizes, as a Python integer, which cannot overflow."""
    count = 1
    for size in shape:
        count *= int(size)
    return count


def _text(shape: Sequence[int]) -> str:
    """The shape in a message; sizes of many digits are cut."""
    return "x".join(map(_size, shape[:MAX_AXES]))


def _size(size: int) -> str:
    """A size in a message; many digits are counted instead."""
    digits = str(size)
    return digits if len(digits) <= 12 else f"1e{len(digits) - 1}"


def check_flag(value: object, what: str) -> None:
    """Raise `OptionError` for what is neither True nor False, such as the text "no"."""
    # numpy's own booleans are told by their name: importing it takes a while.
    if not isinstance(value, bool) and str(getattr(value, "dtype", "")) != "bool":
        raise OptionError(f"{what} {value!r}; expected True or False")


def check_real(value: object, what: str) -> None:
    """Raise `OptionError` for what is no number, such as a text of digits."""
    if not isinstance(value, Real) or isinstance(value, bool):
        raise OptionError(f"{what} {value!r}; expected a number")


def check_whole(value: object, what: str, least: int = 0) -> None:
    """Raise `OptionError` for what is no whole number of at least `least`."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise OptionError(f"{what} {value!r}; expected a whole number of at least {least}")


def name_list(names: Any, what: str, of: str = "names of blobs") -> tuple[str, ...]:
    """Return names as a tuple.

    Parameters
    ----------
    names
        What was given for a list of names.
    what
        What it was given as, for the message.
    of
        What the list should hold.

    Raises
    ------
    OptionError
        For anything else than a list of texts: a text alone would be taken letter by letter.
    """
    found = None if isinstance(names, str) or not isinstance(names, Iterable) else tuple(names)
    if found is None or not all(isinstance(name, str) for name in found):
        raise OptionError(f"{what} {names!r}; expected a list of {of}")
    return found
