"""The image options of the command line: which images, and how they become input blobs."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING

from int8calib.cli.options import read_options, whole
from int8calib.errors import OptionError

if TYPE_CHECKING:
    from int8calib.images import ChannelOrder, ResizeMode


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
        Images per forward pass.
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
    batch: int = 1
    fast_jpeg: bool = False

    def __post_init__(self) -> None:
        """Raise `OptionError` for numbers out of range."""
        if self.resize_to is not None and len(self.resize_to) > 2:
            raise OptionError(f"--resize-to takes 1 or 2 numbers; found {len(self.resize_to)}")
        if self.limit is not None and self.limit < 1:
            raise OptionError(f"--limit {self.limit}: expected at least 1")
        if self.batch < 1:
            raise OptionError(f"--batch {self.batch}: expected at least 1")


def image_options(args: argparse.Namespace) -> ImageOptions:
    """Take the image options from parsed arguments; raises `OptionError`."""
    return read_options(ImageOptions, args)


def add_image_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `ImageOptions`."""
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
    group.add_argument(
        "--batch", type=int, default=1, metavar="N", help="images per forward pass (default: 1)"
    )
    group.add_argument(
        "--fast-jpeg",
        action="store_true",
        help="decode large JPEGs at a reduced size: faster, slightly different values",
    )
