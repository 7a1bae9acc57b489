"""Find the threshold of a blob by what rounding it does to outputs, of layers or of the network.

`threshold_by_layers` looks for the least error of the outputs of the layers that read the blob,
each error weighted by the output's sensitivity. `threshold_by_network` goes on from there by
running the rest of the network. A threshold is one for all readers of a blob, since ncnn
requantizes a blob only once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from int8calib.arrays import Array
from int8calib.levels import LEVELS
from int8calib.simulation.arithmetic import quantize_dequantize, to_levels
from int8calib.tuning.channels import Float64Array
from int8calib.tuning.execution import SuffixNetwork

COARSE = tuple(float(x) for x in np.geomspace(1.5, 0.13, 15))
FINE = tuple(float(x) for x in np.geomspace(0.9, 1.1, 5))
"""Thresholds tried by the layers' outputs: shares of absmax, then of the best."""
HEADROOM = ((0.15, 1.2), (0.05, 1.5))
"""Shares of a sample that are scaled up, and by how much."""
MAX_SHARE = 1.5
"""The largest threshold, as a share of absmax."""
PART = 1 << 17
"""Values of the columns that are rounded at a time."""
NETWORK_STEP = 1.25
NETWORK_FINE = (0.89, 1.12)
NETWORK_STEPS = 6
"""Thresholds tried by the network's outputs: steps in one direction, then beside the best."""


@dataclass(frozen=True, eq=False)
class Consumer:
    """A layer that reads the blob, as a matrix product over sampled columns.

    Attributes
    ----------
    weights
        float32 (G, M, K): its weights in float.
    float_columns, int8_columns
        float32 (G, K, n): its columns in the float network, and those of the INT8 network before
        they are rounded.
    sensitivity
        float64 (G, M): what a squared error of each output costs.
    unsigned
        Whether the blob has the levels 0 to 254.
    """

    weights: Array
    float_columns: Array
    int8_columns: Array
    sensitivity: Float64Array
    unsigned: bool = False


def sample_columns(columns: Array, wanted: int) -> Array:
    """Return `wanted` of `columns` (G, K, n), evenly spread; of fewer some stand repeatedly."""
    count = columns.shape[2]
    chosen = (np.arange(wanted) * max(1.0, count / wanted)).astype(np.intp) % count
    sample: Array = np.take(columns, chosen, axis=2)
    return sample


def sample_with_headroom(columns: Array, wanted: int) -> Array:
    """Return `wanted` of `columns` (G, K, n), some of them scaled up (HEADROOM).

    Images to come hold larger values than those at hand, the more so where one image gives few
    columns. A threshold that fits only what was seen clips them, which costs much more than the
    rounding it saves. This is a smoothed bootstrap.
    """
    sample = sample_columns(columns, wanted)
    sample *= headroom_factors(wanted)
    return sample


def headroom_factors(count: int) -> Array:
    """Return the factors of `count` parts of a sample: 1, but for the shares of HEADROOM."""
    drawn = np.random.default_rng(0).permutation(count) / count
    factors = np.ones(count, np.float32)
    edge = 0.0
    for share, factor in HEADROOM:
        factors[(drawn >= edge) & (drawn < edge + share)] = factor
        edge += share
    return factors


def weighted_error(
    found: Array, expected: Array, sensitivity: Float64Array, *, centered: bool = False
) -> float:
    """`sensitivity` times the mean square over n of `found` - `expected` (G, M, n), or variance.

    `found` is overwritten.
    """
    error = np.subtract(found, expected, out=found)
    if centered:
        error -= error.mean(axis=2, keepdims=True)
    return float((np.square(error, out=error).mean(axis=2) * sensitivity).sum())


