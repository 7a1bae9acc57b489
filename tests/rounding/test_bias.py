"""Bias corrections of depthwise layers before a ReLU, against loops over outputs and columns."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import int8calib
from int8calib.rounding.bias import depthwise_before_relu, useful_correction
from tests.generated import make_model
from tests.network_styles import conv, data, layer


def test_a_correction_stays_where_it_brings_outputs_nearer_behind_a_relu() -> None:
    rng = np.random.default_rng(3)
    group, outputs, size, count = 7, 1, 9, 500
    weights = rng.normal(0, 3, (group, outputs, size)).astype(np.float32)
    columns = np.abs(rng.normal(0, 0.4, (group, size, count))).astype(np.float32)
    # Steps as large as the values: most are rounded to 0.
    levels = np.round(columns)
    bias = rng.normal(-1, 2, (group, outputs)).astype(np.float32)
    correction = np.einsum("gmk,gkn->gm", weights, columns - levels) / count
    correction[0] *= -1
    found = useful_correction(
        weights, bias, weights, columns, levels, correction.astype(np.float32)
    )
    kept = 0
    for g in range(group):
        errors = {0.0: 0.0, float(correction[g, 0]): 0.0}
        for n in range(count):
            wanted = max(0.0, float(weights[g, 0] @ columns[g, :, n] + bias[g, 0]))
            for shift in errors:
                got = max(0.0, float(weights[g, 0] @ levels[g, :, n] + bias[g, 0]) + shift)
                errors[shift] += (got - wanted) ** 2
        best = min(errors, key=errors.__getitem__)
        assert found[g, 0] == np.float32(best)
        kept += best != 0
    assert 0 < kept < group


def test_which_layers_it_is_for(tmp_path: Path) -> None:
    text = (
        data(1, 4, 11, 13)
        + conv("plain", "data", "num_output: 4 kernel_size: 3", relu=False)
        + layer("ReLU", "a", "plain")
        + conv("dw", "a", "num_output: 4 kernel_size: 3 group: 4", relu=False)
        + layer("ReLU", "b", "dw")
        + conv("linear", "b", "num_output: 4 kernel_size: 3 group: 4", relu=False)
        + conv("read", "linear", "num_output: 4 kernel_size: 1 group: 2", relu=False)
        + layer("ReLU", "c", "read")
        + layer("Eltwise", "sum", "c read")
        + conv("leaky", "sum", "num_output: 4 kernel_size: 1 group: 4", relu=False)
        + layer("ReLU", "d", "leaky", param="relu_param { negative_slope: 0.1 }")
    )
    net = int8calib.load_caffe(*make_model(tmp_path, text))
    assert depthwise_before_relu(net.graph) == {"dw"}
