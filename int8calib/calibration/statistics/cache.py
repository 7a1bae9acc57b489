"""Cache of activations: the values of the first pass, kept for the second one.

Half of what networks with ReLU compute are exact zeros, which a histogram only counts: leaving
them out halves the memory that must be fetched from the system, which costs more than the copy.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from int8calib.arrays import Array
from int8calib.calibration.statistics.checkpoint import Checksums
from int8calib.calibration.statistics.histogram import copy_nonzero
from int8calib.calibration.statistics.ranges import Range, checked_values, range_of_values

_CHUNK = 1 << 19
"""Values (2 MiB) that a worker asks the system for at a time. From 4 MiB on numpy asks for huge
pages, whose first use takes milliseconds each on virtual machines that share their memory."""


_MAX_DEFAULT = 2 << 30


def default_cache_bytes() -> int:
    """Return a quarter of the free memory, at most 2 GiB; 1 GiB where the system does not tell."""
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        free = 4 << 30
    return min(_MAX_DEFAULT, free // 4)


class CachedValues(NamedTuple):
    """Values of one blob for an image, or a part of them, zeros left out.

    Attributes
    ----------
    blob : str
        The key of the blob.
    checksum : int
        That of the image.
    values : float32 (n,)
        The values that are not zero.
    zeros : int
        How many were left out.
    images : int
        Images whose values begin here: a large blob comes in several parts.
    """

    blob: str
    checksum: int
    values: Array
    zeros: int
    images: int

    @property
    def range(self) -> Range:
        """The range of all values; raises `StatisticsError` for NaN and infinity."""
        return range_of_values(self.values, zeros=self.zeros, images=self.images, name=self.blob)


class ActivationCache:
    """Activations of batches, by number, as far as a budget of bytes allows.

    Workers call it at the same time; each fills memory of its own.
    """

    def __init__(self, budget: int) -> None:
        """Start empty."""
        self._left = budget
        self._batches: dict[int, tuple[Checksums, list[CachedValues]]] = {}
        self._lock = threading.Lock()
        self._own = threading.local()

    @property
    def has_room(self) -> bool:
        """Whether more may be kept."""
        return self._left > 0

    def __len__(self) -> int:
        """How many batches are kept."""
        return len(self._batches)

    def __iter__(self) -> Iterator[int]:
        """Their numbers in order."""
        return iter(sorted(self._batches))

    def copy(self, blob: str, checksum: int, top: Array) -> Iterator[CachedValues]:
        """Copy the values of one image, a chunk at a time."""
        values = checked_values(top, blob)
        images = len(top)
        for begin in range(0, values.size, _CHUNK):
            piece = values[begin : begin + _CHUNK]
            buffer = self._buffer(piece.size)
            count = copy_nonzero(piece, buffer)
            self._own.used += count
            yield CachedValues(blob, checksum, buffer[:count], piece.size - count, images)
            images = 0

    def _buffer(self, size: int) -> Array:
        """Memory of this thread's own for up to `size` values, behind what it has filled."""
        chunk = getattr(self._own, "chunk", None)
        if chunk is None or chunk.size - self._own.used < size:
            chunk = self._own.chunk = np.empty(_CHUNK, np.float32)
            self._own.used = 0
        buffer: Array = chunk[self._own.used :]
        return buffer

    def add(self, batch: int, checksums: Checksums, parts: list[CachedValues]) -> None:
        """Keep the parts of one batch if they fit what is left of the budget."""
        size = sum(part.values.nbytes for part in parts)
        with self._lock:
            if size <= self._left:
                self._left -= size
                self._batches[batch] = checksums, parts
            else:
                # One that does not fit ends it: smaller ones may follow, but seldom do.
                self._left = 0

    def take(self, batch: int) -> tuple[Checksums, list[CachedValues]] | None:
        """Take the parts of one batch out; None if they were not kept."""
        with self._lock:
            return self._batches.pop(batch, None)
