"""Options about models and images come in; a `Net` and the feeds of its inputs go out."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from int8calib.cli.identity import text_sha256
from int8calib.errors import ImageError, OptionError

if TYPE_CHECKING:
    from int8calib.cli.screen import Screen
    from int8calib.engine.run import Net
    from int8calib.images import Batch, ImageSource, Preprocess
    from int8calib.layers.registry import Array, Shape


def add_model_arguments(parser: argparse.ArgumentParser, *, model_required: bool = True) -> None:
    """The network."""
    group = parser.add_argument_group("model")
    group.add_argument("--proto", required=True, metavar="FILE", help="the deploy prototxt")
    group.add_argument(
        "--model", required=model_required, metavar="FILE", help="the caffemodel with the weights"
    )
    group.add_argument(
        "--input-shape",
        action="append",
        default=[],
        metavar="NAME=N,C,H,W",
        help="shape of an input, where the prototxt does not say it or another is wanted",
    )


def add_image_arguments(parser: argparse.ArgumentParser) -> None:
    """The images and their preprocessing."""
    group = parser.add_argument_group(
        "images", "pixel values become (x - mean) * norm, as in Caffe and ncnn"
    )
    group.add_argument(
        "--images",
        action="append",
        required=True,
        metavar="WHERE",
        help="a folder, a list file (.txt), a pattern, or preprocessed arrays (.npy, .npz); "
        "NAME=WHERE once per input where there are several",
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
        choices=("stretch", "crop", "letterbox"),
        default="stretch",
        help="how an image becomes the size of the input (default: stretch)",
    )
    group.add_argument(
        "--resize-to",
        type=int,
        nargs="+",
        metavar="SIZE",
        help="with --resize crop: the shorter side, or height and width, before the centre crop",
    )
    group.add_argument("--limit", type=int, metavar="N", help="use at most N images")
    group.add_argument("--shuffle", action="store_true", help="pick images in a random order")
    group.add_argument("--seed", type=int, default=0, help="what --shuffle depends on (default: 0)")
    group.add_argument("--batch", type=int, default=1, metavar="N", help="images per forward pass")
    group.add_argument(
        "--fast-jpeg",
        action="store_true",
        help="decode large JPEGs at a reduced size: faster, slightly different values",
    )


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """The machine, for a command that calibrates."""
    group = add_workers_argument(parser)
    group.add_argument(
        "--cache",
        metavar="SIZE",
        help="memory for activations, so that images run once instead of twice, such as 500M or "
        "2G (default: a quarter of the free memory, at most 2G); the table does not depend on it",
    )


def add_workers_argument(parser: argparse.ArgumentParser) -> Any:
    """The machine, for a command that only runs images; returns the group."""
    group = parser.add_argument_group("machine")
    group.add_argument(
        "--workers", type=int, metavar="N", help="images in parallel (default: the cores)"
    )
    return group


def load_net(args: argparse.Namespace) -> Net:
    """The network of `--proto`, `--model` and `--input-shape`."""
    import int8calib

    shapes = dict(_input_shape(text) for text in args.input_shape)
    return int8calib.load_caffe(args.proto, args.model, input_shapes=shapes)


def _input_shape(text: str) -> tuple[str, Shape]:
    name, found, dims = text.rpartition("=")
    try:
        shape = tuple(int(dim) for dim in dims.replace("x", ",").split(","))
    except ValueError:
        shape = ()
    if not found or not shape or min(shape) < 1:
        raise OptionError(f"--input-shape {text}: expected NAME=N,C,H,W, such as data=1,3,224,224")
    return name, shape


class ImageFeeds:
    """All that the image options name, as feeds: call it to start a pass over the images."""

    def __init__(self, args: argparse.Namespace, net: Net, needed: tuple[str, ...]) -> None:
        """Open the sources of the `needed` inputs; raises `ImageError`, `OptionError`."""
        self._batch = args.batch
        self._threads = max(1, min(2, worker_count(args)))
        self._skips: dict[str, None] = {}
        places = _places(args.images, needed)
        self.inputs = {name: self._open(args, net, name, places[name]) for name in needed}

    def _open(
        self, args: argparse.Namespace, net: Net, name: str, where: str
    ) -> tuple[ImageSource, Preprocess | tuple[int, ...]]:
        from int8calib.images import Preprocess, open_source, read_mean

        source = open_source(
            where, limit=args.limit, shuffle=args.shuffle, seed=args.seed, blob=name
        )
        shape = tuple(net.input_shapes[name][1:])
        if source.preprocessed:
            return source, shape
        if len(shape) != 3:
            raise ImageError(
                f"{where}: images cannot fill input {name!r} of shape {(1, *shape)}; "
                "give it a .npy file"
            )
        resize_to = args.resize_to
        if resize_to is not None and len(resize_to) > 2:
            raise OptionError(f"--resize-to takes 1 or 2 numbers; found {len(resize_to)}")
        return source, Preprocess(
            (shape[0], shape[1], shape[2]),
            channel_order=args.channel_order,
            resize=args.resize,
            resize_to=None if resize_to is None else _one_or_pair(resize_to),
            mean=read_mean(args.mean),
            norm=args.norm,
            reduced_jpeg=args.fast_jpeg,
        )

    def __call__(self) -> Iterator[Mapping[str, Array]]:
        """Start a pass: batches in order, decoded ahead."""
        for batch in self.batches():
            yield batch.blobs

    def batches(self) -> Iterator[Batch]:
        """The same pass with the names of the images, which come from the first input's source."""
        from int8calib.images import batches_of_inputs

        return batches_of_inputs(self.inputs, self._batch, threads=self._threads, report=self._skip)

    def __len__(self) -> int:
        """How many images a pass has, if all can be read."""
        return min(len(source) for source, _ in self.inputs.values())

    def preprocessing(self) -> dict[str, dict[str, Any]]:
        """What changes the values of each input, as JSON values."""
        return {name: _described(how) for name, (_, how) in self.inputs.items()}

    def order(self) -> dict[str, Any]:
        """Which images come in which order and batches, as JSON values."""
        names = {name: text_sha256(*source.names) for name, (source, _) in self.inputs.items()}
        return {"images": names, "batch": self._batch}

    def _skip(self, message: str) -> None:
        self._skips[message] = None

    def tell(self, screen: Screen) -> None:
        """Say which files were passed over."""
        for name, (source, _) in self.inputs.items():
            if source.skipped:
                screen.say(f"input {name}: {source.skipped} files are no images and were skipped")
        for message in self._skips:
            screen.say(f"skipped: {message}")


