"""Mean average precision against a plain count over every cut of the score."""

from __future__ import annotations

import math

import numpy as np
import pytest

from int8calib.evaluation.average_precision import (
    Detection,
    box_accuracy,
    mean_average_precision,
)
from int8calib.images.boxes import Truth
from tests.evaluation_cases import plain_precision


@pytest.mark.parametrize("seed", range(6))
def test_it_is_the_area_under_the_curve(seed: int) -> None:
    rng = np.random.default_rng(seed)
    found, truths = [], []
    for _ in range(17):
        boxes = []
        for _ in range(rng.integers(0, 4)):
            corner, size = rng.random(2) * 0.6, 0.15 + 0.2 * rng.random(2)
            ignored = bool(rng.random() < 0.2)
            boxes.append(Truth(int(rng.integers(1, 4)), (*corner, *(corner + size)), ignored))
        truths.append(boxes)
        detections = []
        for truth in [*boxes, *boxes[:1]]:
            box = np.array(truth.box) + rng.normal(0, 0.03, 4)
            label = truth.label if rng.random() < 0.8 else int(rng.integers(1, 4))
            detections.append(Detection(label, float(rng.random()), tuple(box)))
        found.append(detections)
    labels = {truth.label for image in truths for truth in image if not truth.ignored}
    for iou in (0.5, 0.7):
        expected = np.mean([plain_precision(found, truths, label, iou) for label in labels])
        assert mean_average_precision(found, truths, iou) == pytest.approx(expected)


def test_a_box_at_the_limit_counts_and_is_taken_once() -> None:
    truths = [[Truth(1, (0.0, 0.0, 1.0, 1.0))]]
    half = Detection(1, 0.9, (0.0, 0.0, 0.5, 1.0))
    assert mean_average_precision([[half]], truths, 0.5) == 1
    assert mean_average_precision([[half]], truths, 0.5000001) == 0
    miss = Detection(1, 0.95, (0.0, 0.0, 0.25, 1.0))
    assert mean_average_precision([[half, miss, half._replace(score=0.8)]], truths, 0.5) == 0.5
    # Detections of one score are cut together, whatever their order.
    for order in ([half, miss, half], [miss._replace(score=0.9), half, half]):
        assert mean_average_precision([order], truths, 0.5) == pytest.approx(1 / 3)
    assert mean_average_precision([[]], truths) == 0
    assert math.isnan(mean_average_precision([[half]], [[]]))


def test_recall_counts_boxes_that_good_enough_detections_find() -> None:
    left, right, far = (0.0, 0.0, 0.4, 1.0), (0.5, 0.0, 0.9, 1.0), (0.0, 0.0, 0.1, 0.1)
    truths = [[Truth(1, left), Truth(2, right)], [Truth(1, left), Truth(2, far, ignored=True)]]
    found = [
        [Detection(1, 0.5, left), Detection(2, 0.29, right)],
        [Detection(2, 0.9, far), Detection(2, 0.8, left)],
    ]
    recall = box_accuracy(found, truths, min_score=0.5).recall
    assert (recall.hits, recall.total) == (1, 3)
    assert box_accuracy(found, truths, min_score=0.51).recall.hits == 0
    low = box_accuracy(found, truths, min_score=0.29)
    assert low.recall.hits == 2
    # Class 1: one of two boxes, at full precision. Class 2: the better one of two detections that
    # count finds nothing, the other one all.
    assert low.mean_precision == pytest.approx((0.5 + 0.5) / 2)
    alone = [[Truth(1, left, ignored=True)]]
    assert math.isnan(box_accuracy([[Detection(1, 0.9, left)]], alone).mean_precision)