def threshold_by_layers(
    consumers: Sequence[Consumer],
    absmax: float,
    candidates: Iterable[float] = (),
    max_share: float = MAX_SHARE,
) -> float:
    """Find the threshold with the least summed error of the consumers' outputs.

    Parameters
    ----------
    consumers
        The layers that read the blob.
    absmax
        The largest magnitude in the blob.
    candidates
        Thresholds to try besides shares of `absmax` and some near the best.
    max_share
        The largest threshold, as a share of `absmax`.
    """
    parts = [part for consumer in consumers for part in _parts(consumer)]
    errors: dict[float, float] = {}

    def try_threshold(threshold: float) -> None:
        # The parts' errors only add up: what is worse than the best so far need not be finished.
        limit = min(errors.values(), default=np.inf)
        errors[threshold] = 0.0
        for part in parts:
            errors[threshold] += part.error(threshold)
            if errors[threshold] > limit:
                break

    largest = absmax * max_share
    for threshold in (*candidates, *(absmax * min(share, max_share) for share in COARSE)):
        if 0 < threshold <= largest and threshold not in errors:
            try_threshold(threshold)
    best = min(errors, key=errors.__getitem__)
    for share in FINE:
        if (threshold := min(best * share, largest)) not in errors:
            try_threshold(threshold)
    return min(errors, key=errors.__getitem__)


class _Part:
    """Some columns of a consumer, with memory for what becomes of them."""

    def __init__(self, consumer: Consumer, chosen: slice) -> None:
        self._weights, self._unsigned = consumer.weights, consumer.unsigned
        self._columns = np.ascontiguousarray(consumer.int8_columns[:, :, chosen])
        self._reference = np.matmul(self._weights, consumer.float_columns[:, :, chosen])
        share = self._columns.shape[2] / consumer.int8_columns.shape[2]
        self._sensitivity = consumer.sensitivity * share
        # Asked for once: new pages of memory would cost as much as rounding does.
        self._levels = np.empty_like(self._columns)
        self._outputs = np.empty_like(self._reference)

    def error(self, threshold: float) -> float:
        """The part's share of the weighted error of the outputs."""
        scale = LEVELS / threshold
        per_unit = to_levels(self._columns, scale, self._levels, unsigned=self._unsigned)
        np.matmul(self._weights / per_unit, self._levels, out=self._outputs)
        return weighted_error(self._outputs, self._reference, self._sensitivity)


def _parts(consumer: Consumer) -> list[_Part]:
    columns = consumer.int8_columns
    step = max(1, PART // (columns.size // columns.shape[2]))
    edges = range(0, columns.shape[2], step)
    return [_Part(consumer, slice(first, first + step)) for first in edges]


def threshold_by_network(
    suffix: SuffixNetwork,
    start: float,
    largest: float,
    *,
    headroom: bool,
    unsigned: bool = False,
) -> float:
    """Find the threshold with the least loss of a suffix network's outputs: `start`, or better.

    Parameters
    ----------
    suffix
        The layers from the first reader of the blob on.
    start
        The threshold to start from.
    largest
        No threshold is above it.
    headroom
        Whether some images count as if their values were larger, as those of images to come
        will be.
    unsigned
        Whether the blob has the levels 0 to 254.
    """
    if not suffix.complete:
        return start
    # An image whose values are f times as large meets a threshold that is 1/f as large.
    count = len(suffix.bottoms)
    factors = headroom_factors(count) if headroom else np.ones(count)

    losses: dict[float, float] = {}

    def try_threshold(threshold: float) -> None:
        scale = LEVELS / threshold
        pairs = zip(suffix.bottoms, factors, strict=True)
        rounded = (
            quantize_dequantize(b, scale * float(factor), unsigned=unsigned) for b, factor in pairs
        )
        losses[threshold] = suffix.loss(rounded, limit=min(losses.values(), default=np.inf))

    try_threshold(start)
    for step in (1 / NETWORK_STEP, NETWORK_STEP):
        best = start
        for _ in range(NETWORK_STEPS):
            threshold = best * step
            if threshold > largest:
                break
            try_threshold(threshold)
            if losses[threshold] >= losses[best]:
                break
            best = threshold
        if best != start:
            break
    best = min(losses, key=losses.__getitem__)
    for step in NETWORK_FINE:
        if best * step <= largest:
            try_threshold(best * step)
    return min(losses, key=losses.__getitem__)
