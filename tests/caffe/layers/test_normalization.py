"""Normalization and per-channel factors against OpenCV and naive formulas."""

from __future__ import annotations

import numpy as np
import pytest

from caffe_proto import caffe_pb2
from int8calib.errors import ShapeError
from tests.layer_cases import Case, check, normal, positive


def moving(rng, shape):
    return np.full(shape, 3.7)


def nothing(rng, shape):
    return np.zeros(shape)


def mvn(params, weights, bottoms):
    """Per channel, or per image, in double precision; eps beside the deviation."""
    param, top = params.mvn_param, np.array(bottoms[0], np.float64)
    parts = [top[n] for n in range(len(top))]
    if not param.across_channels:
        parts = [part[c] for part in parts for c in range(part.shape[0])]
    for part in parts:
        part -= part.mean()
        if param.normalize_variance:
            eps = param.eps
            part /= np.sqrt(part.var() + eps) if param.add_eps_before_sqrt else part.std() + eps
    return [top]


def batch_norm(params, weights, bottoms):
    param, x = params.batch_norm_param, np.asarray(bottoms[0], np.float64)
    top = np.empty(x.shape)
    for c in range(x.shape[1]):
        mean, var = (blob[c] / np.float64(weights[2][0]) for blob in weights[:2])
        eps = param.eps
        deviation = np.sqrt(var + eps) if param.add_eps_before_sqrt else np.sqrt(var) + eps
        top[:, c] = (x[:, c] - mean) / deviation
    return [top]


def normalize(params, weights, bottoms):
    param, x = params.norm_param, np.asarray(bottoms[0], np.float64)
    top = np.empty(x.shape)
    for n, i, j in np.ndindex(x.shape[0], *x.shape[2:]):
        part = x[n] if param.across_spatial else x[n, :, i, j]
        norm = np.sqrt((part**2).sum() + param.eps)
        if param.across_spatial and not param.add_eps_before_sqrt:
            norm = np.sqrt((part**2).sum()) + param.eps
        top[n, :, i, j] = x[n, :, i, j] / norm * weights[0]
    return [top]


def bn(params, weights, bottoms):
    x, top = np.asarray(bottoms[0], np.float64), np.empty(bottoms[0].shape)
    for c in range(x.shape[1]):
        factor, shift, *stored = (blob.reshape(-1)[c] for blob in weights)
        part = x[:, c]
        if stored:
            part = (part - stored[0]) / np.sqrt(stored[1] + 1e-5)
        elif params.bn_param.bn_mode != caffe_pb2.BNParameter.INFERENCE:
            part = (part - part.mean()) / np.sqrt(part.var() + 1e-9)
        top[:, c] = part * factor + shift
    return [top]


def lrn_within(params, weights, bottoms):
    """Squares averaged over the window clipped to the padded image."""
    param, x = params.lrn_param, np.asarray(bottoms[0], np.float64)
    half, (height, width) = param.local_size // 2, x.shape[2:]
    top = np.empty(x.shape)
    for i, j in np.ndindex(height, width):
        rows = slice(max(i - half, 0), i + half + 1)
        columns = slice(max(j - half, 0), j + half + 1)
        area = (min(i + half + 1, height + half) - (i - half)) * (
            min(j + half + 1, width + half) - (j - half)
        )
        mean = (x[:, :, rows, columns] ** 2).sum(axis=(2, 3)) / area
        top[:, :, i, j] = x[:, :, i, j] * (1 + param.alpha * mean) ** -param.beta
    return [top]


def lrn_across(params, weights, bottoms):
    param, x = params.lrn_param, np.asarray(bottoms[0], np.float64)
    half, top = param.local_size // 2, np.empty(x.shape)
    for c in range(x.shape[1]):
        energy = (x[:, max(c - half, 0) : c + half + 1] ** 2).sum(axis=1)
        top[:, c] = x[:, c] * (param.k + param.alpha / param.local_size * energy) ** -param.beta
    return [top]


def axpy(params, weights, bottoms):
    a, x, y = bottoms
    top = np.empty(x.shape)
    for n, c in np.ndindex(*x.shape[:2]):
        top[n, c] = np.float64(a.reshape(*a.shape[:2])[n, c]) * x[n, c] + y[n, c]
    return [top]


def scale_by_image(params, weights, bottoms):
    x, factor = bottoms
    return [np.stack([x[n] * factor[n].reshape(-1, 1, 1) for n in range(len(x))])]


def affine_from(axis, stop):
    """An oracle for Scale and Bias over the axes axis..stop of a 4-d bottom."""

    def oracle(params, weights, bottoms):
        x, *blobs = (np.asarray(array, np.float64) for array in (*bottoms, *weights))
        spread = [blob.reshape(blob.shape + (1,) * (4 - stop)) for blob in blobs]
        top = x + spread[0] if params.type == "Bias" else x * spread[0]
        return [top + spread[1] if len(spread) > 1 else top]

    return oracle


X = (2, 5, 7, 11)
STATISTICS = (normal, positive, moving)
MAPS = ("eps: 0.3 add_eps_before_sqrt: true", "across_channels: true", "normalize_variance: false", "eps: 0.3",
        "across_channels: true normalize_variance: false", "")  # fmt: skip

