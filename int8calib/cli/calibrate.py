"""Calibrate a Caffe model over images and write the table with which ncnn makes it INT8.

example:
  int8calib calibrate --proto deploy.prototxt --model net.caffemodel --images photos/ \\
      --mean 104 117 123 --norm 1 --output net.table

Then ncnn's own tools: caffe2ncnn, ncnnoptimize, and ncnn2int8 with this table.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from int8calib.cli.inputs import (
    ImageFeeds,
    add_image_arguments,
    add_model_arguments,
    add_run_arguments,
    cache_size,
    load_net,
    worker_count,
)
from int8calib.cli.screen import Screen
from int8calib.errors import OptionError, OutputError

if TYPE_CHECKING:
    from int8calib.pipeline import Calibration, Options

NAME = "calibrate"
HELP = "write the calibration table of a Caffe model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `int8calib calibrate`."""
    add_model_arguments(parser)
    add_image_arguments(parser)
    group = parser.add_argument_group("table")
    group.add_argument("--output", required=True, metavar="FILE", help="the table to write")
    add_table_arguments(group)
    add_run_arguments(parser)
    parser.add_argument("--gpu", type=int, default=0, help=argparse.SUPPRESS)


def add_table_arguments(group: Any) -> None:
    """How thresholds and weight scales are found."""
    group.add_argument("--method", default="kl", metavar="NAME", help="how thresholds are found")
    fold = group.add_mutually_exclusive_group()
    fold.add_argument(
        "--fold-bn",
        action="store_true",
        default=True,
        help="weight scales of weights with BatchNorm and Scale folded in: for a model that goes "
        "through ncnnoptimize before ncnn2int8, as ncnn's guide says (default)",
    )
    fold.add_argument(
        "--no-fold-bn",
        dest="fold_bn",
        action="store_false",
        help="weight scales of the weights as they are: for a model that goes from caffe2ncnn "
        "straight to ncnn2int8. The wrong choice saturates every layer with a BatchNorm behind it",
    )
    winograd = group.add_mutually_exclusive_group()
    winograd.add_argument(
        "--winograd",
        action="store_true",
        default=True,
        help="6-bit weights for 3x3 stride 1 convolutions, which ncnn may run by int8 winograd "
        "(default)",
    )
    winograd.add_argument(
        "--no-winograd",
        dest="winograd",
        action="store_false",
        help="8-bit weights everywhere: more accurate, if winograd is off in your ncnn options",
    )
    group.add_argument(
        "--group",
        type=int,
        choices=(0, 1),
        default=1,
        help="1: a weight scale per channel (default); 0: one per layer",
    )


def run(args: argparse.Namespace) -> int:
    """Calibrate and write the table and its report."""
    from int8calib.pipeline import prepare, run_job
    from int8calib.table import write_table
    from int8calib.thresholds import method_names

    screen = Screen(args)
    started = time.perf_counter()
    if args.gpu:
        screen.say("--gpu: this build runs on the CPU; going on")
    if args.method not in method_names():
        raise OptionError(f"--method {args.method}: expected one of {', '.join(method_names())}")
    check_output(args.output)
    options = options_of(args)
    net = load_net(args)
    job = prepare(net, options)
    if net.graph.unused_weights:
        screen.detail(f"{args.model}: {len(net.graph.unused_weights)} layers are not used")
    feeds = ImageFeeds(args, net, job.inputs)
    with screen.progress() as progress:
        done = run_job(job, feeds, options, total=len(feeds), progress=progress, meta=_meta(args))
    feeds.tell(screen)
    write_table(args.output, done.table)
    write_table(report_path(args.output), done.table, "json")
    show_summary(screen, done)
    images, seconds = done.statistics.images, time.perf_counter() - started
    screen.say(
        f"{args.output}: {len(done.table.layers)} layers from {images} images in {seconds:.1f} s; "
        f"report in {report_path(args.output)}"
    )
    return 0


def options_of(args: argparse.Namespace) -> Options:
    """The options of the library that the arguments mean."""
    from int8calib.pipeline import Options
    from int8calib.scales import WeightOptions

    weights = WeightOptions(
        granularity="per-channel" if args.group else "per-tensor", winograd=args.winograd
    )
    return Options(
        method=args.method,
        fold_bn=args.fold_bn,
        weights=weights,
        workers=worker_count(args),
        cache_bytes=cache_size(args),
    )


def check_output(output: str) -> None:
    """Refuse an output that cannot be written before the work begins."""
    path = Path(output)
    if path.is_dir():
        raise OutputError(f"{output}: is a folder; name a file")
    if not path.parent.is_dir():
        raise OutputError(f"{output}: cannot be written; there is no folder {path.parent}")


def report_path(output: str) -> Path:
    """Where the report of a table goes: beside it, with `.json` added."""
    path = Path(output)
    return path.with_name(path.name + ".json")


def _meta(args: argparse.Namespace) -> dict[str, Any]:
    """What the report says of the files and the command."""
    kept = {
        name: value
        for name, value in vars(args).items()
        if name not in ("run", "command", "quiet", "verbose", "debug") and value is not None
    }
    return {
        "files": {path: _sha256(path) for path in (args.proto, args.model)},
        "arguments": kept,
    }


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def show_summary(screen: Screen, done: Calibration) -> None:
    """The table of layers and the warnings."""
    rows = []
    for layer in done.table.layers:
        found = layer.evidence
        if found is None:
            continue
        rows.append(
            (
                layer.name,
                f"{found.absmax:.5g}",
                f"{found.threshold:.5g}",
                f"{layer.bottom_scale:.6g}",
                f"{100 * found.clipped:.3f}",
                found.blob,
            )
        )
    columns = ("layer", "absmax", "threshold", "scale", "clipped %", "bottom")
    screen.table("Bottom scales", columns, rows)
    for warning in done.warnings:
        screen.say(f"warning: {warning}")
