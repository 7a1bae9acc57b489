"""Show what INT8 does to each layer of a Caffe or ncnn model, the worst first.

example:
  int8calib analyze --proto deploy.prototxt --model net.caffemodel --images photos/ \\
      --mean 104 117 123 --table net.table

isolated: the layer alone in INT8. accumulated: with all layers before it in INT8 too. clipped and
rounding divide the squared error of the layer's bottom.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from int8calib.cli.comparison import (
    add_compared_arguments,
    add_json_argument,
    add_sensitivity_argument,
    add_table_fold_arguments,
    comparison_images,
)
from int8calib.cli.console import Console, format_share
from int8calib.cli.image_options import add_image_arguments, image_options
from int8calib.cli.network import NumpyOptions, add_network_arguments
from int8calib.cli.options import (
    MessageOptions,
    RunOptions,
    add_workers_argument,
    read_options,
)

if TYPE_CHECKING:
    from int8calib.analysis.results import Analysis


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `int8calib analyze`."""
    add_network_arguments(parser, engine=False)
    add_image_arguments(parser)
    group = parser.add_argument_group("analysis")
    group.add_argument("--table", required=True, metavar="FILE", help="a calibration table")
    add_sensitivity_argument(group)
    add_compared_arguments(group, labels=False, topk=False)
    add_table_fold_arguments(group)
    add_json_argument(group)
    add_workers_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Analyze and print."""
    from int8calib.analysis.analyze import analyze
    from int8calib.table import read_table

    console = Console(read_options(MessageOptions, args))
    table = read_table(args.table)
    net = read_options(NumpyOptions, args).load_net()
    workers = read_options(RunOptions, args).worker_count
    images = comparison_images(image_options(args), net, args.scores, args.outputs, workers=workers)
    with console.progress() as progress:
        found = analyze(
            net,
            table,
            images,
            sensitivity_images=args.sensitivity,
            scores=args.scores,
            outputs=args.outputs,
            fold_bn=args.fold_bn,
            workers=workers,
            total=len(images),
            progress=progress,
        )
    images.print_skipped(console)
    for note in found.notes:
        console.say(f"note: {note}")
    if args.json:
        console.result_json(found.as_dict())
    else:
        _show(console, found)
    return 0


def _show(console: Console, found: Analysis) -> None:
    """Both orders, and what the analysis cost."""
    from int8calib.evaluation.measures import format_decibels

    rows = [
        (
            layer.name,
            format_decibels(layer.isolated_sqnr),
            f"{layer.isolated_cosine:.5f}",
            format_decibels(layer.accumulated_sqnr),
            f"{layer.accumulated_cosine:.5f}",
            f"{100 * layer.clipped_values:.3f}",
            f"{100 * layer.clipped_error:.1f}",
            f"{100 * layer.rounding_error:.1f}",
        )
        for layer in found.layers
    ]
    columns = (
        *("layer", "isolated dB", "isolated cosine", "accumulated dB", "accumulated cosine"),
        *("clipped values %", "clipped error %", "rounding error %"),
    )
    console.table(f"Layers in INT8 over {found.images} images, worst first", columns, rows)
    ranked = [
        (layer.name, format_decibels(layer.output_sqnr), format_share(layer.agreement))
        for layer in found.by_sensitivity()
    ]
    if ranked:
        title = f"One layer alone in INT8 over {found.sensitivity_images} images, by its effect"
        console.table(title, ("layer", "output SQNR dB", "same top-1 %"), ranked)
    console.say(f"cost: as {found.cost:.1f} evaluations of one table over these images")
