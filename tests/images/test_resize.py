"""Sizes that follow from the image, and transposed images, against cv2.resize and plain loops."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import cv2
import numpy as np
import pytest

from int8calib.errors import OptionError
from int8calib.images import Preprocess, ResizeMode, UnreadableImageError
from int8calib.images.resize import Resize

RNG = np.random.default_rng(41)
SIZES = [(37, 53), (53, 37), (31, 97), (11, 13), (149, 7), (1, 101), (31, 41)]


def rounded(side: Fraction) -> int:
    return max(1, floor(side + Fraction(1, 2)))


def expected_size(mode: str, height: int, width: int) -> tuple[int, int]:
    """What the modes are documented to do, for an input of 31x41."""
    if mode == "height":
        return 31, rounded(Fraction(width * 31, height))
    if mode == "width":
        return rounded(Fraction(height * 41, width)), 41
    return height, width


@pytest.mark.parametrize("mode", ["height", "width", "none"])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_the_aspect_ratio_is_kept(mode: ResizeMode, height: int, width: int) -> None:
    image = RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)
    prepare = Preprocess((3, 31, 41), "rgb", resize=mode, mean=[3, 5, 7], norm=[0.5, 2, 0.25])
    assert prepare.free
    size = expected_size(mode, height, width)
    assert prepare.resized(height, width) == size
    blob = prepare(image)
    scaled = image if size == (height, width) else cv2.resize(image, size[::-1])
    expected = (scaled[:, :, ::-1].astype(np.float32) - [3, 5, 7]) * [0.5, 2, 0.25]
    np.testing.assert_array_equal(blob, expected.transpose(2, 0, 1).astype(np.float32))
    assert blob.flags.c_contiguous


def test_gray_images_of_free_sizes() -> None:
    image = RNG.integers(0, 256, (43, 71), dtype=np.uint8)
    blob = Preprocess((1, 32, 100), resize="height", mean=127.5, norm=1 / 128)(image)
    scaled = cv2.resize(image, (53, 32))  # 71 * 32 / 43 = 52.8
    expected = (scaled.astype(np.float32) - np.float32(127.5)) * np.float32(1 / 128)
    np.testing.assert_array_equal(blob, expected[None])


@pytest.mark.parametrize("mode", ["stretch", "crop", "letterbox", "height", "width", "none"])
@pytest.mark.parametrize(("height", "width"), [(37, 53), (53, 37), (90, 31)])
def test_transposed_is_the_upright_blob_with_swapped_axes(
    mode: ResizeMode, height: int, width: int
) -> None:
    image = RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)
    options = {"channel_order": "rgb", "resize": mode, "mean": [3, 5, 7], "norm": 0.5}
    upright = Preprocess((3, 31, 47), **options)(image)
    # The image's width lies along the first of the blob's axes.
    transposed = Preprocess((3, 47, 31), transpose=True, **options)(image)
    np.testing.assert_array_equal(transposed, upright.swapaxes(1, 2))
    assert transposed.flags.c_contiguous


def test_transposed_as_the_ports_of_mtcnn_do_it() -> None:
    image = RNG.integers(0, 256, (60, 83, 3), dtype=np.uint8)
    # They hold RGB, scale to (ws, hs), and give axes 0 and 2 exchanged to a net of 3 x ws x hs.
    scaled = cv2.resize(image[:, :, ::-1], (29, 23))
    expected = np.zeros((3, 29, 23), np.float32)
    for x in range(29):
        for y in range(23):
            for c in range(3):
                expected[c, x, y] = (np.float32(scaled[y, x, c]) - 127.5) * 0.0078125
    prepare = Preprocess((3, 29, 23), "rgb", mean=127.5, norm=0.0078125, transpose=True)
    np.testing.assert_array_equal(prepare(image), expected)


def test_a_spatial_mean_lies_in_the_layout_of_a_transposed_blob() -> None:
    image = RNG.integers(0, 256, (23, 29, 3), dtype=np.uint8)
    mean = RNG.normal(110, 20, (3, 29, 23)).astype(np.float32)
    blob = Preprocess((3, 29, 23), mean=mean, transpose=True)(image)
    np.testing.assert_array_equal(blob, image.transpose(2, 1, 0).astype(np.float32) - mean)


def test_a_size_before_the_crop_is_the_images() -> None:
    image = RNG.integers(0, 256, (61, 89, 3), dtype=np.uint8)
    prepare = Preprocess((3, 37, 23), resize="crop", resize_to=(29, 43), transpose=True)
    scaled = cv2.resize(image, (43, 29))[3:26, 3:40]
    np.testing.assert_array_equal(prepare(image), scaled.transpose(2, 1, 0))
    with pytest.raises(OptionError, match=r"cannot cut 23x37 \(HxW\) out of a size of \(43, 29\)"):
        Preprocess((3, 37, 23), resize="crop", resize_to=(43, 29), transpose=True)


def test_what_does_not_go_with_free_sizes() -> None:
    with pytest.raises(
        OptionError, match=r"a mean of shape \(3, 31, 41\) has one size and .* none"
    ):
        Preprocess((3, 31, 41), resize="none", mean=np.ones((3, 31, 41)))
    with pytest.raises(OptionError, match="goes with resize mode crop only"):
        Preprocess((3, 31, 41), resize="height", resize_to=50)
    with pytest.raises(OptionError, match="goes with letterbox only"):
        Preprocess((3, 31, 41), resize="width", pad_value=3.0)
    sliver = np.zeros((1, 300_007, 3), np.uint8)
    with pytest.raises(
        UnreadableImageError, match=r"1x300007 \(HxW\) is too narrow .* 500x1500035"
    ):
        Preprocess((3, 500, 7), resize="height")(sliver)


@pytest.mark.parametrize(("mode", "factor"), [("height", 4), ("width", 2), ("none", 1)])
def test_jpegs_are_reduced_as_far_as_the_size_allows(mode: ResizeMode, factor: int) -> None:
    # 400x200 becomes 100x50 or 200x100; turned by EXIF 200x400 becomes 100x200 or 50x100.
    target = (50, 100) if mode == "height" else (50, 60)
    plan = Resize(mode, target)
    assert plan.reduction(400, 200) == {"height": 4, "width": 2, "none": 1}[mode] == factor
    assert plan.reduction(0, 200) == 1
