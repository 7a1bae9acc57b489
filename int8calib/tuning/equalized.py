"""The INT8 form of an equalized network: what `calibrate --ncnn --equalize` writes."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

from int8calib.caffe.engine.executor import CaffeExecutor
from int8calib.caffe.engine.run import Net
from int8calib.caffe.network.quantized import QuantizedLayer
from int8calib.caffe.network.shapes import infer_shapes
from int8calib.calibration.options import Options
from int8calib.calibration.pipeline import Job, prepare, run_job
from int8calib.rounding.bias import depthwise_before_relu
from int8calib.rounding.levels import Int8Form, round_weights
from int8calib.rounding.sampler import ColumnSampler
from int8calib.rounding.unsigned import network_groups, unsigned_table
from int8calib.table.model import CalibrationTable
from int8calib.tuning.equalization import equalize
from int8calib.workers import Loader, Progress, single_threaded_blas, start_pass

IMAGES = 192
"""The most batches that tell the factors of channels."""


def equalized_form(
    net: Net,
    job: Job[CaffeExecutor],
    table: CalibrationTable,
    batches: Loader,
    options: Options,
    *,
    total: int,
    progress: Progress,
) -> Int8Form:
    """Equalize a network's channels, calibrate it over the same images, and round its weights.

    Parameters
    ----------
    net
        The network.
    job
        Its calibration job.
    table
        Its table, which says what becomes INT8; rows that are unsigned have an offset.
    batches
        Starts a pass over the images.
    options
        Those of the calibration.
    total
        The number of images.
    progress
        Called as ``progress(stage, done, total)``.
    """
    graph = job.executor.graph
    grids = {layer.name: options.weights.grid(layer) for layer in job.layers}
    with single_threaded_blas():
        equalized = equalize(
            graph,
            infer_shapes(graph, net.input_shapes),
            list(islice(start_pass(batches), IMAGES)),
            {rows.name: grids[rows.name] for rows in table.layers},
            unsigned=[rows.name for rows in table.layers if rows.unsigned],
            workers=options.workers,
            progress=progress,
        )
    made = Net(equalized.graph, net.input_shapes)
    made_job = prepare(made, replace(options, fold_bn=False))
    layers = [layer for layer in made_job.layers if isinstance(layer, QuantizedLayer)]
    sampler = ColumnSampler(layers, total)
    watched = replace(made_job, executor=sampler.watch(made_job.executor))
    done = run_job(watched, batches, options, total=total, progress=progress)
    new = done.table
    if any(rows.unsigned for rows in table.layers):
        groups = network_groups(net, new, fold_bn=options.fold_bn)
        new = unsigned_table(new, groups, done.statistics.histograms)
    rounded = round_weights(
        layers,
        new,
        sampler,
        grids,
        before_relu=depthwise_before_relu(equalized.graph),
        workers=options.workers,
        progress=progress,
    )
    return Int8Form(made, new, rounded)
