"""How far thresholds still move with more images, told from those of half of the images."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

import numpy as np

from int8calib.calibration.statistics.histogram import BINS, Histogram
from int8calib.calibration.thresholds import Threshold, find_thresholds

UNSTEADY = 0.1
"""A threshold that is uncertain by more than this share of itself is worth a word. On SqueezeNet
and MobileNet a fifth of the blobs exceed it with 20 images, none or one with 300."""


def threshold_spreads(
    histograms: Mapping[str, Histogram],
    halves: Mapping[str, Histogram],
    methods: Mapping[str, str],
    *,
    percentile: float,
) -> dict[str, float]:
    """Estimate how uncertain each blob's threshold is.

    Both halves of the images get a threshold of their own. Where these are independent and each
    scatters by sigma, their difference scatters by sqrt(2) sigma and the threshold of all images
    by sigma / sqrt(2), so half of the difference is an estimate of its standard error.

    Parameters
    ----------
    histograms, halves : mapping of str to Histogram
        Of all images, and of about half of them, by blob.
    methods : mapping of str to str
        The method of each blob.
    percentile : float
        As in `MethodOptions`.

    Returns
    -------
    dict of str to float
        The standard error as a share of the threshold: 0.02 is plus or minus 2 %. Blobs with too
        few images for two halves are left out.
    """
    first = {blob: half for blob, half in halves.items() if half.nonzero and blob in methods}
    second = {blob: histograms[blob].minus(half) for blob, half in first.items()}
    blobs = [blob for blob, rest in second.items() if rest.nonzero]
    chosen = {blob: methods[blob] for blob in blobs}
    thresholds = [
        find_thresholds({blob: half[blob] for blob in blobs}, chosen, percentile=percentile)
        for half in (first, second)
    ]
    spreads = {}
    for blob in blobs:
        a, b = (
            _value(half[blob], threshold[blob])
            for half, threshold in zip((first, second), thresholds, strict=True)
        )
        spreads[blob] = abs(a - b) / (a + b)
    return spreads


def summary(spreads: Mapping[str, float | None]) -> dict[str, Any] | None:
    """Return the median and the worst of all spreads, and its blob; None without any."""
    known = {blob: spread for blob, spread in spreads.items() if spread is not None}
    if not known:
        return None
    worst = max(known, key=known.__getitem__)
    return {"median": median(known.values()), "worst": known[worst], "worst_blob": worst}


def _value(half: Histogram, threshold: Threshold) -> float:
    """The threshold of a half.

    A method that searches no bins goes by the absmax, of which a half knows only the one of all
    images: what it has itself is the end of its last filled bin.
    """
    if threshold.bin is not None:
        return threshold.value
    filled = int(np.flatnonzero(half.counts)[-1]) + 1
    return threshold.value * filled / BINS
