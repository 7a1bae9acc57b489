"""Keep columns of every quantized layer while a calibration runs: no image runs twice for them.

Which positions of an image are kept follows from its pixels, so that the columns depend neither on
the number of workers nor on the order of the images.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from int8calib.arrays import Array, to_host
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

Gathered: TypeAlias = Mapping[str, Mapping[int, tuple[tuple[int, ...], Array]]]
"""By layer and image: the order of the axes in memory, and the columns in that order."""


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
            for i, checksum in enumerate(checksums):
                if checksum % every == 0 and checksum not in kept:
                    bottom = [to_host(top[i : i + 1])]
                    positions = SampledPositions(layer.layer, bottom, count, seed=checksum)
                    kept[checksum] = positions.columns(bottom)

    def empty(self) -> ColumnSampler:
        """Return a sampler for the same layers that has seen nothing."""
        made = copy.copy(self)
        made._columns = {name: {} for name in self._columns}
        return made

    def gathered(self) -> Gathered:
        """Return what was kept, as it can travel."""
        return {
            name: {checksum: _packed(columns) for checksum, columns in kept.items()}
            for name, kept in self._columns.items()
        }

    def add(self, gathered: Gathered) -> None:
        """Take what another such sampler kept."""
        for name, kept in gathered.items():
            for checksum, (order, columns) in kept.items():
                self._columns[name][checksum] = columns.transpose(np.argsort(order))

    def columns(self, name: str) -> Array | None:
        """Return the columns of a layer, float32 (G, K, n), image by image; None without any."""
        kept = self._columns[name]
        if not kept:
            return None
        return np.concatenate([kept[checksum] for checksum in sorted(kept)], axis=2)


def _packed(columns: Array) -> tuple[tuple[int, ...], Array]:
    """Columns with their axes as they lie in memory, which sums of products depend on."""
    order = tuple(sorted(range(columns.ndim), key=lambda axis: -columns.strides[axis]))
    return order, np.ascontiguousarray(columns.transpose(order))


class _Watched:
    """An executor whose batches a sampler sees too; all else is the executor's own."""

    def __init__(self, executor: CaffeExecutor, sampler: ColumnSampler) -> None:
        self._executor = executor
        self._sampler = sampler

    def __getattr__(self, name: str) -> Any:
        return getattr(self._executor, name)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Watched, (self._executor, self._sampler)

    def apart(self) -> _Watched:
        """Return one for a part of the images, on a worker of a cluster."""
        return _Watched(self._executor, self._sampler.empty())

    def gathered(self) -> Gathered:
        """Return what the sampler of a part has kept."""
        return self._sampler.gathered()

    def add(self, gathered: Gathered) -> None:
        """Take what was kept of a part of the images."""
        self._sampler.add(gathered)

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
