"""The command `int8calib`: arguments come in, one command runs, an exit code goes out.

Only the chosen command's stages are imported, and only when it runs, so that `--help` answers
at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import int8calib
from int8calib.cli import (
    analyze,
    calibrate,
    collect,
    demo,
    evaluate,
    inspect,
    merge,
    report,
    table,
    thresholds,
    tune,
)
from int8calib.cli.config import ConfigParser
from int8calib.cli.guard import guarded
from int8calib.cli.screen import add_output_arguments

COMMANDS = (
    calibrate,
    collect,
    merge,
    thresholds,
    table,
    inspect,
    evaluate,
    analyze,
    tune,
    report,
    demo,
)


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="int8calib",
        description="INT8 calibration tables for ncnn from Caffe models, without Caffe.",
    )
    parser.add_argument("--version", action="version", version=f"int8calib {int8calib.__version__}")
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", required=True, parser_class=ConfigParser
    )
    for module in COMMANDS:
        command = commands.add_parser(
            module.NAME,
            help=module.HELP,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        add_output_arguments(command)
        command.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns 0, 2 for a user's error, or 130 after Ctrl-C."""
    args = build_parser().parse_args(argv)
    return guarded(args.run, args)


if __name__ == "__main__":
    sys.exit(main())
