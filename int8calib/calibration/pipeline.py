"""The pipeline: a network and images in, a calibration table with its evidence out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from int8calib.caffe.engine.run import Net
from int8calib.caffe.network.fold import fold_batch_norm
from int8calib.caffe.network.graph import Blob, Graph
from int8calib.caffe.network.inputs import INPUT_TYPES
from int8calib.caffe.network.quantized import QuantizedLayer, quantized_layers
from int8calib.calibration.assemble import Blobs, Calibration, assemble, select_layers
from int8calib.calibration.options import Options
from int8calib.calibration.statistics.collect import collect_statistics
from int8calib.calibration.statistics.store import Statistics
from int8calib.calibration.statistics.tally import Checkpoint
from int8calib.calibration.table_layers import TableLayer, table_layers
from int8calib.errors import ModelError
from int8calib.workers import Loader, Progress

__all__ = ["Calibration", "Job", "Options", "calibrate", "make_table", "prepare", "run_job"]


@dataclass(frozen=True, eq=False)
class Job:
    """What a calibration will do.

    `graph` is what runs; `layers` are those that get rows, `described` all that could; `inputs`
    names the input blobs to batch, `blobs` those to observe, `named` every blob of the graph.
    """

    graph: Graph
    layers: tuple[QuantizedLayer, ...]
    inputs: tuple[str, ...]
    described: tuple[TableLayer, ...]
    blobs: tuple[Blob, ...]
    named: Blobs


def prepare(net: Net, options: Options) -> Job:
    """What `calibrate` would run for `options`.

    Raises `ModelError` where nothing is quantized, `OptionError` for a pattern without a layer.
    """
    graph = fold_batch_norm(net.graph) if options.fold_bn else net.graph
    layers = quantized_layers(graph)
    if not layers:
        raise ModelError(
            f"{graph.source}: has no Convolution or InnerProduct layer, so there is nothing "
            "to calibrate"
        )
    described = table_layers(graph, layers)
    chosen = {layer.name for layer in select_layers(described, options)}
    layers = tuple(layer for layer in layers if layer.name in chosen)
    named = _named(graph)
    blobs = [layer.bottom for layer in layers]
    if options.all_blobs:
        blobs += [graph.last_version(name) for name in named.keys]
    needed = graph.ancestors(blobs)
    inputs = [top.name for layer in needed for top in layer.tops if layer.type in INPUT_TYPES]
    return Job(graph, layers, tuple(inputs), described, tuple(dict.fromkeys(blobs)), named)


def _named(graph: Graph) -> Blobs:
    """Every blob of the graph by name, in running order."""
    names = dict.fromkeys(top.name for layer in graph.layers for top in layer.tops)
    inputs = [top for layer in graph.layers for top in layer.tops if layer.type in INPUT_TYPES]
    return Blobs(
        {name: str(graph.last_version(name)) for name in names},
        frozenset(str(top) for top in inputs),
    )


def calibrate(
    net: Net,
    batches: Loader,
    options: Options | None = None,
    *,
    total: int = 0,
    progress: Progress | None = None,
    meta: Mapping[str, Any] = MappingProxyType({}),
) -> Calibration:
    """Calibrate `net` over the images of `batches`.

    `batches()` starts a pass: an iterable of `{input blob: float32 (N, ...)}`, preprocessed. It may
    be called twice and must give the same each time. `total` is the number of images, for
    `progress(stage, done, total)`; `meta` goes into the report. Raises `ModelError` for a network
    without layers to quantize, `StatisticsError` for NaN or infinite activations.
    """
    options = options or Options()
    job = prepare(net, options)
    return run_job(job, batches, options, total=total, progress=progress, meta=meta)


def run_job(
    job: Job,
    batches: Loader,
    options: Options,
    *,
    total: int = 0,
    progress: Progress | None = None,
    meta: Mapping[str, Any] = MappingProxyType({}),
    checkpoint: Checkpoint | None = None,
) -> Calibration:
    """`calibrate` for a job that is prepared already; it may go on from a `checkpoint`."""
    statistics = collect_statistics(
        job.graph,
        batches,
        job.blobs,
        workers=options.workers,
        cache_bytes=options.cache_bytes,
        total=total,
        progress=progress,
        checkpoint=checkpoint,
    )
    return make_table(job, statistics, options, meta)


def make_table(
    job: Job,
    statistics: Statistics,
    options: Options,
    meta: Mapping[str, Any] = MappingProxyType({}),
) -> Calibration:
    """The table of a job from statistics of its blobs; `assemble` tells the rest."""
    return assemble(
        job.described, statistics, options, source=job.graph.source, blobs=job.named, meta=meta
    )
