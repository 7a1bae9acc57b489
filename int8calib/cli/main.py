"""The command `int8calib`: arguments come in, one command runs, an exit code goes out.

Only the chosen command's stages are imported, and only when it runs, so that `--help` answers
at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import int8calib
from int8calib.cli import calibrate, demo
from int8calib.cli.guard import guarded

COMMANDS = (calibrate, demo)


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="int8calib",
        description="INT8 calibration tables for ncnn from Caffe models, without Caffe.",
    )
    parser.add_argument("--version", action="version", version=f"int8calib {int8calib.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
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


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """What every command can be told about how much it says."""
    group = parser.add_argument_group("messages")
    group.add_argument("--quiet", action="store_true", help="print nothing but errors")
    group.add_argument("--verbose", action="store_true", help="print more of what is done")
    group.add_argument("--debug", action="store_true", help="show a traceback with an error")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns 0, 2 for a user's error, or 130 after Ctrl-C."""
    args = build_parser().parse_args(argv)
    return guarded(args.run, args)


if __name__ == "__main__":
    sys.exit(main())
