"""Rounding for least output error, against plain rounding, brute force and numpy."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from int8calib.calibration.scales import Grid
from int8calib.rounding.samples import LayerMatrices, Moments, moments
from int8calib.rounding.weights import (
    CLIP_SHARES,
    Changes,
    best_levels,
    nearest,
    refit,
    row_errors,
    solve_scales,
    solve_weights,
)


def layer(seed: int, groups: int = 1, outputs: int = 7, size: int = 13, count: int = 211):
    """Weights and columns that are correlated, as neighboring pixels are."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(0, 1, (groups, size, size)) * rng.uniform(0.1, 1, (groups, size, 1))
    columns = np.maximum(mix @ rng.normal(0, 1, (groups, size, count)) + 0.3, 0)
    weights = rng.normal(0, 0.1, (groups, outputs, size))
    return weights.astype(np.float32), columns.astype(np.float32)


def output_error(weights: np.ndarray, levels: np.ndarray, scales: np.ndarray, columns: np.ndarray):
    """The mean squared error of each output without its mean, by the definition."""
    error = np.zeros(weights.shape[:2])
    for g, m in np.ndindex(weights.shape[:2]):
        row = levels[g, m].astype(np.float64) / scales[g, m] - weights[g, m]
        error[g, m] = np.var([row @ columns[g, :, i] for i in range(columns.shape[2])])
    return error


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("qmax", [31, 127, 3])
@pytest.mark.parametrize("groups", [1, 5])
def test_never_worse_than_plain_rounding_and_much_better_in_sum(seed, qmax, groups) -> None:
    weights, columns = layer(seed, groups)
    covariance = np.stack([np.cov(part, bias=True) for part in columns]).astype(np.float32)
    scales = (qmax / np.abs(weights).max(axis=2)).astype(np.float32)
    levels = best_levels(weights, scales, covariance, qmax)
    assert np.array_equal(levels, np.trunc(levels))
    assert np.abs(levels).max() <= qmax
    plain = np.clip(
        np.sign(weights) * np.floor(np.abs(weights) * scales[:, :, None] + 0.5), -qmax, qmax
    )
    before = output_error(weights, plain, scales, columns)
    after = output_error(weights, levels, scales, columns)
    assert (after <= before * (1 + 1e-3)).all()
    assert after.sum() < 0.8 * before.sum()


def test_near_the_best_of_all_roundings() -> None:
    weights, columns = layer(11, outputs=3, size=5)
    covariance = np.cov(columns[0], bias=True)[None].astype(np.float32)
    scales = np.full((1, 3), 9.0, np.float32)
    found = output_error(weights, best_levels(weights, scales, covariance, 127), scales, columns)
    for m in range(3):
        scaled = weights[0, m] * 9.0
        choices = product(
            *[(np.floor(x) - 1, np.floor(x), np.ceil(x), np.ceil(x) + 1) for x in scaled]
        )
        least = min(
            float(
                (np.array(c) / 9.0 - weights[0, m])
                @ covariance[0]
                @ (np.array(c) / 9.0 - weights[0, m])
            )
            for c in choices
        )
        assert found[0, m] <= 2.0 * least + 1e-9


def test_nearest_rounds_half_away_from_zero() -> None:
    weights = np.array([[[0.5, -0.5, 1.5, 2.4, -9.0]]], np.float32)
    assert nearest(weights, np.ones((1, 1), np.float32), 3).tolist() == [[[1, -1, 2, 2, -3]]]


def test_moments_of_many_columns_are_numpys() -> None:
    _, columns = layer(3, size=5, count=20_011)
    real = columns + np.float32(0.25) * columns[:, ::-1]
    found = moments(real, columns)
    expected = np.cov(columns[0], bias=True)
    assert np.allclose(found.covariance[0], expected, atol=5e-3 * expected.max())
    assert np.allclose(np.diag(found.covariance[0]), np.diag(expected), rtol=1e-3)
    joint = np.cov(real[0] - columns[0], columns[0], bias=True)[:5, 5:]
    assert np.allclose(found.cross[0], joint, atol=1e-4 * np.abs(joint).max() + 1e-4)
    second = columns[0] @ columns[0].T / columns.shape[2]
    assert np.allclose(found.second[0], second, atol=5e-3 * second.max())


def test_few_columns_are_drawn_to_the_diagonal_and_err_less() -> None:
    _weights, columns = layer(5, size=31, count=4001)
    truth = np.cov(columns[0], bias=True)
    few = columns[:, :, ::200]
    plain = np.cov(few[0], bias=True)
    shrunk = moments(few, few).covariance[0]
    assert np.linalg.norm(shrunk - truth) < np.linalg.norm(plain - truth)
    assert np.linalg.matrix_rank(plain) < 31 == np.linalg.matrix_rank(shrunk)


def test_inputs_without_anything_in_common_have_sound_moments() -> None:
    columns = np.zeros((3, 2, 7), np.float32)
    columns[:, 0] = np.random.default_rng(3).normal(0, 1e3, (3, 7))
    found = moments(columns, columns).covariance
    expected = columns[:, 0].astype(np.float64).var(axis=1)
    np.testing.assert_allclose(found[:, 0, 0], expected, rtol=1e-5)
    assert not found[:, 0, 1].any()
    assert not found[:, 1].any()


