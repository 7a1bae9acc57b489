"""A decoded image comes in, one float32 blob of shape (C, H, W) goes out.

The order is fixed: resize on uint8, take the channels in the order of the blob, subtract the
mean, multiply by the norm. All arithmetic is float32: (x - mean) * norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from int8calib.errors import ImageError, OptionError
from int8calib.images.decode import ImageU8, UnreadableImageError, resize_bilinear
from int8calib.images.geometry import centered, covering, inside, short_side
from int8calib.images.mean import fit_mean, fit_norm

ChannelOrder = Literal["bgr", "rgb", "gray"]
ResizeMode = Literal["stretch", "crop", "letterbox"]

_CHANNELS = {"bgr": 3, "rgb": 3, "gray": 1}
_MODES = ("stretch", "crop", "letterbox")
# A sliver of an image would be blown up to gigabytes before the crop: refuse it.
_MOST_PIXELS = 1 << 27


@dataclass(frozen=True, eq=False)
class Preprocess:
    """How an image becomes the input blob.

    shape
        (C, H, W) of the input blob.
    channel_order
        "bgr" or "rgb" for 3 channels, "gray" for 1; None takes "bgr" or "gray" by C.
    resize
        "stretch": to H x W, whatever the image's aspect. "crop": keep the aspect, then cut
        H x W out of the middle. "letterbox": keep the aspect, fit the whole image in, pad.
        Bilinear (`cv2.INTER_LINEAR`); an image that already has the size is not touched.
    resize_to
        Only with "crop", the size before the cut. One number is the length of the shorter side
        ("resize 256, center crop 224"). A pair is an exact (height, width), the aspect given
        up, as Caffe's convert_imageset makes its databases. None: as small as covers the blob.
    mean
        Subtracted. 1 value, C values, or an array (C, 1, 1) or (C, H, W), in the blob's channel
        order. A larger (C, H', W') is cut in the middle, as Caffe's data_transformer.cpp does.
    norm
        Multiplied after that. 1 or C values.
    pad_value
        Only with "letterbox": the pixel value around the image, before mean and norm. None pads
        the blob itself with 0, which is a pixel of the mean's color.
    reduced_jpeg
        Decode a JPEG at 1/2, 1/4 or 1/8 of its size where that still is not smaller than the
        resized image. Faster on photographs, but other values than the full decoding gives.

    Raises OptionError for values that fit no blob or each other, ImageError for a spatial mean
    that does not fit.
    """

    shape: tuple[int, int, int]
    channel_order: ChannelOrder | None = None
    resize: ResizeMode = "stretch"
    resize_to: int | tuple[int, int] | None = None
    mean: ArrayLike = 0.0
    norm: ArrayLike = 1.0
    pad_value: float | None = None
    reduced_jpeg: bool = False
    mean_blob: NDArray[np.float32] = field(init=False, repr=False)
    norm_blob: NDArray[np.float32] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Check every option against the blob; fill in what follows from it."""
        object.__setattr__(self, "shape", _checked_shape(self.shape))
        order = _channel_order(self.channel_order, self.shape[0])
        object.__setattr__(self, "channel_order", order)
        if isinstance(self.resize_to, list):
            object.__setattr__(self, "resize_to", tuple(self.resize_to))
        _check_resize(self.resize, self.resize_to, self.pad_value, self.shape)
        object.__setattr__(self, "mean_blob", fit_mean(self.mean, self.shape))
        object.__setattr__(self, "norm_blob", fit_norm(self.norm, self.shape[0]))

    @property
    def gray(self) -> bool:
        """Whether images are to be decoded as gray."""
        return self.channel_order == "gray"

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) that an image of `height` x `width` is resized to."""
        target = self.shape[1:]
        if self.resize == "stretch":
            return target
        if self.resize == "letterbox":
            return inside(height, width, *target)
        if self.resize_to is None:
            return covering(height, width, *target)
        if isinstance(self.resize_to, tuple):
            return self.resize_to
        size = short_side(height, width, self.resize_to)
        # Across the aspect of a blob that is not square, the short side may not suffice.
        too_small = size[0] < target[0] or size[1] < target[1]
        return covering(height, width, *target) if too_small else size

    def reduction(self, height: int, width: int) -> int:
        """The largest of 8, 4, 2, 1 that a JPEG of `height` x `width` may be divided by.

        EXIF may turn the image after decoding, so the answer holds for both orientations.
        """
        if not self.reduced_jpeg:
            return 1
        for factor in (8, 4, 2):
            if all(
                -(-stored // factor) >= wanted  # libjpeg rounds the reduced size up
                for turned in ((height, width), (width, height))
                for stored, wanted in zip(turned, self.resized(*turned), strict=True)
            ):
                return factor
        return 1

    def __call__(
        self, image: ImageU8, out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Preprocess one image: uint8 (H, W, 3) in BGR order, or (H, W) or (H, W, 1) if gray.

        Returns float32 of shape (C, H, W), written to `out` where it is given.
        Raises ImageError for an image of another kind, UnreadableImageError for one whose
        aspect cannot be resized.
        """
        image = self._checked(image)
        height, width = self.resized(*image.shape[:2])
        if (height, width) != image.shape[:2]:
            if height * width > _MOST_PIXELS:
                raise UnreadableImageError(
                    f"an image of {image.shape[0]}x{image.shape[1]} (HxW) is too narrow to be "
                    f"resized to {height}x{width}; use another resize mode or leave it out"
                )
            image = resize_bilinear(image, height, width).reshape(height, width, -1)
        blob = np.empty(self.shape, np.float32) if out is None else out
        if (height, width) == self.shape[1:]:
            self._normalize(image, blob, self.mean_blob)
        elif self.resize == "crop":
            rows, columns = centered(self.shape[1], height), centered(self.shape[2], width)
            self._normalize(image[rows, columns], blob, self.mean_blob)
        else:
            self._pad(blob)
            rows, columns = centered(height, self.shape[1]), centered(width, self.shape[2])
            mean = self.mean_blob
            if mean.shape == self.shape:
                mean = mean[:, rows, columns]
            self._normalize(image, blob[:, rows, columns], mean)
        return blob

    def _checked(self, image: ImageU8) -> ImageU8:
        """The image as (H, W, channels)."""
        planes = image.reshape(*image.shape, 1) if image.ndim == 2 else image
        if image.dtype != np.uint8 or planes.ndim != 3 or planes.shape[2] != self.shape[0]:
            wanted = "(H, W)" if self.gray else "(H, W, 3)"
            raise ImageError(
                f"expected a decoded image, uint8 of shape {wanted}; "
                f"found {image.dtype} of shape {image.shape}"
            )
        if 0 in planes.shape:
            raise ImageError(f"found an image without pixels, shape {image.shape}")
        return planes

    def _normalize(
        self, image: ImageU8, blob: NDArray[np.float32], mean: NDArray[np.float32]
    ) -> None:
        """Fill `blob` (C, h, w) from `image` (h, w, C); each plane stays in the cache."""
        last = self.shape[0] - 1
        for channel in range(self.shape[0]):
            source = last - channel if self.channel_order == "rgb" else channel
            plane = blob[channel]
            plane[...] = image[:, :, source]
            plane -= mean[channel]
            factor = self.norm_blob[channel]
            if factor != 1.0:
                plane *= factor

    def _pad(self, blob: NDArray[np.float32]) -> None:
        """Fill the whole blob with the letterbox's border."""
        if self.pad_value is None:
            blob[...] = 0.0
            return
        np.subtract(np.float32(self.pad_value), self.mean_blob, out=blob)
        blob *= self.norm_blob


