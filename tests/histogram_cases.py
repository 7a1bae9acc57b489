"""Histograms that the tests of the threshold methods share, and the golden files about them."""

from __future__ import annotations

import re
from contextlib import contextmanager
from importlib import import_module
from unittest.mock import patch

import numpy as np
from hypothesis import strategies as st

from int8calib.calibration.statistics.histogram import BINS, Histogram


def make(counts, absmax=3.7, negative=None, images=1, zeros=0):
    """A histogram of these counts, all positive unless some are given as negative."""
    counts = np.asarray(counts, np.int64)
    other = np.zeros(BINS, np.int64) if negative is None else np.asarray(negative, np.int64)
    return Histogram(counts, other, float(np.float32(absmax)), zeros, images)


def _bump(rng, *parts):
    i = np.arange(BINS)
    mean = sum(height * np.exp(-(((i - at) / width) ** 2)) for height, at, width in parts)
    return rng.poisson(mean)


def _draw():
    rng = np.random.default_rng(41)
    i = np.arange(BINS)
    shapes = {
        "decaying": rng.poisson(1e5 * np.exp(-i / 211)),
        "short": rng.poisson(3e5 * np.exp(-i / 31)),
        "bimodal": _bump(rng, (9e3, 307, 83), (2e3, 1499, 101)),
        "spiky": rng.poisson(97 * np.exp(-i / 401)) + (rng.random(BINS) < 0.01) * 5003,
        "sparse": (rng.random(BINS) < 0.02) * rng.integers(1, 53, BINS),
        "pixels": np.bincount((np.arange(152) * BINS // 151).clip(0, BINS - 1), minlength=BINS)
        * rng.integers(9e3, 11e3, BINS),
        "few values": np.bincount((abs(rng.standard_normal(307)) * 397).astype(int).clip(0, 2047)),
    }
    for name, counts in shapes.items():
        counts = np.pad(counts, (0, BINS - counts.size)).astype(np.int64)
        # Some value is the absmax.
        counts[-1] = max(counts[-1], 1)
        shapes[name] = counts
    return shapes


SHAPES = _draw()


def candidates_of(shape):
    """Thresholds to compare with a naive method: all 1920 of some shapes, a part of the others."""
    return np.arange(128, BINS, 1 if shape in {"bimodal", "sparse"} else 17)


KINDS = [(0.02, 61.0), (0.3, 1e9), (0.9, 7.0), (1.0, 61.0)]
"""Ways in which counts of few bins differ: the part of bins that is filled, and their decay."""


def random_counts(seed, filled, decay, bins=257):
    """Counts of few bins, many of them empty, the last one not: for the kernels, which take any."""
    rng = np.random.default_rng(seed)
    counts = rng.poisson(1009 * np.exp(-np.arange(bins) / decay)) * (rng.random(bins) < filled)
    counts[-1] = max(counts[-1], 1)
    return counts.astype(np.float64)


@st.composite
def small_counts(draw, bins=257):
    """Any such counts."""
    seed = draw(st.integers(0, 2**32 - 1))
    filled = draw(st.sampled_from([0.02, 0.3, 0.9, 1.0]))
    return random_counts(seed, filled, draw(st.sampled_from([7.0, 61.0, 1e9])), bins)


@contextmanager
def plain(name, module="kernels"):
    """Replace a compiled loop of the threshold stage by its plain Python form."""
    kernels = import_module(f"int8calib.calibration.thresholds.{module}")
    with patch.object(kernels, name, getattr(kernels, name).py_func):
        yield


def dead():
    """Histograms of dead blobs: never alive, and alive in other images only."""
    zero = np.zeros(BINS, np.int64)
    return [make(zero, 0.0, zeros=211), make(zero, 0.0, images=0), make(zero, 2.5, zeros=211)]


def one_value():
    """The histogram of a blob with the one value 2.5 (and exact zeros)."""
    counts = np.zeros(BINS, np.int64)
    counts[-1] = 1009
    return make(counts, 2.5, zeros=13)


def golden_histograms(shared):
    """{layer: (absmax, threshold bin, counts)} as the latest reference tool logged them."""
    text = (shared / "golden/squeezenet_v1.0.tool_weight.table.log").read_text()
    found = re.findall(
        r"^(\S+): value range 0 - (\S+), interval \S+, interval num 2048, threshold num (\d+)\n"
        r"\[([^\]]*)\]",
        text,
        re.MULTILINE,
    )
    return {
        layer: (float(np.float32(absmax)), int(threshold), np.array(counts.split(), np.int64))
        for layer, absmax, threshold, counts in found
    }


def golden_scales(shared, name, weights=False):
    """{layer or blob: scale}, or {layer: [weight scales]}, of a golden table."""
    rows = [line.split() for line in (shared / "golden" / name).read_text().splitlines()]
    if weights:
        return {
            key.removesuffix("_param_0"): [float(x) for x in scales]
            for key, *scales in rows
            if key.endswith("_param_0")
        }
    return {key: float(scales[0]) for key, *scales in rows if not key.endswith("_param_0")}


def without_zeros(counts):
    """The tool's first bin holds the zeros behind a ReLU too: take the second bin's count there."""
    guess = counts.copy()
    guess[0] = counts[1]
    return guess


def input_histogram(shared, cv2):
    """The histogram of the input blob over the golden images."""
    from int8calib.calibration.statistics.histogram import HistogramBuilder

    mean = np.array([104, 117, 123], np.float32).reshape(3, 1, 1)
    builder = HistogramBuilder(151.0, "data")
    for path in sorted((shared / "golden/png227").glob("*.png")):
        builder.add((cv2.imread(str(path)).transpose(2, 0, 1) - mean)[None])
    return builder.result()


def is_near_tie(histogram: Histogram, threshold: float) -> bool:
    """Whether ncnn2table's divergence at `threshold` is all but the smallest there is.

    Then noise of the last digits of activations decides, and engines may differ.
    """
    from int8calib.calibration.thresholds.kernels import LEVELS, kl_curve

    curve = kl_curve(histogram.counts.astype("float64"))
    bin = round(threshold / histogram.absmax * len(histogram.counts) - 0.5)
    return bool(curve[bin - LEVELS] < 1.001 * curve.min())
