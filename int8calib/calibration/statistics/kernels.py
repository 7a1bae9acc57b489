"""Compiled loops of the statistics: copies of non-zero values, and counts of bins.

Nothing is shared between calls, so the kernels run beside each other in threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from int8calib.calibration.statistics.fine import FINE_BINS
from int8calib.calibration.statistics.histogram import BINS
from int8calib.compiled import kernel

ZERO_SLOTS = 16
"""Slots for exact zeros; neighbors use different ones, so no add waits for the one before it."""
SLOTS = 2 * BINS + ZERO_SLOTS
"""Slots of one histogram: bins of positive values, bins of negative values, exact zeros."""


@kernel("float32[:], out float32[:] -> int64")
def copy_nonzero(values: Any, room: Any) -> Any:
    """Copy the values that are not exact zeros.

    Parameters
    ----------
    values : float32 (n,)
    room : float32 (n or more,)
        Where they go, from the front; what lies beyond them is undefined.

    Returns
    -------
    int64
        How many there are.

    Notes
    -----
    There is no branch to mispredict: each value is written, and only the next place to write to
    depends on it.
    """
    count = 0
    for i in range(values.shape[0]):
        room[count] = values[i]
        count += values[i] != 0
    return count


@kernel("float32[:], float32, out uint16[:], out int32[:, :], out int64[:] -> int32")
def count_slots(values: Any, absmax: Any, slots: Any, partial: Any, counts: Any) -> Any:
    """Count the values in each slot of a histogram.

    A value's slot is its bin, ``int(|v| / absmax * BINS)`` in float32 and at most BINS - 1, as in
    ncnn's tools/quantize/ncnn2table.cpp; plus BINS for a negative value; exact zeros have their
    own.

    Parameters
    ----------
    values : float32 (n,)
        Fewer than 2**31.
    absmax : float32
        Finite; values that are larger, or NaN, have no slot.
    slots : uint16 (block size,)
        Scratch, of any content.
    partial : int32 (4, SLOTS)
        Scratch, of zeros.
    counts : int64 (SLOTS,)
        The result.

    Returns
    -------
    int32
        1 if a value has no slot, else 0.

    Notes
    -----
    The slots of a block are computed by SIMD, then counted into four histograms in turn, so that
    equal neighbors do not wait for each other's store.
    """
    bad = np.int32(0)
    for start in range(0, values.shape[0], slots.shape[0]):
        block = values[start : start + slots.shape[0]]
        n = block.shape[0]
        for i in range(n):
            size = abs(block[i])
            place = size / absmax * np.float32(BINS)
            slot = np.int32(place if place < np.float32(BINS - 1) else np.float32(BINS - 1))
            if block[i] < np.float32(0):
                slot = np.int32(slot + BINS)
            if size == np.float32(0):
                slot = np.int32(2 * BINS + (i & (ZERO_SLOTS - 1)))
            slots[i] = slot
            if not size <= absmax:
                bad = np.int32(1)
        for i in range(n // 4):
            partial[0, slots[4 * i]] += 1
            partial[1, slots[4 * i + 1]] += 1
            partial[2, slots[4 * i + 2]] += 1
            partial[3, slots[4 * i + 3]] += 1
        for i in range(n - n % 4, n):
            partial[0, slots[i]] += 1
    for k in range(counts.shape[0]):
        counts[k] = np.int64(partial[0, k]) + partial[1, k] + partial[2, k] + partial[3, k]
    return bad


@kernel("int32[:], out int32[:] ->")
def extremes(bits: Any, result: Any) -> None:
    """Find the smallest and the largest of some float32 values, by their bits.

    Floats are in order like sign and magnitude; flipping the magnitude of negative ones makes that
    the order of whole numbers. NaN then lies beyond infinity, on either side.

    Parameters
    ----------
    bits : int32 (n,)
        The values, as they lie in memory; one at least.
    result : int32 (2,)
        The bits of the smallest and of the largest.

    Notes
    -----
    numpy's own min and max read the values twice.
    """
    smallest = largest = np.int32(bits[0] ^ np.int32(np.int32(bits[0] >> 31) & 0x7FFFFFFF))
    for i in range(bits.shape[0]):
        key = np.int32(bits[i] ^ np.int32(np.int32(bits[i] >> 31) & 0x7FFFFFFF))
        smallest = min(smallest, key)
        largest = max(largest, key)
    result[0] = np.int32(smallest ^ np.int32(np.int32(smallest >> 31) & 0x7FFFFFFF))
    result[1] = np.int32(largest ^ np.int32(np.int32(largest >> 31) & 0x7FFFFFFF))


@kernel("float32[:], float32, out uint32[:], out uint32[:] ->")
def count_fine(values: Any, scale: Any, slots: Any, counts: Any) -> None:
    """Count the values in each slot of a fine histogram.

    A value's slot is its bin, ``int(|v| * scale)``; plus FINE_BINS for a negative value; exact
    zeros have their own. The scale is a power of two, so every product is exact.

    Parameters
    ----------
    values : float32 (n,)
        With |v| * scale below FINE_BINS.
    scale : float32
        Bins to a unit of the blob.
    slots : uint32 (block size,)
        Scratch, of any content.
    counts : uint32 (2 * FINE_BINS + ZERO_SLOTS,)
        Added to: bins of positive values, bins of negative values, exact zeros.

    Notes
    -----
    The slots of a block are computed by SIMD, and then counted.
    """
    for start in range(0, values.shape[0], slots.shape[0]):
        block = values[start : start + slots.shape[0]]
        for i in range(block.shape[0]):
            size = abs(block[i])
            slot = np.int32(size * scale)
            if block[i] < np.float32(0):
                slot = np.int32(slot + FINE_BINS)
            if size == np.float32(0):
                slot = np.int32(2 * FINE_BINS + (i & (ZERO_SLOTS - 1)))
            slots[i] = np.uint32(slot)
        for i in range(block.shape[0]):
            counts[slots[i]] += np.uint32(1)
