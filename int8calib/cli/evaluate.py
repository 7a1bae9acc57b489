"""Run a model in float and in ncnn's INT8 arithmetic, and compare what they say.

example:
  int8calib evaluate --proto deploy.prototxt --model net.caffemodel --images photos/ \\
      --mean 104 117 123 --labels labels.txt --table kl.table --table mse.table

An ncnn model (--param, --bin) runs in ncnn itself. Shares stand with their 95 % confidence
interval.
"""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING, Any

from int8calib.cli.comparison import (
    add_compared_arguments,
    add_json_argument,
    add_table_fold_arguments,
    add_tables_argument,
    comparison_images,
    read_tables,
)
from int8calib.cli.console import Console, format_share
from int8calib.cli.image_options import add_image_arguments, image_options
from int8calib.cli.labels import LabeledImages
from int8calib.cli.network import NetworkOptions, add_network_arguments
from int8calib.cli.options import (
    MessageOptions,
    RunOptions,
    add_workers_argument,
    finite,
    read_options,
    whole,
)

if TYPE_CHECKING:
    from int8calib.evaluation.results import Accuracy, Evaluation, TableResult
    from int8calib.evaluation.runtime import RuntimeEvaluation


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `int8calib evaluate`."""
    add_network_arguments(parser)
    add_image_arguments(parser)
    group = parser.add_argument_group("evaluation")
    add_tables_argument(group, "several may be compared")
    add_compared_arguments(group, labels=True, topk=True)
    add_table_fold_arguments(group)
    add_json_argument(group)
    group.add_argument(
        "--box-score",
        type=finite(),
        default=0.3,
        metavar="S",
        help="detections of a lower score are not compared (default: 0.3)",
    )
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


def run(args: argparse.Namespace) -> int:
    """Evaluate and print."""
    from int8calib.evaluation.evaluate import evaluate

    console = Console(read_options(MessageOptions, args))
    tables = read_tables(args.table)
    workers = read_options(RunOptions, args).worker_count
    net = read_options(NetworkOptions, args).load(args.threads if args.runtime else workers)
    images = comparison_images(image_options(args), net, args.scores, args.outputs, workers=workers)
    batches = images if args.labels is None else LabeledImages(images, args.labels)
    how: dict[str, Any] = {
        "topk": args.topk,
        "scores": args.scores,
        "outputs": args.outputs,
        "box_score": args.box_score,
        "fold_bn": args.fold_bn,
        "total": len(images),
    }
    timed = None
    with console.progress() as progress:
        if args.runtime:
            from int8calib.evaluation.runtime import evaluate_runtime

            timed = evaluate_runtime(
                net, tables, batches, threads=args.threads, progress=progress, **how
            )
            found = timed.evaluation
        else:
            found = evaluate(net, tables, batches, workers=workers, progress=progress, **how)
    images.print_skipped(console)
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
    boxed = any(table.boxes for table in found.tables)
    columns = ["", *(f"top-{k} %" for k in ks)]
    columns += ["same top-1 %"] * agreed + ["same boxes %"] * boxed
    rows = [["float", *_topk(float_accuracy, ks), *[""] * (agreed + boxed)]]
    for table in found.tables:
        row = [table.name, *_topk(table.accuracy, ks)]
        row += [format_share(table.agreement)] * agreed + [_boxes(table)] * boxed
        rows.append(row)
    if len(columns) > 1:
        console.table(f"{found.images} images", columns, rows)
    blobs = [
        (table.name, blob.blob, format_decibels(blob.sqnr), f"{blob.cosine:.5f}")
        for table in found.tables
        for blob in table.blobs
    ]
    title = f"Outputs against float over {found.images} images"
    console.table(title, ("", "blob", "SQNR dB", "cosine"), blobs)
    _show_confusion(console, "float", float_accuracy)
    for table in found.tables:
        _show_confusion(console, table.name, table.accuracy)


def _topk(accuracy: Accuracy | None, ks: list[int]) -> tuple[str, ...]:
    return tuple(format_share(accuracy.topk[k]) for k in ks) if accuracy else ()


def _boxes(table: TableResult) -> str:
    boxes = table.boxes
    if boxes is None:
        return ""
    counts = f"{boxes.matched} of {boxes.float_boxes} and {boxes.int8_boxes}"
    return counts if math.isnan(boxes.value) else f"{100 * boxes.value:.1f} ({counts})"


def _show_confusion(console: Console, name: str, accuracy: Accuracy | None) -> None:
    if accuracy is None or accuracy.confusion is None:
        return
    counts = accuracy.confusion.tolist()
    columns = ("label", *(str(i) for i in range(len(counts))))
    rows = [(str(i), *map(str, row)) for i, row in enumerate(counts)]
    console.table(f"{name}: labels (rows) and predictions (columns)", columns, rows)
