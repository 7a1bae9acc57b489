"""The pipeline: a network and images in, a calibration table with its evidence out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any

import int8calib
from int8calib.collect import Feeds, Progress, collect_statistics
from int8calib.engine.run import Net
from int8calib.errors import ModelError, StatisticsError
from int8calib.net.fold import fold_batch_norm
from int8calib.net.graph import Graph
from int8calib.net.inputs import INPUT_TYPES
from int8calib.net.quantised import QuantisedLayer, quantised_layers
from int8calib.scales import LEVELS, WeightOptions, dead_rows, weight_scales
from int8calib.stats.activation import Histogram
from int8calib.stats.store import Statistics
from int8calib.table.model import BottomEvidence, CalibrationTable, LayerScales
from int8calib.thresholds import find_threshold

FEW_IMAGES = 50
FAR_BELOW = 0.1


@dataclass(frozen=True)
class Options:
    """What a calibration may be told; the defaults give ncnn2table's kl table.

    method
        how thresholds are found, a name of `int8calib.thresholds.method_names()`.
    fold_bn
        True: weights as `ncnnoptimize` leaves them; False: as they are in the caffemodel.
    weights
        how weight scales are found.
    workers
        images that run at a time, each in a thread of its own.
    cache_bytes
        memory for activations of the first pass; what does not fit is computed a second time.
    """

    method: str = "kl"
    fold_bn: bool = True
    weights: WeightOptions = field(default_factory=WeightOptions)
    workers: int = 2
    cache_bytes: int = 1 << 30


@dataclass(frozen=True, eq=False)
class Calibration:
    """What a calibration gives: the table, the statistics behind it, and what to look at."""

    table: CalibrationTable
    statistics: Statistics
    warnings: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Job:
    """What a calibration will do: the graph it runs, the layers it quantises, what they need."""

    graph: Graph
    layers: tuple[QuantisedLayer, ...]
    inputs: tuple[str, ...]


def prepare(net: Net, options: Options) -> Job:
    """What `calibrate` would run for `options`; raises `ModelError` where nothing is quantised."""
    graph = fold_batch_norm(net.graph) if options.fold_bn else net.graph
    layers = quantised_layers(graph)
    if not layers:
        raise ModelError(
            f"{graph.source}: has no Convolution or InnerProduct layer, so there is nothing "
            "to calibrate"
        )
    needed = graph.ancestors(layer.bottom for layer in layers)
    inputs = [top.name for layer in needed for top in layer.tops if layer.type in INPUT_TYPES]
    return Job(graph, layers, tuple(inputs))


def calibrate(
    net: Net,
    feeds: Feeds,
    options: Options | None = None,
    *,
    total: int = 0,
    progress: Progress | None = None,
    meta: Mapping[str, Any] = MappingProxyType({}),
) -> Calibration:
    """Calibrate `net` over the images of `feeds`.

    `feeds()` starts a pass: an iterable of `{input blob: float32 (N, ...)}`, preprocessed. It may
    be called twice and must give the same each time. `total` is the number of images, for
    `progress(stage, done, total)`; `meta` goes into the report. Raises `ModelError` for a network
    without layers to quantise, `StatisticsError` for NaN or infinite activations.
    """
    options = options or Options()
    job = prepare(net, options)
    return run_job(job, feeds, options, total=total, progress=progress, meta=meta)


def run_job(
    job: Job,
    feeds: Feeds,
    options: Options,
    *,
    total: int = 0,
    progress: Progress | None = None,
    meta: Mapping[str, Any] = MappingProxyType({}),
) -> Calibration:
    """`calibrate` for a job that is prepared already."""
    statistics = collect_statistics(
        job.graph,
        feeds,
        [layer.bottom for layer in job.layers],
        workers=options.workers,
        cache_bytes=options.cache_bytes,
        total=total,
        progress=progress,
    )
    return make_table(job, statistics, options, meta)


def make_table(
    job: Job,
    statistics: Statistics,
    options: Options,
    meta: Mapping[str, Any] = MappingProxyType({}),
) -> Calibration:
    """The table of a job from statistics of its bottoms; consumers of a blob share its scale.

    A layer whose bottom is always zero is left out (ncnn then runs it in float), with a warning.
    """
    evidence = {
        blob: _evidence(blob, histogram, options.method)
        for blob, histogram in statistics.histograms.items()
    }
    rows, warnings = [], _run_warnings(statistics)
    for layer in job.layers:
        found = evidence[str(layer.bottom)]
        if found.threshold <= 0:
            warnings.append(
                f"{layer.name}: its bottom {found.blob} is 0 in every image; left in float"
            )
            continue
        warnings += _layer_warnings(layer, found)
        rows.append(
            LayerScales(
                layer.name,
                weight_scales(layer, options.weights),
                LEVELS / found.threshold,
                found,
                dead_rows(layer),
            )
        )
    if not rows:
        raise StatisticsError(f"{job.graph.source}: every quantised layer has a bottom of zeros")
    made_by = {"int8calib": int8calib.__version__, "images": statistics.images}
    table = CalibrationTable(
        tuple(rows), meta={**made_by, "options": asdict(options), **meta, "warnings": warnings}
    )
    return Calibration(table, statistics, tuple(warnings))


def _evidence(blob: str, histogram: Histogram, method: str) -> BottomEvidence:
    threshold = find_threshold(histogram, method)
    return BottomEvidence(
        blob,
        method,
        histogram.absmax,
        threshold.value,
        threshold.bin,
        histogram.clipped(threshold.value),
    )


def _run_warnings(statistics: Statistics) -> list[str]:
    if statistics.images >= FEW_IMAGES:
        return []
    return [f"few images: {statistics.images}; thresholds settle from about {FEW_IMAGES} on"]


def _layer_warnings(layer: QuantisedLayer, found: BottomEvidence) -> list[str]:
    warnings = []
    if found.threshold < FAR_BELOW * found.absmax:
        warnings.append(
            f"{layer.name}: threshold {found.threshold:.4g} is far below "
            f"absmax {found.absmax:.4g} of {found.blob}"
        )
    dead = len(dead_rows(layer))
    if dead:
        warnings.append(f"{layer.name}: {dead} of {layer.rows} weight rows are all zero")
    return warnings
