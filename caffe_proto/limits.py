"""The limits on what a Caffe file may hold; whatever exceeds one is refused before memory is used.

Real files stay far below them. The largest public prototxts have a few thousand layers and about
one megabyte; Caffe itself reads no caffemodel above 2 GiB and no blob above 2^31 - 1 values.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = [
    "MAX_AXES",
    "MAX_BLOBS",
    "MAX_DEPTH",
    "MAX_LAYERS",
    "MAX_MESSAGE",
    "MAX_MODEL_BYTES",
    "MAX_NAME",
    "MAX_PIECES",
    "MAX_TEXT_BYTES",
    "MAX_UNREAD",
    "MAX_VALUES",
    "count_values",
]

MAX_TEXT_BYTES = 16 << 20  # bytes of a prototxt
MAX_LAYERS = 100_000  # layers of a network
MAX_UNREAD = 100_000  # fields of one prototxt that are not known
MAX_DEPTH = 100  # messages inside one another, as in protobuf's own readers
MAX_MODEL_BYTES = (1 << 31) - 1  # bytes of a caffemodel or binaryproto: protobuf's limit
MAX_BLOBS = 1000  # blobs of one layer
MAX_PIECES = 10_000  # places of a blob's message where its values stand; writers use one
MAX_AXES = 32  # axes of a blob: Caffe's kMaxBlobAxes
MAX_VALUES = (1 << 31) - 1  # values of a blob: Caffe counts them in an int
MAX_MESSAGE = 500  # characters of an error message
MAX_NAME = 200  # characters of a file's or layer's name inside of a message


def count_values(shape: Sequence[int]) -> int | None:
    """Multiply the extents of a shape.

    Parameters
    ----------
    shape
        The extents of a blob, as a file gives them: any numbers.

    Returns
    -------
    int or None
        How many values the blob holds; None where an extent is negative, there are more axes than
        `MAX_AXES`, or the product is above `MAX_VALUES` (extents of 0 left out of it, as array
        libraries do).
    """
    if len(shape) > MAX_AXES or any(extent < 0 for extent in shape):
        return None
    product = 1
    for extent in shape:
        product *= max(extent, 1)
        if product > MAX_VALUES:
            return None
    return 0 if 0 in shape else product
