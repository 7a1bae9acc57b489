"""`kl-tool` and `kl-tensorrt`: levels of whole bins."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

from int8calib.calibration.thresholds import find_threshold
from tests.histogram_cases import (
    KINDS,
    SHAPES,
    candidates_of,
    golden_histograms,
    make,
    one_value,
    plain,
    random_counts,
    small_counts,
)


def entropy(p, q):
    """Divergence of p from q after dividing both by their sums."""
    p, q = p / p.sum(), q / q.sum()
    used = p > 0
    if (q[used] == 0).any():
        return np.inf
    return (p[used] * np.log(p[used] / q[used])).sum()


def naive_tool(counts, t):
    """From the counts without their first bin."""
    p = counts[:t].astype(float)
    p[-1] += counts[t:].sum()
    level = np.minimum(np.arange(t) // (t // 128), 127)
    sums = np.bincount(level, counts[:t], minlength=128)
    # The last bin's count goes to its level, but the level is not spread to it.
    filled = np.bincount(level[:-1], p[:-1] != 0, minlength=128)
    means = np.divide(sums, filled, out=np.zeros(128), where=filled > 0)
    q = np.append(means[level[:-1]], 0)
    q[p == 0] = 0
    p[p == 0] = 1e-4
    q[q == 0] = 1e-4
    return entropy(p, q)


def naive_tensorrt(counts, t):
    p = counts[:t].astype(float)
    p[-1] += counts[t:].sum()
    level = np.arange(t) * 128 // t
    filled = counts[:t] > 0
    sums = np.bincount(level, counts[:t] * filled, minlength=128)
    numbers = np.bincount(level, filled, minlength=128)
    q = np.zeros(t)
    q[filled] = sums[level[filled]] / numbers[level[filled]]
    return entropy(p, q) if q.any() else np.inf


def kernels():
    from int8calib.calibration.thresholds.kernels import kl_tensorrt_curve, kl_tool_curve

    return {naive_tool: kl_tool_curve, naive_tensorrt: kl_tensorrt_curve}


@pytest.mark.parametrize(
    ("method", "naive", "dropped"),
    [("kl-tool", naive_tool, 1), ("kl-tensorrt", naive_tensorrt, 0)],
)
@pytest.mark.parametrize("shape", SHAPES)
def test_threshold_is_that_of_the_definition(method, naive, dropped, shape):
    counts = SHAPES[shape][dropped:]
    candidates = candidates_of(shape)[: counts.size - 128]
    wanted = [naive(counts, t) for t in candidates]
    curve = kernels()[naive](counts.astype(float))
    np.testing.assert_allclose(curve[candidates - 128], wanted, rtol=1e-9, atol=1e-11)
    found = find_threshold(make(SHAPES[shape]), method)
    assert naive(counts, found.bin) <= min(wanted) + 1e-12
    if len(candidates) >= 1919:
        assert found.bin == candidates[np.argmin(wanted)]
    assert found.value == np.float32(found.bin + 0.5) * np.float32(3.7) / np.float32(2048)


@pytest.mark.parametrize("naive", [naive_tool, naive_tensorrt])
@given(counts=small_counts())
@settings(max_examples=12, deadline=None)
def test_compiled_and_naive_agree(naive, counts):
    wanted = [naive(counts, t) for t in range(128, counts.size)]
    np.testing.assert_allclose(kernels()[naive](counts), wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("naive", [naive_tool, naive_tensorrt])
@pytest.mark.parametrize(("filled", "decay"), KINDS)
def test_plain_and_naive_agree(naive, filled, decay):
    counts = random_counts(5, filled, decay)
    wanted = [naive(counts, t) for t in range(128, counts.size)]
    curve = kernels()[naive]
    with plain(curve.__name__.replace("curve", "costs")):
        np.testing.assert_allclose(curve(counts), wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("method", ["kl-tool", "kl-tensorrt"])
def test_one_value_is_not_clipped(method):
    found = find_threshold(one_value(), method)
    assert (found.value, found.bin) == (2.5, 2048)


def test_tool_sees_positive_values_only():
    positive, negative = SHAPES["decaying"], SHAPES["bimodal"]
    assert find_threshold(make(positive, negative=negative), "kl-tool") == find_threshold(
        make(positive), "kl-tool"
    )
    assert find_threshold(make(positive, negative=negative), "kl-tensorrt") == find_threshold(
        make(positive + negative), "kl-tensorrt"
    )
    # Nothing to look at: nothing is clipped.
    found = find_threshold(make(np.zeros(2048), negative=negative), "kl-tool")
    assert (found.value, found.bin) == (np.float32(3.7), 2048)


def test_tool_handles_a_blob_whose_absmax_is_negative():
    counts = np.zeros(2048, np.int64)
    counts[:41] = 7
    wanted = [naive_tool(counts[1:], t) for t in range(128, 2047)]
    negative = np.zeros(2048, np.int64)
    negative[-1] = 1
    found = find_threshold(make(counts, negative=negative), "kl-tool")
    assert found.bin == 128 + int(np.argmin(wanted))


def test_tensorrt_without_a_finite_candidate_clips_nothing():
    counts = np.zeros(2048, np.int64)
    counts[[5, 2047]] = 1000, 1
    found = find_threshold(make(counts, 2.5), "kl-tensorrt")
    assert (found.value, found.bin) == (2.5, 2048)


def test_latest_tool_bin_for_bin(shared):
    golden = golden_histograms(shared)
    found = {
        layer: find_threshold(make(counts, absmax), "kl-tool").bin
        for layer, (absmax, _, counts) in golden.items()
    }
    assert len(found) == 26
    assert found == {layer: threshold for layer, (_, threshold, _) in golden.items()}
