"""A command's errors and warnings come in; one line each on stderr and an exit code go out."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from int8calib.errors import Int8CalibError

USER_ERROR = 2
INTERRUPTED = 130


def guarded(run: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """Run a command; turn what it raises into a line and an exit code."""
    warnings.showwarning = _warning_line(quiet=args.quiet)
    # Protobuf, numpy and numba speak to developers; users hear of what this package warns of.
    warnings.simplefilter("ignore")
    warnings.filterwarnings("default", category=UserWarning, module=r"(int8calib|caffe_proto)\b")
    try:
        return run(args)
    except Int8CalibError as error:
        if args.debug:
            raise
        message = " ".join(str(error).split())
        print(f"int8calib: error: {message}", file=sys.stderr)  # noqa: T201
        return USER_ERROR
    except KeyboardInterrupt:
        if args.debug:
            raise
        print(f"int8calib: stopped; {_left(args)}", file=sys.stderr)  # noqa: T201
        return INTERRUPTED


def _left(args: argparse.Namespace) -> str:
    """What a stopped run leaves behind."""
    checkpoint = getattr(args, "checkpoint", None)
    if checkpoint and Path(checkpoint).exists():
        return f"go on with --checkpoint {checkpoint}"
    return "nothing was written"


def _warning_line(*, quiet: bool) -> Callable[..., None]:
    def show(message: Warning | str, category: type[Warning], *rest: Any) -> None:
        if not quiet:
            print(f"int8calib: warning: {message}", file=sys.stderr)  # noqa: T201

    return show
