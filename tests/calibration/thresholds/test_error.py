"""`mse`, `percentile` and `minmax`: methods about the values themselves."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings

from int8calib.calibration.statistics.histogram import HistogramBuilder
from int8calib.calibration.statistics.ranges import measure_range
from int8calib.calibration.thresholds import find_threshold
from int8calib.errors import OptionError
from tests.histogram_cases import SHAPES, make, one_value, plain, small_counts


def rounding_error(start, stop, step, levels):
    """Mean squared error over evenly spread |x| in [start, stop], exact between the jumps."""
    jumps = [(n + 0.5) * step for n in range(levels)]
    cuts = [start, *(x for x in jumps if start < x < stop), stop]
    total = 0.0
    for a, b in pairwise(cuts):
        level = min(round((a + b) / 2 / step), levels) * step
        total += ((b - level) ** 3 - (a - level) ** 3) / 3
    return total / (stop - start)


def naive_mse(counts, t, levels):
    step = t / levels
    return sum(
        c * rounding_error(k, k + 1, step, levels) for k, c in enumerate(counts.tolist()) if c
    )


@pytest.mark.parametrize("levels", [127, 7])
@given(counts=small_counts(bins=53))
@settings(max_examples=15, deadline=None)
def test_mse_compiled_plain_and_naive_agree(levels, counts):
    from int8calib.calibration.thresholds.error_kernels import mse_curve

    wanted = [naive_mse(counts, t, levels) for t in range(1, counts.size + 1)]
    np.testing.assert_allclose(mse_curve(counts, levels), wanted, rtol=1e-8)
    with plain("mse_costs", "error_kernels"):
        np.testing.assert_allclose(mse_curve(counts, levels), wanted, rtol=1e-8)


@pytest.mark.parametrize("shape", ["decaying", "sparse"])
@pytest.mark.parametrize("bits", [8, 4])
def test_mse_over_all_bins_is_the_naive_one_near_its_minimum(shape, bits):
    from int8calib.calibration.thresholds.error_kernels import mse_curve

    levels = 2 ** (bits - 1) - 1
    counts = SHAPES[shape]
    curve = mse_curve(counts.astype(float), levels)
    found = find_threshold(make(counts), "mse", bits=bits)
    for t in {1, 100, found.bin - 1, found.bin, min(found.bin + 1, 2048), 2048}:
        assert curve[t - 1] == pytest.approx(naive_mse(counts, t, levels), rel=1e-8)
    assert found.bin == 1 + int(np.argmin(curve))
    assert found.value == np.float32(found.bin) * np.float32(3.7) / np.float32(2048)


@pytest.mark.parametrize("kind", ["normal", "laplace", "relu", "uniform"])
@pytest.mark.parametrize("bits", [8, 4])
def test_mse_is_near_the_best_of_really_quantized_values(kind, bits):
    rng = np.random.default_rng(43)
    x = {
        "normal": rng.standard_normal(20011),
        "laplace": rng.laplace(size=20011),
        "relu": np.maximum(rng.standard_normal(20011), 0),
        "uniform": rng.random(20011) - 0.5,
    }[kind].astype(np.float32)

    def error(threshold):
        step = threshold / (2 ** (bits - 1) - 1)
        quantized = np.clip(np.round(x / step), -threshold / step, threshold / step) * step
        return ((x - quantized) ** 2).mean()

    builder = HistogramBuilder(measure_range(x).absmax)
    builder.add(x)
    found = find_threshold(builder.result(), "mse", bits=bits)
    best = min(error(x.max() * k / 307) for k in range(20, 308))
    assert error(found.value) < 1.01 * best


def test_mse_rounding_in_bins_wider_and_narrower_than_a_step():
    from int8calib.calibration.thresholds.error_kernels import mse_curve

    counts = np.full(2048, 11.0)
    # 16-level steps of 1/127 of a bin and of 16 bins: nothing clipped and all rounded at T = 2048.
    step = 2048 / 127
    assert mse_curve(counts, 127)[-1] / counts.sum() == pytest.approx(step**2 / 12, rel=1e-9)
    lowest = np.zeros(2048)
    lowest[0] = 1.0
    # All of the lowest bin rounds to 0: x**2, not the noise of a whole step.
    assert mse_curve(lowest, 127)[-1] == pytest.approx(1 / 3)
    assert mse_curve(lowest, 127)[0] == pytest.approx(1 / 127**2 / 12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("percent", [1e-9, 1.0, 50.0, 99.0, 99.99, 100.0])
def test_percentile_by_a_walk_over_the_bins(shape, percent):
    counts = SHAPES[shape].tolist()
    wanted, place = sum(counts) * percent / 100, 0.0
    for k, c in enumerate(counts):
        if wanted <= c:
            place = k + wanted / c
            break
        wanted -= c
    histogram = make(counts, zeros=10**9)
    found = find_threshold(histogram, "percentile", percentile=percent)
    assert found.value == pytest.approx(place * histogram.absmax / 2048, rel=1e-6)
    assert place - 1e-6 <= found.bin < place + 1 + 1e-6
    assert found.value > 0
    assert histogram.clipped(found.value) == pytest.approx(1 - percent / 100, abs=1e-5)


def test_percentile_is_that_of_the_values():
    x = np.random.default_rng(47).random((3, 7001), np.float32) - np.float32(0.5)
    x[:, ::2] = 0
    builder = HistogramBuilder(measure_range(x).absmax)
    builder.add(x)
    for percent in (50, 90, 99, 99.9):
        found = find_threshold(builder.result(), "percentile", percentile=percent)
        wanted = np.percentile(np.abs(x[x != 0]), percent)
        assert found.value == pytest.approx(wanted, abs=2 * float(np.abs(x).max()) / 2048)


def test_percentile_100_is_the_absmax_exactly():
    for counts in SHAPES.values():
        histogram = make(counts * 2**20 + 1, 0.1)
        found = find_threshold(histogram, "percentile", percentile=100)
        assert (found.value, found.bin) == (histogram.absmax, 2048)


@pytest.mark.parametrize("percent", [0, -1, 100.1, math.nan])
def test_percentile_out_of_range(percent):
    with pytest.raises(OptionError, match="percentile"):
        find_threshold(one_value(), "percentile", percentile=percent)


@pytest.mark.parametrize("bits", [1, 9, 7.5])
def test_bits_out_of_range(bits):
    with pytest.raises(OptionError, match="bits"):
        find_threshold(one_value(), "mse", bits=bits)


def test_minmax_is_the_absmax():
    for counts in SHAPES.values():
        found = find_threshold(make(counts, 0.1), "minmax")
        assert (found.value, found.bin) == (np.float32(0.1), None)


@pytest.mark.parametrize("method", ["mse", "percentile", "minmax"])
def test_one_value_is_not_clipped(method):
    assert find_threshold(one_value(), method).value == 2.5
