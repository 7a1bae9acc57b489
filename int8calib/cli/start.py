"""Start a command as a process of its own, which ends with a line whenever it is told to.

A signal may come while Python still loads the command, so the first handlers are set before
anything else is imported; `int8calib.cli.process` sets its own where files may have to be removed.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import NoReturn

ENDING = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
"""Signals that ask a process to end."""
SIGNALED = 128
"""Added to the number of the signal that ended a command."""
PLAIN = (signal.SIG_DFL, signal.default_int_handler)
"""What Python does with them; another handler is somebody's wish, such as nohup's."""
_stderr_is_apart = False


def main() -> int:
    """Run `int8calib` and return its exit code."""
    _prepare()
    from int8calib.cli.main import main as run

    return run()


def convert_tool() -> int:
    """Run `caffe-int8-convert-tool` and return its exit code."""
    _prepare()
    from int8calib.cli.convert_tool import main as run

    return run()


def signal_name(number: int) -> str:
    """How messages call a signal."""
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


def stop_at_once(number: int, frame: FrameType | None) -> NoReturn:
    """End the process with a line; nothing is open that must be removed."""
    from contextlib import suppress

    line = f"int8calib: stopped by {signal_name(number)}; no file is left half-written\n"
    with suppress(OSError):
        os.write(2, line.encode())
    os._exit(SIGNALED + number)


def _prepare() -> None:
    for number in ENDING:
        if signal.getsignal(number) in PLAIN:
            signal.signal(number, stop_at_once)
    _keep_stderr_apart()


def _keep_stderr_apart() -> None:
    """Give Python's stderr a descriptor of its own.

    Descriptor 2 is then left to libraries that print by themselves, and can be caught
    (`int8calib.complaints`) without a loss of lines of ours.
    """
    encoding = getattr(sys.stderr, "encoding", None)
    try:
        for number in (0, 1, 2):
            os.fstat(number)  # a copy must not get the number of a closed stream
        own = os.dup(2)
    except OSError:
        return
    global _stderr_is_apart
    _stderr_is_apart = True
    sys.stderr = os.fdopen(own, "w", buffering=1, encoding=encoding, errors="backslashreplace")


def stderr_is_apart() -> bool:
    """Whether descriptor 2 is left to libraries, since Python's stderr is another."""
    return _stderr_is_apart
