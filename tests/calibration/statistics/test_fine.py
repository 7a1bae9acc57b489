"""Fine histograms of one pass: against a loop over the values, and whatever the order."""

from __future__ import annotations

import math
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from int8calib.calibration.statistics import fine as module
from int8calib.calibration.statistics.fine import (
    FINE_BINS,
    MIN_EXPONENT,
    FineBuilder,
    FineHistogram,
    exponent_of,
)
from int8calib.calibration.statistics.histogram import BINS, Histogram
from int8calib.calibration.statistics.kernels import count_fine
from int8calib.calibration.thresholds import find_threshold
from int8calib.errors import StatisticsError

RNG = np.random.default_rng(23)
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


def build(*batches):
    builder = FineBuilder("b")
    for x in batches:
        builder.add(x)
    return builder.result()


def naive(values, exponent):
    """The bins that are filled, by exact fractions, one value after another."""
    sides = {1: Counter(), -1: Counter()}
    for v in values.tolist():
        if v:
            place = abs(Fraction(v)) * FINE_BINS / Fraction(2) ** exponent
            sides[1 if v > 0 else -1][math.floor(place)] += 1
    return sides[1], sides[-1]


def filled(counts):
    """The bins that are filled, with their counts."""
    return {k: int(counts[k]) for k in np.flatnonzero(counts).tolist()}


def assert_equal(a, b):
    np.testing.assert_array_equal(a.positive, b.positive)
    np.testing.assert_array_equal(a.negative, b.negative)
    assert (a.exponent, a.zeros, a.images) == (b.exponent, b.zeros, b.images)


@given(hnp.arrays(np.float32, st.tuples(st.just(2), st.integers(1, 41)), elements=FLOATS))
@settings(max_examples=60, deadline=None)
def test_counts_are_those_of_a_loop(x):
    limits, found = build(x)
    absmax = float(np.abs(x).max())
    expected = MIN_EXPONENT
    while Fraction(2) ** expected <= Fraction(absmax):
        expected += 1
    assert (limits.minimum, limits.maximum) == (x.min(), x.max())
    assert found.exponent == exponent_of(absmax) == expected
    positive, negative = naive(x.reshape(-1), expected)
    assert filled(found.positive) == positive
    assert filled(found.negative) == negative
    assert (found.zeros, found.images) == ((x == 0).sum(), 2)


@given(st.lists(hnp.arrays(np.float32, (1, 7), elements=FLOATS), min_size=2, max_size=5), st.data())
@settings(max_examples=60, deadline=None)
def test_the_order_of_batches_and_the_parts_merged_do_not_matter(batches, data):
    limits, whole = build(*batches)
    shuffled = data.draw(st.permutations(batches))
    other, found = build(*shuffled)
    assert other == limits
    assert_equal(found, whole)
    cut = data.draw(st.integers(0, len(batches)))
    parts = build(*shuffled[:cut])[1], build(*shuffled[cut:])[1]
    assert_equal(parts[0].merge(parts[1]), whole)
    assert_equal(parts[1].merge(parts[0]), whole)
    for part, rest in (parts, parts[::-1]):
        assert_equal(whole.minus(part), rest.widened(whole.exponent))


def test_threads_that_share_a_builder_count_all():
    batches = [(RNG.standard_normal((2, 5003)) * 3**i).astype(np.float32) for i in range(9)]
    builder = FineBuilder()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(builder.add, batches))
    assert_equal(builder.result()[1], build(*batches)[1])


def test_more_values_than_a_counter_holds(monkeypatch):
    batches = [(RNG.standard_normal((1, 997)) * 5**i).astype(np.float32) for i in range(5)]
    plain = build(*batches)[1]
    assert plain.positive.dtype == np.uint32
    monkeypatch.setattr(module, "_MOST", 1100)
    spilled = build(*batches)[1]
    assert spilled.positive.dtype == np.uint64
    assert_equal(spilled, plain)


def test_sums_that_32_bits_do_not_hold():
    most = np.zeros(FINE_BINS, np.uint32)
    most[7] = (1 << 32) - 3
    one = FineHistogram(most, module.NONE, 3, 0, 1)
    twice = one.merge(one)
    assert int(twice.positive[7]) == 2 * ((1 << 32) - 3)
    assert_equal(twice.minus(one), one)
    # Two bins that 32 bits hold, and that they do not hold together.
    most[6] = 5
    for doublings in (1, 3, 20):
        wide = FineHistogram(most, module.NONE, 3, 0, 1).widened(3 + doublings)
        assert filled(wide.positive) == {7 >> doublings: (1 << 32) + 2}
    coarse, _ = FineHistogram(most, module.NONE, 3, 0, 1).rebinned(8.0, BINS)
    assert filled(coarse) == {0: (1 << 32) + 2}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nothing_of_a_batch_with_bad_values_is_counted(bad):
    builder = FineBuilder("conv1")
    good = np.array([[1.5, -2, 0]], np.float32)
    builder.add(good)
    worse = np.full((1, 5000), 77, np.float32)
    worse[0, 4999] = bad
    with pytest.raises(StatisticsError, match=r"blob 'conv1': [01] NaN and [01] infinite"):
        builder.add(worse)
    assert_equal(builder.result()[1], build(good)[1])
    with pytest.raises(StatisticsError, match="expected float32"):
        builder.add(good.astype(np.float64))