CASES = (
    Case("BatchNorm", weight_makers=STATISTICS),
    Case("BatchNorm", "batch_norm_param { eps: 0.3 use_global_stats: true }",
         weight_makers=STATISTICS),
    Case("BatchNorm", bottoms=((3, 13),), weight_makers=STATISTICS,
         oracle=lambda p, w, b: [(b[0] - w[0] / w[2]) / np.sqrt(w[1] / w[2] + 1e-5)]),
    Case("BatchNorm", weight_makers=(normal, positive, nothing), label="factor 0",
         oracle=lambda p, w, b: [b[0] / np.sqrt(1e-5)]),
    *(Case("BatchNorm", f"batch_norm_param {{ eps: 0.3 add_eps_before_sqrt: {before} }}", (X,),
           oracle=batch_norm, weight_makers=STATISTICS) for before in ("true", "false")),
    Case("Scale"),
    Case("Scale", "scale_param { bias_term: true }"),
    Case("Scale", "scale_param { axis: 2 num_axes: 2 bias_term: true }", (X,),
         oracle=affine_from(2, 4)),
    Case("Scale", "scale_param { axis: 0 num_axes: -1 }", (X,), oracle=affine_from(0, 4)),
    Case("Scale", "scale_param { num_axes: 0 bias_term: true }", (X,), oracle=affine_from(1, 1)),
    Case("Scale", "scale_param { axis: 0 }", (X, (2, 5)), oracle=scale_by_image),
    Case("Scale", "scale_param { axis: -2 bias_term: true }", (X, (7,)),
         oracle=affine_from(2, 3)),
    Case("Bias", oracle=affine_from(1, 2)),
    Case("Bias", "bias_param { axis: 2 num_axes: 2 }", (X,), oracle=affine_from(2, 4)),
    Case("Bias", "bias_param { axis: 0 }", (X, (2, 5)), oracle=affine_from(0, 2)),
    Case("Axpy", bottoms=((2, 5), X, X), oracle=axpy),
    Case("Axpy", bottoms=((2, 5, 1, 1), X, X), oracle=axpy),
    Case("BN", "bn_param { bn_mode: INFERENCE }", oracle=bn, blobs=((1, 5, 1, 1),) * 2),
    Case("BN", oracle=bn, label="statistics of the batch"),
    Case("BN", oracle=bn, blobs=((1, 5),) * 4, label="stored statistics",
         weight_makers=(normal, normal, normal, positive)),
    *(Case("MVN", f"mvn_param {{ {options} }}", oracle=mvn) for options in MAPS),
    Case("Normalize", "norm_param { across_spatial: false channel_shared: false }",
         weight_makers=(positive,)),
    Case("Normalize", "norm_param { across_spatial: false channel_shared: false eps: 3 }",
         weight_makers=(positive,),
         oracle=lambda p, w, b: normalize(p, [w[0]], b)),
    Case("Normalize", "norm_param { across_spatial: false }", oracle=normalize),
    Case("Normalize", "norm_param { channel_shared: false }", oracle=normalize),
    *(Case("Normalize", f"norm_param {{ eps: 30 across_spatial: {across} "
           "add_eps_before_sqrt: false }", oracle=normalize) for across in ("true", "false")),
    Case("Normalize", oracle=normalize),
    *(Case("LRN", f"lrn_param {{ local_size: {size} alpha: 1.1 beta: 0.6 k: {k} }}",
           oracle=lrn_across) for size, k in ((3, 1), (5, 2.5), (7, 1))),
    Case("LRN", "lrn_param { local_size: 5 alpha: 1.1 }"),
    Case("LRN", "lrn_param { local_size: 3 alpha: 2.3 beta: 0.5 }", oracle=lrn_across),
    *(Case("LRN", f"lrn_param {{ local_size: {size} alpha: 0.9 norm_region: WITHIN_CHANNEL }}",
           oracle=lrn_within) for size in (3, 5, 9, 23, 2**32 - 1)),
    *(Case("LRN", f"lrn_param {{ local_size: {size} alpha: 1.1 }}", oracle=lrn_across)
      for size in (9, 11, 23, 2**32 - 1)),
)  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_layer(case: Case) -> None:
    check(case)


@pytest.mark.parametrize(
    ("case", "found"),
    [
        (Case("LRN", "lrn_param { local_size: 4 }"), "odd"),
        (Case("Scale", "scale_param { axis: 3 num_axes: 2 }"), "num_axes"),
        (Case("Scale", "scale_param { axis: 1 }", (X, (2, 5))), "does not match"),
        (Case("Bias", "bias_param { axis: 7 num_axes: 1 }"), "out of range"),
        (Case("Axpy", bottoms=((2, 3), X, X)), "do not fit"),
        (Case("Axpy", bottoms=(X, X)), "expected 3"),
        (Case("Normalize", bottoms=((3, 5),)), "4 axes"),
    ],
    ids=str,
)
def test_impossible_shapes(case: Case, found: str) -> None:
    rule = case.kind.weights if "num_axes" in case.options else case.kind.shape
    assert rule is not None
    with pytest.raises(ShapeError, match=found):
        rule(case.message(), case.bottoms)
