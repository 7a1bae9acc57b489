"""Run a model in float and in ncnn's INT8 arithmetic, and compare what they say.

example:
  int8calib evaluate --proto deploy.prototxt --model net.caffemodel --images photos/ \\
      --mean 104 117 123 --labels labels.txt --table kl.table --table mse.table

An ncnn model (--param, --bin) runs in numpy or, with --engine runtime, in ncnn itself. Shares
stand with their 95 % confidence interval.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from int8calib.cli.comparison import (
    GroundTruth,
    add_compared_arguments,
    add_json_argument,
    add_table_fold_arguments,
    add_tables_argument,
    add_value_arguments,
    box_figures,
    comparison_images,
    read_tables,
)
from int8calib.cli.console import Console, format_share
from int8calib.cli.image_options import add_image_arguments, image_options
from int8calib.cli.network import NetworkOptions, add_network_arguments
from int8calib.cli.options import (
    ClusterOptions,
    MessageOptions,
    RunOptions,
    add_cluster_arguments,
    add_workers_argument,
    read_options,
    whole,
)
from int8calib.errors import OptionError

if TYPE_CHECKING:
    from int8calib.caffe.engine.run import Net
    from int8calib.evaluation.outputs import Comparison
    from int8calib.evaluation.results import Accuracy, BlobError, Evaluation
    from int8calib.evaluation.runtime import RuntimeEvaluation
    from int8calib.ncnn.execution.network import NcnnNet


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `int8calib evaluate`."""
    add_network_arguments(parser)
    add_image_arguments(parser)
    group = parser.add_argument_group("evaluation")
    add_tables_argument(group, "several may be compared")
    add_compared_arguments(group, labels=True, topk=True)
    add_table_fold_arguments(group)
    add_json_argument(group)
    add_value_arguments(group)
    group = parser.add_argument_group("ncnn")
    group.add_argument(
        "--runtime",
        action="store_true",
        help="run float and INT8 in ncnn itself instead of the simulation, with the time of each "
        "(needs the extra ncnn)",
    )
    group.add_argument(
        "--threads",
        type=whole(1),
        default=1,
        metavar="N",
        help="with --runtime: ncnn's (default: 1)",
    )
    add_workers_argument(parser)
    add_cluster_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Evaluate and print."""
    from int8calib.evaluation.evaluate import evaluate
    from int8calib.evaluation.outputs import Comparison

    console = Console(read_options(MessageOptions, args))
    tables = read_tables(args.table)
    workers = read_options(RunOptions, args).worker_count
    model = read_options(NetworkOptions, args)
    cluster = read_options(ClusterOptions, args)
    if args.runtime and cluster.cluster is not None:
        raise OptionError("--runtime: times are measured on this machine; leave --cluster out")
    if args.runtime and not model.is_caffe:
        model = replace(model, engine="runtime")
    net = model.load(args.threads if args.runtime else workers)
    options = image_options(args)
    images = comparison_images(options, net, args.scores, args.outputs, workers=workers)
    images.send_files = cluster.send_images
    batches = read_options(GroundTruth, args).of(images, options)
    how = read_options(Comparison, args)
    _refuse_idle_values(net, how, labeled=args.labels is not None)
    timed = None
    with cluster.open() as client, console.progress() as progress:
        run: dict[str, Any] = {"fold_bn": args.fold_bn, "total": len(images), "progress": progress}
        if args.runtime:
            from int8calib.evaluation.runtime import evaluate_runtime

            timed = evaluate_runtime(net, tables, batches, how, threads=args.threads, **run)
            found = timed.evaluation
        else:
            run |= {"workers": workers, "cluster": client}
            found = evaluate(net, tables, batches, **vars(how), **run)
    images.print_skipped(console)
    console.say(f"compared as {found.kind}")
    for note in found.notes:
        console.say(f"note: {note}")
    if args.json:
        runtime = {} if timed is None else {"runtime": timed.times_dict()}
        console.result_json({**found.as_dict(), **runtime})
    else:
        _show(console, found)
        if timed is not None:
            _show_times(console, timed)
    return 0


def _refuse_idle_values(net: Net | NcnnNet, how: Comparison, *, labeled: bool) -> None:
    """Raise `OptionError` for `--box-score` or `--peak` of a network that gives no such values.

    What ncnn alone runs tells its kind only when it runs.
    """
    from int8calib.caffe.engine.run import Net
    from int8calib.evaluation.kinds import DETECTOR, IMAGES
    from int8calib.evaluation.measures import MIN_SCORE
    from int8calib.evaluation.outputs import compared_blobs

    asked = (
        ("--box-score", how.box_score != MIN_SCORE, DETECTOR),
        ("--peak", how.peak is not None, IMAGES),
    )
    if not isinstance(net, Net) or not any(given for _, given, _ in asked):
        return
    blobs = compared_blobs(net, how.scores, how.outputs, kind=how.kind, labeled=labeled)
    name = "" if blobs.kind is None else blobs.kind.name
    for option, given, kind in asked:
        if given and kind != name:
            raise OptionError(
                f"{option}: is for networks of the kind {kind}, and this one is of "
                f"{f'the kind {name}' if name else 'no kind'}; give --kind {kind} where that is "
                "wrong, or leave it out"
            )


def _show_times(console: Console, timed: RuntimeEvaluation) -> None:
    """The median time of each model, and how much faster than float it is."""
    slow = timed.milliseconds["float"]
    rows = [(name, f"{ms:.2f}", f"{slow / ms:.2f}") for name, ms in timed.milliseconds.items()]
    title = f"Time in ncnn, {timed.threads} thread{'s' * (timed.threads > 1)}"
    console.table(title, ("", "ms an image", "speedup"), rows)


def _show(console: Console, found: Evaluation) -> None:
    """The figures of each net, then of each blob, then the confusions."""
    from int8calib.evaluation.measures import format_decibels

    float_accuracy = found.float_accuracy
    ks = list(float_accuracy.topk) if float_accuracy else []
    agreed = any(table.agreement for table in found.tables)
    box_columns, boxes = box_figures(found)
    columns = ["", *(f"top-{k} %" for k in ks), *["same top-1 %"] * agreed, *box_columns]
    rows = [["float", *_topk(float_accuracy, ks), *[""] * agreed, *boxes[0]]]
    rows = rows if any(rows[0][1:]) else []
    for table, cells in zip(found.tables, boxes[1:], strict=True):
        row = [table.name, *_topk(table.accuracy, ks)]
        rows.append([*row, *[format_share(table.agreement)] * agreed, *cells])
    if len(columns) > 1:
        console.table(f"{found.images} images", columns, rows)
    images = any(blob.psnr is not None for table in found.tables for blob in table.blobs)
    blobs = [
        (table.name, *_blob_cells(blob), *[format_decibels(blob.psnr)] * images)
        for table in found.tables
        for blob in table.blobs
    ]
    title = f"Outputs against float over {found.images} images"
    heads = ("", "blob", "SQNR dB", "relative error %", "cosine", *["PSNR dB"] * images)
    console.table(title, heads, blobs)
    _show_confusion(console, "float", float_accuracy)
    for table in found.tables:
        _show_confusion(console, table.name, table.accuracy)


def _topk(accuracy: Accuracy | None, ks: list[int]) -> tuple[str, ...]:
    return tuple(format_share(accuracy.topk[k]) for k in ks) if accuracy else ()


def _blob_cells(blob: BlobError) -> tuple[str, ...]:
    from int8calib.evaluation.measures import format_decibels

    relative = f"{100 * blob.relative_error:.2f}"
    return blob.blob, format_decibels(blob.sqnr), relative, f"{blob.cosine:.5f}"


def _show_confusion(console: Console, name: str, accuracy: Accuracy | None) -> None:
    if accuracy is None or accuracy.confusion is None:
        return
    counts = accuracy.confusion.tolist()
    columns = ("label", *(str(i) for i in range(len(counts))))
    rows = [(str(i), *map(str, row)) for i, row in enumerate(counts)]
    console.table(f"{name}: labels (rows) and predictions (columns)", columns, rows)
