"""Look at calibration tables, check them, compare them, or write them in another format.

examples:
  int8calib table show net.table
  int8calib table check net.table --proto deploy.prototxt --model net.caffemodel
  int8calib table diff old.table new.table
  int8calib table convert net.table.json net.cache --format tensorrt
"""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING, Any

from int8calib.cli.console import Console
from int8calib.cli.options import (
    MessageOptions,
    add_ignore_field_argument,
    add_message_arguments,
    finite,
    read_options,
    whole,
)
from int8calib.cli.outputs import check_outputs
from int8calib.cli.table_options import FORMATS, add_winograd_arguments
from int8calib.errors import OptionError
from int8calib.levels import LEVELS

if TYPE_CHECKING:
    from int8calib.table import CalibrationTable, DiffRow, Requirement, RowRequirement

FOUND_ERRORS = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `int8calib table`."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    show = _add_action(actions, "show", "Show the scales of each layer.")
    show.add_argument("table", metavar="TABLE", help="a calibration table in any format")
    check = _add_action(
        actions, "check", "Check a table for what ncnn would misread; exit code 1 for errors."
    )
    check.add_argument("table", metavar="TABLE", help="a calibration table in any format")
    _add_check_arguments(check)
    diff = _add_action(actions, "diff", "Show two tables side by side, the worst ratio first.")
    diff.add_argument("a", metavar="A", help="a calibration table in any format")
    diff.add_argument("b", metavar="B", help="the table to compare it with")
    diff.add_argument("--limit", type=whole(1), metavar="N", help="show the N worst rows only")
    convert = _add_action(actions, "convert", "Write a table in another format.")
    convert.add_argument("table", metavar="IN", help="a calibration table in any format")
    convert.add_argument("output", metavar="OUT", help="the table to write")
    convert.add_argument("--format", choices=FORMATS, default="ncnn", help="of OUT (default: ncnn)")
    for action in (show, check, diff, convert):
        action.add_argument(
            "--from",
            dest="source_format",
            choices=FORMATS,
            help="format of what is read (default: told from its content)",
        )
        add_message_arguments(action, inner=True)


def _add_action(actions: Any, name: str, description: str) -> argparse.ArgumentParser:
    summary = f"{description[0].lower()}{description[1:].rstrip('.')}"
    parser: argparse.ArgumentParser = actions.add_parser(
        name, help=summary, description=description
    )
    return parser


def _add_check_arguments(check: argparse.ArgumentParser) -> None:
    check.add_argument("--proto", metavar="FILE", help="check against this network, with --model")
    check.add_argument("--model", metavar="FILE", help="its weights")
    add_ignore_field_argument(check)
    check.add_argument("--param", metavar="FILE", help="check against this ncnn structure file")
    check.add_argument(
        "--bin", metavar="FILE", help="its weights, if weight scales are to be checked too"
    )
    check.add_argument(
        "--no-fold-bn",
        dest="fold_bn",
        action="store_false",
        help="the network runs without BatchNorm folded in (no ncnnoptimize)",
    )
    add_winograd_arguments(check)
    check.add_argument(
        "--tolerance",
        type=finite(1),
        default=2.0,
        metavar="F",
        help="a weight scale further than this factor from the weights is an error (default: 2)",
    )


def run(args: argparse.Namespace) -> int:
    """Do what the action says."""
    actions = {"show": _show, "check": _check, "diff": _diff, "convert": _convert}
    return actions[args.action](args, Console(read_options(MessageOptions, args)))


def _show(args: argparse.Namespace, console: Console) -> int:
    from int8calib.table import read_table

    table = read_table(args.table, args.source_format)
    rows = []
    for layer in table.layers:
        scales = layer.weight_scales
        found = layer.evidence
        rows.append(
            (
                layer.name,
                _number(layer.bottom_scale),
                _number(LEVELS / layer.bottom_scale),
                str(scales.size),
                _number(float(scales.min())),
                _number(float(scales.max())),
                str(len(layer.dead_channels)),
                "" if found is None else f"{found.blob} ({found.method})",
            )
        )
    columns = ("layer", "scale", "threshold", "weights", "smallest", "largest", "dead", "bottom")
    console.table(f"{args.table}: {len(rows)} layers", columns, rows)
    if table.weight_rows:
        weights = [
            (key, str(row.size), _number(float(row.min())), _number(float(row.max())))
            for key, row in table.weight_rows.items()
        ]
        heads = ("row", "weights", "smallest", "largest")
        console.table(f"{len(weights)} weight rows without a bottom scale", heads, weights)
    if table.blob_scales:
        blobs = [(n, _number(s), _number(LEVELS / s)) for n, s in table.blob_scales.items()]
        console.table(f"{len(blobs)} blobs", ("blob", "scale", "threshold"), blobs)
    return 0


