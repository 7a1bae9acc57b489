"""What pictures show, against numpy and loops written from the definitions."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

import int8calib
from int8calib.calibration.statistics.histogram import BINS, Histogram
from int8calib.calibration.thresholds import find_threshold
from int8calib.reporting.content import short_names
from int8calib.reporting.plot_data import (
    BUCKETS,
    Curve,
    bucket_counts,
    cost_curve,
    envelope,
    error_band,
    split_steps,
)
from tests.reporting_cases import NAMES, TABLES, case, pixels


def histogram(seed: int = 2, size: int = 20011) -> tuple[Histogram, np.ndarray]:
    """A histogram of positive and negative values of a long-tailed distribution, and the values."""
    values = np.random.default_rng(seed).laplace(0, 3, size)
    absmax = float(np.abs(values).max())
    counts = [
        np.histogram(np.abs(side), BINS, (0, absmax))[0].astype(np.int64)
        for side in (values[values > 0], values[values < 0])
    ]
    return Histogram(counts[0], counts[1], absmax, 0, 1), values


def test_buckets_are_numpys_histogram() -> None:
    found, values = histogram()
    edges, counts = bucket_counts(found)
    expected, at = np.histogram(np.abs(values), BUCKETS, (0, found.absmax))
    np.testing.assert_allclose(edges, at)
    assert np.abs(counts - expected).sum() <= 4  # values that sit on an edge, but for rounding
    assert counts.sum() == len(values)


def test_squared_error_is_that_of_the_values() -> None:
    found, values = histogram()
    curve = cost_curve(found, "mse")
    assert curve is not None
    for place in (150, 700, 2000):
        step = curve.thresholds[place] / 127
        rounded = np.clip(np.rint(values / step), -127, 127) * step
        width = found.absmax / BINS
        expected = np.square(values - rounded).sum() / width**2
        assert curve.costs[place] == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("method", ["kl", "kl-tool", "kl-tool-v1", "kl-tensorrt", "mse"])
def test_the_lowest_point_is_the_methods_threshold(method: str) -> None:
    found, _ = histogram()
    curve = cost_curve(found, method)
    assert curve is not None
    assert curve.best == pytest.approx(find_threshold(found, method).value, rel=1e-6)
    thin = curve.thinned(50)
    assert thin.best == curve.best
    assert len(thin.costs) <= 51
    assert set(thin.thresholds) <= set(curve.thresholds)


def test_methods_without_a_search_have_no_curve() -> None:
    found, _ = histogram()
    assert cost_curve(found, "aciq") is None
    assert cost_curve(found, "minmax") is None
    last = np.zeros(BINS, np.int64)
    last[-1] = 5
    assert cost_curve(Histogram(last, last * 0, 2.0, 0, 1), "kl") is None


def test_ratio_is_between_neighbors() -> None:
    curve = Curve(np.array([1.0, 2.0, 3.0]), np.array([8.0, 2.0, 6.0]))
    assert curve.best == 2.0
    assert curve.ratio(2.0) == 1.0
    assert curve.ratio(2.5) == 2.0
    assert curve.ratio(6.0) == 12.0


@pytest.mark.parametrize("at", [-1.0, 0.0, 0.7, 2.0, 4.99, 5.0, 9.0])
def test_a_split_staircase_is_the_same_staircase(at: float) -> None:
    edges = np.array([0.0, 1.0, 2.0, 5.0])
    heights = np.array([7.0, 3.0, 11.0])
    below, beyond = split_steps(edges, heights, at)
    for x in np.linspace(0.01, 4.97, 211):
        side_edges, side_heights = below if x < at else beyond
        place = np.searchsorted(side_edges, x) - 1
        assert side_heights[place] == heights[np.searchsorted(edges, x) - 1]
    for side_edges, side_heights in (below, beyond):
        assert len(side_edges) == (len(side_heights) + 1 if len(side_heights) else 0)
        assert (np.diff(side_edges) > 0).all()


@pytest.mark.parametrize("count", [1, 5, 127, 128, 129, 1000])
def test_an_envelope_holds_every_channel(count: int) -> None:
    rng = np.random.default_rng(count)
    low, high = -rng.random(count), rng.random(count)
    edges, lows, highs = envelope(low, high)
    assert len(lows) == len(highs) == len(edges) - 1 <= BUCKETS
    assert edges[0] == 0
    assert edges[-1] == count
    for k, (start, stop) in enumerate(pairwise(edges)):
        assert lows[k] == min(low[int(start) : int(stop)])
        assert highs[k] == max(high[int(start) : int(stop)])


def test_an_error_band_holds_nine_in_ten() -> None:
    rng = np.random.default_rng(7)
    values = rng.normal(0, 5, 24 * 101)
    errors = rng.normal(0, 1, values.size) * (1 + np.abs(values))
    band = error_band(values, errors)
    assert band is not None
    ends = np.sort(values).reshape(24, 101)
    for k, (first, last) in enumerate(zip(ends[:, 0], ends[:, -1], strict=True)):
        mine = errors[(values >= first) & (values <= last)]
        assert band.low[k] == pytest.approx(np.percentile(mine, 5))
        assert band.middle[k] == pytest.approx(np.median(mine))
        assert band.high[k] == pytest.approx(np.percentile(mine, 95))
    assert error_band(values[:19], errors[:19]) is None


def test_weight_ranges_and_samples_are_the_nets() -> None:
    found = case()
    views = {view.name: view for view in found.report().content.layers}
    assert tuple(views) == NAMES
    for layer in found.net.graph.layers:
        if layer.name not in views:
            continue
        rows = layer.weights[0].reshape(len(layer.weights[0]), -1)
        np.testing.assert_allclose(views[layer.name].weights.low, rows.min(axis=1))
        np.testing.assert_allclose(views[layer.name].weights.high, rows.max(axis=1))
        sample = found.samples[layer.name]
        assert len(sample.expected) == len(sample.actual) > 4
        error = np.abs(sample.actual - sample.expected)
        assert 0 < error.mean() < 0.2 * np.abs(sample.expected).mean()


def test_samples_are_values_of_the_float_and_the_int8_net() -> None:
    found = case()
    int8 = int8calib.simulate(found.net, found.tables[TABLES[0]])
    for net, values in (
        (found.net, found.samples["fc"].expected),
        (int8, found.samples["fc"].actual),
    ):
        tops: list[np.ndarray] = []
        for image in pixels()[:4]:
            net.forward({"data": image[None]}, on_top=_keep("fc", tops))
        # All values of a small top are kept, in order.
        np.testing.assert_allclose(values, np.concatenate(tops), rtol=1e-5, atol=1e-6)


def _keep(blob: str, tops: list[np.ndarray]) -> Callable[[str, str, np.ndarray], None]:
    def hear(layer: str, name: str, top: np.ndarray) -> None:
        if name == blob:
            tops.append(top.reshape(-1).copy())

    return hear


def test_short_names_differ() -> None:
    assert short_names(["a/kl.table.json", "a/mse.table"]) == {
        "a/kl.table.json": "kl",
        "a/mse.table": "mse",
    }
    assert short_names(["a/x.table", "b/x.table"])["b/x.table"] == "b/x.table"
    long = short_names(["p/" + "n" * 60 + "1", "q/" + "n" * 60 + "1"])
    assert len(set(long.values())) == 2
    assert max(map(len, long.values())) <= 28
