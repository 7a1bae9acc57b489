"""The fast path of depthwise convolution, for windows of any geometry, against a sum over taps."""

from __future__ import annotations

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from int8calib.arrays import Array, Shape
from int8calib.caffe.layers.depthwise import CHUNK, plan_depthwise
from int8calib.caffe.layers.windows import Windows
from int8calib.errors import ShapeError

Pairs = st.tuples(st.integers(1, 4), st.integers(1, 4))
Pads = st.tuples(st.integers(0, 5), st.integers(0, 5))


def naive(images: Array, weights: list[Array], windows: Windows) -> NDArray[np.float64]:
    """Each tap of each window by itself; pixels outside of the image are 0."""
    n, channels, height, width = images.shape
    top = np.zeros((n, channels, *windows.output_size(height, width)))
    for y, x in np.ndindex(*top.shape[2:]):
        for i, j in np.ndindex(*windows.kernel):
            row = y * windows.stride[0] + i * windows.dilation[0] - windows.pad_begin[0]
            column = x * windows.stride[1] + j * windows.dilation[1] - windows.pad_begin[1]
            if 0 <= row < height and 0 <= column < width:
                pixels = images[:, :, row, column].astype(np.float64)
                top[:, :, y, x] += pixels * weights[0][:, 0, i, j]
    for bias in weights[1:]:
        top += bias[:, None, None]
    return top


def planned(images: Array, weights: list[Array], windows: Windows) -> Array:
    """By the fast path, in buffers of no meaning."""

    def scratch(shape: Shape) -> Array:
        return np.full(shape, np.nan, np.float32)

    size = windows.output_size(*images.shape[2:])
    top = np.full((*images.shape[:2], *size), np.nan, np.float32)
    plan_depthwise(windows, weights, images.shape, scratch)([images], [top])
    return top


@settings(max_examples=300)
@given(
    kernel=Pairs,
    stride=Pairs,
    dilation=Pairs,
    begin=Pads,
    end=Pads,
    size=st.tuples(st.integers(1, 13), st.integers(1, 13)),
    with_bias=st.booleans(),
    seed=st.integers(0, 99),
)
# A phase whose first plane is a shifted one; and a shift beyond the whole image.
@example((4, 4), (2, 2), (3, 3), (2, 2), (3, 3), (13, 13), True, 1)
@example((4, 4), (1, 1), (3, 3), (4, 4), (5, 5), (3, 3), True, 2)
def test_any_geometry(
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    begin: tuple[int, int],
    end: tuple[int, int],
    size: tuple[int, int],
    with_bias: bool,
    seed: int,
) -> None:
    windows = Windows(kernel, stride, begin, end, dilation)
    try:
        windows.output_size(*size)
    except ShapeError:
        return
    rng = np.random.default_rng(seed)
    images = rng.standard_normal((2, 3, *size), np.float32)
    weights = [rng.standard_normal((3, 1, *kernel), np.float32)]
    weights += [rng.standard_normal(3, np.float32)] * with_bias
    expected = naive(images, weights, windows)
    np.testing.assert_allclose(planned(images, weights, windows), expected, rtol=1e-4, atol=1e-5)


def test_channels_beyond_a_chunk() -> None:
    """The last chunk has fewer channels, and sees nothing of those before."""
    windows = Windows((3, 3), (1, 1), (1, 1), (1, 1), (1, 1))
    rng = np.random.default_rng(5)
    images = rng.standard_normal((2, 37, 61, 67), np.float32)
    assert 1 < images[0].size * 5 / CHUNK < 37
    weights = [rng.standard_normal((37, 1, 3, 3), np.float32), rng.standard_normal(37, np.float32)]
    expected = naive(images, weights, windows)
    np.testing.assert_allclose(planned(images, weights, windows), expected, rtol=1e-4, atol=1e-5)
