"""Calibrate a Caffe model over images and write the table with which ncnn makes it INT8.

example:
  int8calib calibrate --proto deploy.prototxt --model net.caffemodel --images photos/ \\
      --mean 104 117 123 --norm 1 --output net.table

Then ncnn's own tools: caffe2ncnn, ncnnoptimize, and ncnn2int8 with this table. Beside the table
stand a report (net.table.json) and all options (net.table.toml); to repeat the run:
int8calib calibrate --config net.table.toml
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from int8calib.cli.config import add_config_argument, write_config
from int8calib.cli.identity import job_identity
from int8calib.cli.image_options import add_image_arguments, image_options
from int8calib.cli.inputs import (
    add_model_arguments,
    add_run_arguments,
    cache_size,
    load_net,
    worker_count,
)
from int8calib.cli.loader import ImageLoader
from int8calib.cli.screen import Screen, add_output_arguments
from int8calib.cli.table_options import add_table_arguments, laid_out, options_of
from int8calib.errors import OutputError

if TYPE_CHECKING:
    from int8calib.calibration.assemble import Calibration
    from int8calib.calibration.options import Options
    from int8calib.calibration.statistics.tally import Checkpoint
    from int8calib.calibration.table_layers import TableLayer

_NOT_REPORTED = frozenset(("run", "command", "config", "quiet", "verbose", "debug"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `int8calib calibrate`."""
    add_config_argument(parser)
    add_model_arguments(parser)
    add_image_arguments(parser)
    group = parser.add_argument_group("table")
    group.add_argument("--output", required=True, metavar="FILE", help="the table to write")
    add_table_arguments(group)
    add_run_arguments(parser)
    add_checkpoint_arguments(parser)
    parser.add_argument("--gpu", type=int, default=0, help=argparse.SUPPRESS)


def add_checkpoint_arguments(parser: argparse.ArgumentParser) -> None:
    """Going on after a run was killed."""
    group = parser.add_argument_group("long runs")
    group.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="a file that is written now and then; if it is there, the run goes on from it and "
        "counts nothing twice. It is removed at the end",
    )
    group.add_argument(
        "--checkpoint-every",
        type=float,
        default=30.0,
        metavar="S",
        help="seconds between two writes of the checkpoint (default: 30)",
    )


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The arguments of a calibration that another command starts."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    add_output_arguments(parser)
    parser.set_defaults(command="calibrate")
    return parser.parse_args(words)


def run(args: argparse.Namespace) -> int:
    """Calibrate and write the table, its report and its options."""
    from int8calib.calibration.pipeline import prepare, run_job

    screen = Screen(args)
    started = time.perf_counter()
    if args.gpu:
        screen.say("--gpu: this build runs on the CPU; going on")
    check_output(args.output)
    options = options_of(
        args, fold_bn=args.fold_bn, workers=worker_count(args), cache_bytes=cache_size(args)
    )
    net = load_net(args)
    job = prepare(net, options)
    if net.graph.unused_weights:
        screen.detail(f"{args.model}: {len(net.graph.unused_weights)} layers are not used")
    batches = ImageLoader(
        image_options(args), net, job.inputs, job.blobs, workers=worker_count(args)
    )
    identity = job_identity(args, net, batches, [str(blob) for blob in job.blobs])
    checkpoint = open_checkpoint(args, {**identity, **batches.order()})
    with screen.progress() as progress:
        done = run_job(
            job,
            batches,
            options,
            total=len(batches),
            progress=progress,
            meta=_meta(args, identity),
            checkpoint=checkpoint,
        )
    batches.tell(screen)
    write_results(args, done, job.described, options)
    write_config(beside(args.output, ".toml"), args, add_arguments)
    if checkpoint is not None:
        checkpoint.remove()
    show_summary(screen, done)
    images, seconds = done.statistics.images, time.perf_counter() - started
    screen.say(
        f"{args.output}: {len(done.table.layers)} layers from {images} images in {seconds:.1f} s; "
        f"report in {beside(args.output, '.json')}, options in {beside(args.output, '.toml')}"
    )
    return 0


def open_checkpoint(args: argparse.Namespace, identity: dict[str, Any]) -> Checkpoint | None:
    """The checkpoint of `--checkpoint`, checked for being writable."""
    from int8calib.calibration.statistics.tally import Checkpoint

    if args.checkpoint is None:
        return None
    check_output(args.checkpoint)
    return Checkpoint(args.checkpoint, identity, args.checkpoint_every)


def check_output(output: str) -> None:
    """Refuse an output that cannot be written before the work begins."""
    path = Path(output)
    if path.is_dir():
        raise OutputError(f"{output}: is a folder; name a file")
    if not path.parent.is_dir():
        raise OutputError(f"{output}: cannot be written; there is no folder {path.parent}")


def beside(output: str, suffix: str) -> Path:
    """Where what belongs to a table goes: beside it, with `suffix` added."""
    path = Path(output)
    return path.with_name(path.name + suffix)


def write_results(
    args: argparse.Namespace,
    done: Calibration,
    layers: tuple[TableLayer, ...],
    options: Options,
) -> None:
    """The table in its format, and the report with everything."""
    from int8calib.table import write_table

    table = laid_out(done.table, layers, options, args.format)
    write_table(args.output, table, args.format)
    write_table(beside(args.output, ".json"), done.table, "json")


def _meta(args: argparse.Namespace, identity: Mapping[str, Any]) -> dict[str, Any]:
    """What the report says of the files and the command."""
    kept = {
        name: value
        for name, value in vars(args).items()
        if name not in _NOT_REPORTED and value is not None
    }
    return {
        "files": {args.proto: identity["prototxt"], args.model: identity["caffemodel"]},
        "arguments": kept,
    }


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
                "" if found.spread is None else f"{100 * found.spread:.1f}",
                f"{layer.bottom_scale:.6g}",
                f"{100 * found.clipped:.3f}",
                found.blob,
                found.method,
            )
        )
    columns = ("layer", "absmax", "threshold", "± %", "scale", "clipped %", "bottom", "method")
    screen.table("Bottom scales", columns, rows)
    stability = done.table.meta["stability"]
    if stability is not None:
        screen.say(
            f"thresholds are certain to ± {100 * stability['median']:.1f} % in the median, "
            f"± {100 * stability['worst']:.1f} % at worst ({stability['worst_blob']})"
        )
    for warning in done.warnings:
        screen.say(f"warning: {warning}")
