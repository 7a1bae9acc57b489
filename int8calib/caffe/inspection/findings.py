"""Warnings in words: what a person should know of a model before a calibration."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np

from int8calib.caffe.inspection.lenient import Reading
from int8calib.caffe.network.batch import is_batchable
from int8calib.caffe.network.fold import fold_batch_norm
from int8calib.caffe.network.graph import QUANTIZED_TYPES, Layer
from int8calib.caffe.network.inputs import INPUT_TYPES
from int8calib.caffe.network.quantized import quantized_layers
from int8calib.caffe.network.runnable import batch_statistics
from int8calib.caffe.network.shapes import Obstacle
from int8calib.caffe.network.unread import way_out
from int8calib.calibration.scales import DEAD_ABSMAX
from int8calib.errors import ShapeError
from int8calib.table.rules import duplicates
from int8calib.words import listed

FAR_OUT = 40.0
"""A weight this many times the root mean square of its row leaves the typical weight about 3 of
127 levels."""


def find_warnings(reading: Reading, folded: Mapping[Layer, str]) -> Iterator[str]:
    """Yield all warnings of a model, one line each, those of reading it first.

    Parameters
    ----------
    reading
        The model.
    folded
        Each BatchNorm and Scale that folding takes up, with the name of the layer it goes into.
    """
    yield from reading.warnings
    yield from _names(reading)
    yield from _unsupported(reading)
    yield from _batch_norm(reading, folded)
    yield from batch_statistics(reading.graph)
    yield from _fixed_batch(reading)
    if reading.graph.unused_weights:
        unused = reading.graph.unused_weights
        yield f"the caffemodel holds weights of {len(unused)} more layers: {listed(unused)}"
    if reading.weighed and not _repeated(reading):
        yield from _weights(reading)


def _repeated(reading: Reading) -> list[str]:
    """Names that layers share, data layers aside."""
    computing = [layer for layer in reading.graph.layers if layer.type not in INPUT_TYPES]
    return duplicates([layer.name for layer in computing])


def _names(reading: Reading) -> Iterator[str]:
    """Names that two layers share, and blobs made anew by a layer that does not read them."""
    for name in _repeated(reading):
        yield (
            f"two layers are named {name}: weights and table rows go by name, so calibrate "
            "refuses this network"
        )
    for layer in reading.graph.layers:
        read = {bottom.name for bottom in layer.bottoms}
        for top in layer.tops:
            if top.version and top.name not in read:
                yield f"layer {layer.name} makes the blob {top.name} again, without reading it"


def _unsupported(reading: Reading) -> Iterator[str]:
    """Layers that the engine does not run, and whether a layer to quantize waits for them."""
    makers = {top: layer for layer in reading.blocked for top in layer.tops}
    waiting: dict[Layer, list[str]] = {}
    for other, why in reading.blocked.items():
        if why.layer is not other and other.type in QUANTIZED_TYPES:
            waiting.setdefault(why.layer, []).append(other.name)
    for layer, obstacle in reading.blocked.items():
        if obstacle.layer is not layer:
            continue
        before = next((makers[bottom] for bottom in layer.bottoms if bottom in makers), None)
        yield f"{obstacle}; {_what_follows(obstacle, before, waiting.get(layer, []))}"


def _what_follows(obstacle: Obstacle, before: Layer | None, waiting: list[str]) -> str:
    """What becomes of the quantized layers behind a layer that cannot run."""
    layer = obstacle.layer
    needed = waiting or layer.type in QUANTIZED_TYPES
    if isinstance(obstacle.error, ShapeError) and needed:
        return "calibrate refuses this network"
    if layer.unread and needed:
        return f"calibrate refuses it; {way_out(layer.unread)}"
    if before is not None:
        return f"{before.label} before it does not run either"
    if not needed:
        return "no layer to quantize needs it, so calibration works"
    stays = (
        f"{listed(waiting)} behind it stay{'s' * (len(waiting) == 1)}" if waiting else "it stays"
    )
    teach = "" if obstacle.error else ", unless int8calib.register_layer() teaches the type"
    return f"{stays} in float{teach}"


def _batch_norm(reading: Reading, folded: Mapping[Layer, str]) -> Iterator[str]:
    """How many BatchNorm and Scale layers folding takes up, and which BatchNorm stay."""
    counts = Counter(layer.type for layer in folded)
    if counts:
        what = " and ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
        yield (
            f"{what} to be folded into the layers before them: keep --fold-bn if the model goes "
            "through ncnnoptimize, as ncnn's guide says; give --no-fold-bn if not"
        )
    norms = [layer for layer in reading.graph.layers if layer.type == "BatchNorm"]
    stay = [layer.name for layer in norms if layer not in folded]
    if stay:
        yield f"{len(stay)} BatchNorm with nothing before it to be folded into: {listed(stay)}"


def _fixed_batch(reading: Reading) -> Iterator[str]:
    """The first layer that mixes the images of a batch, on the way to what is quantized."""
    graph = reading.graph
    heavy = [layer for layer in graph.layers if layer.type in QUANTIZED_TYPES]
    needed = graph.ancestors(
        bottom for layer in heavy if layer not in reading.blocked for bottom in layer.bottoms
    )
    inputs = {name: shape for name, shape in reading.inputs.items() if shape}
    if not all(top in reading.shapes for layer in needed for top in layer.tops):
        return
    if is_batchable(graph, inputs, needed):
        return
    for count in range(1, len(needed) + 1):
        if not is_batchable(graph, inputs, needed[:count]):
            label = needed[count - 1].label
            yield f"{label} fixes the batch or mixes its images: they run one at a time"
            return


def _weights(reading: Reading) -> Iterator[str]:
    """Rows without weights, and weights far from the others of their row, after folding."""
    dead: dict[str, str] = {}
    channels, largest_dead = 0, 0.0
    for layer in quantized_layers(fold_batch_norm(reading.graph)):
        if not layer.layer.weights:
            continue
        rows = np.abs(layer.weight_rows(finite=False).astype(np.float64))
        if not np.isfinite(rows).all():
            yield f"{layer.name}: weights that are NaN or infinite"
            continue
        largest = rows.max(axis=1)
        below = largest[largest < DEAD_ABSMAX]
        if below.size:
            dead[layer.name] = f"{layer.name} ({below.size} of {layer.rows})"
            channels, largest_dead = channels + below.size, max(largest_dead, below.max())
        typical = np.sqrt(np.square(rows).mean(axis=1))
        ratio = np.divide(largest, typical, out=np.zeros_like(largest), where=typical > 0)
        if ratio.max(initial=0) > FAR_OUT:
            yield (
                f"{layer.name}: {int((ratio > FAR_OUT).sum())} of {layer.rows} output channels "
                f"have a huge outlier, up to {ratio.max():.0f} times the typical weight; in INT8 "
                "the others lose their digits"
            )
    if dead:
        what = "all weights 0" if not largest_dead else f"no weight above {largest_dead:.2g}"
        yield f"{channels} output channels are dead, {what}: {listed(dead.values())}"
