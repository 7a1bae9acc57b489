"""`kl` and `kl-tool-v1`: levels with edges inside bins."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings

from int8calib.calibration.thresholds import find_threshold
from tests.histogram_cases import (
    KINDS,
    SHAPES,
    candidates_of,
    golden_histograms,
    golden_scales,
    input_histogram,
    make,
    one_value,
    plain,
    random_counts,
    small_counts,
    without_zeros,
)


@cache
def covered(t):
    """Each level, a bin it covers and by which part, from the definition."""
    starts, ends = np.arange(128) * t / 128, np.arange(1, 129) * t / 128
    first, last = starts.astype(int), np.ceil(ends).astype(int)
    sizes = last - first
    levels = np.repeat(np.arange(128), sizes)
    bins = np.arange(levels.size) + np.repeat(first - (np.cumsum(sizes) - sizes), sizes)
    parts = np.minimum(ends[levels], bins + 1) - np.maximum(starts[levels], bins)
    return levels, bins, parts


def by_level(t, values):
    """For each of 128 levels, the sum over the bins that it covers, by their parts."""
    levels, bins, parts = covered(t)
    return np.bincount(levels, parts * values[bins], minlength=128)


def spread(t, level_values):
    """For each bin, the levels that cover it, by their parts."""
    levels, bins, parts = covered(t)
    return np.bincount(bins, parts * level_values[levels], minlength=t)


def naive_ncnn(counts, t):
    p = counts / counts.sum()
    a = p[:t] + 1e-4
    a[-1] += p[t:].sum()
    levels = by_level(t, p) / by_level(t, np.ones(t))
    b = 1e-4 + spread(t, levels)
    return (a * np.log(a / b)).sum()


def naive_first_tool(counts, t):
    p = counts / counts.sum()
    filled = (p[:t] > 0).astype(float)
    a = p[:t].copy()
    a[-1] += p[t:].sum()
    weights = by_level(t, filled)
    levels = np.divide(by_level(t, p), weights, out=np.zeros(128), where=weights > 0)
    b = spread(t, levels) * filled
    used = a > 0
    if (b[used] == 0).any():
        return np.inf
    return (a[used] * np.log(a[used] / b[used])).sum()


METHODS = {"kl": naive_ncnn, "kl-tool-v1": naive_first_tool}


def kernels():
    from int8calib.calibration.thresholds.kernels import kl_curve, kl_tool_v1_curve

    return {"kl": kl_curve, "kl-tool-v1": kl_tool_v1_curve}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", SHAPES)
def test_threshold_is_that_of_the_definition(method, shape):
    counts = SHAPES[shape]
    candidates = candidates_of(shape)
    naive = [METHODS[method](counts, t) for t in candidates]
    curve = kernels()[method](counts.astype(float))
    np.testing.assert_allclose(curve[candidates - 128], naive, rtol=1e-9, atol=1e-11)
    found = find_threshold(make(counts // 3, negative=counts - counts // 3), method)
    assert METHODS[method](counts, found.bin) <= min(naive) + 1e-12
    if len(candidates) == 1920:
        assert found.bin == candidates[np.argmin(naive)]
    absmax = np.float32(3.7)
    assert found.value == np.float32(found.bin + 0.5) * absmax / np.float32(2048)


@pytest.mark.parametrize("method", METHODS)
@given(counts=small_counts())
@settings(max_examples=12, deadline=None)
def test_compiled_and_naive_agree(method, counts):
    naive = [METHODS[method](counts, t) for t in range(128, counts.size)]
    np.testing.assert_allclose(kernels()[method](counts), naive, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("filled", "decay"), KINDS)
def test_plain_and_naive_agree(method, filled, decay):
    counts = random_counts(5, filled, decay)
    naive = [METHODS[method](counts, t) for t in range(128, counts.size)]
    curve = kernels()[method]
    with plain(curve.__name__.replace("curve", "costs")):
        np.testing.assert_allclose(curve(counts), naive, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("method", METHODS)
def test_one_value_is_not_clipped(method):
    found = find_threshold(one_value(), method)
    assert (found.value, found.bin) == (2.5, 2048)


def test_first_tool_without_a_finite_candidate_clips_nothing():
    counts = np.zeros(2048, np.int64)
    counts[[5, 2047]] = 1000, 1
    assert not np.isfinite(kernels()["kl-tool-v1"](counts.astype(float))).any()
    found = find_threshold(make(counts, 2.5), "kl-tool-v1")
    assert (found.value, found.bin) == (2.5, 2048)


def test_counts_far_beyond_32_bits():
    counts = SHAPES["decaying"]
    for method in METHODS:
        big = find_threshold(make(counts * 2**20), method)
        assert big == find_threshold(make(counts), method)


def test_ncnn2table_row_for_row(shared):
    golden = golden_scales(shared, "squeezenet_v1.0.ncnn2table_kl.table")
    off = {}
    for layer, (absmax, _, counts) in golden_histograms(shared).items():
        # The first convolution's blob has negative values, which the log leaves out.
        if layer != "conv1":
            found = find_threshold(make(without_zeros(counts), absmax), "kl")
            off[layer] = found.bin + 0.5 - 127 / golden[layer] / absmax * 2048
    assert len(off) == 25
    # Two layers that read one blob miss by a bin: there the first bin's count is a guess.
    assert max(map(abs, off.values())) < 1.05
    assert sum(abs(x) < 0.05 for x in off.values()) >= 23


def test_first_tool_row_for_row(shared):
    golden = golden_scales(shared, "squeezenet_v1.0.tool_v1.table")
    scales = {f"{scale:.4g}" for scale in golden.values()}
    hits = 0
    for layer, (absmax, _, counts) in golden_histograms(shared).items():
        if layer != "conv1":
            found = find_threshold(make(without_zeros(counts), absmax), "kl-tool-v1")
            hits += f"{127 / found.value:.4g}" in scales
    assert hits == 25


def test_input_blob_of_real_images(shared):
    histogram = input_histogram(shared, pytest.importorskip("cv2"))
    ncnn = golden_scales(shared, "squeezenet_v1.0.ncnn2table_kl.table")["conv1"]
    tool = golden_scales(shared, "squeezenet_v1.0.tool_v1.table")["data"]
    assert 127 / find_threshold(histogram, "kl").value == pytest.approx(ncnn, abs=5e-7)
    assert 127 / find_threshold(histogram, "kl-tool-v1").value == pytest.approx(tool, rel=1e-7)