def _check(args: argparse.Namespace, console: Console) -> int:
    from int8calib.table import check_table, read_table_lenient, read_text

    text = read_text(args.table)
    table = read_table_lenient(args.table, args.source_format).table
    requirements, rows = _requirements(args, table)
    findings = check_table(
        text,
        requirements=requirements,
        rows=rows,
        format=args.source_format,
        tolerance=args.tolerance,
    )
    for finding in findings:
        console.result(f"{finding.severity}: {finding.located(args.table)}")
    errors = sum(finding.severity == "error" for finding in findings)
    console.say(f"{args.table}: {errors} errors, {len(findings) - errors} warnings")
    return FOUND_ERRORS if errors else 0


def _requirements(
    args: argparse.Namespace, table: CalibrationTable
) -> tuple[list[Requirement] | None, list[RowRequirement]]:
    """What the network named by the options needs; None where none is named."""
    if args.param is not None or args.bin is not None:
        if args.proto is not None or args.model is not None:
            raise OptionError("--param and --proto/--model: give one network to check against")
        return _ncnn_requirements(args.param, args.bin, winograd=args.winograd)
    if args.proto is None and args.model is None:
        return None, []
    if args.proto is None or args.model is None:
        raise OptionError("--proto and --model: one does without the other only for --param")
    from int8calib.caffe.network.load import load_unsized
    from int8calib.caffe.requirements import requirements_from_graph

    graph = load_unsized(args.proto, args.model, ignore_fields=args.ignore_field)
    by_blob = bool(table.blob_scales) and all(math.isnan(x.bottom_scale) for x in table.layers)
    found = requirements_from_graph(
        graph, fold_bn=args.fold_bn, winograd=args.winograd, versions=not by_blob
    )
    return found, []


def _ncnn_requirements(
    param: str | None, weights: str | None, *, winograd: str
) -> tuple[list[Requirement], list[RowRequirement]]:
    """What an ncnn model needs: counts without its weights, scales with them."""
    from int8calib.ncnn.execution.requirements import requirements_from_model, rows_from_model
    from int8calib.ncnn.model import NcnnModel, load_model, read_text
    from int8calib.ncnn.param import parse_param
    from int8calib.ncnn.requirements import requirements_from_param

    if param is None:
        raise OptionError("--bin is given without --param; give both files of the model")
    if weights is not None:
        model = load_model(param, weights)
        return requirements_from_model(model, winograd=winograd), rows_from_model(model)
    text = read_text(param)
    structure = NcnnModel(parse_param(text, param), param)
    return requirements_from_param(text, param), rows_from_model(structure)


def _diff(args: argparse.Namespace, console: Console) -> int:
    from int8calib.table import diff_tables, read_table

    a, b = (read_table(path, args.source_format) for path in (args.a, args.b))
    rows = diff_tables(a, b)
    equal = sum(row.ratio == 1 for row in rows)
    columns = ("layer", "row", args.a, args.b, "ratio", "channel", "note")
    console.table("", columns, [_diff_cells(row) for row in rows[: args.limit]])
    console.say(f"{len(rows)} rows, {equal} of them equal")
    return 0


def _diff_cells(row: DiffRow) -> tuple[str, ...]:
    return (
        row.layer,
        row.kind,
        "" if row.a is None else _number(row.a),
        "" if row.b is None else _number(row.b),
        "" if row.ratio is None else f"{row.ratio:.6g}",
        "" if row.channel is None else str(row.channel),
        row.note,
    )


def _convert(args: argparse.Namespace, console: Console) -> int:
    from int8calib.table import convert_table

    check_outputs([args.output])
    table = convert_table(
        args.table, args.output, source_format=args.source_format, target_format=args.format
    )
    console.say(f"{args.output}: {len(table.layers)} layers in the format {args.format}")
    return 0


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"
