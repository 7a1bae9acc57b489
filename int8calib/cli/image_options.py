"""The image options of the command line: which images, and how they become input blobs."""

from __future__ import annotations

import argparse
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

from int8calib.cli.options import read_options, whole
from int8calib.errors import OptionError
from int8calib.words import listed

if TYPE_CHECKING:
    from collections.abc import Iterable

    from int8calib.caffe.engine.run import Net
    from int8calib.caffe.network.graph import Blob
    from int8calib.images import ChannelOrder, ResizeMode
    from int8calib.ncnn.execution.network import NcnnNet


_OF_PIXELS = ("mean", "norm", "channel_order", "resize", "resize_to", "transpose", "fast_jpeg")
"""Options that say how pixels become an input."""


@dataclass(frozen=True)
class ImageOptions:
    """The image options of a command, checked as far as they can be without the network.

    Parameters
    ----------
    images
        The values of `--images`: a place each, or NAME=PLACE for a network with several inputs.
    mean, norm
        The values of `--mean` (numbers or one file) and `--norm`.
    channel_order
        "bgr", "rgb", "gray", or None for the one that fits the input.
    resize, resize_to, transpose
        As in `int8calib.images.Preprocess`; `resize_to` holds 1 or 2 sizes, or is None.
    limit
        Use at most so many images; None for all.
    shuffle, seed
        Whether images are taken in a random order, and what that order depends on.
    batch
        Images per forward pass; None: 1, and on a GPU as many as its memory holds.
    fast_jpeg
        Whether large JPEGs are decoded at a reduced size.
    """

    images: tuple[str, ...]
    mean: tuple[str, ...] = ("0",)
    norm: tuple[float, ...] = (1.0,)
    channel_order: ChannelOrder | None = None
    resize: ResizeMode = "stretch"
    resize_to: tuple[int, ...] | None = None
    transpose: bool = False
    limit: int | None = None
    shuffle: bool = False
    seed: int = 0
    batch: int | None = None
    fast_jpeg: bool = False

    def __post_init__(self) -> None:
        """Raise `OptionError` for numbers out of range."""
        if self.resize_to is not None and len(self.resize_to) > 2:
            raise OptionError(f"--resize-to takes 1 or 2 numbers; found {len(self.resize_to)}")
        if self.limit is not None and self.limit < 1:
            raise OptionError(f"--limit {self.limit}: expected at least 1")
        if self.batch is not None and self.batch < 1:
            raise OptionError(f"--batch {self.batch}: expected at least 1")

    def idle_for_arrays(self) -> str | None:
        """Return a warning of options that mean nothing to arrays, which are taken as they are."""
        idle = [f"--{name.replace('_', '-')}" for name in _OF_PIXELS if self._is_given(name)]
        if not idle:
            return None
        return (
            f"{', '.join(self.images)}: arrays are taken as they are, without {listed(idle)}; "
            "preprocess them before they are saved"
        )

    def _is_given(self, name: str) -> bool:
        return bool(getattr(self, name) != getattr(type(self), name))


def images_at_a_time(
    options: ImageOptions, net: Net | NcnnNet, blobs: Iterable[Blob] | None
) -> int:
    """Return `--batch`, by default 1, on a GPU what fits; 1 where a layer needs single images."""
    from int8calib.caffe.engine.run import Net
    from int8calib.caffe.network.batch import is_batchable
    from int8calib.device import device_of

    device = device_of(net)
    if options.batch is None and device is not None and isinstance(net, Net):
        from int8calib.caffe.engine.on_device import device_batch

        if options.resize in ("height", "width", "none"):
            return 1  # how large the images become is not known
        return device_batch(net.graph, net.input_shapes, device.free_bytes, blobs)
    if options.batch is None or options.batch == 1:
        return 1
    if isinstance(net, Net):
        layers = net.graph.ancestors(net.graph.outputs if blobs is None else blobs)
        if is_batchable(net.graph, net.input_shapes, layers):
            return options.batch
        reason = f"{net.graph.source}: its layers need one image at a time"
    else:
        reason = f"{net.source}: ncnn takes one image at a time"
    warnings.warn(f"{reason}; --batch {options.batch} is not used", stacklevel=1)
    return 1


def image_options(args: argparse.Namespace) -> ImageOptions:
    """Take the image options from parsed arguments; raises `OptionError`."""
    return read_options(ImageOptions, args)


def add_image_arguments(parser: argparse.ArgumentParser, *, batch: bool = True) -> None:
    """Declare the options of `ImageOptions`; `batch`: whether images may run in batches."""
    group = parser.add_argument_group(
        "images", "pixel values become (x - mean) * norm, as in Caffe and ncnn"
    )
    group.add_argument(
        "--images",
        action="append",
        required=True,
        metavar="WHERE",
        help="a folder, a list file (.txt, with paths from its own folder, else from the working "
        "folder), a pattern, a URL that fsspec reads (s3://bucket/photos), or preprocessed arrays "
        "(.npy, .npz); NAME=WHERE once per input where there are several",
    )
    group.add_argument(
        "--mean",
        nargs="+",
        default=["0"],
        metavar="M",
        help="1 or 3 numbers in channel order, or a .binaryproto or .npy file (default: 0)",
    )
    group.add_argument(
        "--norm",
        nargs="+",
        type=float,
        default=[1.0],
        metavar="S",
        help="1 or 3 factors, applied after the mean (default: 1)",
    )
    group.add_argument(
        "--channel-order",
        choices=("bgr", "rgb", "gray"),
        help="channels of the input blob (default: bgr, or gray for one channel)",
    )
    group.add_argument(
        "--resize",
        choices=("stretch", "crop", "letterbox", "height", "width", "none"),
        default="stretch",
        help="how an image becomes the size of the input: stretch (default); crop or letterbox, "
        "which keep its aspect ratio; height or width, which fit that side only, or none: each "
        "image has a size of its own then, which the network has to allow",
    )
    group.add_argument(
        "--resize-to",
        type=int,
        nargs="+",
        metavar="SIZE",
        help="with --resize crop: the shorter side, or height and width, before the center crop",
    )
    group.add_argument(
        "--transpose",
        action="store_true",
        help="swap height and width after resizing, for models trained on transposed images "
        "(MatCaffe, MTCNN)",
    )
    group.add_argument("--limit", type=int, metavar="N", help="use at most N images")
    group.add_argument("--shuffle", action="store_true", help="pick images in a random order")
    group.add_argument(
        "--seed", type=whole(), default=0, help="what --shuffle depends on (default: 0)"
    )
    if batch:
        group.add_argument(
            "--batch",
            type=int,
            metavar="N",
            help="images per forward pass (default: 1; on a GPU as many as its memory holds)",
        )
    group.add_argument(
        "--fast-jpeg",
        action="store_true",
        help="decode large JPEGs at a reduced size: faster, slightly different values",
    )
