"""Write a calibration table from statistics, by any method, without running the network again.

example:
  int8calib thresholds stats.npz --method mse --output net.table
"""

from __future__ import annotations

import argparse

from int8calib.cli.console import Console
from int8calib.cli.options import MessageOptions, read_options
from int8calib.cli.outputs import (
    TableFiles,
    calibration_texts,
    counted,
    is_stdout,
    show_calibration,
)
from int8calib.cli.table_options import BY_BLOB, PRESETS, TableOptions, add_choice_arguments
from int8calib.errors import StatisticsError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `int8calib thresholds`."""
    parser.add_argument("statistics", metavar="FILE", help="a file of `int8calib collect` or merge")
    group = parser.add_argument_group("table")
    group.add_argument("--output", required=True, metavar="FILE", help="the table to write")
    add_choice_arguments(group)


def run(args: argparse.Namespace) -> int:
    """Find thresholds and write the table and its report."""
    from int8calib.calibration.assemble import assemble
    from int8calib.calibration.collected import load_collected

    console = Console(read_options(MessageOptions, args), stdout_taken=is_stdout(args.output))
    files = TableFiles(args.output, ".json")
    files.check(inputs=(args.statistics,))
    stored = load_collected(args.statistics)
    statistics = stored.statistics
    if not statistics.histograms:
        raise StatisticsError(
            f"{args.statistics}: holds ranges only; collect the histograms with --ranges"
        )
    fold_bn = bool(stored.fingerprint.get("fold-bn", True))
    options = read_options(TableOptions, args).calibration(fold_bn=fold_bn)
    if args.format in BY_BLOB and not set(stored.blobs.keys.values()) <= set(statistics.histograms):
        raise StatisticsError(
            f"{args.statistics}: the format {args.format} needs the statistics of every blob; "
            "collect them with --all-blobs"
        )
    fingerprint = dict(stored.fingerprint)
    meta = {"statistics": args.statistics, "fingerprint": fingerprint}
    if "ignored_fields" in fingerprint:
        meta["ignored_fields"] = fingerprint["ignored_fields"]
    done = assemble(
        stored.layers,
        statistics,
        options,
        source=stored.source,
        blobs=stored.blobs,
        meta=meta,
        weight_rows=stored.weight_rows,
    )
    notes = _folding_notes(args.like, fold_bn=fold_bn)
    table, report = calibration_texts(args.format, done, stored.layers, options, notes)
    files.write(table, {".json": report})
    show_calibration(console, done)
    for note in notes:
        console.say(note)
    console.say(f"{args.output}: {counted(done)}{files.told({'.json': 'report'})}")
    return 0


def _folding_notes(like: str | None, *, fold_bn: bool) -> list[str]:
    """A warning where the statistics are of other weights than those of the tool of `--like`."""
    if like is None or ("--fold-bn" in PRESETS[like]) == fold_bn:
        return []
    option = "--no-fold-bn" if fold_bn else "--fold-bn"
    return [
        f"warning: --like {like}: for its numbers of a network with BatchNorm the statistics must "
        f"be collected with {option}, and they were not"
    ]
