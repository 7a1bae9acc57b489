"""Windows that slide over images: their geometry, the padding around images, views of windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from int8calib.arrays import Array, namespace
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
        """Count the windows that fit, rounded down as Caffe's convolution does.

        Parameters
        ----------
        height, width
            The size of an image without its padding.

        Returns
        -------
        tuple of int
            Height and width of the top.

        Raises
        ------
        ShapeError
            Where not one window fits.
        """
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
    """Read a size in one of Caffe's three ways: one value, two values, or `_h` and `_w` fields.

    Parameters
    ----------
    name
        The field, for messages.
    values
        What it holds: the vertical and the horizontal size, or one for both.
    vertical, horizontal
        What the `_h` and `_w` fields hold, 0 where they are not given.
    default
        The size where nothing is given.

    Returns
    -------
    tuple of int
        (vertical, horizontal).

    Raises
    ------
    UnsupportedLayerError
        For three values and more.
    ShapeError
        For values that contradict the fields.
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
    """Read the padding before and behind an image: each side's own, or the same on both sides.

    Parameters
    ----------
    param
        A ConvolutionParameter or PoolingParameter; its `pad_l`, `pad_r`, `pad_t` and `pad_b` are
        the padding where one of them is not 0.
    pad
        The padding otherwise, (vertical, horizontal).

    Returns
    -------
    tuple
        What is above and left, and what is below and right, each (vertical, horizontal).

    Raises
    ------
    ShapeError
        Where both ways are used.

    Notes
    -----
    Source: BaseConvolutionLayer and PoolingLayer of the Synopsys fork.
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


def dilations(param: Any) -> tuple[int, int]:
    """Read the steps from tap to tap of a ConvolutionParameter, (vertical, horizontal).

    Forks older than `dilation` call them `hole`, or `hole_h` and `hole_w`.

    Raises
    ------
    UnsupportedLayerError
        For three values and more.
    ShapeError
        Where more than one way is used.

    Notes
    -----
    Source: ConvolutionLayer of DeepLab's Caffe (kernel_h + (kernel_h - 1) * (hole_h - 1) pixels).
    """
    dilation = pair("dilation", param.dilation, 0, 0, 1)
    given = [name for name in ("hole", "hole_h", "hole_w") if param.HasField(name)]
    if not given:
        return dilation
    if param.dilation or (given[0] == "hole" and given[1:]):
        names = ["dilation"] * bool(param.dilation) + given
        raise ShapeError(f"{' and '.join(names)} are given; give one way of dilation only")
    return (param.hole, param.hole) if given == ["hole"] else (param.hole_h, param.hole_w)


def convolution_windows(param: Any) -> Windows:
    """Read the geometry of a ConvolutionParameter.

    Parameters
    ----------
    param
        The message, of a Convolution, ConvolutionDepthwise or Deconvolution.

    Returns
    -------
    Windows
        Its windows over an image of any size.

    Raises
    ------
    ShapeError
        For sizes of no meaning.
    UnsupportedLayerError
        For more than two axes of places.
    """
    begin, end = padding(param, pair("pad", param.pad, param.pad_h, param.pad_w, 0))
    windows = Windows(
        kernel=pair("kernel_size", param.kernel_size, param.kernel_h, param.kernel_w, 0),
        stride=pair("stride", param.stride, param.stride_h, param.stride_w, 1),
        pad_begin=begin,
        pad_end=end,
        dilation=dilations(param),
    )
    if min(*windows.kernel, *windows.stride, *windows.dilation) < 1:
        raise ShapeError(
            f"kernel {windows.kernel}, stride {windows.stride} and dilation {windows.dilation} "
            "must all be at least 1"
        )
    return windows


def pad_images(images: Array, windows: Windows) -> Array:
    """Put zeros around each plane.

    Parameters
    ----------
    images
        float32 (N, C, H, W).
    windows
        Whose padding it is.

    Returns
    -------
    float32 array
        (N, C, H + vertical padding, W + horizontal padding); `images` itself without padding.
    """
    if not windows.padded:
        return images
    (above, left), (below, right) = windows.pad_begin, windows.pad_end
    padded: Array = namespace(images).pad(images, ((0, 0), (0, 0), (above, below), (left, right)))
    return padded


def window_view(padded: Array, windows: Windows, size: tuple[int, int]) -> Array:
    """View padded images as their windows, without a copy.

    Parameters
    ----------
    padded
        float32 (N, C, H, W), padding included.
    windows
        Kernel, stride and dilation.
    size
        How many windows there are, (out_h, out_w).

    Returns
    -------
    float32 array
        A view (N, C, kernel_h, kernel_w, out_h, out_w), read-only in numpy.
    """
    n, c, _, _ = padded.shape
    batch, channel, row, column = padded.strides
    shape = (n, c, *windows.kernel, *size)
    strides = (
        batch,
        channel,
        row * windows.dilation[0],
        column * windows.dilation[1],
        row * windows.stride[0],
        column * windows.stride[1],
    )
    xp = namespace(padded)
    view: Array = xp.lib.stride_tricks.as_strided(padded, shape=shape, strides=strides)
    if xp is np:
        view.flags.writeable = False
    return view