def _checked_shape(shape: Sequence[int]) -> tuple[int, ...]:
    if len(shape) != 3 or min(shape) < 1:
        raise OptionError(
            "an input blob that takes images has the shape C,H,W, all positive; "
            f"found {tuple(shape)}"
        )
    return tuple(int(size) for size in shape)


def _channel_order(order: str | None, channels: int) -> str:
    """The order to use; raises OptionError where it is unknown or does not fit."""
    if order is None:
        fitting = {3: "bgr", 1: "gray"}.get(channels)
        if fitting is None:
            raise OptionError(
                f"the input blob has {channels} channels; images give 3 (bgr, rgb) or 1 (gray): "
                "supply preprocessed .npy arrays instead"
            )
        return fitting
    if order not in _CHANNELS:
        raise OptionError(f"unknown channel order {order!r}; use bgr, rgb or gray")
    if _CHANNELS[order] != channels:
        raise OptionError(
            f"channel order {order} gives {_CHANNELS[order]} channels; "
            f"the input blob has {channels}"
        )
    return order


def _check_resize(
    mode: str,
    resize_to: int | tuple[int, int] | None,
    pad_value: float | None,
    shape: tuple[int, int, int],
) -> None:
    if mode not in _MODES:
        raise OptionError(f"unknown resize mode {mode!r}; use stretch, crop or letterbox")
    if pad_value is not None and (mode != "letterbox" or not np.isfinite(pad_value)):
        raise OptionError(f"a pad value ({pad_value}) is a number, and goes with letterbox only")
    if resize_to is None:
        return
    if mode != "crop":
        raise OptionError(f"a size before the crop ({resize_to}) goes with resize mode crop only")
    height, width = shape[1:]
    if isinstance(resize_to, tuple):
        if len(resize_to) != 2 or resize_to[0] < height or resize_to[1] < width:
            raise OptionError(f"cannot cut {height}x{width} (HxW) out of a size of {resize_to}")
    elif resize_to < min(height, width):
        raise OptionError(
            f"cannot cut {height}x{width} (HxW) out of an image whose short side is {resize_to}"
        )
