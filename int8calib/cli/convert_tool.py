"""Caffe model to INT8 calibration table, with the command line of caffe-int8-convert-tool.

Takes the options of caffe-int8-convert-tool-dev-weight.py and writes that tool's own numbers, as
`int8calib calibrate --like tool` does. Without `--like` tables lose less.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from int8calib.cli import main as command_line
from int8calib.cli.console import Console
from int8calib.cli.options import (
    MessageOptions,
    add_input_shape_argument,
    add_message_arguments,
    read_options,
)
from int8calib.cli.process import Parser, run_process


def build_parser() -> argparse.ArgumentParser:
    """The reference tool's options, with its defaults."""
    parser = Parser(
        prog="caffe-int8-convert-tool",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--proto", required=True, help="path to deploy prototxt")
    parser.add_argument("--model", required=True, help="path to pretrained weights")
    parser.add_argument("--mean", nargs=3, default=["0", "0", "0"], help="value of mean, 3 numbers")
    parser.add_argument("--norm", type=float, default=1.0, help="value of normalize")
    add_input_shape_argument(parser)
    parser.add_argument("--images", required=True, help="path to calibration images")
    parser.add_argument("--output", default="calibration.table", help="calibration table to write")
    parser.add_argument(
        "--group", type=int, choices=(0, 1), default=1, help="1: scale per channel, 0: per layer"
    )
    parser.add_argument("--gpu", type=int, default=0, help="ignored: it runs on the CPU")
    add_message_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run as `int8calib calibrate --like tool` would with the same options."""
    return run_process(lambda: _run(sys.argv[1:] if argv is None else argv))


def _run(words: Sequence[str]) -> int:
    given = build_parser().parse_args(words)
    if given.gpu:
        Console(read_options(MessageOptions, given)).say(
            "--gpu: this command runs on the CPU; int8calib calibrate --gpu 0 runs on a GPU"
        )
    messages = [f"--{name}" for name in ("quiet", "verbose", "debug") if getattr(given, name)]
    return command_line.main(
        [
            *("calibrate", "--like=tool", f"--proto={given.proto}", f"--model={given.model}"),
            *(f"--images={given.images}", f"--output={given.output}"),
            f"--group={given.group}",
            *(f"--input-shape={shape}" for shape in given.input_shape),
            *("--mean", *given.mean, f"--norm={given.norm}", *messages),
        ]
    )
