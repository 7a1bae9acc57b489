from __future__ import annotations

import numpy as np
import pytest

from int8calib.calibration.options import Options
from int8calib.calibration.thresholds import (
    MethodOptions,
    Threshold,
    find_threshold,
    find_thresholds,
    method_names,
    register_method,
    summary,
)
from int8calib.calibration.thresholds.registry import _METHODS
from int8calib.cli.main import build_parser
from int8calib.errors import OptionError
from tests.histogram_cases import SHAPES, dead, make, one_value

NAMES = {"kl", "kl-tool", "kl-tool-v1", "kl-tensorrt", "aciq", "minmax", "percentile", "mse"}


def test_all_methods_are_there_and_say_what_they_do():
    assert set(method_names()) == NAMES
    assert len({summary(name) for name in NAMES}) == len(NAMES)
    assert all(0 < len(summary(name)) < 80 for name in NAMES)


@pytest.mark.parametrize("name", sorted(NAMES))
def test_dead_blobs_have_threshold_0_and_others_never(name):
    for histogram in dead():
        assert find_threshold(histogram, name) == Threshold(0.0, None)
    single = np.zeros(2048, np.int64)
    single[-1] = 1
    for counts in (*SHAPES.values(), single):
        # A range so small that most of its bins are not float32's normal numbers, and a huge one.
        for absmax in (1e-38, 3e38):
            value = find_threshold(make(counts, absmax), name).value
            assert 0 < value < 5 * absmax


@pytest.mark.parametrize("name", sorted(NAMES - {"aciq", "minmax"}))
def test_result_is_within_the_bins_and_of_plain_types(name):
    for counts in SHAPES.values():
        found = find_threshold(make(counts), name)
        assert type(found.value) is float
        assert type(found.bin) is int
        assert 1 <= found.bin <= 2048
        assert found.value <= np.float32(3.7)


def test_there_is_one_default_method():
    histogram = make(SHAPES["bimodal"])
    assert find_threshold(histogram) == find_threshold(histogram, "mse")
    assert find_threshold(histogram) != find_threshold(histogram, "kl")
    assert find_thresholds({"x": histogram}) == {"x": find_threshold(histogram, "mse")}
    words = ["calibrate", "--proto", "p", "--model", "m", "--images", "i", "--output", "o"]
    assert build_parser().parse_args(words).method == Options().method == "mse"


def test_unknown_method_lists_the_known_ones():
    with pytest.raises(OptionError, match=r"unknown method 'entropy', expected one of .*kl-tool"):
        find_threshold(one_value(), "entropy")
    with pytest.raises(OptionError, match="unknown method 'entropy'"):
        summary("entropy")


def test_unknown_option_lists_the_known_ones():
    with pytest.raises(OptionError, match="unknown option 'percent', expected one of percentile"):
        find_threshold(one_value(), "kl", percent=99)


def test_a_method_from_outside():
    @register_method("half", summary="half the absmax")
    def half(histogram, options):
        return Threshold(histogram.absmax / options.bits, None)

    try:
        assert find_threshold(one_value(), "half", bits=2) == Threshold(1.25, None)
        assert "half" in method_names()
        with pytest.raises(OptionError, match="'half' is registered already"):
            register_method("half", summary="again")
    finally:
        del _METHODS["half"]


def test_many_blobs_in_threads_are_as_one_by_one():
    histograms = {name: make(counts) for name, counts in SHAPES.items()}
    for name in sorted(NAMES):
        alone = {blob: find_threshold(h, name) for blob, h in histograms.items()}
        for workers in (1, 3, None):
            found = find_thresholds(histograms, name, workers=workers)
            assert list(found.items()) == list(alone.items())


def test_a_method_for_each_blob():
    histograms = {name: make(counts) for name, counts in SHAPES.items()}
    methods = dict.fromkeys(histograms, "minmax") | {"sparse": "mse"}
    found = find_thresholds(histograms, methods)
    assert found["sparse"] == find_threshold(histograms["sparse"], "mse")
    assert found["short"] == find_threshold(histograms["short"], "minmax")
    with pytest.raises(OptionError, match="no method given for blob 'short'"):
        find_thresholds(histograms, {"decaying": "kl"} | dict.fromkeys(list(methods)[2:], "kl"))
    assert find_thresholds({}) == {}


def test_options_are_checked_for_every_method():
    assert MethodOptions() == MethodOptions(percentile=99.99, bits=8)
    with pytest.raises(OptionError, match="percentile 101"):
        find_thresholds({"a": one_value()}, percentile=101)