def _described(how: Preprocess | tuple[int, ...]) -> dict[str, Any]:
    if isinstance(how, tuple):
        return {"shape": list(how)}
    return {
        "shape": list(how.shape),
        "channel order": how.channel_order,
        "resize": how.resize,
        "resize to": how.resize_to,
        "mean": text_sha256(how.mean_blob.shape, how.mean_blob.tobytes()),
        "norm": text_sha256(how.norm_blob.shape, how.norm_blob.tobytes()),
        "pad value": how.pad_value,
        "fast jpeg": how.reduced_jpeg,
    }


def _places(images: list[str], needed: tuple[str, ...]) -> dict[str, str]:
    """Where each needed input comes from; raises `OptionError` unless each has one place."""
    named = {}
    for text in images:
        name, found, where = text.partition("=")
        if found and name in needed:
            named[name] = where
        elif len(images) == 1 and len(needed) == 1:
            named[needed[0]] = text
        else:
            raise OptionError(
                f"--images {text}: the network needs {', '.join(needed)}; give NAME=WHERE for each"
            )
    missing = [name for name in needed if name not in named]
    if missing:
        raise OptionError(f"no images are given for input {missing[0]!r}; give {missing[0]}=WHERE")
    return named


def _one_or_pair(values: list[int]) -> int | tuple[int, int]:
    return values[0] if len(values) == 1 else (values[0], values[1])


def worker_count(args: argparse.Namespace) -> int:
    """`--workers`, or the cores this process may use."""
    if args.workers is None:
        usable = getattr(os, "sched_getaffinity", None)
        return len(usable(0)) if usable else os.cpu_count() or 1
    if args.workers < 1:
        raise OptionError(f"--workers {args.workers}: expected at least 1")
    return int(args.workers)


def cache_size(args: argparse.Namespace) -> int:
    """`--cache` in bytes, or a quarter of the free memory, at most 2 GiB."""
    if args.cache is None:
        return min(2 << 30, _free_memory() // 4)
    units = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
    text = args.cache.upper().removesuffix("B").removesuffix("I")
    number, unit = (text[:-1], text[-1]) if text[-1:] in "KMGT" and text else (text, "")
    try:
        size = float(number) * units[unit]
    except ValueError:
        size = -1.0
    if not 0 <= size < 1e18:
        raise OptionError(f"--cache {args.cache}: expected a size such as 0, 500M or 2G")
    return int(size)


def _free_memory() -> int:
    """Free memory in bytes; a guess of 4 GiB where the system does not tell."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 4 << 30
