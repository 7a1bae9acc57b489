from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from int8calib.calibration.statistics.histogram import BINS, Histogram, HistogramBuilder
from int8calib.calibration.statistics.ranges import measure_range
from int8calib.errors import StatisticsError


def build(x, absmax=None):
    builder = HistogramBuilder(measure_range(x).absmax if absmax is None else absmax, "b")
    builder.add(x)
    return builder.result()


def naive_counts(values, absmax):
    """int(|v| / absmax * 2048) with every step rounded to float32, one value after another."""
    counts = [0] * BINS
    for v in values:
        place = np.float32(np.float32(abs(v)) / np.float32(absmax)) * np.float32(2048)
        counts[min(int(place), 2047)] += 1
    return counts


def assert_equal(a, b):
    np.testing.assert_array_equal(a.positive, b.positive)
    np.testing.assert_array_equal(a.negative, b.negative)
    assert (a.absmax, a.zeros, a.images) == (b.absmax, b.zeros, b.images)


def sample(shape, kind, seed=17):
    x = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    if kind == "relu":
        return np.maximum(x, 0)
    if kind == "one value":
        return np.full(shape, 3.25, np.float32)
    if kind == "runs":
        return np.repeat(x.reshape(-1)[::31], 31)[: x.size].reshape(shape)
    return x


@pytest.mark.parametrize("kind", ["dense", "relu", "one value", "runs"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (2, 3, 37, 41), (1, 2048), (1, 2049), (7, 1171)])
def test_counts_are_those_of_a_loop_over_the_values(kind, shape):
    x = sample(shape, kind)
    found = build(x)
    flat = x.reshape(-1)
    assert found.positive.tolist() == naive_counts(flat[flat > 0], found.absmax)
    assert found.negative.tolist() == naive_counts(flat[flat < 0], found.absmax)
    assert found.zeros == (flat == 0).sum()
    assert found.observed == x.size
    assert found.images == shape[0]
    assert found.per_image == x.size // shape[0]


@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=1, max_dims=3, max_side=13),
        elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
    )
)
@settings(max_examples=150, deadline=None)
def test_any_finite_values(x):
    found = build(x)
    assert found.observed == x.size
    if found.absmax == 0:
        assert found.zeros == x.size
        return
    flat = x.reshape(-1)
    assert found.positive.tolist() == naive_counts(flat[flat > 0], found.absmax)
    assert found.negative.tolist() == naive_counts(flat[flat < 0], found.absmax)


def test_values_on_bin_edges_and_beyond_the_last():
    edges = np.array([1, 2, 1023, 1024, 2047, 2048], np.float32)
    assert np.flatnonzero(build(edges, absmax=2048.0).positive).tolist() == [
        1,
        2,
        1023,
        1024,
        2047,
    ]
    assert build(edges, absmax=2048.0).positive[2047] == 2
    builder = HistogramBuilder(2048.0, "x")
    for beyond in (np.nextafter(np.float32(2048), np.float32(4096)), -4096.0):
        with pytest.raises(
            StatisticsError, match=r"blob 'x': a value of .* beyond its absmax of 2048"
        ):
            builder.add(np.array([3, beyond], np.float32))
    assert builder.result().observed == 0


def test_any_split_order_and_thread_count_gives_the_same_bits():
    x = sample((11, 3, 37, 41), "dense")
    whole = build(x)
    cuts = [0, 1, 4, 5, 11]
    pieces = [x[a:b] for a, b in pairwise(cuts)]
    absmax = whole.absmax
    one_by_one = HistogramBuilder(absmax)
    for piece in reversed(pieces):
        one_by_one.add(piece)
    assert_equal(one_by_one.result(), whole)
    merged = build(pieces[2], absmax)
    for i in (0, 3, 1):
        merged = merged.merge(build(pieces[i], absmax))
    assert_equal(merged, whole)
    threaded = HistogramBuilder(absmax)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(threaded.add, [x[i : i + 1] for i in range(11)] * 20))
    times_20 = threaded.result()
    np.testing.assert_array_equal(times_20.counts, 20 * whole.counts)
    assert (times_20.zeros, times_20.images) == (20 * whole.zeros, 220)


def test_strided_and_readonly_views():
    x = sample((3, 7, 11, 13), "relu")
    x.setflags(write=False)
    view = x[:, ::2, 1:9, ::-1]
    assert_equal(build(view), build(view.copy()))


def test_result_does_not_change_with_later_batches():
    builder = HistogramBuilder(4.0)
    empty = builder.result()
    builder.add(np.array([[1.0, -2.0, 0.0]], np.float32))
    first = builder.result()
    builder.add(np.array([[1.0, -2.0, 0.0]], np.float32))
    assert empty.observed == 0
    assert empty.per_image == 0
    assert (first.observed, first.zeros, builder.result().observed) == (3, 1, 6)
    assert first.positive[512] == 1
    assert first.negative[1024] == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 2047, 2048, 5000])
