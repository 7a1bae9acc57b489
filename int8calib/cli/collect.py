"""Collect the statistics of a model's activations in a file, for `int8calib thresholds`.

One machine:
  int8calib collect --proto deploy.prototxt --model net.caffemodel --images photos/ \\
      --mean 104 117 123 --output stats.npz
Many machines, each with its share of the images, bit for bit as one machine would:
  1. int8calib collect ... --output stats-1.npz                     on each
  2. int8calib merge stats-1.npz stats-2.npz --output stats.npz
With --exact, whose bins need the range of all images first:
  1. int8calib collect --ranges-only ... --output ranges-1.npz      on each
  2. int8calib merge ranges-1.npz ranges-2.npz --output ranges.npz
  3. int8calib collect --ranges ranges.npz ... --output stats-1.npz on each
  4. int8calib merge stats-1.npz stats-2.npz --output stats.npz
"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

from int8calib.cli.config import add_config_argument
from int8calib.cli.console import Console
from int8calib.cli.image_options import add_image_arguments, image_options
from int8calib.cli.network import (
    DeviceOptions,
    NetworkOptions,
    add_device_arguments,
    add_network_arguments,
    file_sha256,
    open_job,
    say_device,
)
from int8calib.cli.options import (
    CheckpointOptions,
    ClusterOptions,
    MessageOptions,
    RunOptions,
    add_checkpoint_arguments,
    add_cluster_arguments,
    add_run_arguments,
    read_options,
)
from int8calib.cli.outputs import check_outputs
from int8calib.cli.table_options import add_fold_arguments
from int8calib.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from int8calib.calibration.statistics.store import Statistics


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `int8calib collect`."""
    add_config_argument(parser)
    add_network_arguments(parser)
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
    phase.add_argument(
        "--ranges-only",
        action="store_true",
        help="the first pass of --exact alone: stop after the ranges",
    )
    phase.add_argument(
        "--ranges",
        metavar="FILE",
        help="the second pass of --exact alone: the merged ranges of all shards",
    )
    add_run_arguments(parser)
    add_device_arguments(parser)
    add_checkpoint_arguments(parser)
    add_cluster_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Collect and write."""
    from int8calib.calibration.collected import Collected, save_collected
    from int8calib.calibration.options import Options
    from int8calib.calibration.statistics.collect import collect_statistics

    started = time.perf_counter()
    console = Console(read_options(MessageOptions, args))
    model = read_options(NetworkOptions, args)
    machine = read_options(RunOptions, args)
    long_run = read_options(CheckpointOptions, args)
    cluster = read_options(ClusterOptions, args)
    gpu = read_options(DeviceOptions, args)
    outputs = [path for path in (args.output, long_run.checkpoint) if path is not None]
    check_outputs(outputs, inputs=(*model.files, args.ranges))
    exact = _exact(machine.exact, one_of_two=bool(args.ranges_only or args.ranges))
    device = gpu.open()
    net = model.load(machine.worker_count, device)
    options = Options(fold_bn=args.fold_bn, all_blobs=args.all_blobs)
    opened = open_job(model, net, options, image_options(args), workers=machine.worker_count)
    opened.images.send_files = cluster.send_images
    job, batches, fingerprint = opened.job, opened.images, opened.fingerprint
    known = _known_ranges(args.ranges, fingerprint)
    phase = {"ranges only": args.ranges_only, "ranges": args.ranges and file_sha256(args.ranges)}
    say_device(console, device, min(batches.batch_size, len(batches)))
    checkpoint = long_run.open({**fingerprint, **batches.order(), **phase, **opened.device})
    how: dict[str, Any] = {
        "exact": exact,
        "total": len(batches),
        "known": known,
        "ranges_only": args.ranges_only,
    }
    with cluster.open(checkpoint=long_run.checkpoint) as client, console.progress() as progress:
        if client is not None:
            from int8calib.calibration.statistics.cluster import collect_on_cluster

            statistics = collect_on_cluster(
                client, job.executor, batches, job.blobs, progress=progress, **how
            )
        else:
            statistics = collect_statistics(
                job.executor,
                batches,
                job.blobs,
                workers=machine.worker_count,
                cache_bytes=machine.cache_bytes,
                progress=progress,
                checkpoint=checkpoint,
                **how,
            )
    batches.print_skipped(console)
    for warning in job.warnings:
        console.say(f"warning: {warning}")
    collected = Collected(
        statistics, job.candidates, job.named, model.files[0], fingerprint, job.weight_rows
    )
    save_collected(args.output, collected)
    if checkpoint is not None:
        checkpoint.remove()
    what = "ranges" if args.ranges_only else "statistics"
    console.say(
        f"{args.output}: {what} of {len(statistics.ranges)} blobs from {statistics.images} images "
        f"in {time.perf_counter() - started:.1f} s"
    )
    return 0


def _exact(given: bool | None, *, one_of_two: bool) -> bool:
    """Whether the collection takes two passes, of which this may be one."""
    if one_of_two and given is False:
        raise OptionError("--no-exact: --ranges-only and --ranges are passes of --exact")
    return one_of_two or bool(given)


def _known_ranges(path: str | None, fingerprint: Mapping[str, object]) -> Statistics | None:
    """The statistics of `--ranges`, checked for being of the same network and preprocessing."""
    if path is None:
        return None
    from int8calib.calibration.collected import check_fingerprint, load_collected

    known = load_collected(path)
    check_fingerprint(known.fingerprint, fingerprint, path, "this collection")
    return known.statistics
