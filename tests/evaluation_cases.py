"""Tables and batches that the tests of evaluation share."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

import int8calib
from int8calib.caffe.network.fold import fold_batch_norm
from int8calib.caffe.network.quantized import quantized_layers
from int8calib.table.model import CalibrationTable, LayerScales


def coarse_table(net: int8calib.Net, bottom_scale: float) -> CalibrationTable:
    """Scales that leave so few levels that the net often changes its mind."""
    layers = quantized_layers(fold_batch_norm(net.graph))
    scales = [127 / np.abs(layer.weight_rows()).max(axis=1) for layer in layers]
    return CalibrationTable(
        tuple(
            LayerScales(layer.name, scale.astype(np.float32), bottom_scale)
            for layer, scale in zip(layers, scales, strict=True)
        )
    )


def loader_of(images: np.ndarray, labels: np.ndarray | None = None, batch: int = 5):  # type: ignore[no-untyped-def]
    def batches() -> Iterator:
        for start in range(0, len(images), batch):
            part = {"data": images[start : start + batch]}
            if labels is None:
                yield part
            else:
                yield int8calib.Labeled(part, labels[start : start + batch])

    return batches
