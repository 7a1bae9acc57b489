"""What a command shows while it works: a progress bar on a terminal, log lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import rich.console

    from int8calib.cli.options import MessageOptions
    from int8calib.evaluation.measures import Share

Progress = Callable[[str, int, int], None]
LOG_EVERY = 5.0
"""Seconds between two log lines of one stage."""


class Console:
    """Where a command prints. Messages go to stderr, results to stdout."""

    def __init__(self, options: MessageOptions) -> None:
        self.quiet = options.quiet
        self.verbose = options.verbose

    def say(self, message: str) -> None:
        """A line that `--quiet` leaves out."""
        if not self.quiet:
            print(message, file=sys.stderr, flush=True)  # noqa: T201

    def detail(self, message: str) -> None:
        """A line that only `--verbose` shows."""
        if self.verbose and not self.quiet:
            print(message, file=sys.stderr, flush=True)  # noqa: T201

    def result(self, text: str) -> None:
        """What the command was asked for."""
        if not self.quiet:
            print(text, flush=True)  # noqa: T201

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table on stdout; columns of numbers stand at the right."""
        if self.quiet:
            return
        from rich.table import Table
        from rich.text import Text

        table = Table(title=Text(title), title_justify="left", box=None, pad_edge=False)
        for i, column in enumerate(columns):
            numbers = all(_begins_as_number(row[i]) for row in rows)
            table.add_column(column, justify="right" if numbers else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        self._stdout().print(table)

    @contextmanager
    def progress(self, what: str = "images") -> Iterator[Progress]:
        """A function `(stage, done, total)` that shows how far the work is."""
        if self.quiet:
            yield lambda stage, done, total: None
        elif sys.stderr.isatty():
            with _bar(what) as show:
                yield show
        else:
            yield _LogLines(self, what)

    def _stdout(self) -> rich.console.Console:
        import rich.console

        if sys.stdout.isatty():
            return rich.console.Console()
        # Not a terminal: nothing to wrap to, so rows stay on their line.
        return rich.console.Console(width=200, color_system=None, soft_wrap=True)


def _begins_as_number(cell: str) -> bool:
    """Whether a cell holds a number, perhaps with a unit or an interval behind it, or nothing."""
    return not cell or cell.lstrip("±+-")[:1].isdigit() or cell in ("inf", "-inf", "nan", "-")


@contextmanager
def _bar(what: str) -> Iterator[Progress]:
    import rich.console
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
    with RichProgress(*columns, console=rich.console.Console(stderr=True)) as progress:

        def show(stage: str, done: int, total: int) -> None:
            now = time.monotonic()
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total or None, rate="")
                started[stage] = now
            rate = done / max(now - started[stage], 1e-3)
            progress.update(tasks[stage], completed=done, rate=f"{rate:.1f} {what}/s")

        yield show


class _LogLines:
    """Progress as plain lines: a stage's first, then one every few seconds, and its last."""

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
