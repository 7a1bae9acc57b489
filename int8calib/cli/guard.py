"""Run a command so that errors and warnings become one line each and an exit code."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from int8calib.cli.options import MessageOptions
from int8calib.errors import Int8CalibError

USER_ERROR = 2
INTERRUPTED = 130


def guarded(
    run: Callable[[], int], messages: MessageOptions, *, checkpoint: str | None = None
) -> int:
    """Run a command; turn what it raises into a line and an exit code."""
    warnings.showwarning = _warning_line(quiet=messages.quiet)
    # Protobuf, numpy and numba speak to developers; users hear of what this package warns of.
    warnings.simplefilter("ignore")
    warnings.filterwarnings("default", category=UserWarning, module=r"(int8calib|caffe_proto)\b")
    try:
        return run()
    except Int8CalibError as error:
        if messages.debug:
            raise
        message = " ".join(str(error).split())
        print(f"int8calib: error: {message}", file=sys.stderr)  # noqa: T201
        return USER_ERROR
    except KeyboardInterrupt:
        if messages.debug:
            raise
        print(f"int8calib: stopped; {_left(checkpoint)}", file=sys.stderr)  # noqa: T201
        return INTERRUPTED


def _left(checkpoint: str | None) -> str:
    """What a stopped run leaves behind."""
    if checkpoint and Path(checkpoint).exists():
        return f"go on with --checkpoint {checkpoint}"
    return "nothing was written"


def _warning_line(*, quiet: bool) -> Callable[..., None]:
    def show(message: Warning | str, category: type[Warning], *rest: Any) -> None:
        if not quiet:
            print(f"int8calib: warning: {message}", file=sys.stderr)  # noqa: T201

    return show
