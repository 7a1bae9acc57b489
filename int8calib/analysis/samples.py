"""Draw pairs of values for pictures: what each INT8 layer makes of its top, beside float."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from int8calib.analysis.side_by_side import LayerBlobs, side_by_side
from int8calib.arrays import Array
from int8calib.caffe.engine.run import Net, Runner
from int8calib.caffe.network.fold import fold_batch_norm
from int8calib.caffe.network.graph import Blob
from int8calib.errors import ImageError
from int8calib.evaluation.evaluate import LabeledLoader, batch_and_labels
from int8calib.evaluation.outputs import compared_blobs
from int8calib.simulation.build import folds, int8_layers
from int8calib.table.model import CalibrationTable
from int8calib.workers import Progress, batch_size, single_threaded_blas, start_pass

SAMPLE_BATCHES = 4
SAMPLE_VALUES = 1000


@dataclass(frozen=True, eq=False)
class LayerSample:
    """Values of a layer's top at random places: in the float net, and in the INT8 net; (n,)."""

    expected: NDArray[np.float32]
    actual: NDArray[np.float32]


def sample_outputs(
    net: Net,
    table: CalibrationTable,
    batches: LabeledLoader,
    *,
    count: int = SAMPLE_BATCHES,
    values: int = SAMPLE_VALUES,
    outputs: Sequence[str] | None = None,
    fold_bn: bool | None = None,
    progress: Progress | None = None,
) -> dict[str, LayerSample]:
    """Draw values of every quantized layer's top, in float and in INT8.

    Parameters
    ----------
    net
        The float network.
    table
        The calibration table.
    batches
        Called to start a pass, as in `evaluate`; the first `count` batches are run.
    count
        The number of batches.
    values
        The most values that are kept of each batch and layer, at places drawn with a fixed seed.
    outputs
        As in `evaluate`; only layers that the compared blobs depend on are run.
    fold_bn
        As in `simulate`.
    progress
        Called as `progress("samples", images done, 0)`.

    Returns
    -------
    dict of LayerSample
        By the layer's name.

    Raises
    ------
    ImageError
        For no batches; and what `simulate` raises.
    """
    fold = folds(table, fold_bn)
    graph = fold_batch_norm(net.graph) if fold else net.graph
    needed = {x.name for x in graph.ancestors(compared_blobs(net, outputs=outputs).blobs)}
    every = int8_layers(graph, table, optimized=fold, inputs=net.input_shapes)
    joint = side_by_side(graph, {name: x for name, x in every.items() if name in needed})
    runner = Runner(joint.graph, [b for x in joint.layers for b in (x.top, x.accumulated)])
    pairs: dict[str, list[LayerSample]] = {blobs.name: [] for blobs in joint.layers}
    rng = np.random.default_rng(0)
    done = 0
    with single_threaded_blas():
        for given in islice(start_pass(batches), count):
            batch, _ = batch_and_labels(given)
            runner.run(batch, _Listener(joint.layers, pairs, rng, values))
            done += batch_size(batch)
            if progress is not None:
                progress("samples", done, 0)
    if not done:
        raise ImageError("there are no images to draw before and after with")
    return {
        name: LayerSample(
            np.concatenate([part.expected for part in parts]),
            np.concatenate([part.actual for part in parts]),
        )
        for name, parts in pairs.items()
    }


class _Listener:
    """Hears the blobs of one batch; keeps each float top until its INT8 layer has run."""

    def __init__(
        self,
        layers: tuple[LayerBlobs, ...],
        pairs: Mapping[str, list[LayerSample]],
        rng: np.random.Generator,
        values: int,
    ) -> None:
        self._accumulated = {blobs.accumulated: blobs for blobs in layers}
        self._tops: dict[Blob, Array] = {}
        self._pairs = pairs
        self._rng = rng
        self._values = values

    def __call__(self, blob: Blob, top: Array) -> None:
        blobs = self._accumulated.get(blob)
        if blobs is None:
            # The INT8 layers read it too, so the engine keeps it whole until they have run.
            self._tops[blob] = top
            return
        before, after = self._tops.pop(blobs.top).reshape(-1), top.reshape(-1)
        kept = np.arange(before.size)
        if before.size > self._values:
            kept = self._rng.choice(before.size, self._values, replace=False)
        self._pairs[blobs.name].append(LayerSample(before[kept], after[kept]))
