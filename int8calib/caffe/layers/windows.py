"""Windows that slide over images: their geometry, the padding around images, views of windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from int8calib.arrays import Array
from int8calib.errors import ShapeError, UnsupportedLayerError


@dataclass(frozen=True)
class Windows:
    """The geometry of a convolution or pooling, each part as (vertical, horizontal), in pixels.

    kernel
        the taps of a window.
    stride
        from one window to the next.
    pad_begin, pad_end
        the padding above and left of an image, and that below and right of it.
    dilation
        from one tap to the next.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    pad_begin: tuple[int, int] = (0, 0)
    pad_end: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    @property
    def padded(self) -> bool:
        """Whether there is any padding."""
        return any((*self.pad_begin, *self.pad_end))

    @property
    def pointwise(self) -> bool:
        """Whether each window is exactly one pixel and every pixel has one."""
        return self.kernel == (1, 1) and self.stride == (1, 1) and not self.padded

    @property
    def extent(self) -> tuple[int, int]:
        """Pixels from the first to the last tap of a window, both included."""
        return (
            self.dilation[0] * (self.kernel[0] - 1) + 1,
            self.dilation[1] * (self.kernel[1] - 1) + 1,
        )

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of an image with its padding."""
        return (
            self.pad_begin[0] + height + self.pad_end[0],
            self.pad_begin[1] + width + self.pad_end[1],
        )

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Windows that fit, rounded down as Caffe's convolution does; raises `ShapeError`."""
        size = tuple(
            (length - extent) // stride + 1
            for length, extent, stride in zip(
                self.padded_size(height, width), self.extent, self.stride, strict=True
            )
        )
        if min(size) < 1:
            raise ShapeError(
                f"a {height}x{width} bottom with padding {self.pad_begin} and {self.pad_end} "
                f"is smaller than the {self.extent[0]}x{self.extent[1]} window"
            )
        return size[0], size[1]


def pair(
    name: str, values: Sequence[int], vertical: int, horizontal: int, default: int
) -> tuple[int, int]:
    """Caffe's three ways to give a size: one value, two values, or a `_h` and `_w` field.

    Raises `ShapeError` for more values and for values that contradict the fields.
    """
    if len(values) > 2:
        raise UnsupportedLayerError(
            f"{name} has {len(values)} values: 3-d convolution is not supported"
        )
    both = (values[0], values[-1]) if values else (default, default)
    if not (vertical or horizontal):
        return both
    if values and both != (vertical, horizontal):
        raise ShapeError(
            f"{name} is {list(values)} and {name}_h and {name}_w are {vertical} and "
            f"{horizontal}; give one or the other"
        )
    return vertical, horizontal


def padding(param: Any, pad: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """The padding before and behind an image: each side's own, or `pad` on both sides.

    `param` is a ConvolutionParameter or PoolingParameter; with `pad_l`, `pad_r`, `pad_t` or
    `pad_b` those are the padding. Source: BaseConvolutionLayer and PoolingLayer of the Synopsys
    fork. Raises `ShapeError` where both ways are used.
    """
    sides = (param.pad_t, param.pad_l), (param.pad_b, param.pad_r)
    if not any((*sides[0], *sides[1])):
        return pad, pad
    if any(pad):
        raise ShapeError(
            f"pad {pad} and the padding of each side (pad_t, pad_l, pad_b, pad_r) are both "
            "given; give one or the other"
        )
    return sides


def convolution_windows(param: Any) -> Windows:
    """The geometry of a `ConvolutionParameter`; raises `ShapeError` for sizes of no meaning."""
    begin, end = padding(param, pair("pad", param.pad, param.pad_h, param.pad_w, 0))
    windows = Windows(
        kernel=pair("kernel_size", param.kernel_size, param.kernel_h, param.kernel_w, 0),
        stride=pair("stride", param.stride, param.stride_h, param.stride_w, 1),
        pad_begin=begin,
        pad_end=end,
        dilation=pair("dilation", param.dilation, 0, 0, 1),
    )
    if min(*windows.kernel, *windows.stride, *windows.dilation) < 1:
        raise ShapeError(
            f"kernel {windows.kernel}, stride {windows.stride} and dilation {windows.dilation} "
            "must all be at least 1"
        )
    return windows


def pad_images(images: Array, windows: Windows) -> Array:
    """`images` (N, C, H, W) with zeros around each plane."""
    if not windows.padded:
        return images
    (above, left), (below, right) = windows.pad_begin, windows.pad_end
    return np.pad(images, ((0, 0), (0, 0), (above, below), (left, right)))


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