def test_bad_values_are_refused_and_nothing_is_counted(bad, place):
    builder = HistogramBuilder(1.0, "conv3")
    x = np.full((1, 5001), 0.5, np.float32)
    x[0, place] = bad
    with pytest.raises(StatisticsError, match=r"blob 'conv3': . NaN and . infinite"):
        builder.add(x)
    assert builder.result().observed == 0


def test_dead_blob_takes_zeros_only():
    builder = HistogramBuilder(0.0, "dead")
    builder.add(np.zeros((3, 5), np.float32))
    with pytest.raises(StatisticsError, match="blob 'dead': a value of 1e-30 beyond"):
        builder.add(np.full((1, 5), -1e-30, np.float32))
    found = builder.result()
    assert (found.zeros, found.nonzero, found.images, found.clipped(0.0)) == (15, 0, 3, 0.0)


@pytest.mark.parametrize("absmax", [-1.0, np.nan, np.inf])
def test_builder_refuses_an_absmax_that_is_none(absmax):
    with pytest.raises(StatisticsError, match="absmax"):
        HistogramBuilder(absmax)


def test_histogram_refuses_wrong_parts():
    good = np.zeros(BINS, np.int64)
    with pytest.raises(StatisticsError, match="positive counts have shape"):
        Histogram(good[1:], good, 1.0, 0, 1)
    with pytest.raises(StatisticsError, match=r"negative counts have .* float64"):
        Histogram(good, good.astype(float), 1.0, 0, 1)
    with pytest.raises(StatisticsError, match="go down to -1"):
        Histogram(good - 1, good, 1.0, 0, 1)
    for absmax, zeros, images in ((np.nan, 0, 1), (1.0, -1, 1), (1.0, 0, -1)):
        with pytest.raises(StatisticsError, match="expected finite values >= 0"):
            Histogram(good, good, absmax, zeros, images)


def test_merging_other_bins_is_refused():
    x = sample((2, 3, 5), "dense")
    with pytest.raises(StatisticsError, match="different bins"):
        build(x).merge(build(x, absmax=99.0))


def test_clipped_share_is_that_of_the_values():
    x = sample((3, 61, 67), "relu")
    found = build(x)
    nonzero = x[x != 0]
    for threshold in (0.0, 0.3, 1.7, 2.9, float(found.absmax), 99.0):
        share = (nonzero > threshold).mean()
        in_one_bin = np.histogram(nonzero, 2048, (0, found.absmax))[0].max() / nonzero.size
        assert abs(found.clipped(threshold) - share) <= in_one_bin
    assert found.clipped(0.0) == 1.0
    assert found.clipped(found.absmax) == 0.0


def test_clipped_share_inside_a_bin_is_linear():
    counts = np.zeros(BINS, np.int64)
    counts[100], counts[2047] = 30, 10
    found = Histogram(counts, counts, 2048.0, 5, 1)
    assert found.clipped(100.0) == 1.0
    assert found.clipped(100.25) == pytest.approx(0.75 * 0.75 + 0.25)
    assert found.clipped(101.0) == 0.25
    assert found.clipped(2047.5) == 0.125


def test_value_at_rounds_as_float32_does():
    zero = np.zeros(BINS, np.int64)
    for absmax in np.random.default_rng(23).random(50, np.float32) * np.float32(97):
        found = Histogram(zero, zero, float(absmax), 0, 1)
        for t in (128, 1279, 2047):
            in_float32 = (np.float32(t) + np.float32(0.5)) * absmax / np.float32(2048)
            assert found.value_at(t + 0.5) == in_float32
        assert found.value_at(2048) == absmax


def test_python_form_of_the_kernel_agrees():
    from int8calib.calibration.statistics.kernels import SLOTS, count_slots

    x = sample((1, 997), "dense").reshape(-1)
    x[::7] = 0
    counts = np.empty((2, SLOTS), np.int64)
    for strange in (1, np.nan, np.inf, 3.51, -3.51):
        x[3] = strange
        for run, found in zip((count_slots, count_slots.py_func), counts, strict=True):
            scratch = np.empty(113, np.uint16), np.zeros((4, SLOTS), np.int32)
            assert run(x, np.float32(3.5), *scratch, found) == (strange != 1)
        np.testing.assert_array_equal(counts[0], counts[1])


def test_input_histogram_of_real_images_is_the_reference_tools(shared):
    cv2 = pytest.importorskip("cv2")
    text = (shared / "golden/squeezenet_v1.0.tool_weight.table.log").read_text()
    head, _, rest = text.partition("[")
    assert head.startswith("conv1: value range 0 - 151.0")
    golden = np.array(rest.partition("]")[0].split(), np.int64)
    mean = np.array([104, 117, 123], np.float32).reshape(3, 1, 1)
    builder = HistogramBuilder(151.0, "data")
    for path in sorted((shared / "golden/png227").glob("*.png")):
        builder.add((cv2.imread(str(path)).transpose(2, 0, 1) - mean)[None])
    found = builder.result()
    # The tool keeps negative values out, and counts zeros in the first bin.
    as_the_tool = found.positive.copy()
    as_the_tool[0] += found.zeros
    np.testing.assert_array_equal(as_the_tool, golden)
    assert (found.images, found.per_image) == (20, 3 * 227 * 227)
