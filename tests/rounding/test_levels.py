"""Weights rounded while a calibration runs: less error of outputs, the same whatever the workers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from int8calib import Options, WeightOptions
from int8calib.caffe.engine.run import Net
from int8calib.calibration.pipeline import Job, prepare, run_job
from int8calib.calibration.scales import Grid
from int8calib.rounding.levels import round_weights
from int8calib.rounding.sampler import ColumnSampler
from int8calib.rounding.samples import SampledPositions, layer_matrices
from int8calib.table.model import CalibrationTable
from tests.tuning_nets import batches, chain

IMAGES = batches(24, seed=11)


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Net:
    return chain(tmp_path_factory.mktemp("chain"))


def calibrated(
    net: Net, *, workers: int = 1, cache: int | None = None, order: int = 1
) -> tuple[Job, CalibrationTable, ColumnSampler]:
    options = Options(workers=workers, cache_bytes=cache)
    job = prepare(net, options)
    sampler = ColumnSampler(job.layers, len(IMAGES))
    watched = replace(job, executor=sampler.watch(job.executor))
    return job, run_job(watched, lambda: IMAGES[::order], options).table, sampler


def grids(job: Job, **options: object) -> dict[str, Grid]:
    weights = WeightOptions(**options)  # type: ignore[arg-type]
    return {layer.name: weights.grid(layer) for layer in job.layers}


@pytest.mark.parametrize("change", [{"workers": 3}, {"cache": 0}, {"order": -1}])
def test_levels_depend_on_the_images_alone(net: Net, change: dict[str, int]) -> None:
    job, table, sampler = calibrated(net)
    expected = round_weights(job.layers, table, sampler, grids(job))
    _, again, other = calibrated(net, **change)
    found = round_weights(job.layers, again, other, grids(job), workers=change.get("workers"))
    assert list(found) == list(expected) == [layer.name for layer in job.layers]
    for name in expected:
        np.testing.assert_array_equal(found[name].levels, expected[name].levels)
        np.testing.assert_array_equal(found[name].bias, expected[name].bias)


def test_a_watched_calibration_gives_the_same_table(net: Net) -> None:
    _, table, _ = calibrated(net)
    plain = run_job(prepare(net, Options()), lambda: IMAGES, Options()).table
    for a, b in zip(plain.layers, table.layers, strict=True):
        assert (a.name, a.bottom_scale) == (b.name, b.bottom_scale)
        np.testing.assert_array_equal(a.weight_scales, b.weight_scales)


@pytest.mark.parametrize("levels", [{}, {"six_bit": ("*",)}])
def test_outputs_err_less_on_images_that_nothing_was_fitted_to(
    net: Net, levels: dict[str, object]
) -> None:
    options = Options(weights=WeightOptions(**levels))  # type: ignore[arg-type]
    job, _, sampler = calibrated(net)
    table = run_job(prepare(net, options), lambda: IMAGES, options).table
    rounded = round_weights(job.layers, table, sampler, grids(job, **levels))
    errors = []
    for layer in job.layers:
        rows = table[layer.name]
        matrices = layer_matrices(layer)
        group, outputs, _ = matrices.weights.shape
        per_group = rows.weight_scales.reshape(group, -1)
        scales = np.broadcast_to(per_group, (group, outputs)).astype(np.float64)[:, :, None]
        held_out = [
            job.executor.run(batch, [layer.blob])[layer.blob] for batch in batches(9, seed=77)
        ]
        x = SampledPositions(layer.layer, held_out, 500).columns(held_out)
        z = np.clip(np.rint(x * rows.bottom_scale), -127, 127) / rows.bottom_scale
        expected = matrices.weights @ x + matrices.bias[:, :, None]
        nearest = np.clip(np.rint(matrices.weights * scales), -127, 127) / scales
        given = rounded[layer.name].levels.reshape(matrices.weights.shape) / scales
        bias = rounded[layer.name].bias.reshape(matrices.bias.shape)
        plain = nearest @ z + matrices.bias[:, :, None] - expected
        solved = given @ z + bias[:, :, None] - expected
        errors.append((np.square(plain).sum(), np.square(solved).sum()))
        qmax = 31 if levels else 127
        assert np.abs(rounded[layer.name].levels.astype(int)).max() <= qmax
    before, after = np.array(errors).T
    assert (after < 1.05 * before).all()
    assert np.log(after / before).mean() < np.log(0.9)


def test_rows_keep_to_what_winograd_holds(net: Net) -> None:
    job, table, sampler = calibrated(net)
    tight = {name: replace(grid, row_sum=900.0) for name, grid in grids(job).items()}
    layer = next(layer for layer in job.layers if layer.name == "d")
    rows = table["d"]
    size = np.abs(layer_matrices(layer).weights[0])
    scales = np.float32(890) / size.sum(axis=1)
    table = replace(table, layers=(replace(rows, weight_scales=scales),))
    found = round_weights(job.layers, table, sampler, tight)
    assert list(found) == ["d"]
    sums = np.abs(found["d"].levels.reshape(12, -1).astype(int)).sum(axis=1)
    plain = np.trunc(size * scales[:, None] + np.float32(0.5)).sum(axis=1)
    assert (sums <= np.maximum(900, plain)).all()


def test_layers_that_no_image_reached_are_left_out(net: Net) -> None:
    job, table, _ = calibrated(net)
    assert round_weights(job.layers, table, ColumnSampler(job.layers, 5), grids(job)) == {}


def test_only_some_of_many_images_give_columns(net: Net, tmp_path: Path) -> None:
    options = Options(workers=1)
    job = prepare(net, options)
    few, many = ColumnSampler(job.layers, 60), ColumnSampler(job.layers, 3200)
    for sampler in (few, many):
        run_job(
            replace(job, executor=sampler.watch(job.executor)), lambda: batches(64, seed=5), options
        )
    conv, dense = job.layers[0].name, job.layers[-1].name
    assert job.layers[-1].kind == "InnerProduct"
    images = len(few._columns[conv]), len(many._columns[conv])
    assert images[0] == 64
    assert images[1] < 8
    assert len(many._columns[dense]) == 64  # one column an image: all of them
