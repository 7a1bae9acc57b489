"""Checkpoints of a collection: what is counted so far, in a file from which a run goes on.

A batch (the images of one forward pass) is done or not, so a checkpoint never holds half of one,
and a run that goes on from it counts nothing twice.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from int8calib.calibration.statistics.file import (
    StatisticsFile,
    check_array,
    load_statistics,
    save_statistics,
)
from int8calib.calibration.statistics.histogram import Histogram
from int8calib.calibration.statistics.ranges import Range
from int8calib.calibration.statistics.store import Statistics
from int8calib.errors import OptionError, StatisticsError

Checksums: TypeAlias = tuple[int, ...]
"""A checksum (32 bits) of each image of a batch."""


@dataclass
class CollectionState:
    """What a collection has counted so far.

    Attributes
    ----------
    ranges, histograms, halves
        Those of the batches done, by blob; `halves` of about half of the images.
    measured, counted
        The batches whose ranges, and whose histograms, are in, by number, with their checksums.
    ranges_known
        Whether the first pass is over: `ranges` are those of all images.
    exact
        Whether it takes two passes; otherwise `measured` is empty.
    """

    ranges: dict[str, Range] = field(default_factory=dict)
    histograms: dict[str, Histogram] = field(default_factory=dict)
    halves: dict[str, Histogram] = field(default_factory=dict)
    measured: dict[int, Checksums] = field(default_factory=dict)
    counted: dict[int, Checksums] = field(default_factory=dict)
    ranges_known: bool = False
    exact: bool = True

    def add_ranges(
        self, batch: int, checksums: Checksums, ranges: Iterable[tuple[str, Range]]
    ) -> None:
        """Commit the ranges of one batch."""
        for blob, measured in ranges:
            before = self.ranges.get(blob)
            self.ranges[blob] = before.merge(measured) if before else measured
        self.measured[batch] = checksums

    def add_counts(self, blob: str, whole: Histogram, half: Histogram) -> None:
        """Add one blob's histograms: of all images, and of those in the half."""
        for total, counts in ((self.histograms, whole), (self.halves, half)):
            total[blob] = total[blob].merge(counts) if blob in total else counts

    def snapshot(self) -> CollectionState:
        """Return a copy that stays as it is; its histograms are shared, which nobody changes."""
        return replace(
            self,
            ranges=dict(self.ranges),
            histograms=dict(self.histograms),
            halves=dict(self.halves),
            measured=dict(self.measured),
            counted=dict(self.counted),
        )

    def statistics(self, blobs: Iterable[str]) -> Statistics:
        """Return what was learned, in the order of `blobs`."""
        made = [blob for blob in blobs if blob in self.ranges]
        return Statistics(
            {blob: self.ranges[blob] for blob in made},
            {blob: self.histograms[blob] for blob in made if blob in self.histograms},
            halves={blob: self.halves[blob] for blob in made if blob in self.halves},
            checksums=self.checksums(),
        )

    def checksums(self) -> NDArray[np.uint32]:
        """Return the checksums of all images that are in, sorted."""
        done = self.counted if self.histograms else self.measured
        return np.sort(np.array([c for codes in done.values() for c in codes], np.uint32))


