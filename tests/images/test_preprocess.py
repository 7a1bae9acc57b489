"""Preprocessing against loops written from its definition, with cv2 for the resizing only."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from int8calib.errors import ImageError, OptionError
from int8calib.images import Preprocess, ResizeMode, UnreadableImageError

RNG = np.random.default_rng(11)
IMAGE = RNG.integers(0, 256, (41, 59, 3), dtype=np.uint8)
GRAY = RNG.integers(0, 256, (41, 59), dtype=np.uint8)
F32 = NDArray[np.float32]


def naive(pixels: NDArray[np.uint8], order: str, mean: Any, norm: Any) -> F32:
    """(x - mean) * norm, one pixel at a time, from an image that already has its size."""
    height, width, channels = pixels.shape
    blob = np.zeros((channels, height, width), np.float32)
    for c in range(channels):
        source = channels - 1 - c if order == "rgb" else c
        for y in range(height):
            for x in range(width):
                value = np.float32(pixels[y, x, source])
                blob[c, y, x] = (value - np.float32(mean[c])) * np.float32(norm[c])
    return blob


@pytest.mark.parametrize("order", ["bgr", "rgb"])
@pytest.mark.parametrize("mean", [(104.0, 117.0, 123.0), (0.0, 0.0, 0.0), (103.94, 116.78, 1e-3)])
@pytest.mark.parametrize("norm", [(1.0, 1.0, 1.0), (0.017, 0.0175, 1 / 255), (-2.0, 1.0, 0.5)])
def test_order_mean_and_norm_are_exact(order: Any, mean: Any, norm: Any) -> None:
    prepare = Preprocess((3, 41, 59), order, mean=mean, norm=norm)
    blob = prepare(IMAGE)
    assert blob.dtype == np.float32
    np.testing.assert_array_equal(blob, naive(IMAGE, order, mean, norm))


def test_defaults_leave_the_pixels_alone() -> None:
    np.testing.assert_array_equal(Preprocess((3, 41, 59))(IMAGE), IMAGE.transpose(2, 0, 1))


def test_one_value_serves_all_channels() -> None:
    blob = Preprocess((3, 41, 59), mean=127.5, norm=[0.0078125])(IMAGE)
    np.testing.assert_array_equal(blob, naive(IMAGE, "bgr", [127.5] * 3, [0.0078125] * 3))


def test_agrees_with_opencvs_blob_from_image() -> None:
    blob = Preprocess((3, 29, 37), "rgb", mean=(104, 117, 123))(IMAGE)
    expected = cv2.dnn.blobFromImage(IMAGE, 1.0, (37, 29), (104, 117, 123), swapRB=True)
    # OpenCV rounds where it resizes uint8, as we do; both subtract in float32.
    np.testing.assert_array_equal(blob, expected[0])


@pytest.mark.parametrize("image", [GRAY, GRAY[:, :, None]])
def test_gray(image: NDArray[np.uint8]) -> None:
    prepare = Preprocess((1, 23, 31), mean=[13.5], norm=[1 / 256])
    assert prepare.gray
    assert prepare.channel_order == "gray"
    small = cv2.resize(GRAY, (31, 23), interpolation=cv2.INTER_LINEAR)[:, :, None]
    np.testing.assert_array_equal(prepare(image), naive(small, "gray", [13.5], [1 / 256]))


def test_stretch_is_opencvs_bilinear() -> None:
    small = cv2.resize(IMAGE, (31, 67), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(Preprocess((3, 67, 31))(IMAGE), small.transpose(2, 0, 1))


@pytest.mark.parametrize("mode", get_args(ResizeMode))
def test_an_image_of_the_right_size_never_meets_opencv(
    mode: ResizeMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("resized")

    monkeypatch.setattr(cv2, "resize", refuse)
    blob = Preprocess((3, 41, 59), resize=mode)(IMAGE)
    np.testing.assert_array_equal(blob, IMAGE.transpose(2, 0, 1))
    with pytest.raises(RuntimeError, match="resized"):
        Preprocess((3, 41, 53))(IMAGE)


def cut_out(image: NDArray[np.uint8], size: tuple[int, int], box: tuple[int, int]) -> F32:
    """Resize to `size`, then copy the middle `box`, pixel by pixel."""
    large = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
    blob = np.zeros((3, *box), np.float32)
    top, left = int((size[0] - box[0]) / 2), int((size[1] - box[1]) / 2)
    for c in range(3):
        for y in range(box[0]):
            for x in range(box[1]):
                blob[c, y, x] = large[top + y, left + x, c]
    return blob


@pytest.mark.parametrize(
    ("resize_to", "box", "size"),
    [
        # 41x59 has the aspect 0.695; sizes worked out by hand.
        (None, (23, 31), (23, 33)),  # 23/41 > 31/59: height decides, 59*23/41 = 33.1
        (None, (13, 31), (22, 31)),  # width decides, 41*31/59 = 21.5
        (None, (83, 71), (83, 119)),  # enlarged, 59*83/41 = 119.4
        (29, (23, 23), (29, 42)),  # short side 29, 59*29/41 = 41.7
        ((37, 31), (29, 23), (37, 31)),  # exact size, aspect given up
        ([37, 31], (29, 23), (37, 31)),  # the same from a TOML file
        (47, (43, 97), (67, 97)),  # short side gives 47x68, too narrow: covers instead
    ],
)
def test_crop(resize_to: Any, box: tuple[int, int], size: tuple[int, int]) -> None:
    prepare = Preprocess((3, *box), resize="crop", resize_to=resize_to)
    assert prepare.resized(41, 59) == size
    np.testing.assert_array_equal(prepare(IMAGE), cut_out(IMAGE, size, box))


def test_crop_of_a_portrait_by_its_short_side() -> None:
    portrait = np.ascontiguousarray(IMAGE.transpose(1, 0, 2))
    prepare = Preprocess((3, 19, 19), resize="crop", resize_to=29)
    np.testing.assert_array_equal(prepare(portrait), cut_out(portrait, (42, 29), (19, 19)))


@pytest.mark.parametrize(
    ("box", "size"),
    [((23, 47), (23, 33)), ((37, 31), (22, 31)), ((97, 101), (70, 101))],
)
@pytest.mark.parametrize("pad_value", [None, 114.0])
def test_letterbox(box: tuple[int, int], size: tuple[int, int], pad_value: float | None) -> None:
    mean, norm = (104.0, 117.0, 123.0), (0.017, 0.018, 0.019)
    small = cv2.resize(IMAGE, size[::-1], interpolation=cv2.INTER_LINEAR)
    inner = naive(small, "rgb", mean, norm)
    top, left = (box[0] - size[0]) // 2, (box[1] - size[1]) // 2
    expected = np.zeros((3, *box), np.float32)
    for c in range(3):
        for y in range(box[0]):
            for x in range(box[1]):
                if 0 <= y - top < size[0] and 0 <= x - left < size[1]:
                    expected[c, y, x] = inner[c, y - top, x - left]
                elif pad_value is not None:
                    distance = np.float32(pad_value) - np.float32(mean[c])
                    expected[c, y, x] = distance * np.float32(norm[c])
    prepare = Preprocess((3, *box), "rgb", "letterbox", mean=mean, norm=norm, pad_value=pad_value)
    np.testing.assert_array_equal(prepare(IMAGE), expected)


@pytest.mark.parametrize("mode", ["stretch", "crop", "letterbox"])
def test_spatial_mean_lies_still_while_the_image_is_fitted(mode: ResizeMode) -> None:
    mean = RNG.normal(110, 20, (3, 47, 43)).astype(np.float32)
    box = (3, 37, 31)
    blob = Preprocess(box, resize=mode, mean=mean, norm=0.5)(IMAGE)
    bare = Preprocess(box, resize=mode)(IMAGE)
    if mode == "letterbox":
        assert (blob == 0).sum() == (bare == 0).all(axis=0).sum() * 3 > 0
    for c in range(3):
        for y in range(37):
            for x in range(31):
                if mode == "letterbox" and not 7 <= y < 29:  # 31 wide: 22 rows, padded by 7
                    continue
                # Caffe cuts (47 - 37) / 2 rows and (43 - 31) / 2 columns off the mean.
                expected = (bare[c, y, x] - mean[c, y + 5, x + 6]) * np.float32(0.5)
                assert blob[c, y, x] == expected


def test_mean_per_channel_from_a_file_shape() -> None:
    mean = np.array([1.5, 2.5, 3.5])
    columns = Preprocess((3, 41, 59), mean=mean.reshape(3, 1, 1))(IMAGE)
    np.testing.assert_array_equal(columns, naive(IMAGE, "bgr", mean, (1, 1, 1)))


def test_writes_into_the_given_array() -> None:
    batch = np.full((3, 3, 23, 31), 7.0, np.float32)
    prepare = Preprocess((3, 23, 31), mean=9.0)
    assert np.shares_memory(prepare(IMAGE, batch[1]), batch)
    np.testing.assert_array_equal(batch[1], prepare(IMAGE))
    assert (batch[[0, 2]] == 7.0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": 0}, "norm 0.0: a factor of 0"),
        ({"norm": [1, 0, 1]}, "a factor of 0"),
        ({"norm": float("nan")}, "not finite"),
        ({"norm": [1, 2]}, "norm has 2 values.*3 channels; give 1 or 3 values"),
        ({"mean": [1, 2]}, "mean has 2 values.*3 channels; give 1 or 3 values"),
        ({"mean": [1, 2, float("inf")]}, "mean holds values that are not finite"),
        ({"shape": (1, 5, 7), "mean": [1, 2, 3]}, "mean has 3 values.*1 channel; give 1 value"),
        ({"shape": (4, 5, 7)}, "4 channels; images give 3"),
        ({"shape": (5, 7)}, r"shape C,H,W.*found \(5, 7\)"),
        ({"shape": (3, 0, 7)}, "all positive"),
        ({"channel_order": "brg"}, "unknown channel order 'brg'; use bgr, rgb or gray"),
        ({"channel_order": "gray"}, "gray gives 1 channels; the input blob has 3"),
        ({"shape": (1, 5, 7), "channel_order": "rgb"}, "rgb gives 3 channels.*has 1"),
        ({"resize": "fit"}, "unknown resize mode 'fit'; use stretch, crop, letterbox, height"),
        ({"resize_to": 256}, "goes with resize mode crop only"),
        ({"resize": "crop", "resize_to": 22}, "cannot cut 23x31"),
        ({"resize": "crop", "resize_to": (31, 23)}, r"cannot cut 23x31.*\(31, 23\)"),
        ({"pad_value": 3.0}, "letterbox only"),
        ({"resize": "letterbox", "pad_value": float("nan")}, "pad value"),
    ],
)
def test_options_that_mean_nothing(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message) as caught:
        Preprocess(**{"shape": (3, 23, 31), **options})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "shape", [(3, 22, 31), (3, 23, 30), (1, 23, 31), (31, 23, 3), (23, 31), (2, 3, 23, 31)]
)
def test_a_mean_array_that_does_not_fit(shape: tuple[int, ...]) -> None:
    with pytest.raises(ImageError, match=r"mean's shape .* does not fit .*\(3, 23, 31\)"):
        Preprocess((3, 23, 31), mean=np.ones(shape))


@pytest.mark.parametrize(
    "image", [GRAY, IMAGE.astype(np.float32), IMAGE[:, :, :2], IMAGE[None], IMAGE[:0]]
)
def test_what_is_no_decoded_image(image: Any) -> None:
    with pytest.raises(ImageError, match=r"decoded image|without pixels"):
        Preprocess((3, 23, 31))(image)


def test_a_sliver_is_not_blown_up() -> None:
    with pytest.raises(UnreadableImageError, match=r"2x9973 .*too narrow to be resized to 227x"):
        Preprocess((3, 227, 227), resize="crop")(np.zeros((2, 9973, 3), np.uint8))


@pytest.mark.parametrize(
    ("stored", "factor"),
    [
        ((241, 251), 8),  # 31 columns even if EXIF turns the image
        ((240, 251), 4),
        ((184, 248), 4),  # 23x31 at one eighth, but not when turned
        ((131, 61), 2),
        ((131, 60), 1),
    ],
)
def test_jpeg_reduction_keeps_the_image_large_enough(stored: tuple[int, int], factor: int) -> None:
    prepare = Preprocess((3, 23, 31), reduced_jpeg=True)
    assert prepare.reduction(*stored) == factor
    assert prepare.reduction(*stored[::-1]) == factor
    assert Preprocess((3, 23, 31)).reduction(*stored) == 1


def test_jpeg_reduction_follows_the_size_before_the_crop() -> None:
    options: dict[str, Any] = {"resize": "crop", "reduced_jpeg": True}
    assert Preprocess((3, 23, 23), resize_to=61, **options).reduction(122, 401) == 2
    assert Preprocess((3, 23, 23), resize_to=62, **options).reduction(122, 401) == 1
    assert Preprocess((3, 23, 23), **options).reduction(184, 401) == 8
    assert Preprocess((3, 23, 23), **options).reduction(176, 401) == 4


def test_real_images_of_the_golden_size(shared: Path) -> None:
    paths = sorted((shared / "golden" / "png227").glob("*.png"))
    assert len(paths) == 20
    prepare = Preprocess((3, 227, 227), mean=(104, 117, 123))
    for path in paths[:3]:
        image = cv2.imread(str(path))
        expected = image.transpose(2, 0, 1) - np.array([104, 117, 123], np.float32).reshape(3, 1, 1)
        np.testing.assert_array_equal(prepare(image), expected)
