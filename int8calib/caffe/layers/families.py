"""Importing this module registers every layer type the package brings; one line a family."""

from __future__ import annotations

from int8calib.caffe.layers import (  # noqa: F401
    activation,
    affine,
    arithmetic,
    combine,
    convolution,
    deconvolution,
    detection,
    inner_product,
    normalization,
    pooling,
    pyramid,
    rearranging,
    regions,
    reshaping,
    resizing,
    yolo,
)
