"""Image files and arrays come in, NCHW float32 batches for the input blobs go out."""

from __future__ import annotations

from int8calib.images.batches import Batch, batches, batches_of_inputs
from int8calib.images.decode import UnreadableImageError
from int8calib.images.mean import read_mean
from int8calib.images.preprocess import ChannelOrder, Preprocess, ResizeMode
from int8calib.images.source import ImageSource, open_source

__all__ = [
    "Batch",
    "ChannelOrder",
    "ImageSource",
    "Preprocess",
    "ResizeMode",
    "UnreadableImageError",
    "batches",
    "batches_of_inputs",
    "open_source",
    "read_mean",
]
