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


def plain_precision(found: list, truths: list, label: int, iou: float) -> float:
    """The area under the curve of the best precision at each recall, cut by cut."""

    def overlap(a: tuple, b: tuple) -> float:
        width = min(a[2], b[2]) - max(a[0], b[0])
        height = min(a[3], b[3]) - max(a[1], b[1])
        shared = max(width, 0) * max(height, 0)
        areas = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)]
        return shared / (sum(areas) - shared)

    total = sum(t.label == label and not t.ignored for image in truths for t in image)
    cuts = sorted({d.score for image in found for d in image if d.label == label}, reverse=True)
    points = []
    for cut in cuts:
        hits = count = 0
        for image, boxes in zip(found, truths, strict=True):
            left = [t.box for t in boxes if t.label == label and not t.ignored]
            crowd = [t.box for t in boxes if t.label == label and t.ignored]
            for d in sorted(image, key=lambda d: -d.score):
                if d.label != label or d.score < cut:
                    continue
                best = max(left, key=lambda box: overlap(d.box, box), default=None)
                if best is not None and overlap(d.box, best) >= iou:
                    left.remove(best)
                    hits += 1
                elif any(overlap(d.box, box) >= iou for box in crowd):
                    continue
                count += 1
        points.append((hits / total, hits / count if count else 0.0))
    area, before = 0.0, 0.0
    for recall in sorted({point[0] for point in points}):
        area += (recall - before) * max(p for r, p in points if r >= recall)
        before = recall
    return area
