"""Thresholds of blobs with 255 levels: beside a search by loops, and what they gain in ncnn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from int8calib import Options
from int8calib.calibration.pipeline import prepare, run_job
from int8calib.calibration.statistics.histogram import BINS, Histogram
from int8calib.ncnn.convert.deploy import ncnn_pair
from int8calib.ncnn.convert.offsets import OffsetGroup
from int8calib.rounding.levels import round_weights
from int8calib.rounding.sampler import ColumnSampler
from int8calib.rounding.unsigned import network_groups, unsigned_table
from int8calib.table.model import BottomEvidence, CalibrationTable, LayerScales
from tests.ncnn.runtime import run_blobs
from tests.tuning_nets import batches, chain


def histogram(seed: int) -> Histogram:
    rng = np.random.default_rng(seed)
    values = rng.exponential(150, 20011)
    counts, _ = np.histogram(values, BINS, (0, BINS))
    return Histogram(counts.astype(np.int64), np.zeros(BINS, np.int64), 4.0, 0, 1)


def error(counts: np.ndarray, bins: int) -> float:
    """The squared error of 254 levels up to so many bins, each bin as 16 values."""
    values = (np.arange(BINS * 16) + 0.5) / 16
    step = bins / 254
    off = np.minimum(np.floor(values / step + 0.5), 254) * step - values
    return float((np.square(off) * np.repeat(counts, 16)).sum())


def rows(name: str, blob: str, method: str) -> LayerScales:
    evidence = BottomEvidence(blob, method, 4.0, 2.0, None, 0.0)
    return LayerScales(name, np.ones(3, np.float32), 127 / 2.0, evidence)


def test_the_threshold_has_the_least_error_of_254_levels() -> None:
    known = {"x": histogram(3), "y": histogram(5)}
    layers = (rows("a", "x", "mse"), rows("b", "y", "mse"), rows("c", "x", "kl"))
    groups = (OffsetGroup(("m",), ("a", "b"), False),)
    made = unsigned_table(CalibrationTable(layers), groups, known)
    threshold = 127 / made["a"].bottom_scale
    best = []
    for each in known.values():
        errors = [error(each.positive, bins) for bins in range(200, BINS)]
        best.append((200 + int(np.argmin(errors))) / BINS * 4.0)
    assert threshold == pytest.approx(max(best), rel=0.02)
    assert made["b"].bottom_scale == made["a"].bottom_scale
    assert [layer.unsigned for layer in made.layers] == [True, True, False]
    assert made["c"].bottom_scale == layers[2].bottom_scale


def test_thresholds_of_other_methods_stay() -> None:
    layers = (rows("a", "x", "kl"),)
    groups = (OffsetGroup(("m",), ("a",), False),)
    made = unsigned_table(CalibrationTable(layers), groups, {"x": histogram(3)})
    assert made["a"].bottom_scale == layers[0].bottom_scale
    assert made["a"].unsigned


def test_ncnn_loses_less_with_offsets(tmp_path: Path) -> None:
    pytest.importorskip("ncnn")
    net, images = chain(tmp_path), batches(24, seed=11)
    options = Options(workers=1)
    job = prepare(net, options)
    sampler = ColumnSampler(job.layers, len(images))
    watched = replace(job, executor=sampler.watch(job.executor))
    done = run_job(watched, lambda: images, options)
    grids = {layer.name: options.weights.grid(layer) for layer in job.layers}
    groups = network_groups(net, done.table)
    unsigned = unsigned_table(done.table, groups, done.statistics.histograms)
    losses = []
    for table in (done.table, unsigned):
        rounded = round_weights(job.layers, table, sampler, grids)
        pair = ncnn_pair(net, table, rounded=rounded)
        loss = 0.0
        for batch in batches(7, seed=12):
            given = {"data": batch["data"][0]}
            wanted, found = (
                run_blobs(model.layers, given, ["fc"], folder=tmp_path)[0]
                for model in (pair.float_model, pair.int8_model)
            )
            loss += float(np.square(wanted - found).sum())
        losses.append(loss)
    assert losses[1] < 0.7 * losses[0]