def test_the_compiled_loop_is_the_plain_one():
    values = RNG.standard_normal(4099).astype(np.float32)
    values[::5] = 0
    slots = np.empty(512, np.uint32)
    counts = np.zeros((2, 2 * FINE_BINS + 16), np.uint32)
    count_fine(values, FINE_BINS / 8, slots, counts[0])
    count_fine.py_func(values, np.float32(FINE_BINS / 8), slots, counts[1])
    np.testing.assert_array_equal(counts[0], counts[1])


@pytest.mark.parametrize("scale", [1.0, 1.9999, 0.5003, 1e-20, 3e30])
def test_coarse_bins_share_a_fine_bin_in_proportion(scale):
    x = (RNG.gamma(0.7, 1, (1, 20011)) * scale).astype(np.float32)
    limits, fine = build(x)
    found = Histogram.from_fine(fine, limits.absmax)
    edges = [Fraction(limits.absmax) * k / BINS for k in range(1, BINS)]
    width = Fraction(2) ** fine.exponent / FINE_BINS
    counts = fine.positive.tolist()
    below = np.concatenate([[0], np.cumsum(fine.positive)]).tolist()
    wanted = []
    for edge in edges:
        place = math.floor(edge / width)
        wanted.append(below[place] + (edge / width - place) * counts[place])
    np.testing.assert_allclose(
        np.cumsum(found.positive)[:-1], [float(w) for w in wanted], rtol=0, atol=0.5 + 1e-6
    )
    assert found.nonzero == x.size
    assert (np.float32(limits.absmax), found.images) == (x.max(), 1)


@pytest.mark.parametrize("draw", ["gamma", "normal", "uniform", "relu", "few", "pixels"])
@pytest.mark.parametrize("method", ["mse", "percentile"])
def test_thresholds_are_those_of_the_values_themselves(draw, method):
    """The threshold of a naive search over the values, within one bin of 2048."""
    rng = np.random.default_rng(31)
    x = {
        "gamma": lambda: rng.gamma(0.4, 1, 30011),
        "normal": lambda: rng.standard_normal(30011),
        "uniform": lambda: rng.random(30011) * 3 - 1,
        "relu": lambda: np.maximum(rng.standard_normal(30011), 0),
        "few": lambda: rng.standard_normal(307),
        "pixels": lambda: rng.integers(0, 256, 30011) - 117.0,
    }[draw]().astype(np.float32)[None]
    limits, fine = build(x)
    found = find_threshold(Histogram.from_fine(fine, limits.absmax), method).value
    size = np.sort(np.abs(x[x != 0]).astype(np.float64))
    if method == "percentile":
        # As many values beyond it as wanted, but for those in the bin where it lies.
        near = limits.absmax / BINS
        assert (
            (size > found + near).sum() <= 1e-4 * size.size + 1 <= (size > found - near).sum() + 2
        )
        return
    costs = []
    for k in range(1, BINS + 1):
        step = k * limits.absmax / BINS / 127
        costs.append(((size - np.minimum(np.rint(size / step), 127) * step) ** 2).sum())
    place = round(found / limits.absmax * BINS)
    assert costs[place - 1] <= min(costs) * 1.01


def test_methods_do_not_see_how_the_range_grew():
    x = RNG.standard_normal((6, 3001)).astype(np.float32)
    growing = x * (2.0 ** np.arange(-7, 5, 2)).astype(np.float32)[:, None]
    a, b = build(growing), build(*growing[:, None])
    for method in ("mse", "percentile", "kl", "minmax"):
        found = [find_threshold(Histogram.from_fine(f, r.absmax), method) for r, f in (a, b)]
        assert found[0] == found[1]


@pytest.mark.parametrize(
    "change",
    [
        {"positive": np.zeros(5, np.uint32)},
        {"negative": np.zeros(FINE_BINS, np.int64)},
        {"exponent": 129},
        {"exponent": -101},
        {"zeros": -1},
        {"images": -1},
    ],
)
def test_parts_that_are_no_histogram(change):
    parts = {
        "positive": module.NONE,
        "negative": module.NONE,
        "exponent": 0,
        "zeros": 0,
        "images": 0,
    }
    with pytest.raises(StatisticsError):
        FineHistogram(**parts | change)


def test_a_part_with_more_than_the_whole():
    whole = build(np.array([[1, 2, -3]], np.float32))[1]
    for part in ([[1, 1]], [[9]], [[-3, -3]]):
        with pytest.raises(StatisticsError, match="than the whole"):
            whole.minus(build(np.array(part, np.float32))[1])
