"""Run a command as a process should: errors are one line and an exit code, signals end it cleanly.

Exit codes: 2 for whatever stopped the command, 130 after Ctrl-C, 143 after SIGTERM, 129 after
SIGHUP, 141 when the reader of stdout went away, each as a shell reports it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from caffe_proto.errors import one_line
from caffe_proto.limits import MAX_MESSAGE
from int8calib.cli.console import discard, write_stderr
from int8calib.cli.options import MessageOptions
from int8calib.cli.start import (
    ENDING,
    PLAIN,
    SIGNALED,
    signal_name,
    stderr_is_apart,
    stop_at_once,
)
from int8calib.complaints import catch_complaints
from int8calib.errors import Int8CalibError

FAILED = 2
SIGPIPE = 13
PACKAGES = {
    "google": "protobuf",
    "llvmlite": "numba",
    "numba": "numba",
    "numpy": "numpy",
    "threadpoolctl": "threadpoolctl",
    "tomli": "tomli",
}
"""Packages of the default install by the module that a command may miss."""


class SignalReceived(BaseException):
    """A signal asks the process to end; raised in the main thread so that files are cleaned up."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line; abbreviated options are refused."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Abbreviations would hide which options are given.
        super().__init__(*args, **{**kwargs, "allow_abbrev": False})

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with code 2."""
        if message.startswith("unrecognized arguments: ") and _is_image(message.split(" ")[-1]):
            # A shell put the names of files in place of a pattern.
            message = f"one place of images is expected: put a pattern in quotes ({message})"
        write_stderr(f"{one_line(f'{self.prog}: error: {message}')}; see {self.prog} --help")
        raise SystemExit(FAILED)

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print a help text; unlike the plain parser's, a full stdout does not go unnoticed."""
        if message and file is sys.stdout:
            sys.stdout.write(message)
        else:
            super()._print_message(message, file)


def _is_image(path: str) -> bool:
    from int8calib.images.find import IMAGE_SUFFIXES

    return Path(path).suffix.lower() in IMAGE_SUFFIXES


def run_process(run: Callable[[], int]) -> int:
    """Run a program with standard streams that can be written, and see that all was written.

    Parameters
    ----------
    run
        The program; returns its exit code.

    Returns
    -------
    int
        What `run` returns, 2 where stdout is full, or 141 where its reader went away.
    """
    _mend_streams()
    if stderr_is_apart():
        catch_complaints()
    try:
        try:
            return run()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        discard(sys.stdout)
        return SIGNALED + SIGPIPE
    except OSError as error:
        discard(sys.stdout)
        write_stderr(f"int8calib: error: standard output: cannot be written: {error.strerror}")
        return FAILED
    finally:
        try:
            sys.stderr.flush()
        except (OSError, ValueError):
            discard(sys.stderr)


def run_guarded(
    name: str, run: Callable[[], int], messages: MessageOptions, *, checkpoint: str | None = None
) -> int:
    """Run a command; turn what it raises, warns of and is signaled into lines and an exit code.

    Parameters
    ----------
    name
        The command, for messages.
    run
        Runs it and returns its exit code.
    messages
        Whether warnings are left out, and whether an error shows a traceback.
    checkpoint
        The file from which a run that was stopped goes on, if there is one.

    Returns
    -------
    int
        The exit code; see the module.
    """
    try:
        with _signals_raised(), _warnings_as_lines(quiet=messages.quiet):
            return run()
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        return _stopped(signal.SIGINT, checkpoint)
    except SignalReceived as received:
        return _stopped(received.number, checkpoint)
    except Exception as error:  # noqa: BLE001 - the process ends here, with a line for each error
        if messages.debug:
            with contextlib.suppress(OSError, ValueError):
                traceback.print_exc()
        write_stderr(f"int8calib: error: {describe(error, name)}", MAX_MESSAGE)
        return FAILED


def describe(error: Exception, command: str) -> str:
    """Return what to tell of an error: its own message, or that it should not have come up."""
    if isinstance(error, Int8CalibError):
        return str(error)
    if isinstance(error, MemoryError):
        detail = f" ({error})" if str(error) else ""
        return (
            f"{command}: there is not enough memory{detail}; --workers 1, --batch 1 and, with "
            "--exact, --cache 0 need the least"
        )
    if isinstance(error, ModuleNotFoundError) and error.name is not None:
        package = PACKAGES.get(error.name.split(".")[0])
        if package is not None:
            what = f"{command} needs the package {package}, which is not installed"
            return f"{what}; pip install {package}"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror or type(error).__name__}"
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    where = f"{command}{_layer(error)} ({_place(error)}{what})"
    return f"internal error in {where}; please report it, --debug shows more"


def _layer(error: Exception) -> str:
    """The layer that was at work when an error came up, as `, layer 'conv1'`."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    for frame in reversed(frames):
        name = getattr(frame.f_locals.get("layer"), "name", None)
        if isinstance(name, str):
            return f", layer {name!r}"
    return ""


def _place(error: Exception) -> str:
    """The innermost line of this package that an error passed through, as `layers/pool.py:31: `."""
    package = Path(__file__).resolve().parents[1]
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_relative_to(package):
            return f"{path.relative_to(package).as_posix()}:{frame.lineno}: "
    return ""


def _stopped(number: int, checkpoint: str | None) -> int:
    """Say which signal stopped a run and how to go on; returns the exit code."""
    kept = checkpoint is not None and Path(checkpoint).exists()
    then = f"go on with --checkpoint {checkpoint}" if kept else "no file is left half-written"
    write_stderr(f"int8calib: stopped by {signal_name(number)}; {then}")
    return SIGNALED + number


@contextlib.contextmanager
def _signals_raised() -> Iterator[None]:
    """Raise `SignalReceived` for signals that ask to end, unless they are ignored (nohup)."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    before = {number: signal.getsignal(number) for number in ENDING}
    taken = [number for number in ENDING if before[number] in (*PLAIN, stop_at_once)]

    def raise_it(number: int, frame: FrameType | None) -> NoReturn:
        for other in taken:
            signal.signal(other, signal.SIG_IGN)  # what follows must not disturb the cleaning up
        raise SignalReceived(number)

    for number in taken:
        interrupts = number == signal.SIGINT  # as KeyboardInterrupt, which Python's users expect
        signal.signal(number, signal.default_int_handler if interrupts else raise_it)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, before[number])


def _mend_streams() -> None:
    """Make stdout and stderr take every character, and closed ones take everything."""
    # A file that is opened later must not get the number of a closed stream.
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def _warnings_as_lines(*, quiet: bool) -> Iterator[None]:
    """Print the warnings of this package as one line each, and no others."""

    def show(message: Warning | str, *rest: Any, **more: Any) -> None:
        if not quiet:
            write_stderr(f"int8calib: warning: {message}")

    with warnings.catch_warnings():
        warnings.showwarning = show
        # Protobuf, numpy and numba speak to developers.
        warnings.simplefilter("ignore")
        warnings.filterwarnings(
            "default", category=UserWarning, module=r"(int8calib|caffe_proto)\b"
        )
        yield
