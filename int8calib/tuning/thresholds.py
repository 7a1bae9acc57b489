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
from int8calib.simulation.arithmetic import quantize_dequantize
from int8calib.tuning.channels import Float64Array
from int8calib.tuning.execution import SuffixNetwork

COARSE = tuple(float(x) for x in np.geomspace(1.5, 0.13, 15))
FINE = tuple(float(x) for x in np.geomspace(0.9, 1.1, 5))
"""Thresholds tried by the layers' outputs: shares of absmax, then of the best."""
HEADROOM = ((0.15, 1.2), (0.05, 1.5))
"""Shares of a sample that are scaled up, and by how much."""
MAX_SHARE = 1.5
"""The largest threshold, as a share of absmax."""
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

    def reference(self) -> Array:
        """The outputs of the float network without bias, (G, M, n)."""
        return np.asarray(np.matmul(self.weights, self.float_columns))


def sample_columns(columns: Array, wanted: int) -> Array:
    """Return `wanted` of `columns` (G, K, n), evenly spread; of fewer some stand repeatedly."""
    count = columns.shape[2]
    chosen = (np.arange(wanted) * max(1.0, count / wanted)).astype(np.intp) % count
    return np.ascontiguousarray(columns[:, :, chosen])


def sample_with_headroom(columns: Array, wanted: int) -> Array:
    """Return `wanted` of `columns` (G, K, n), some of them scaled up (HEADROOM).

    Images to come hold larger values than those at hand, the more so where one image gives few
    columns. A threshold that fits only what was seen clips them, which costs much more than the
    rounding it saves. This is a smoothed bootstrap.
    """
    return sample_columns(columns, wanted) * headroom_factors(wanted)


def headroom_factors(count: int) -> Array:
    """Return the factors of `count` parts of a sample: 1, but for the shares of HEADROOM."""
    drawn = np.random.default_rng(0).permutation(count) / count
    factors = np.ones(count, np.float32)
    edge = 0.0
    for share, factor in HEADROOM:
        factors[(drawn >= edge) & (drawn < edge + share)] = factor
        edge += share
    return factors


def weighted_error(outputs: Array, sensitivity: Float64Array, *, centered: bool = False) -> float:
    """The mean square over n of `outputs` (G, M, n), or their variance, times `sensitivity`."""
    squares = np.square(outputs).mean(axis=2, dtype=np.float64)
    if centered:
        squares -= np.square(outputs.mean(axis=2, dtype=np.float64))
    return float((squares * sensitivity).sum())


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
    references = [consumer.reference() for consumer in consumers]

    def error(threshold: float) -> float:
        scale = LEVELS / threshold
        total = 0.0
        for consumer, reference in zip(consumers, references, strict=True):
            rounded = quantize_dequantize(consumer.int8_columns, scale, unsigned=consumer.unsigned)
            outputs = np.matmul(consumer.weights, rounded)
            total += weighted_error(outputs - reference, consumer.sensitivity)
        return total

    first = {absmax * min(share, max_share) for share in COARSE} | set(candidates)
    errors = {t: error(t) for t in first if 0 < t <= absmax * max_share}
    best = min(errors, key=errors.__getitem__)
    for share in FINE:
        threshold = min(best * share, absmax * max_share)
        if threshold not in errors:
            errors[threshold] = error(threshold)
    return min(errors, key=errors.__getitem__)


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

    def loss(threshold: float) -> float:
        scale = LEVELS / threshold
        pairs = zip(suffix.bottoms, factors, strict=True)
        return suffix.loss(
            quantize_dequantize(b, scale * float(factor), unsigned=unsigned) for b, factor in pairs
        )

    losses = {start: loss(start)}
    for step in (1 / NETWORK_STEP, NETWORK_STEP):
        best = start
        for _ in range(NETWORK_STEPS):
            threshold = best * step
            if threshold > largest:
                break
            losses[threshold] = loss(threshold)
            if losses[threshold] >= losses[best]:
                break
            best = threshold
        if best != start:
            break
    best = min(losses, key=losses.__getitem__)
    for step in NETWORK_FINE:
        if best * step <= largest:
            losses[best * step] = loss(best * step)
    return min(losses, key=losses.__getitem__)
