"""Keep columns of every quantized layer while a calibration runs: no image runs twice for them.

Which positions of an image are kept follows from its pixels, so that the columns depend neither on
the number of workers nor on the order of the images.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from int8calib.arrays import Array
from int8calib.caffe.engine.executor import CaffeExecutor
from int8calib.caffe.network.quantized import QuantizedLayer
from int8calib.calibration.executor import Listener, Runner
from int8calib.calibration.statistics.counters import image_checksums
from int8calib.rounding.samples import SampledPositions, layer_matrices
from int8calib.workers import Batch

COLUMNS = (1024, 4096)
"""Fewest columns of a layer in all, and how many four for each input may become at most."""
IMAGES = 32
"""Images that give columns, of twice as many and more."""
MAX_BYTES = 512 << 20
"""Memory for all columns; of large networks fewer are kept."""


class ColumnSampler:
    """Columns of each layer's bottom, in float, gathered by listening to an executor."""

    def __init__(self, layers: Sequence[QuantizedLayer], images: int) -> None:
        """Take the layers to listen for, and about how many images there will be."""
        self._every = max(1, images // IMAGES)
        self._by_blob: dict[str, list[tuple[QuantizedLayer, int]]] = {}
        self._columns: dict[str, dict[int, Array]] = {layer.name: {} for layer in layers}
        sizes = {layer.name: layer_matrices(layer).weights.shape for layer in layers}
        wanted = {
            name: max(min(max(COLUMNS[0], 4 * shape[2]), COLUMNS[1]), 2 * shape[2])
            for name, shape in sizes.items()
        }
        needed = sum(4 * s[0] * s[2] * wanted[name] for name, s in sizes.items())
        share = min(1.0, MAX_BYTES / needed)
        sampled = max(1, images // self._every)
        for layer in layers:
            each = max(1, int(share * wanted[layer.name] / sampled))
            self._by_blob.setdefault(layer.blob, []).append((layer, each))

    def watch(self, executor: CaffeExecutor) -> CaffeExecutor:
        """Return `executor` with this sampler listening to all that it runs."""
        watched: Any = _Watched(executor, self)
        result: CaffeExecutor = watched
        return result

    def observe(self, checksums: Sequence[int], blob: str, top: Array) -> None:
        """Keep columns of a blob of a batch whose images have these checksums."""
        if len(top) != len(checksums):
            return  # without an axis of images there are no columns by image
        for layer, count in self._by_blob.get(blob, ()):
            kept = self._columns[layer.name]
            every = 1 if layer.kind == "InnerProduct" else self._every
            for image, checksum in zip(top, checksums, strict=True):
                if checksum % every == 0 and checksum not in kept:
                    bottom = [image[None]]
                    positions = SampledPositions(layer.layer, bottom, count, seed=checksum)
                    kept[checksum] = positions.columns(bottom)

    def columns(self, name: str) -> Array | None:
        """Return the columns of a layer, float32 (G, K, n), image by image; None without any."""
        kept = self._columns[name]
        if not kept:
            return None
        return np.concatenate([kept[checksum] for checksum in sorted(kept)], axis=2)


class _Watched:
    """An executor whose batches a sampler sees too; all else is the executor's own."""

    def __init__(self, executor: CaffeExecutor, sampler: ColumnSampler) -> None:
        self._executor = executor
        self._sampler = sampler

    def __getattr__(self, name: str) -> Any:
        return getattr(self._executor, name)

    def runner(self, blobs: Iterable[str]) -> Runner:
        """Run batches as the executor does, and let the sampler see each blob first."""
        run = self._executor.runner(tuple(blobs))

        def watched(batch: Batch, listener: Listener) -> None:
            checksums = image_checksums(batch)

            def listen(blob: str, top: Array) -> None:
                self._sampler.observe(checksums, blob, top)
                listener(blob, top)

            run(batch, listen)

        return watched
