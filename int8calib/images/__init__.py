"""Batches of NCHW float32 for the input blobs of a network, from image files and arrays."""

from __future__ import annotations

from int8calib.errors import UnreadableImageError
from int8calib.images.batches import Batch, batches, batches_of_inputs
from int8calib.images.boxes import Truth, read_boxes
from int8calib.images.mean import read_mean
from int8calib.images.preprocess import ChannelOrder, Preprocess
from int8calib.images.resize import ResizeMode
from int8calib.images.source import ImageSource, open_source

__all__ = [
    "Batch",
    "ChannelOrder",
    "ImageSource",
    "Preprocess",
    "ResizeMode",
    "Truth",
    "UnreadableImageError",
    "batches",
    "batches_of_inputs",
    "open_source",
    "read_boxes",
    "read_mean",
]
