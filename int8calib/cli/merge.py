"""Merge statistics that `int8calib collect` wrote from parts of the images.

Statistics of one pass merge with each other. Of --exact, ranges merge with ranges, and histograms
with histograms that were counted with the same ranges.
"""

from __future__ import annotations

import argparse

from int8calib.cli.console import Console
from int8calib.cli.options import MessageOptions, read_options
from int8calib.cli.outputs import check_outputs
from int8calib.errors import OptionError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `int8calib merge`."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="files of `int8calib collect`")
    parser.add_argument("--output", required=True, metavar="FILE", help="the .npz file to write")


def run(args: argparse.Namespace) -> int:
    """Read all, merge, write."""
    from int8calib.calibration.collected import load_collected, merge_collected, save_collected
    from int8calib.calibration.statistics.store import common_images

    console = Console(read_options(MessageOptions, args))
    check_outputs([args.output], inputs=args.files)
    twice = [name for i, name in enumerate(args.files) if name in args.files[:i]]
    if twice:
        raise OptionError(f"{twice[0]}: is named twice; its images would count twice")
    parts = {name: load_collected(name) for name in args.files}
    merged = merge_collected(parts)
    common = common_images([part.statistics for part in parts.values()])
    if common:
        console.say(
            f"warning: {common} images stand in more than one file and count more than once"
        )
    save_collected(args.output, merged)
    statistics = merged.statistics
    what = "statistics" if statistics.histograms else "ranges"
    console.say(
        f"{args.output}: {what} of {len(statistics.ranges)} blobs from {statistics.images} images"
    )
    return 0
