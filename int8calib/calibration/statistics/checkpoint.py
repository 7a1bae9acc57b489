"""What a collection has counted so far; a checkpoint file and back.

A batch (the images of one forward pass) is done or not, so a checkpoint never holds half of one,
and a run that goes on from it counts nothing twice.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from int8calib.calibration.statistics.file import load_statistics, save_statistics
from int8calib.calibration.statistics.histogram import Histogram, Range
from int8calib.calibration.statistics.store import Statistics
from int8calib.errors import OptionError, StatisticsError

Checksums: TypeAlias = tuple[int, ...]
"""A checksum of each image of a batch."""


@dataclass
class CollectionState:
    """Ranges and histograms of the batches done; `measured` and `counted` tell which, by number.

    `ranges_known` says that the first phase is over: `ranges` are those of all images.
    """

    ranges: dict[str, Range] = field(default_factory=dict)
    histograms: dict[str, Histogram] = field(default_factory=dict)
    halves: dict[str, Histogram] = field(default_factory=dict)
    measured: dict[int, Checksums] = field(default_factory=dict)
    counted: dict[int, Checksums] = field(default_factory=dict)
    ranges_known: bool = False

    def add_ranges(self, batch: int, codes: Checksums, found: Iterable[tuple[str, Range]]) -> None:
        """Commit the ranges of one batch."""
        for blob, measured in found:
            before = self.ranges.get(blob)
            self.ranges[blob] = before.merge(measured) if before else measured
        self.measured[batch] = codes

    def add_counts(self, blob: str, whole: Histogram, half: Histogram) -> None:
        """Add one blob's histograms: of all images, and of those in the half."""
        for total, counts in ((self.histograms, whole), (self.halves, half)):
            total[blob] = total[blob].merge(counts) if blob in total else counts

    def snapshot(self) -> CollectionState:
        """A copy that stays as it is; its histograms are shared, which nobody changes."""
        return replace(
            self,
            ranges=dict(self.ranges),
            histograms=dict(self.histograms),
            halves=dict(self.halves),
            measured=dict(self.measured),
            counted=dict(self.counted),
        )

    def statistics(self, blobs: Iterable[str]) -> Statistics:
        """What was learned, in the order of `blobs`."""
        made = [blob for blob in blobs if blob in self.ranges]
        done = self.counted if self.histograms else self.measured
        return Statistics(
            {blob: self.ranges[blob] for blob in made},
            {blob: self.histograms[blob] for blob in made if blob in self.histograms},
            halves={blob: self.halves[blob] for blob in made if blob in self.halves},
            seen=np.sort(np.array([c for codes in done.values() for c in codes], np.uint32)),
        )


class Checkpoint:
    """A file that a run writes now and then, and from which the same run goes on.

    `fingerprint` (JSON values) is what must be the same for that; `every`: seconds between writes.
    """

    def __init__(
        self, path: str | os.PathLike[str], fingerprint: Mapping[str, Any], every: float = 30.0
    ) -> None:
        self.path = Path(path)
        self._identity = fingerprint
        self._every = every
        self._due = time.monotonic() + every
        self._writing = threading.Lock()

    def load(self) -> CollectionState | None:
        """What an earlier run left, None where there is nothing.

        Raises `StatisticsError` for a damaged file, `OptionError` for one of another job.
        """
        if not self.path.exists():
            return None
        stored = load_statistics(self.path)
        meta = stored.statistics.meta.get("checkpoint")
        if not isinstance(meta, dict):
            raise StatisticsError(f"{self.path}: statistics, but no checkpoint of a run")
        for key in sorted(meta["fingerprint"].keys() | self._identity.keys()):
            if meta["fingerprint"].get(key) != self._identity.get(key):
                raise OptionError(
                    f"{self.path}: is the checkpoint of another job (its {key} differs); repeat "
                    "that job's options, or name another file"
                )
        return CollectionState(
            dict(stored.statistics.ranges),
            dict(stored.statistics.histograms),
            dict(stored.statistics.halves),
            _unpack(stored.arrays["measured"]),
            _unpack(stored.arrays["counted"]),
            bool(meta["ranges_known"]),
        )

    def due(self) -> bool:
        """Whether it is time for the next write; the answer yes starts the time anew."""
        now = time.monotonic()
        if now < self._due:
            return False
        self._due = now + self._every
        return True

    def save(self, state: CollectionState) -> None:
        """Write `state`, which nobody may change meanwhile; skipped while another is written."""
        if not self._writing.acquire(blocking=False):
            return
        try:
            meta = {"fingerprint": dict(self._identity), "ranges_known": state.ranges_known}
            statistics = replace(state.statistics(state.ranges), meta={"checkpoint": meta})
            arrays = {"measured": _pack(state.measured), "counted": _pack(state.counted)}
            save_statistics(self.path, statistics, arrays)
        finally:
            self._writing.release()

    def remove(self) -> None:
        """The job is done: the file has no use any more."""
        self.path.unlink(missing_ok=True)


def _pack(done: Mapping[int, Checksums]) -> NDArray[np.int64]:
    """(images, 2): the batch's number and the image's checksum."""
    rows = [(batch, code) for batch in sorted(done) for code in done[batch]]
    return np.array(rows, np.int64).reshape(-1, 2)


def _unpack(rows: NDArray[np.int64]) -> dict[int, Checksums]:
    done: dict[int, Checksums] = {}
    for batch, code in rows.tolist():
        done[batch] = (*done.get(batch, ()), code)
    return done
