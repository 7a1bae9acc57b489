"""What turns a decoded image into the input of a network, a float32 blob of shape (C, H, W).

The order is fixed: resize on uint8, transpose if asked for, take the channels in the order of the
blob, subtract the mean, multiply by the norm. All arithmetic is float32: (x - mean) * norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from int8calib.arrays import Array
from int8calib.errors import ImageError, OptionError, UnreadableImageError
from int8calib.images.decode import ImageU8, resize_bilinear
from int8calib.images.mean import fit_mean, fit_norm
from int8calib.images.resize import Resize, ResizeMode, centered, check_resize
from int8calib.limits import MAX_PIXELS

ChannelOrder = Literal["bgr", "rgb", "gray"]

_CHANNELS = {"bgr": 3, "rgb": 3, "gray": 1}


@dataclass(frozen=True, eq=False)
class Preprocess:
    """How an image becomes the input blob.

    Parameters
    ----------
    shape
        (C, H, W) of the input blob.
    channel_order
        "bgr" or "rgb" for 3 channels, "gray" for 1; None takes "bgr" or "gray" by C.
    resize
        "stretch": to H x W, whatever the image's aspect ratio. "crop": keep the aspect ratio, then
        cut H x W out of the middle. "letterbox": keep the aspect ratio, fit the whole image in,
        pad. "height": to the height H, "width": to the width W, the other side by the aspect
        ratio. "none": not at all. With the last three each image has a size of its own, which the
        network has to allow. Bilinear (`cv2.INTER_LINEAR`); an image that already has the size is
        not touched.
    resize_to
        Only with "crop", the size before the cut. One number is the length of the shorter side
        ("resize 256, center crop 224"). A pair is an exact (height, width), the aspect ratio given
        up, as Caffe's convert_imageset makes its databases. None: as small as covers the blob.
    mean
        Subtracted. 1 value, C values, or an array (C, 1, 1) or (C, H, W), in the blob's channel
        order. A larger (C, H', W') is cut in the middle, as Caffe's data_transformer.cpp does. An
        array with H and W does not go with a size that differs from image to image.
    norm
        Multiplied after that. 1 or C values.
    pad_value
        Only with "letterbox": the pixel value around the image, before mean and norm. None pads
        the blob itself with 0, which is a pixel of the mean's color.
    reduced_jpeg
        Decode a JPEG at 1/2, 1/4 or 1/8 of its size where that still is not smaller than the
        resized image. Faster on photographs, but other values than the full decoding gives.
    transpose
        Lay the image's columns along the blob's H and its rows along W, for a model trained in
        MATLAB, such as MTCNN, whose tools give (C, W, H) to Caffe. Height and width above are the
        image's: "height" then makes the image as high as the blob is wide. The mean is in the
        blob's layout.

    Raises
    ------
    OptionError
        For values that fit no blob or each other.
    ImageError
        For a spatial mean that does not fit.
    """

    shape: tuple[int, int, int]
    channel_order: ChannelOrder | None = None
    resize: ResizeMode = "stretch"
    resize_to: int | tuple[int, int] | None = None
    mean: ArrayLike = 0.0
    norm: ArrayLike = 1.0
    pad_value: float | None = None
    reduced_jpeg: bool = False
    transpose: bool = False
    mean_blob: Array = field(init=False, repr=False)
    norm_blob: Array = field(init=False, repr=False)
    _resize: Resize = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Check every option against the blob; fill in what follows from it."""
        object.__setattr__(self, "shape", _checked_shape(self.shape))
        order = _channel_order(self.channel_order, self.shape[0])
        object.__setattr__(self, "channel_order", order)
        if isinstance(self.resize_to, list):
            object.__setattr__(self, "resize_to", tuple(self.resize_to))
        height, width = self.shape[1:]
        target = (width, height) if self.transpose else (height, width)
        check_resize(self.resize, self.resize_to, self.pad_value, target)
        object.__setattr__(self, "_resize", Resize(self.resize, target, self.resize_to))
        mean = fit_mean(self.mean, self.shape)
        if self.free and mean.shape[1:] != (1, 1):
            raise OptionError(
                f"a mean of shape {mean.shape} has one size and resize mode {self.resize} many; "
                "give one value per channel"
            )
        object.__setattr__(self, "mean_blob", mean)
        object.__setattr__(self, "norm_blob", fit_norm(self.norm, self.shape[0]))

    @property
    def gray(self) -> bool:
        """Whether images are to be decoded as gray."""
        return self.channel_order == "gray"

    @property
    def free(self) -> bool:
        """Whether each image gets a size of its own, with `shape` only giving the channels."""
        return self._resize.free

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) that an image of `height` x `width` is resized to."""
        return self._resize.resized(height, width)

    def reduction(self, height: int, width: int) -> int:
        """The largest of 8, 4, 2, 1 that a JPEG of `height` x `width` may be divided by."""
        return self._resize.reduction(height, width) if self.reduced_jpeg else 1

    def __call__(self, image: ImageU8, out: Array | None = None) -> Array:
        """Preprocess one image.

        Parameters
        ----------
        image
            uint8 (H, W, 3) in BGR order, or (H, W) or (H, W, 1) if gray.
        out
            Where to write the blob, float32 of its shape; by default a new array.

        Returns
        -------
        Array
            float32 (C, H, W): `shape`, or of the image's own size with a free resize mode.

        Raises
        ------
        ImageError
            For an image of another kind.
        UnreadableImageError
            For one whose aspect ratio cannot be resized.
        """
        image = self._resized_image(self._checked(image))
        if self.transpose:
            image = image.transpose(1, 0, 2)
        height, width = image.shape[:2]
        shape = (self.shape[0], height, width) if self.free else self.shape
        blob = np.empty(shape, np.float32) if out is None else out
        if (height, width) == shape[1:]:
            self._normalize(image, blob, self.mean_blob)
        elif self.resize == "crop":
            rows, columns = centered(shape[1], height), centered(shape[2], width)
            self._normalize(image[rows, columns], blob, self.mean_blob)
        else:
            self._pad(blob)
            rows, columns = centered(height, shape[1]), centered(width, shape[2])
            mean = self.mean_blob
            if mean.shape == shape:
                mean = mean[:, rows, columns]
            self._normalize(image, blob[:, rows, columns], mean)
        return blob

    def _resized_image(self, image: ImageU8) -> ImageU8:
        """The image (H, W, C) in its new size."""
        height, width = self.resized(*image.shape[:2])
        if (height, width) == image.shape[:2]:
            return image
        if height * width > MAX_PIXELS:
            raise UnreadableImageError(
                f"an image of {image.shape[0]}x{image.shape[1]} (HxW) is too narrow to be "
                f"resized to {height}x{width}; use another resize mode or leave it out"
            )
        return resize_bilinear(image, height, width).reshape(height, width, -1)

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

    def _normalize(self, image: ImageU8, blob: Array, mean: Array) -> None:
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

    def _pad(self, blob: Array) -> None:
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
