"""Reduce histograms, weights and outputs to the few points that a picture can show."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from int8calib.caffe.network.quantized import QuantizedLayer
from int8calib.calibration.statistics.histogram import BINS, Histogram
from int8calib.levels import LEVELS

BUCKETS = 128
"""Steps of a staircase: more would not be seen."""
KL_CURVES = {
    "kl": "kl_curve",
    "kl-tool": "kl_tool_curve",
    "kl-tool-v1": "kl_tool_v1_curve",
    "kl-tensorrt": "kl_tensorrt_curve",
}
"""The methods that minimize a divergence, and the function that gives it for every threshold."""
SQUARED = "mse"
_FLOOR = 1e-12

Doubles = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Curve:
    """The cost that a method gives each threshold it tries: float64, both of the same length."""

    thresholds: Doubles
    costs: Doubles

    @property
    def smallest(self) -> float:
        """The smallest cost, or a tiny number where a threshold costs nothing."""
        return max(float(self.costs.min()), _FLOOR)

    @property
    def best(self) -> float:
        """The threshold of the smallest cost."""
        return float(self.thresholds[self.costs.argmin()])

    def ratio(self, threshold: float) -> float:
        """The squared error at `threshold`, between its neighbors, as a multiple of the smallest.

        Beyond the last threshold nothing is clipped, and the error grows as the step's square.
        """
        beyond = max(threshold / float(self.thresholds[-1]), 1.0) ** 2
        at = float(np.interp(threshold, self.thresholds, self.costs))
        return at * beyond / self.smallest

    def thinned(self, points: int = 110) -> Curve:
        """About `points` points of the curve, the ends and the best among them."""
        last = len(self.costs) - 1
        kept = np.linspace(0, last, min(points, last + 1)).round().astype(np.int64)
        kept = np.union1d(kept, [self.costs.argmin()])
        return Curve(self.thresholds[kept], self.costs[kept])


def cost_curve(histogram: Histogram, method: str) -> Curve | None:
    """What each threshold of a blob costs by `method`: a KL method, or `mse`.

    None for methods that try no thresholds, and where there are no values or all are equal.
    """
    from int8calib.calibration.thresholds import error_kernels, kernels

    # The reference tool counts positive values, and not those of the first bin.
    counts = histogram.positive[1:] if method == "kl-tool" else histogram.counts
    if not counts[:-1].any() or (method != SQUARED and method not in KL_CURVES):
        return None
    width = histogram.absmax / BINS
    if method == SQUARED:
        costs: Doubles = error_kernels.mse_curve(counts.astype(np.float64), LEVELS)
        first = 1.0
    else:
        costs = getattr(kernels, KL_CURVES[method])(counts.astype(np.float64))
        first = kernels.LEVELS + 0.5
    places: Doubles = first + np.arange(len(costs), dtype=np.float64)
    finite = np.isfinite(costs)
    if not finite.any():
        return None
    return Curve(places[finite] * width, np.maximum(costs[finite], 0.0))


def bucket_counts(histogram: Histogram) -> tuple[Doubles, Doubles]:
    """Edges (BUCKETS + 1,) and counts (BUCKETS,) of |x|, the bins taken together."""
    counts = histogram.counts.reshape(BUCKETS, -1).sum(axis=1).astype(np.float64)
    return np.linspace(0.0, histogram.absmax, BUCKETS + 1), counts


def split_steps(
    edges: Doubles, heights: Doubles, at: float
) -> tuple[tuple[Doubles, Doubles], tuple[Doubles, Doubles]]:
    """A staircase cut at `at`: edges and heights of what lies below, and of what lies beyond.

    The step that is cut appears on both sides. A side without anything is empty.
    """
    if at <= edges[0]:
        return (edges[:0], heights[:0]), (edges, heights)
    if at >= edges[-1]:
        return (edges, heights), (edges[:0], heights[:0])
    cut = int(np.searchsorted(edges, at, side="right"))
    if at == edges[cut - 1]:
        return (edges[:cut], heights[: cut - 1]), (edges[cut - 1 :], heights[cut - 1 :])
    below = np.append(edges[:cut], at), heights[:cut]
    return below, (np.append(at, edges[cut:]), heights[cut - 1 :])


@dataclass(frozen=True, eq=False)
class WeightRanges:
    """The smallest and the largest weight of each row of a layer: float64 (rows,)."""

    low: Doubles
    high: Doubles

    @property
    def absmax(self) -> Doubles:
        """The largest |w| of each row."""
        return np.maximum(np.abs(self.low), np.abs(self.high)).astype(np.float64)


def weight_ranges(layer: QuantizedLayer) -> WeightRanges:
    """The ranges of the weights of `layer`."""
    rows = layer.weight_rows().astype(np.float64)
    return WeightRanges(rows.min(axis=1), rows.max(axis=1))


def envelope(low: Doubles, high: Doubles) -> tuple[Doubles, Doubles, Doubles]:
    """Edges, lows and highs of at most BUCKETS groups of neighbors: the extremes of each group."""
    count = len(low)
    edges = np.unique(np.linspace(0, count, min(count, BUCKETS) + 1).round().astype(np.int64))
    starts = edges[:-1]
    return (
        edges.astype(np.float64),
        np.minimum.reduceat(low, starts),
        np.maximum.reduceat(high, starts),
    )


@dataclass(frozen=True, eq=False)
class ErrorBand:
    """How an error spreads over the value it happens to: places, 5 %, 50 % and 95 % quantiles."""

    places: Doubles
    low: Doubles
    middle: Doubles
    high: Doubles


def error_band(values: Doubles, errors: Doubles, parts: int = 24) -> ErrorBand | None:
    """The quantiles of `errors` in `parts` groups of equally many neighboring `values`.

    None for fewer than 20 values.
    """
    if len(values) < 20:
        return None
    order = np.argsort(values, kind="stable")
    groups = np.array_split(order, min(parts, len(order) // 10))
    places = np.array([values[group].mean() for group in groups])
    low, middle, high = (
        np.array([np.quantile(errors[group], share) for group in groups])
        for share in (0.05, 0.5, 0.95)
    )
    return ErrorBand(places, low, middle, high)


def spread_indices(values: Doubles, count: int) -> NDArray[np.int64]:
    """Indices of at most `count` values that cover the range: evenly in order of size."""
    order = np.argsort(values, kind="stable")
    places = np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(np.int64)
    chosen: NDArray[np.int64] = order[np.unique(places)]
    return chosen
