"""Counts of values on a device (a GPU): only the counts travel, never the values.

A count is the same whole number as on the CPU: each operation on the way to a bin is exact, or
rounded as IEEE 754 says, on either of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from int8calib.arrays import to_host

DeviceArray: TypeAlias = Any
"""An array of the device's own namespace, which is `xp` below."""
CHUNK = 1 << 23
"""Values counted at a time: what is computed on the way takes about 0.3 GB."""
_ZERO_SLOTS = 1 << 10
"""Slots for exact zeros, often half of all values: adds to one slot wait for each other."""


class DeviceCounts:
    """Counts of values by sign and bin, in memory of the device.

    Parameters
    ----------
    xp : module
        The namespace of the device's arrays.
    bins : int
        Bins of each sign, a power of two.
    """

    def __init__(self, xp: Any, bins: int) -> None:
        self._xp = xp
        self._bins = bins
        # CuPy adds in place to integers of these 64 bits, but not to signed ones.
        self._counts = xp.zeros(2 * bins + _ZERO_SLOTS, np.uint64)
        self._one = xp.ones(1, np.uint64)

    def add(self, values: Any, place: Callable[[DeviceArray], DeviceArray]) -> None:
        """Count some values.

        Parameters
        ----------
        values : float32 (n,)
            On the device or not.
        place : callable
            ``place(sizes)`` turns |v| into bins, float32 from 0 to less than `bins`.
        """
        xp = self._xp
        values = xp.asarray(values)
        for start in range(0, values.size, CHUNK):
            piece = values[start : start + CHUNK]
            sizes = xp.abs(piece)
            slots = place(sizes).astype(np.int32)
            slots = xp.where(piece < 0, slots + self._bins, slots)
            zeros = xp.arange(piece.size, dtype=np.int32) % _ZERO_SLOTS + 2 * self._bins
            slots = xp.where(sizes == 0, zeros, slots)
            xp.add.at(self._counts, slots, self._one)

    def widen(self, doublings: int) -> None:
        """Add neighboring bins, so that each is 2**doublings times as wide."""
        xp, bins = self._xp, self._bins
        factor = min(1 << doublings, bins)
        sides = self._counts[: 2 * bins].reshape(2, bins // factor, factor).sum(axis=2)
        wide = xp.zeros_like(self._counts)
        wide[: 2 * bins].reshape(2, bins)[:, : bins // factor] = sides
        wide[2 * bins :] = self._counts[2 * bins :]
        self._counts = wide

    def result(self) -> NDArray[np.int64]:
        """Return the counts: bins of positive values, bins of negative values, zeros in parts."""
        counts: NDArray[np.int64] = to_host(self._counts).astype(np.int64)
        return counts
