from __future__ import annotations

import math

import numpy as np
import pytest

from int8calib.calibration.thresholds import find_threshold
from int8calib.calibration.thresholds.aciq import aciq_clip
from int8calib.errors import OptionError
from tests.histogram_cases import SHAPES, golden_histograms, golden_scales, make, one_value


def convolutions(shared):
    """{layer: (weights per output channel, 3x3 with stride 1)} from ncnn's structure file."""
    found = {}
    path = shared / "golden/ncnn_squeezenet_v1.0/optimized.param"
    for line in path.read_text().splitlines()[2:]:
        kind, name, *rest = line.split()
        if kind == "Convolution":
            given = dict(item.split("=") for item in rest if "=" in item)
            winograd = given["1"] == "3" and given.get("3", "1") == "1"
            found[name] = int(given["6"]) // int(given["0"]), winograd
    return found


def test_clip_is_alpha_times_the_estimated_deviation():
    # The range of n normal values is about 2 sqrt(2 ln n) deviations, from which the formula
    # starts; alpha for 8 bits is 3.92403714.
    std = 2 * 5.0 * (0.5 * 0.35) * (1 + (math.pi * math.log(4)) ** 0.5) / (2 * math.log(997)) ** 0.5
    assert aciq_clip(5.0, 997) == pytest.approx(3.92403714 * std, rel=1e-12)
    assert aciq_clip(5.0, 997, bits=6) == pytest.approx(3.28691474 * std, rel=1e-12)


def test_more_bits_and_fewer_values_clip_less():
    clips = [aciq_clip(1.0, 10007, bits) for bits in range(2, 9)]
    assert clips == sorted(clips)
    assert aciq_clip(1.0, 101) > aciq_clip(1.0, 10007)


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_values_are_not_clipped(count):
    assert aciq_clip(2.5, count) == 2.5


def test_dead_channel_stays_dead():
    assert aciq_clip(0.0, 997) == 0.0


@pytest.mark.parametrize("bits", [1, 9])
def test_bits_without_an_alpha(bits):
    with pytest.raises(OptionError, match="bits"):
        aciq_clip(1.0, 997, bits)


def test_blob_is_clipped_by_the_values_of_one_image():
    counts = SHAPES["decaying"]
    histogram = make(counts, images=7, zeros=1009)
    found = find_threshold(histogram, "aciq")
    per_image = (int(counts.sum()) + 1009) // 7
    assert (found.value, found.bin) == (aciq_clip(float(np.float32(3.7)), per_image), None)
    assert find_threshold(one_value(), "aciq").value == aciq_clip(2.5, 1009 + 13)


def test_blob_scales_of_ncnn2table(shared):
    golden = golden_scales(shared, "squeezenet_v1.0.ncnn2table_aciq.table")
    for layer, (absmax, _, counts) in golden_histograms(shared).items():
        per_image = 3 * 227 * 227 if layer == "conv1" else int(counts.sum()) // 20
        assert 127 / aciq_clip(absmax, per_image) == pytest.approx(
            golden[layer], rel=2e-6, abs=1e-6
        )
        if layer != "conv1":
            histogram = make(counts[:2048], absmax, images=20)
            assert find_threshold(histogram, "aciq").value == aciq_clip(absmax, per_image)


def test_weight_scales_of_ncnn2table(shared):
    by_absmax = golden_scales(shared, "squeezenet_v1.0.ncnn2table_kl.table", weights=True)
    golden = golden_scales(shared, "squeezenet_v1.0.ncnn2table_aciq.table", weights=True)
    checked = 0
    for layer, (count, winograd) in convolutions(shared).items():
        levels, bits = (31, 6) if winograd else (127, 8)
        absmax = [levels / scale for scale in by_absmax[layer]]
        # A dead channel has an infinite scale in both tables.
        wanted = [levels / aciq_clip(x, count, bits) if x else np.inf for x in absmax]
        np.testing.assert_allclose(golden[layer], wanted, rtol=1e-6)
        checked += winograd
    assert len(golden) == 26
    assert checked == 8
