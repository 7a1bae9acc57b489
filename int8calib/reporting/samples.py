"""A network, a table and a few images to pairs of values: what each INT8 layer makes of its top."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from int8calib.analysis.side_by_side import Place, side_by_side
from int8calib.arrays import Array
from int8calib.caffe.engine.run import Net, Runner
from int8calib.caffe.network.fold import fold_batch_norm
from int8calib.caffe.network.graph import Blob
from int8calib.errors import ImageError
from int8calib.evaluation.evaluate import Labelled, LabelledLoader
from int8calib.simulation.build import folds, int8_layers
from int8calib.table.model import CalibrationTable
from int8calib.workers import Progress, batch_size, single_threaded_blas

SAMPLE_BATCHES = 4
SAMPLE_VALUES = 1000


@dataclass(frozen=True, eq=False)
class LayerSample:
    """Values of a layer's top at random places: in the float net, and in the INT8 net; (n,)."""

    expected: NDArray[np.float32]
    found: NDArray[np.float32]


def sample_outputs(
    net: Net,
    table: CalibrationTable,
    batches: LabelledLoader,
    *,
    count: int = SAMPLE_BATCHES,
    values: int = SAMPLE_VALUES,
    fold_bn: bool | None = None,
    progress: Progress | None = None,
) -> dict[str, LayerSample]:
    """Before and after for every layer of `table`, by name, from the first `count` batches.

    Of each batch and layer at most `values` values are kept, at places drawn with a fixed seed.
    Raises `ImageError` for no batches, and what `simulate` raises.
    """
    fold = folds(table) if fold_bn is None else fold_bn
    graph = fold_batch_norm(net.graph) if fold else net.graph
    joint = side_by_side(graph, int8_layers(graph, table, optimized=fold))
    runner = Runner(joint.graph, [b for place in joint.places for b in (place.top, place.chain)])
    pairs: dict[str, list[LayerSample]] = {place.name: [] for place in joint.places}
    rng = np.random.default_rng(0)
    done = 0
    with single_threaded_blas():
        for given in islice(batches(), count):
            batch = given.batch if isinstance(given, Labelled) else given
            listener = _Listener(joint.places, pairs, rng, values)
            runner.run(batch, listener)
            done += batch_size(batch)
            if progress is not None:
                progress("samples", done, 0)
    if not done:
        raise ImageError("there are no images to draw before and after with")
    return {
        name: LayerSample(
            np.concatenate([part.expected for part in parts]),
            np.concatenate([part.found for part in parts]),
        )
        for name, parts in pairs.items()
    }


class _Listener:
    """Hears the blobs of one batch; keeps each float top until its INT8 twin has run."""

    def __init__(
        self,
        places: tuple[Place, ...],
        pairs: Mapping[str, list[LayerSample]],
        rng: np.random.Generator,
        values: int,
    ) -> None:
        self._chains = {place.chain: place for place in places}
        self._tops: dict[Blob, Array] = {}
        self._pairs = pairs
        self._rng = rng
        self._values = values

    def __call__(self, blob: Blob, top: Array) -> None:
        place = self._chains.get(blob)
        if place is None:
            # The twins read it too, so the engine keeps it whole until they have run.
            self._tops[blob] = top
            return
        before, after = self._tops.pop(place.top).reshape(-1), top.reshape(-1)
        kept = np.arange(before.size)
        if before.size > self._values:
            kept = self._rng.choice(before.size, self._values, replace=False)
        self._pairs[place.name].append(LayerSample(before[kept], after[kept]))
