"""The command line `int8calib`: reads its arguments and runs one command.

Only the chosen command's module is imported, and its stages only when it runs, so that a command
starts at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

import int8calib
from int8calib.cli.config import ConfigParser
from int8calib.cli.console import write_stderr
from int8calib.cli.options import MessageOptions, add_message_arguments, read_options
from int8calib.cli.process import FAILED, Parser, run_guarded, run_process
from int8calib.errors import OptionError

COMMANDS = {
    "convert": "write a Caffe model as an ncnn model",
    "calibrate": "write the calibration table of a Caffe model",
    "quantize": "write an INT8 ncnn model from a float one and its table",
    "predict": "run ncnn models on images: classes, or boxes drawn on the pictures",
    "collect": "collect statistics of a model's activations in a file",
    "merge": "merge statistics of parts of the images",
    "thresholds": "write a table from collected statistics",
    "table": "show, check, compare or convert tables",
    "inspect": "the network as a table, what runs in INT8, and warnings",
    "evaluate": "accuracy of the INT8 model beside the float model",
    "analyze": "error of every INT8 layer, and how much the outputs depend on it",
    "tune": "search a better table, and with --write-model better weights",
    "report": "write a page that explains a table and each of its layers",
    "demo": "try everything on a built-in network, no files needed",
}
"""Each command is the module of its name in this package: `add_arguments` and `run`."""


def build_parser(chosen: Sequence[str] = tuple(COMMANDS)) -> argparse.ArgumentParser:
    """The parser of the whole command line, with the options of the `chosen` commands."""
    parser = Parser(
        prog="int8calib",
        description="INT8 calibration tables for ncnn from Caffe models, without Caffe.",
    )
    parser.add_argument("--version", action="version", version=f"int8calib {int8calib.__version__}")
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", required=True, parser_class=ConfigParser
    )
    for name, summary in COMMANDS.items():
        command = commands.add_parser(
            name, help=summary, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        if name in chosen:
            module = import_module(f"int8calib.cli.{name}")
            command.description = module.__doc__
            module.add_arguments(command)
            add_message_arguments(command)
            command.set_defaults(run=module.run)
    return parser


def run_command(words: Sequence[str]) -> int:
    """Run the command of a command line and return its exit code; errors are raised."""
    args = _parse(words)
    code: int = args.run(args)
    return code


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code, as `int8calib.cli.process` lists them."""
    # Idle threads of OpenBLAS, which numpy brings, else keep a core busy for tenths of a second.
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")
    words = sys.argv[1:] if argv is None else argv
    return run_process(lambda: _run_guarded(words))


def _run_guarded(words: Sequence[str]) -> int:
    try:
        args = _parse(words)
    except OptionError as error:
        write_stderr(f"int8calib: error: {error}")
        return FAILED
    return run_guarded(
        args.command,
        lambda: args.run(args),
        read_options(MessageOptions, args),
        checkpoint=getattr(args, "checkpoint", None),
    )


def _parse(words: Sequence[str]) -> argparse.Namespace:
    # The program's own options take no values, so the first other word is the command.
    chosen = [word for word in words if not word.startswith("-")][:1]
    return build_parser(chosen).parse_args(words)


if __name__ == "__main__":
    from int8calib.cli.start import main as start

    sys.exit(start())
