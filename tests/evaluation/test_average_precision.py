"""Mean average precision against a plain count over every cut of the score."""

from __future__ import annotations

import math

import numpy as np
import pytest

from int8calib.evaluation.average_precision import Detection, Truth, mean_average_precision


def plain(found: list, truths: list, label: int, iou: float) -> float:
    """The area under the curve of the best precision at each recall, cut by cut."""

    def overlap(a: tuple, b: tuple) -> float:
        width = min(a[2], b[2]) - max(a[0], b[0])
        height = min(a[3], b[3]) - max(a[1], b[1])
        shared = max(width, 0) * max(height, 0)
        areas = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)]
        return shared / (sum(areas) - shared)

    total = sum(t.label == label for image in truths for t in image)
    cuts = sorted({d.score for image in found for d in image if d.label == label}, reverse=True)
    points = []
    for cut in cuts:
        hits = count = 0
        for image, boxes in zip(found, truths, strict=True):
            left = [t.box for t in boxes if t.label == label]
            for d in sorted(image, key=lambda d: -d.score):
                if d.label != label or d.score < cut:
                    continue
                count += 1
                best = max(left, key=lambda box: overlap(d.box, box), default=None)
                if best is not None and overlap(d.box, best) >= iou:
                    left.remove(best)
                    hits += 1
        points.append((hits / total, hits / count))
    area, before = 0.0, 0.0
    for recall in sorted({point[0] for point in points}):
        area += (recall - before) * max(p for r, p in points if r >= recall)
        before = recall
    return area


@pytest.mark.parametrize("seed", range(6))
def test_it_is_the_area_under_the_curve(seed: int) -> None:
    rng = np.random.default_rng(seed)
    found, truths = [], []
    for _ in range(17):
        boxes = []
        for _ in range(rng.integers(0, 4)):
            corner, size = rng.random(2) * 0.6, 0.15 + 0.2 * rng.random(2)
            boxes.append(Truth(int(rng.integers(1, 4)), (*corner, *(corner + size))))
        truths.append(boxes)
        detections = []
        for truth in [*boxes, *boxes[:1]]:
            box = np.array(truth.box) + rng.normal(0, 0.03, 4)
            label = truth.label if rng.random() < 0.8 else int(rng.integers(1, 4))
            detections.append(Detection(label, float(rng.random()), tuple(box)))
        found.append(detections)
    labels = {truth.label for image in truths for truth in image}
    for iou in (0.5, 0.7):
        expected = np.mean([plain(found, truths, label, iou) for label in labels])
        assert mean_average_precision(found, truths, iou) == pytest.approx(expected)


def test_a_box_at_the_limit_counts_and_is_taken_once() -> None:
    truths = [[Truth(1, (0.0, 0.0, 1.0, 1.0))]]
    half = Detection(1, 0.9, (0.0, 0.0, 0.5, 1.0))
    assert mean_average_precision([[half]], truths, 0.5) == 1
    assert mean_average_precision([[half]], truths, 0.5000001) == 0
    twice = [half, Detection(1, 0.95, (0.0, 0.0, 0.25, 1.0)), half]
    assert mean_average_precision([twice], truths, 0.5) == 0.5
    assert mean_average_precision([[]], truths) == 0
    assert math.isnan(mean_average_precision([[half]], [[]]))
