"""Non-maximum suppression: of boxes that overlap, those with the best scores."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from int8calib.arrays import Array

BLOCK = 64
"""Boxes whose overlaps are worked out at once."""


def overlaps(boxes: Array, others: Array) -> Array:
    """Intersection over union of each box with each of some others.

    Parameters
    ----------
    boxes
        float32 (K, 4): x1, y1, x2, y2.
    others
        float32 (M, 4).

    Returns
    -------
    float32 array
        (K, M); 0 for two boxes without an area.
    """
    sides = []
    for low, high in ((0, 2), (1, 3)):
        side = np.minimum(boxes[:, None, high], others[:, high])
        side -= np.maximum(boxes[:, None, low], others[:, low])
        sides.append(np.maximum(side, 0, out=side))
    width, height = sides
    shared: Array = np.multiply(width, height, out=width)
    areas = [np.prod(np.maximum(b[:, 2:] - b[:, :2], 0), axis=1) for b in (boxes, others)]
    union = np.add(areas[0][:, None], areas[1], out=height)
    union -= shared
    # Two boxes without an area share nothing: 0 of something.
    shared /= np.maximum(union, np.finfo(np.float32).tiny, out=union)
    return shared


def suppress(boxes: Array, threshold: float, eta: float = 1.0) -> NDArray[np.int64]:
    """Greedy non-maximum suppression of boxes (K, 4) that stand from the best score down.

    Parameters
    ----------
    boxes
        float32 (K, 4): x1, y1, x2, y2.
    threshold
        A box is kept if no better box that is kept overlaps it by more than this.
    eta
        The threshold is multiplied with it after each kept box, while it is above 0.5.

    Returns
    -------
    int64 array
        The places of the boxes kept, ascending.

    Notes
    -----
    Some boxes at a time are compared with all that are left, then those that the kept ones rule
    out are dropped. Source: ApplyNMSFast of the SSD fork's bbox_util.
    """
    left = np.arange(len(boxes))
    largest = np.zeros(len(boxes), np.float32)
    kept: list[int] = []
    while left.size:
        block = left[:BLOCK]
        shared = overlaps(boxes[block], boxes[left])
        rows, threshold = _suppress_block(shared[:, : block.size], largest, threshold, eta)
        kept += block[rows].tolist()
        left, largest = left[block.size :], largest[block.size :]
        largest = np.maximum(largest, shared[rows, block.size :].max(axis=0, initial=0))
        alive = largest <= np.float32(threshold)
        left, largest = left[alive], largest[alive]
    return np.array(kept, np.int64)


def _suppress_block(
    shared: Array, largest: Array, threshold: float, eta: float
) -> tuple[list[int], float]:
    """Which boxes of a block are kept, and the threshold after it.

    `shared` holds their overlaps (B, B), `largest` begins with what each has in common with kept
    boxes of earlier blocks.
    """
    # Overlaps up to here rule nothing out, so only boxes with larger ones need to be looked at.
    harmless = min(threshold, 0.5 * eta) if threshold > 0.5 else threshold
    matters = np.triu(shared > np.float32(harmless), 1).any(axis=1).tolist()
    own = largest[: len(shared)].copy()
    limit, values = float(np.float32(threshold)), own.tolist()
    rows = []
    for i, matter in enumerate(matters):
        if values[i] > limit:
            continue
        rows.append(i)
        if matter:
            np.maximum(own, shared[i], out=own)
            values = own.tolist()
        if threshold > 0.5:
            threshold *= eta
            limit = float(np.float32(threshold))
    return rows, threshold