def test_refit_is_ridge_regression() -> None:
    weights, columns = layer(8, size=7, count=400)
    rng = np.random.default_rng(1)
    used = (columns + rng.normal(0, 0.2, columns.shape)).astype(np.float32)
    x, z = (c[0] - c[0].mean(axis=1, keepdims=True) for c in (columns, used))
    n = columns.shape[2]
    spread = (z @ z.T / n).astype(np.float32)
    given = Moments(spread[None], ((x - z) @ z.T / n).astype(np.float32)[None], used.mean(axis=2))
    found = refit(weights, given, 1e-9)
    expected = np.linalg.lstsq(
        z.T.astype(np.float64), (weights[0].astype(np.float64) @ x).T, rcond=None
    )[0].T
    assert np.allclose(found[0], expected, atol=1e-3 * np.abs(expected).max())


def test_row_errors_by_the_definition() -> None:
    weights, columns = layer(2, groups=3, outputs=2, size=4)
    moment = np.stack([part @ part.T for part in columns]).astype(np.float32)
    found = row_errors(weights, moment)
    for g, m in np.ndindex(3, 2):
        assert found[g, m] == pytest.approx(
            float(((weights[g, m] @ columns[g]) ** 2).sum()), rel=1e-4
        )


def test_scales_are_the_best_of_all_candidates() -> None:
    weights, columns = layer(4, outputs=5, size=9, count=5003)
    weights[0, 2, 4] = 0.9  # an outlier that is worth clipping
    solved = solve_scales(
        LayerMatrices(weights, np.zeros((1, 5), np.float32)), columns, columns, Grid(7)
    )
    second = moments(columns, columns).second[0].astype(np.float64)
    assert solved.weights is None
    assert solved.bias is None
    for m in range(5):
        row = weights[0, m].astype(np.float64)
        errors = []
        for share in CLIP_SHARES:
            scale = 7 / (np.abs(row).max() * share)
            difference = (
                np.clip(np.sign(row) * np.floor(np.abs(row) * scale + 0.5), -7, 7) / scale - row
            )
            errors.append(difference @ second @ difference)
        used = solved.scales[m]
        difference = np.clip(np.sign(row) * np.floor(np.abs(row) * used + 0.5), -7, 7) / used - row
        assert difference @ second @ difference <= min(errors) * 1.01


@pytest.mark.parametrize("groups", [1, 5])
def test_solved_weights_lie_on_the_grid_and_a_bias_takes_the_mean_error(groups) -> None:
    weights, columns = layer(6, groups, outputs=3, size=9)
    step = np.float32(0.4)
    used = np.trunc(columns / step) * step  # cut off, so every value is too small on average
    given = LayerMatrices(weights, np.full((groups, 3), 0.5, np.float32))
    solved = solve_weights(
        given, columns, used, Grid(31), Changes(rounding=True, refit=False, bias=True)
    )
    scales = solved.scales.reshape(groups, -1) if groups > 1 else solved.scales[None]
    levels = solved.weights * scales[:, :, None]
    assert np.abs(levels - np.rint(levels)).max() < 1e-3
    assert np.abs(levels).max() < 31.01
    target = weights @ columns + 0.5
    plain = np.abs((solved.weights @ used + 0.5 - target).mean(axis=2))
    corrected = np.abs((solved.weights @ used + solved.bias[:, :, None] - target).mean(axis=2))
    assert plain.mean() > 0.02
    assert corrected.max() < 0.05 * plain.mean()


def test_a_mean_error_of_one_image_alone_is_left() -> None:
    weights, columns = layer(12, outputs=3, size=9, count=400)
    used = columns.copy()
    used[:, :, -20:] -= 2  # the last image alone: the others agree with the float net
    given = LayerMatrices(weights, np.zeros((1, 3), np.float32))
    changes = Changes(rounding=True, refit=False, bias=True)
    one = solve_weights(given, columns, used, Grid(127), changes)
    all_images = solve_weights(given, columns, columns - np.float32(0.1), Grid(127), changes)
    assert np.abs(one.bias).max() < 0.02 * np.abs(all_images.bias).max()


@pytest.mark.parametrize("change", [True, False])
def test_levels_of_a_row_add_up_to_no_more_than_they_may(change) -> None:
    weights, columns = layer(8, outputs=5, size=90, count=900)
    weights[0, 3] *= 0.01
    weights[0, 3, 7] = 0.8  # one large weight: this row needs no room
    given = LayerMatrices(weights, np.zeros((1, 5), np.float32))
    grid = Grid(127, 900.0)
    if change:
        solved = solve_weights(
            given, columns, columns, grid, Changes(rounding=True, refit=False, bias=False)
        )
        levels = solved.weights[0] * solved.scales[:, None]
    else:
        solved = solve_scales(given, columns, columns, grid)
        levels = nearest(weights, solved.scales[None], 127)[0]
    sums = np.abs(levels).sum(axis=1)
    assert sums.max() <= 900.5
    assert np.delete(sums, 3).min() > 800  # and use what they may
    assert np.abs(levels[3]).max() > 120
