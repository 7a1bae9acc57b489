"""Activations of the first phase come in; their non-zero values wait here for the second.

Half of what networks with ReLU compute are exact zeros, which a histogram only counts: leaving
them out halves the memory that must be fetched from the system, which costs more than the copy.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from int8calib.arrays import Array
from int8calib.calibration.statistics.checkpoint import Checksums
from int8calib.calibration.statistics.histogram import (
    Range,
    checked_values,
    copy_nonzero,
    range_of_values,
)

_CHUNK = 1 << 19
"""Values (2 MiB) that a worker asks the system for at a time. From 4 MiB on numpy asks for huge
pages, whose first use takes milliseconds each on virtual machines that share their memory."""


class CachedValues(NamedTuple):
    """Values of one blob for some images of one half, zeros left out.

    `images` counts those whose values begin here: a large blob comes in several parts.
    """

    blob: str
    code: int
    values: NDArray[np.float32]
    zeros: int
    images: int

    @property
    def range(self) -> Range:
        """The range of all values; raises `StatisticsError` for NaN and infinity."""
        return range_of_values(self.values, zeros=self.zeros, images=self.images, name=self.blob)


class ActivationCache:
    """What is kept of all batches, by number, as far as a budget of bytes allows.

    Workers call it at the same time; each fills memory of its own.
    """

    def __init__(self, budget: int) -> None:
        """Start empty."""
        self._left = budget
        self._batches: dict[int, tuple[Checksums, list[CachedValues]]] = {}
        self._lock = threading.Lock()
        self._own = threading.local()

    @property
    def open(self) -> bool:
        """Whether more may be kept."""
        return self._left > 0

    def __len__(self) -> int:
        """How many batches are kept."""
        return len(self._batches)

    def __iter__(self) -> Iterator[int]:
        """Their numbers in order."""
        return iter(sorted(self._batches))

    def copies(self, blob: str, code: int, rows: Array) -> Iterator[CachedValues]:
        """Copies of `rows`, the part of a top for images of one half, a chunk at a time."""
        values = checked_values(rows, blob)
        images = len(rows)
        for begin in range(0, values.size, _CHUNK):
            piece = values[begin : begin + _CHUNK]
            room = self._room(piece.size)
            count = copy_nonzero(piece, room)
            self._own.used += count
            yield CachedValues(blob, code, room[:count], piece.size - count, images)
            images = 0

    def _room(self, size: int) -> NDArray[np.float32]:
        """Memory of this thread's own for up to `size` values, behind what it has filled."""
        chunk = getattr(self._own, "chunk", None)
        if chunk is None or chunk.size - self._own.used < size:
            chunk = self._own.chunk = np.empty(_CHUNK, np.float32)
            self._own.used = 0
        room: NDArray[np.float32] = chunk[self._own.used :]
        return room

    def put(self, batch: int, codes: Checksums, copies: list[CachedValues]) -> None:
        """Keep one batch's copies if they fit what is left of the budget."""
        size = sum(kept.values.nbytes for kept in copies)
        with self._lock:
            if size <= self._left:
                self._left -= size
                self._batches[batch] = codes, copies
            else:
                # One that does not fit ends it: smaller ones may follow, but seldom do.
                self._left = 0

    def pop(self, batch: int) -> tuple[Checksums, list[CachedValues]] | None:
        """Take one batch's copies out, None if they were not kept."""
        with self._lock:
            return self._batches.pop(batch, None)