class Checkpoint:
    """A file that a run writes now and then, and from which the same run goes on.

    Nothing is read or written before the run begins. Images that are in already must come again,
    in the same batches; other ones are refused.

    Parameters
    ----------
    path : path
        The file, .npz.
    fingerprint : mapping, optional
        What must be the same for a run to go on, JSON values. By default it is made from the
        network: its layers and weights.
    every : float
        Seconds between two writes.

    Raises
    ------
    OptionError
        For a time that is negative, infinite or NaN.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        fingerprint: Mapping[str, Any] | None = None,
        every: float = 30.0,
    ) -> None:
        if not 0 <= every < math.inf:
            raise OptionError(f"checkpoint every {every} s; expected 0 s or more")
        self.path = Path(path)
        self._fingerprint = fingerprint
        self._every = every
        self._due = time.monotonic() + every
        self._writing = threading.Lock()

    def identify(self, fingerprint: Callable[[], Mapping[str, Any]]) -> None:
        """Take this fingerprint where none was given.

        Parameters
        ----------
        fingerprint : callable
            ``fingerprint()`` gives what must be the same for a run to go on, JSON values.
        """
        if self._fingerprint is None:
            self._fingerprint = fingerprint()

    def load(
        self, blobs: Iterable[str] | None = None, *, exact: bool | None = None
    ) -> CollectionState | None:
        """Return what an earlier run left, None where there is nothing.

        Parameters
        ----------
        blobs : iterable of str, optional
            The blobs that the run observes.
        exact : bool, optional
            Whether the run takes two passes.

        Returns
        -------
        CollectionState or None

        Raises
        ------
        StatisticsError
            For a damaged file, or one that is no checkpoint, or of other blobs.
        OptionError
            For the checkpoint of another job.
        """
        if not self.path.exists():
            return None
        stored = load_statistics(self.path)
        meta = stored.statistics.meta.get("checkpoint")
        if not isinstance(meta, dict) or meta.keys() != {"fingerprint", "ranges_known", "exact"}:
            raise StatisticsError(f"{self.path}: statistics, but no checkpoint of a run")
        fingerprint, flags = meta["fingerprint"], (meta["ranges_known"], meta["exact"])
        if not isinstance(fingerprint, dict) or not all(isinstance(flag, bool) for flag in flags):
            raise StatisticsError(f"{self.path}: a damaged checkpoint; delete it to start anew")
        ours = self._fingerprint or {}
        for key in sorted(fingerprint.keys() | ours.keys()):
            if fingerprint.get(key) != ours.get(key):
                raise OptionError(
                    f"{self.path}: is the checkpoint of another job (its {key} differs); repeat "
                    "that job's options, or name another file"
                )
        if exact is not None and meta["exact"] != exact:
            given, other = ("", "without") if meta["exact"] else ("out", "with")
            raise OptionError(
                f"{self.path}: is the checkpoint of a job with{given} --exact, this one is {other} "
                "it; repeat that job's options, or name another file"
            )
        theirs = set(stored.statistics.ranges)
        if blobs is not None and theirs and theirs != set(blobs):
            raise StatisticsError(
                f"{self.path}: a checkpoint of other blobs; delete it to start anew"
            )
        try:
            return _state(stored, ranges_known=meta["ranges_known"], exact=meta["exact"])
        except ValueError as error:
            message = f"{self.path}: a damaged checkpoint ({error}); delete it to start anew"
            raise StatisticsError(message) from error

    def due(self) -> bool:
        """Return whether it is time for the next write; yes starts the time anew.

        Returns
        -------
        bool
        """
        now = time.monotonic()
        if now < self._due:
            return False
        self._due = now + self._every
        return True

    def save(self, state: CollectionState) -> None:
        """Write what was counted; skipped while another thread writes.

        Parameters
        ----------
        state : CollectionState
            Nobody may change it meanwhile.

        Raises
        ------
        OutputError
            Where the file cannot be written.
        """
        if not self._writing.acquire(blocking=False):
            return
        try:
            job = dict(self._fingerprint or {})
            meta = {
                "checkpoint": {
                    "fingerprint": job,
                    "ranges_known": state.ranges_known,
                    "exact": state.exact,
                }
            }
            statistics = replace(state.statistics(state.ranges), meta=meta)
            arrays = {"measured": _pack(state.measured), "counted": _pack(state.counted)}
            save_statistics(self.path, statistics, arrays)
        finally:
            self._writing.release()

    def remove(self) -> None:
        """Delete the file: the job is done."""
        self.path.unlink(missing_ok=True)


def _state(stored: StatisticsFile, *, ranges_known: bool, exact: bool) -> CollectionState:
    """The state in a file; ValueError where its parts do not fit each other."""
    if stored.arrays.keys() != {"measured", "counted"}:
        raise ValueError(f"arrays {', '.join(stored.arrays)}; expected measured and counted")
    statistics = stored.statistics
    state = CollectionState(
        dict(statistics.ranges),
        dict(statistics.histograms),
        dict(statistics.halves),
        _unpack("measured", stored.arrays["measured"]),
        _unpack("counted", stored.arrays["counted"]),
        ranges_known,
        exact,
    )
    if not exact and (state.measured or ranges_known):
        raise ValueError("two passes and one pass at once")
    if any((histogram.fine is None) != exact for histogram in state.histograms.values()):
        raise ValueError("its histograms were counted in another number of passes")
    unmeasured = exact and bool(state.counted) and not ranges_known
    if bool(state.histograms) != bool(state.counted) or unmeasured:
        raise ValueError("its histograms and the images counted do not belong together")
    if state.histograms.keys() != state.halves.keys():
        raise ValueError("halves without histograms, or histograms without halves")
    for batch, checksums in state.counted.items():
        if state.measured and state.measured.get(batch) != checksums:
            raise ValueError(f"batch {batch} has other images in the second pass")
    if not np.array_equal(state.checksums(), statistics.checksums):
        raise ValueError("the images done are not the images listed")
    if bool(state.measured or state.counted) and not state.ranges:
        raise ValueError("images are done, but there are no ranges")
    return state


def _pack(done: Mapping[int, Checksums]) -> NDArray[np.int64]:
    """(images, 2): the batch's number and the image's checksum."""
    rows = [(batch, checksum) for batch in sorted(done) for checksum in done[batch]]
    return np.array(rows, np.int64).reshape(-1, 2)


def _unpack(name: str, rows: NDArray[Any]) -> dict[int, Checksums]:
    check_array(name, rows, np.int64, (*rows.shape[:1], 2))
    if rows.min(initial=0) < 0 or rows[:, 1].max(initial=0) >= 1 << 32:
        raise ValueError(f"{name} holds numbers out of range")
    done: dict[int, Checksums] = {}
    for batch, checksum in rows.tolist():
        done[batch] = (*done.get(batch, ()), checksum)
    return done


class ReadersWriterLock:
    """Many hold it together, or one alone.

    Workers count while they share it, and a checkpoint is made while one holds it alone: so it
    sees whole batches only, without a lock around each count.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._shared = 0
        self._exclusive = 0
        self.broken = False

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Hold it together with others; an error inside leaves the lock `broken`."""
        with self._changed:
            self._changed.wait_for(lambda: not self._exclusive)
            self._shared += 1
        try:
            yield
        except BaseException:
            self.broken = True
            raise
        finally:
            with self._changed:
                self._shared -= 1
                self._changed.notify_all()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold it alone, once those who share it are done."""
        with self._changed:
            self._exclusive += 1
            try:
                self._changed.wait_for(lambda: not self._shared)
                yield
            finally:
                self._exclusive -= 1
                self._changed.notify_all()
