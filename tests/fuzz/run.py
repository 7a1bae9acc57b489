"""Cases: a damaged file is read within a time and a memory, and the outcome is counted."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from tests.fuzz.seeds import Seeds, write_anew
from tests.fuzz.targets import REFUSED, TARGETS

try:
    import resource
except ImportError:  # Windows: no limit of memory
    resource = None  # type: ignore[assignment]

GOOD = ("success", "refused")
BAD = ("error", "slow", "memory")
MEMORY = 3 << 30  # bytes of address space that a case may add
KEPT = ("prototxt", "caffemodel", "image")  # kinds with the most code behind them


class SlowError(BaseException):
    """A case ran past its time; no handler of errors may catch it."""


@dataclass(frozen=True)
class Failure:
    """A case that ended in anything but a result or our own error."""

    kind: str
    case: int
    outcome: str
    what: str  # the error and its innermost line in the project
    trace: str


@dataclass
class Report:
    """Counts by kind and outcome, and the failures."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)

    def table(self) -> str:
        """The counts, and each distinct failure with its first case."""
        outcomes = (*GOOD, *BAD)
        kinds = [kind for kind in TARGETS if any(self.counts[kind, o] for o in outcomes)]
        rows = [("kind", "cases", *outcomes)]
        for kind in kinds:
            counts = [self.counts[kind, outcome] for outcome in outcomes]
            rows.append((kind, *(f"{count:,}" for count in (sum(counts), *counts))))
        totals = [sum(self.counts[kind, outcome] for kind in kinds) for outcome in outcomes]
        rows.append(("all", *(f"{count:,}" for count in (sum(totals), *totals))))
        lines = ["".join(f"{cell:>13}" for cell in row) for row in rows]
        distinct: dict[tuple[str, str], list[Failure]] = {}
        for failure in self.failures:
            distinct.setdefault((failure.outcome, failure.what), []).append(failure)
        for (outcome, what), group in distinct.items():
            first = group[0]
            where = f"--kind {first.kind} --case {first.case}"
            lines.append(f"{len(group):6} x {outcome}: {what}  ({where})")
        return "\n".join(lines)


def cases_of(kinds: Iterable[str], count: int) -> Iterator[tuple[str, int]]:
    """`count` cases over all kinds; those with more code behind them get three times as many."""
    turns = [kind for kind in kinds for _ in range(3 if kind in KEPT else 1)]
    for i in range(count):
        yield turns[i % len(turns)], i


def damaged(seeds: Seeds, kind: str, case: int, seed: int = 1) -> tuple[bytes, random.Random]:
    """The damaged file of a case, the same in every run, and what goes on drawing for it."""
    rng = random.Random(f"{seed} {kind} {case}")
    whole = rng.choice(seeds.files[kind])
    return TARGETS[kind].damage(whole, rng, seeds.files[kind]), rng


def run_case(
    seeds: Seeds, kind: str, case: int, folder: Path, *, seed: int = 1, limit: float = 10.0
) -> tuple[str, Failure | None]:
    """Read one damaged file; what came of it."""
    data, rng = damaged(seeds, kind, case, seed)
    path = write_anew(folder / f"file{TARGETS[kind].suffix}", data)
    started = time.monotonic()
    try:
        with _deadline(limit), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            TARGETS[kind].read(path, seeds.folder, rng)
        return "success", None
    except REFUSED:
        return "refused", None
    except SlowError as error:
        outcome, problem = "slow", error
    except MemoryError as error:
        outcome, problem = "memory", error
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        outcome, problem = "error", error
    seconds = time.monotonic() - started
    what = f"{type(problem).__name__} at {_place(problem)}: {str(problem)[:160]!r}"
    trace = "".join(traceback.format_exception(problem))
    return outcome, Failure(kind, case, outcome, what, f"{trace}\nafter {seconds:.1f} s")


def run_cases(
    seeds: Seeds,
    cases: Iterable[tuple[str, int]],
    folder: Path,
    *,
    seed: int = 1,
    limit: float = 10.0,
) -> Report:
    """Run many cases within one limit of memory."""
    report = Report()
    with limited_memory(), _silent_libraries():
        for kind, case in cases:
            outcome, failure = run_case(seeds, kind, case, folder, seed=seed, limit=limit)
            report.counts[kind, outcome] += 1
            if failure is not None:
                report.failures.append(failure)
    return report


@contextlib.contextmanager
def limited_memory() -> Iterator[None]:
    """A block that may take `MEMORY` bytes more address space than is taken when it begins."""
    status = Path("/proc/self/statm")
    if resource is None or not status.exists():
        yield
        return
    taken = int(status.read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@contextlib.contextmanager
def _silent_libraries() -> Iterator[None]:
    """A block in which libpng, libjpeg and the like do not print."""
    sys.stderr.flush()
    before, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(nowhere)


@contextlib.contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """A block that is stopped after a time, in the main thread of systems that have alarms."""
    main = threading.current_thread() is threading.main_thread()
    if not main or not hasattr(signal, "setitimer"):
        yield
        return

    def late(_: int, __: FrameType | None) -> None:
        raise SlowError(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _place(error: BaseException) -> str:
    """The innermost line of this project that an error passed through."""
    root = Path(__file__).resolve().parents[2]
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_relative_to(root):
            return f"{path.relative_to(root).as_posix()}:{frame.lineno}"
    return "?"
