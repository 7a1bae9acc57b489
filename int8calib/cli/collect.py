"""Collect the statistics of a model's activations in a file, for `int8calib thresholds`.

One machine:
  int8calib collect --proto deploy.prototxt --model net.caffemodel --images photos/ \\
      --mean 104 117 123 --output stats.npz
Many machines, each with its share of the images, bit for bit as one machine would:
  1. int8calib collect --ranges-only ... --output ranges-1.npz      on each
  2. int8calib merge ranges-1.npz ranges-2.npz --output ranges.npz
  3. int8calib collect --ranges ranges.npz ... --output stats-1.npz on each
  4. int8calib merge stats-1.npz stats-2.npz --output stats.npz
"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

from int8calib.cli.calibrate import add_checkpoint_arguments, check_output, open_checkpoint
from int8calib.cli.config import add_config_argument
from int8calib.cli.digest import file_sha256
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
from int8calib.cli.screen import Screen
from int8calib.cli.table_options import add_fold_arguments

if TYPE_CHECKING:
    from collections.abc import Mapping

    from int8calib.calibration.statistics.activation import Range


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `int8calib collect`."""
    add_config_argument(parser)
    add_model_arguments(parser)
    add_image_arguments(parser)
    group = parser.add_argument_group("statistics")
    group.add_argument("--output", required=True, metavar="FILE", help="the .npz file to write")
    add_fold_arguments(group)
    group.add_argument(
        "--all-blobs",
        action="store_true",
        help="of every blob, not only of those that quantized layers read: for the table formats "
        "tool-v1 and tensorrt",
    )
    phase = group.add_mutually_exclusive_group()
    phase.add_argument("--ranges-only", action="store_true", help="stop after the ranges")
    phase.add_argument(
        "--ranges",
        metavar="FILE",
        help="the merged ranges of all shards: only histograms are left to count",
    )
    add_run_arguments(parser)
    add_checkpoint_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Collect and write."""
    from int8calib.calibration.collected import Collected, save_collected
    from int8calib.calibration.options import Options
    from int8calib.calibration.pipeline import prepare
    from int8calib.calibration.statistics.collect import collect_statistics

    screen = Screen(args)
    started = time.perf_counter()
    check_output(args.output)
    net = load_net(args)
    job = prepare(net, Options(fold_bn=args.fold_bn, all_blobs=args.all_blobs))
    batches = ImageLoader(
        image_options(args), net, job.inputs, job.blobs, workers=worker_count(args)
    )
    identity = job_identity(args, net, batches, [str(blob) for blob in job.blobs])
    ranges = _known_ranges(args, identity)
    phase = {"ranges only": args.ranges_only, "ranges": args.ranges and file_sha256(args.ranges)}
    checkpoint = open_checkpoint(args, {**identity, **batches.order(), **phase})
    with screen.progress() as progress:
        statistics = collect_statistics(
            job.graph,
            batches,
            job.blobs,
            workers=worker_count(args),
            cache_bytes=cache_size(args),
            total=len(batches),
            progress=progress,
            ranges=ranges,
            ranges_only=args.ranges_only,
            checkpoint=checkpoint,
        )
    batches.tell(screen)
    collected = Collected(statistics, job.described, job.named, args.proto, identity)
    save_collected(args.output, collected)
    if checkpoint is not None:
        checkpoint.remove()
    what = "ranges" if args.ranges_only else "statistics"
    screen.say(
        f"{args.output}: {what} of {len(statistics.ranges)} blobs from {statistics.images} images "
        f"in {time.perf_counter() - started:.1f} s"
    )
    return 0


def _known_ranges(
    args: argparse.Namespace, identity: Mapping[str, object]
) -> Mapping[str, Range] | None:
    """The ranges of `--ranges`, checked for being of the same network and preprocessing."""
    if args.ranges is None:
        return None
    from int8calib.calibration.collected import check_identity, load_collected

    known = load_collected(args.ranges)
    check_identity(known.identity, identity, args.ranges, "this collection")
    return known.statistics.ranges
