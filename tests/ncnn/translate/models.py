"""The cases of ncnn layers as models of one layer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from int8calib.ncnn.layout import blob_layout
from int8calib.ncnn.model import NcnnModel
from int8calib.ncnn.param import parse_param
from tests.ncnn.translate.cases import Case


def model_of(case: Case) -> NcnnModel:
    """The case as a model of one layer with random weights; inputs are called in0, in1, ..."""
    rng = np.random.default_rng(len(case.line))
    kind, *options = case.line.split(" ", 1)
    names = [f"in{i}" for i in range(len(case.bottoms))]
    tops = [f"out{i}" for i in range(case.tops)]
    lines = [f"Input {name} 0 1 {name}" for name in names]
    words = (kind, "op", str(len(names)), str(len(tops)), *names, *tops, *options)
    text = "\n".join(["7767517", f"{len(lines) + 1} 99", *lines, " ".join(words)])
    *inputs, layer = parse_param(text, "case")
    weights = []
    for blob in blob_layout(layer):
        values = rng.standard_normal(blob.size)
        if blob.name == "variance":
            values = np.abs(values) + 0.5
        weights.append((0.3 * values if blob.size > 40 else values).astype(np.float32))
    return NcnnModel((*inputs, replace(layer, weights=tuple(weights))), "case")
