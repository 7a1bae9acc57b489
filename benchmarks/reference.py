"""A straightforward Python rendition of the reference tool's algorithm, timed on a few images.

Caffe is not to be had, so OpenCV's dnn is the forward engine, which is rather faster. All images
run twice: once for each blob's absmax, once for its histogram by `np.histogram`; then a KL
search with Python loops, as the tool's "weight" version does it. The time of many images is
extrapolated: what an image takes, times the images, and what a blob takes, times the blobs.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.engines import THREADS, noise, opencv_forward
from benchmarks.networks import Material, Network, Say
from benchmarks.settings import Settings
from int8calib.arrays import Array
from int8calib.caffe.network.inputs import INPUT_TYPES
from int8calib.caffe.network.quantized import quantized_layers
from int8calib.images import Preprocess
from int8calib.images.decode import read_image

BINS = 2048
LEVELS = 128


def measure(material: Material, settings: Settings, say: Say) -> dict[str, Any]:
    """Seconds an image and a blob, and what a whole run would take, in OpenCV forwards."""
    network = material.one("squeezenet_v1.1")
    baseline = opencv_forward(network, noise(network), settings)
    before = baseline()
    tool = Reference(network)
    paths = [str(path) for path in material.images[: settings.slow_images]]
    started = time.perf_counter()
    histograms = tool.histograms(paths)
    per_image = (time.perf_counter() - started) / len(paths)
    some = list(histograms.values())[: settings.slow_blobs]
    started = time.perf_counter()
    for counts in some:
        threshold_bin(counts)
    per_blob = (time.perf_counter() - started) / len(some)
    after = baseline()
    unit = (before.wall + after.wall) / 2
    whole = per_image + per_blob * len(histograms) / settings.images
    say(f"{network.name}: rendition {whole / unit:.1f} OpenCV forwards an image (extrapolated)")
    return {
        "network": network.name,
        "images_run": len(paths),
        "blobs_searched": len(some),
        "blobs": len(histograms),
        "seconds_per_image": per_image,
        "seconds_per_blob": per_blob,
        "extrapolated_to_images": settings.images,
        "ratio": whole / unit,
    }


class Reference:
    """A network in OpenCV, whose blobs are looked at one after another."""

    def __init__(self, network: Network) -> None:
        net = network.load()
        (self._input, shape), *_ = net.input_shapes.items()
        self._preprocess = Preprocess(
            (shape[1], shape[2], shape[3]), mean=network.mean, norm=network.norm
        )
        producers = {
            layer.bottom: net.graph.producer(layer.bottom) for layer in quantized_layers(net.graph)
        }
        self._reads_input = any(made.type in INPUT_TYPES for made in producers.values())
        self._layers = [made.name for made in producers.values() if made.type not in INPUT_TYPES]
        self._net = cv2.dnn.readNetFromCaffe(str(network.proto), str(network.model))

    def blobs(self, path: str) -> dict[str, Array]:
        """Decode, preprocess, run: the bottoms of all quantized layers by producing layer."""
        cv2.setNumThreads(THREADS)
        data = self._preprocess(read_image(Path(path)))[None]
        self._net.setInput(data, self._input)
        tops = dict(zip(self._layers, self._net.forward(self._layers), strict=True))
        return {self._input: data, **tops} if self._reads_input else tops

    def histograms(self, paths: Sequence[str]) -> dict[str, NDArray[np.int64]]:
        """Both passes."""
        absmax: dict[str, float] = {}
        for path in paths:
            for name, blob in self.blobs(path).items():
                largest = max(float(np.max(blob)), -float(np.min(blob)))
                absmax[name] = max(absmax.get(name, 0.0), largest)
        counts: dict[str, NDArray[np.int64]] = {}
        for path in paths:
            self._count(self.blobs(path), absmax, counts)
        return counts

    def _count(
        self,
        blobs: Mapping[str, Array],
        absmax: Mapping[str, float],
        counts: dict[str, NDArray[np.int64]],
    ) -> None:
        for name, blob in blobs.items():
            found, _ = np.histogram(blob, bins=BINS, range=(0, absmax[name]))
            counts[name] = counts[name] + found if name in counts else found


def threshold_bin(counts: NDArray[np.int64]) -> int:
    """The bins kept by the tool's KL search over a histogram of positive values (2048 bins)."""
    values = counts[1:].astype(np.float64)
    best, best_divergence = LEVELS, np.inf
    for kept in range(LEVELS, len(values)):
        reference = values[:kept].copy()
        reference[kept - 1] += values[kept:].sum()
        filled = reference != 0
        spread = _spread_levels(values[:kept], filled)
        spread[~filled] = 1e-4
        spread[spread == 0] = 1e-4
        reference[~filled] = 1e-4
        p, q = reference / reference.sum(), spread / spread.sum()
        divergence = float((p * np.log(p / q)).sum())
        if divergence < best_divergence:
            best, best_divergence = kept, divergence
    return best


def _spread_levels(values: NDArray[np.float64], filled: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Values merged into 128 levels and spread over their filled bins, one level at a time.

    The last level takes the bins that do not divide; the last bin of all gets nothing.
    """
    width = len(values) // LEVELS
    spread = np.zeros(len(values))
    for level in range(LEVELS):
        start = level * width
        last = level == LEVELS - 1
        total = values[start:].sum() if last else values[start : start + width].sum()
        stop = len(values) - 1 if last else start + width
        norm = filled[start:stop].sum()
        if norm:
            spread[start:stop] = total / norm
    return spread
