"""What many commands take: options about models, images and the machine; a `Net` comes out."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

from int8calib.errors import OptionError

if TYPE_CHECKING:
    from int8calib.arrays import Shape
    from int8calib.caffe.engine.run import Net


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

    shapes = dict(parse_input_shape(text) for text in args.input_shape)
    return int8calib.load_caffe(args.proto, args.model, input_shapes=shapes)


def parse_input_shape(text: str) -> tuple[str, Shape]:
    """The name and shape in `data=1,3,224,224`; raises `OptionError`."""
    name, found, dims = text.rpartition("=")
    try:
        shape = tuple(int(dim) for dim in dims.replace("x", ",").split(","))
    except ValueError:
        shape = ()
    if not found or not shape or min(shape) < 1:
        raise OptionError(f"--input-shape {text}: expected NAME=N,C,H,W, such as data=1,3,224,224")
    return name, shape


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
