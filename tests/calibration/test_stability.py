"""How stable thresholds are: halves against halves made by hand, and what is said of them."""

from __future__ import annotations

import numpy as np
import pytest

import int8calib
from int8calib import Options
from int8calib.calibration.stability import summary, threshold_spreads
from int8calib.calibration.statistics.histogram import Histogram, HistogramBuilder
from int8calib.calibration.thresholds import find_threshold, method_names
from tests.calibration.test_selection import NET
from tests.generated import make_model
from tests.histogram_cases import SHAPES, make

RNG = np.random.default_rng(31)


def histogram(values: np.ndarray, absmax: float) -> Histogram:
    builder = HistogramBuilder(absmax)
    builder.add(values[None])
    return builder.result()


@pytest.mark.parametrize("method", method_names())
def test_spread_is_half_the_relative_difference_of_the_halves(method: str) -> None:
    a = RNG.normal(0, 1, 20011).astype(np.float32)
    b = RNG.laplace(0, 1, 30011).astype(np.float32)
    absmax = float(np.abs(np.concatenate([a, b])).max())
    first, second = histogram(a, absmax), histogram(b, absmax)
    found = threshold_spreads(
        {"x": first.merge(second)}, {"x": first}, {"x": method}, percentile=99.9
    )
    if method == "minmax":
        low, high = sorted(float(np.abs(v).max()) for v in (a, b))
    else:
        low, high = sorted(
            find_threshold(h, method, percentile=99.9).value for h in (first, second)
        )
    if method == "aciq":
        # By the absmax of the half, here to within a bin.
        scale = float(np.abs(a).max()) / absmax
        low, high = sorted(
            (find_threshold(first, method).value * scale, find_threshold(second, method).value)
        )
    expected = (high - low) / (high + low)
    assert found["x"] == pytest.approx(expected, abs=1e-3)
    assert found["x"] > 0.001


def test_equal_halves_do_not_spread_and_missing_ones_are_left_out() -> None:
    counts = next(iter(SHAPES.values()))
    one = make(counts, 3.5)
    both = one.merge(one)
    blobs = {"x": both, "y": both}
    halves = {"x": one, "y": make(np.zeros_like(one.counts), 3.5)}
    found = threshold_spreads(blobs, halves, {"x": "kl", "y": "kl"}, percentile=99.99)
    assert found == {"x": 0.0}
    assert threshold_spreads({"x": both}, {"x": both}, {"x": "kl"}, percentile=99.99) == {}
    assert threshold_spreads(blobs, {}, {"x": "kl"}, percentile=99.99) == {}


def test_summary_names_the_worst() -> None:
    assert summary({"a": 0.1, "b": 0.5, "c": None, "d": 0.2}) == {
        "median": 0.2,
        "worst": 0.5,
        "worst_blob": "b",
    }
    assert summary({"a": None}) is None


def test_a_wild_image_is_reported(tmp_path_factory: pytest.TempPathFactory) -> None:
    net = int8calib.load_caffe(*make_model(tmp_path_factory.mktemp("fire"), NET))
    images = np.random.default_rng(7).normal(0, 60, (60, 3, 13, 11)).astype(np.float32)

    def warnings(images: np.ndarray) -> list[str]:
        done = int8calib.calibrate(
            net, lambda: [{"data": image[None]} for image in images], Options(method="minmax")
        )
        assert done.table.meta["stability"]["worst_blob"] in done.statistics.histograms
        return [line for line in done.warnings if "more images" in line]

    assert warnings(images) == []
    images[7] *= 3
    (line,) = warnings(images)
    assert "more images would still move the thresholds of " in line
    assert "data by" in line
