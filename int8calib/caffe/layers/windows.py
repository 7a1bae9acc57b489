"""Windows that slide over images: convolution's geometry, padding and strided views of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from int8calib.arrays import Array
from int8calib.errors import ShapeError


@dataclass(frozen=True)
class Windows:
    """Kernel, stride, pad and dilation, each as (vertical, horizontal), in pixels."""

    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    pad: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    @property
    def pointwise(self) -> bool:
        """Whether each window is exactly one pixel and every pixel has one."""
        return self.kernel == (1, 1) and self.stride == (1, 1) and self.pad == (0, 0)

    @property
    def extent(self) -> tuple[int, int]:
        """Pixels from the first to the last tap of a window, both included."""
        return (
            self.dilation[0] * (self.kernel[0] - 1) + 1,
            self.dilation[1] * (self.kernel[1] - 1) + 1,
        )

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Windows that fit, rounded down as Caffe's convolution does; raises `ShapeError`."""
        size = tuple(
            (length + 2 * pad - extent) // stride + 1
            for length, pad, extent, stride in zip(
                (height, width), self.pad, self.extent, self.stride, strict=True
            )
        )
        if min(size) < 1:
            raise ShapeError(
                f"a {height}x{width} bottom with padding {self.pad} is smaller than the "
                f"{self.extent[0]}x{self.extent[1]} window"
            )
        return size[0], size[1]


def pair(values: Sequence[int], vertical: int, horizontal: int, default: int) -> tuple[int, int]:
    """Caffe's three ways to give a size: one value, two values, or a `_h` and `_w` field."""
    if vertical or horizontal:
        return vertical, horizontal
    if len(values) > 2:
        raise ShapeError(f"{len(values)} spatial sizes given; only 2-d images are supported")
    if len(values) == 2:
        return values[0], values[1]
    value = values[0] if values else default
    return value, value


def convolution_windows(param: Any) -> Windows:
    """The geometry of a `ConvolutionParameter`; raises `ShapeError` for sizes of no meaning."""
    windows = Windows(
        kernel=pair(param.kernel_size, param.kernel_h, param.kernel_w, 0),
        stride=pair(param.stride, param.stride_h, param.stride_w, 1),
        pad=pair(param.pad, param.pad_h, param.pad_w, 0),
        dilation=pair(param.dilation, 0, 0, 1),
    )
    if min(*windows.kernel, *windows.stride, *windows.dilation) < 1:
        raise ShapeError(
            f"kernel {windows.kernel}, stride {windows.stride} and dilation {windows.dilation} "
            "must all be at least 1"
        )
    return windows


def pad_images(images: Array, windows: Windows) -> Array:
    """`images` (N, C, H, W) with zeros around each plane."""
    vertical, horizontal = windows.pad
    if vertical == horizontal == 0:
        return images
    return np.pad(images, ((0, 0), (0, 0), (vertical, vertical), (horizontal, horizontal)))


def window_view(padded: Array, windows: Windows, size: tuple[int, int]) -> Array:
    """A view (N, C, kernel_h, kernel_w, out_h, out_w) of padded images (N, C, H, W); no copy."""
    n, c, _, _ = padded.shape
    batch, channel, row, column = padded.strides
    return np.lib.stride_tricks.as_strided(
        padded,
        shape=(n, c, *windows.kernel, *size),
        strides=(
            batch,
            channel,
            row * windows.dilation[0],
            column * windows.dilation[1],
            row * windows.stride[0],
            column * windows.stride[1],
        ),
        writeable=False,
    )
