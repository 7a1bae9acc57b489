"""What a command prints: results on stdout, messages and progress on stderr."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, TextIO

from caffe_proto.errors import one_line
from int8calib.errors import OutputError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from int8calib.cli.options import MessageOptions
    from int8calib.evaluation.measures import Share

Progress = Callable[[str, int, int], None]
LOG_EVERY = 5.0
"""Seconds between two log lines of one stage."""
MAX_LINE = 10_000
"""Characters of a printed line that is not an error: paths and commands stand in full."""


def write_stderr(line: str, limit: int = MAX_LINE) -> None:
    """Write one line to stderr; what cannot be told there does not stop the work."""
    with suppress(OSError, ValueError):
        print(one_line(line, limit), file=sys.stderr, flush=True)  # noqa: T201


def write_stdout(text: str) -> None:
    """Write text and a line's end to stdout now.

    Raises `OutputError` where stdout is full, `BrokenPipeError` where its reader went away.
    """
    try:
        print(text, flush=True)  # noqa: T201
    except BrokenPipeError:
        raise
    except OSError as error:
        discard(sys.stdout)
        reason = error.strerror or error
        raise OutputError(f"standard output: cannot be written: {reason}") from None


def _write_lines_to_stderr(text: str) -> None:
    for line in text.split("\n"):
        write_stderr(line)


def as_utf8(value: Any) -> Any:
    """Return a JSON value whose texts are UTF-8: bytes of file names that are none are escaped."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, Mapping):
        return {as_utf8(key): as_utf8(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [as_utf8(each) for each in value]
    return value


def discard(stream: TextIO) -> None:
    """Let what waits in the buffer of a stream go nowhere, so that the exit does not stumble."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


MOST_LAID_OUT = 500
"""Rows of a table that rich fits into the terminal; longer ones keep a line each."""


class Console:
    """Where a command prints. Messages go to stderr, results to stdout.

    Every line is printable: control characters in names of files and layers are escaped.
    """

    def __init__(self, options: MessageOptions, *, stdout_taken: bool = False) -> None:
        """`stdout_taken`: a file goes to stdout, so that results go to stderr."""
        self.quiet = options.quiet
        self.verbose = options.verbose
        self._write = _write_lines_to_stderr if stdout_taken else write_stdout
        self.notes: list[str] = []
        self._tables = 0

    def say(self, message: str) -> None:
        """Print a line that `--quiet` leaves out."""
        if not self.quiet:
            write_stderr(message)

    def note(self, message: str) -> None:
        """Print a line that a report repeats: `--quiet` leaves it out here, not there."""
        self.notes.append(message)
        self.say(message)

    def keep_warnings(self) -> None:
        """Also keep as notes what the command's process is warned of from now on."""
        shown = warnings.showwarning

        def keep(message: Warning | str, *rest: Any, **more: Any) -> None:
            self.notes.append(str(message))
            shown(message, *rest, **more)

        warnings.showwarning = keep

    def detail(self, message: str) -> None:
        """Print a line that only `--verbose` shows."""
        if self.verbose:
            self.say(message)

    def result(self, *lines: str) -> None:
        """Print lines of what the command was asked for."""
        if not self.quiet:
            self._write("\n".join(one_line(line, MAX_LINE) for line in lines))

    def result_json(self, value: object) -> None:
        """Print what the command was asked for as JSON, in ASCII whatever the encoding."""
        if not self.quiet:
            self._write(json.dumps(as_utf8(value), indent=1))

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table on stdout; columns of numbers stand at the right."""
        if self.quiet:
            return
        if self._tables:
            self._write("")
        self._tables += 1
        if len(rows) > MOST_LAID_OUT or find_spec("rich") is None:
            self._write(plain_table(title, columns, rows))
            return
        from rich.table import Table
        from rich.text import Text

        heading = Text(one_line(title, MAX_LINE))
        table = Table(title=heading, title_justify="left", box=None, pad_edge=False)
        for i, column in enumerate(columns):
            numbers = all(_begins_as_number(row[i]) for row in rows)
            justify: Literal["left", "right"] = "right" if numbers else "left"
            table.add_column(Text(one_line(column)), justify=justify, overflow="fold")
        for row in rows:
            table.add_row(*(Text(one_line(cell)) for cell in row))
        self._write(_rendered(table))

    @contextmanager
    def progress(self, what: str = "images") -> Iterator[Progress]:
        """A function `(stage, done, total)` that shows how far the work is."""
        if self.quiet:
            yield lambda stage, done, total: None
        elif sys.stderr.isatty() and find_spec("rich") is not None:
            with _bar(what) as show:
                yield show
        else:
            yield _LogLines(self, what)


def plain_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as rich lays it out where lines may be of any length, in a time that grows with it.

    Rich takes seconds for thousands of rows.
    """
    cells = [[one_line(cell) for cell in row] for row in (columns, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    right = [all(_begins_as_number(row[i]) for row in rows) for i in range(len(columns))]
    lines = (
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(row, widths, right, strict=True)
        )
        for row in cells
    )
    return "\n".join([one_line(title, MAX_LINE), *(line.rstrip() for line in lines)])


def _rendered(table: RenderableType) -> str:
    """The text of a rich table, as wide as the terminal; elsewhere rows stay on their line."""
    from rich.console import Console as RichConsole

    file = io.StringIO()
    terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if terminal else MAX_LINE
    RichConsole(file=file, width=width, soft_wrap=not terminal).print(table)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


def _begins_as_number(cell: str) -> bool:
    """Whether a cell holds a number, perhaps with a unit or an interval behind it, or nothing."""
    return not cell or cell.lstrip("±+-")[:1].isdigit() or cell in ("inf", "-inf", "nan", "-")


@contextmanager
def _bar(what: str) -> Iterator[Progress]:
    from rich.console import Console as RichConsole
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TaskID,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description:<10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    tasks: dict[str, TaskID] = {}
    started: dict[str, float] = {}
    with RichProgress(*columns, console=RichConsole(stderr=True)) as progress:

        def show(stage: str, done: int, total: int) -> None:
            now = time.monotonic()
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total or None, rate="")
                started[stage] = now
            rate = done / max(now - started[stage], 1e-3)
            progress.update(tasks[stage], completed=done, rate=f"{rate:.1f} {what}/s")

        yield show


class _LogLines:
    """Progress as plain lines: one every few seconds, and the last of each stage."""

    def __init__(self, console: Console, what: str) -> None:
        self._console = console
        self._what = what
        self._started: dict[str, float] = {}
        self._spoken: dict[str, float] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        self._started.setdefault(stage, now)
        self._spoken.setdefault(stage, now)
        if done != total and now - self._spoken[stage] < LOG_EVERY:
            return
        self._spoken[stage] = now
        seconds = now - self._started[stage]
        of = f" of {total}" if total else ""
        rate = f", {done / seconds:.1f} {self._what}/s" if seconds > 0 else ""
        left = f", {(total - done) * seconds / done:.0f} s left" if done and done < total else ""
        self._console.say(f"{stage}: {done}{of} {self._what}{rate}{left}")


def format_share(share: Share | None) -> str:
    """Return a share in per cent with its interval, as `64.0 (57.1-70.3)`; empty for none."""
    if share is None or not share.total:
        return ""
    low, high = share.interval
    return f"{100 * share.value:.1f} ({100 * low:.1f}-{100 * high:.1f})"
