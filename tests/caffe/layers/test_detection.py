"""Default boxes and detections against OpenCV and loops."""

from __future__ import annotations

import math

import numpy as np
import pytest

from caffe_proto import caffe_pb2
from int8calib.caffe.layers.registry import find_type
from int8calib.errors import ShapeError
from tests.layer_cases import Case, check, opencv

PICTURE = (1, 3, 89, 113)


def prior_box(params, weights, bottoms):
    """The SSD fork's loops over cells and sizes, which keep whole pixels of min and max size."""
    param = params.prior_box_param
    (height, width), (image_h, image_w) = bottoms[0].shape[2:], bottoms[1].shape[2:]
    if param.img_h:
        image_h, image_w = param.img_h, param.img_w
    if param.img_size:
        image_h = image_w = param.img_size
    step_h, step_w = param.step_h or param.step, param.step_w or param.step
    if not step_h:
        step_h, step_w = image_h / height, image_w / width
    ratios = []
    for ratio in param.aspect_ratio:
        if abs(ratio - 1) > 1e-6 and all(abs(ratio - r) > 1e-6 for r in ratios):
            ratios.append(ratio)
            if param.flip:
                ratios.append(1 / ratio)
    boxes = []
    for i, j in np.ndindex(height, width):
        y, x = (i + param.offset) * step_h, (j + param.offset) * step_w
        for s, small in enumerate(param.min_size):
            small = int(small)
            sizes = [(small, small)]
            if param.max_size:
                sizes.append((math.sqrt(small * int(param.max_size[s])),) * 2)
            sizes += [(small * math.sqrt(r), small / math.sqrt(r)) for r in ratios]
            for w, h in sizes:
                boxes.append([(x - w / 2) / image_w, (y - h / 2) / image_h,
                              (x + w / 2) / image_w, (y + h / 2) / image_h])  # fmt: skip
    boxes = np.clip(boxes, 0, 1) if param.clip else np.array(boxes)
    variance = list(param.variance) or [0.1]
    variance = variance * (4 // len(variance))
    return [np.stack([boxes.reshape(-1), np.tile(variance, len(boxes))])[None]]


def decoded(code_type, prior, variance, offset):
    """One box, by the names of the SSD paper."""
    offset = [o * v for o, v in zip(offset, variance, strict=True)]
    width, height = prior[2] - prior[0], prior[3] - prior[1]
    names = caffe_pb2.PriorBoxParameter.CodeType.Name
    if names(code_type) == "CORNER":
        return [p + o for p, o in zip(prior, offset, strict=True)]
    if names(code_type) == "CORNER_SIZE":
        sizes = [width, height, width, height]
        return [p + o * s for p, o, s in zip(prior, offset, sizes, strict=True)]
    x = (prior[0] + prior[2]) / 2 + offset[0] * width
    y = (prior[1] + prior[3]) / 2 + offset[1] * height
    w, h = math.exp(offset[2]) * width, math.exp(offset[3]) * height
    return [x - w / 2, y - h / 2, x + w / 2, y + h / 2]


def overlap(a, b):
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if w <= 0 or h <= 0:
        return 0.0
    areas = [max(c[2] - c[0], 0) * max(c[3] - c[1], 0) for c in (a, b)]
    return w * h / (sum(areas) - w * h)


def detections(params, weights, bottoms):
    param = params.detection_output_param
    classes, rows = param.num_classes, []
    priors = np.asarray(bottoms[2][0], np.float64).reshape(2, -1, 4)
    for image in range(len(bottoms[0])):
        scores = bottoms[1][image].reshape(-1, classes)
        offsets = np.asarray(bottoms[0][image], np.float64).reshape(len(scores), -1, 4)
        found = []
        for label in range(classes):
            if label == param.background_label_id:
                continue
            own = 0 if param.share_location else label
            variance = np.ones((len(scores), 4)) if param.variance_encoded_in_target else priors[1]
            boxes = [
                decoded(param.code_type, *values)
                for values in zip(priors[0], variance, offsets[:, own], strict=True)
            ]
            order = sorted(range(len(boxes)), key=lambda i: (-scores[i, label], i))
            order = [i for i in order if scores[i, label] > param.confidence_threshold]
            if param.nms_param.HasField("top_k"):
                order = order[: param.nms_param.top_k]
            kept, limit = [], param.nms_param.nms_threshold
            for i in order:
                if all(overlap(boxes[i], boxes[k]) <= limit for k in kept):
                    kept.append(i)
                    limit *= param.nms_param.eta if limit > 0.5 else 1
            found += [[image, label, scores[i, label], *boxes[i]] for i in kept]
        if param.keep_top_k >= 0:
            found = sorted(found, key=lambda row: -row[2])[: param.keep_top_k]
            found.sort(key=lambda row: (row[1], -row[2]))
        rows += found
    if not rows:
        rows = [[image, *[-1] * 6] for image in range(len(bottoms[0]))]
    return [np.array(rows)[None, None]]


def sorted_opencv(params, weights, bottoms):
    """OpenCV's detections in Caffe's order: by image, label, and score downwards.

    OpenCV fills up to keep_top_k with rows of zeros.
    """
    rows = opencv(params, weights, bottoms)[0][0, 0]
    rows = rows[rows[:, 2] > 0]
    return [rows[np.lexsort((-rows[:, 2], rows[:, 1], rows[:, 0]))][None, None]]


def offsets_of(rng, shape):
    return rng.normal(0, 0.7, shape)


def scores_of(rng, shape):
    return rng.permutation(np.linspace(0.01, 0.99, math.prod(shape))).reshape(shape)


def priors_of(rng, shape):
    corner = rng.uniform(0, 0.7, (shape[2] // 4, 2))
    size = rng.uniform(0.1, 0.4, corner.shape)
    variance = np.tile([0.1, 0.1, 0.2, 0.2], len(corner))
    return np.stack([np.hstack([corner, corner + size]).reshape(-1), variance])[None]


# OpenCV has other defaults: options it must see are written out.
PRIORS = (
    "min_size: 30 max_size: 60 aspect_ratio: 2 flip: true variance: 0.1 clip: false",
    "min_size: 30 aspect_ratio: 2 aspect_ratio: 3 flip: false clip: true "
    "variance: 0.1 variance: 0.1 variance: 0.2 variance: 0.2",
    "min_size: 17 min_size: 29 max_size: 31 max_size: 43 aspect_ratio: 2 step: 16 offset: 0.3 "
    "variance: 0.1 clip: false",
)
OWN_PRIORS = (
    "min_size: 17.9 max_size: 31.7 aspect_ratio: 1 aspect_ratio: 2 aspect_ratio: 2",
    "min_size: 30 img_h: 300 img_w: 200 step_h: 13 step_w: 11",
    "min_size: 30 img_size: 300",
)
BOXES, CLASSES, IMAGES = 23, 3, 2
NMS = "nms_param { nms_threshold: 0.45 top_k: 17 }"
DETECTIONS = (
    f"code_type: CENTER_SIZE background_label_id: 0 keep_top_k: 11 confidence_threshold: 0.3 {NMS}",
    f"code_type: CENTER_SIZE background_label_id: 0 keep_top_k: 500 confidence_threshold: 0.01 {NMS}",
    f"code_type: CORNER background_label_id: 0 keep_top_k: 200 confidence_threshold: 0.3 {NMS}",
    f"code_type: CENTER_SIZE background_label_id: 2 keep_top_k: 13 confidence_threshold: 0.2 {NMS}",
)
# OpenCV writes past its memory with keep_top_k: -1.
OWN_DETECTIONS = (
    "code_type: CENTER_SIZE variance_encoded_in_target: true keep_top_k: 7 "
    f"confidence_threshold: 0.2 {NMS}",
    f"code_type: CENTER_SIZE keep_top_k: -1 confidence_threshold: 0.01 {NMS}",
    f"code_type: CENTER_SIZE keep_top_k: 0 {NMS}",
    f"code_type: CORNER_SIZE keep_top_k: 200 confidence_threshold: 0.3 {NMS}",
    "code_type: CENTER_SIZE keep_top_k: 30 confidence_threshold: 0.1 "
    "nms_param { nms_threshold: 0.7 eta: 0.8 }",
    f"code_type: CENTER_SIZE keep_top_k: 5 confidence_threshold: 0.999 {NMS}",
    "code_type: CENTER_SIZE keep_top_k: 5 nms_param { nms_threshold: 0.45 top_k: 0 }",
)


def detect(options: str, oracle=None, blocks: int = 1) -> Case:
    shared = "true" if blocks == 1 else "false"
    options = f"num_classes: {CLASSES} share_location: {shared} {options}"
    bottoms = ((IMAGES, BOXES * blocks * 4), (IMAGES, BOXES * CLASSES), (1, 2, BOXES * 4))
    return Case("DetectionOutput", f"detection_output_param {{ {options} }}", bottoms, oracle,
                makers=(offsets_of, scores_of, priors_of), dynamic=True)  # fmt: skip


CASES = (
    *(Case("PriorBox", f"prior_box_param {{ {options} }}", ((2, 5, 5, 7), PICTURE), oracle=oracle)
      for options in PRIORS for oracle in (None, prior_box)),
    *(Case("PriorBox", f"prior_box_param {{ {options} }}", ((2, 5, 5, 7), PICTURE),
           oracle=prior_box) for options in OWN_PRIORS),
    *(detect(options, oracle) for options in DETECTIONS for oracle in (sorted_opencv, detections)),
    *(detect(options, detections) for options in OWN_DETECTIONS),
    *(detect(options, detections, CLASSES) for options in DETECTIONS),
)  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_layer(case: Case) -> None:
    check(case)


def test_detections_of_several_images_and_classes_are_found() -> None:
    case = detect(DETECTIONS[1])
    weights, bottoms = case.arrays(seed=7)
    rows = sorted_opencv(case.message(), weights, bottoms)[0][0, 0]
    assert set(rows[:, 0]) == {0, 1}
    assert set(rows[:, 1]) == {1, 2}
    # Suppression had something to do: fewer are left than scores above the threshold.
    assert IMAGES < len(rows) < IMAGES * BOXES * (CLASSES - 1)


def test_nominal_shape_has_room_for_every_kept_detection() -> None:
    case = detect(DETECTIONS[0])
    nominal = case.kind.shape(case.message(), case.bottoms)
    assert list(nominal) == [(1, 1, IMAGES * 11, 7)]
    weights, bottoms = case.arrays(seed=7)
    assert case.kind.run(case.message(), weights, bottoms)[0].shape[2] <= IMAGES * 11


@pytest.mark.parametrize(
    ("name", "options", "bottoms", "found"),
    [
        ("PriorBox", "prior_box_param { aspect_ratio: 2 }", ((1, 2, 3, 5), PICTURE), "min_size"),
        ("PriorBox", "prior_box_param { min_size: 3 variance: 1 variance: 1 }",
         ((1, 2, 3, 5), PICTURE), "2 variances"),
        *(("PriorBox", f"prior_box_param {{ {options} }}", ((1, 2, 3, 5), PICTURE), found)
          for options, found in (
              ("min_size: nan", "min_size is nan"), ("min_size: inf", "finite and above 0"),
              ("min_size: 3 aspect_ratio: 0", "above 0"), ("min_size: 3 step: inf", "finite"),
              ("min_size: 3 max_size: nan", "max_size is nan"), ("min_size: -3", "above 0"),
              ("min_size: 3 variance: nan", "variance is nan"),
              ("min_size: 3 offset: nan", "offset is nan"),
              ("min_size: 3 step_h: 8", "step, or step_h and step_w"),
              ("min_size: 3 step: 8 step_h: 8 step_w: 8", "step, or step_h and step_w"),
              ("min_size: 3 img_w: 300", "img_size, or img_h and img_w"))),
        ("DetectionOutput", "detection_output_param { num_classes: 2 }",
         ((1, 20), (1, 15), (1, 2, 20)), "5 default boxes"),
        ("DetectionOutput", "detection_output_param { num_classes: 2 nms_param { eta: nan } }",
         ((1, 20), (1, 10), (1, 2, 20)), "nms_param.eta is nan"),
        ("DetectionOutput", "detection_output_param { num_classes: 2 }",
         ((1, 20), (1, 10), (1, 20)), "third bottom"),
    ],
)  # fmt: skip
def test_impossible_shapes(name: str, options: str, bottoms: tuple, found: str) -> None:
    case = Case(name, options, bottoms)
    with pytest.raises(ShapeError, match=found):
        find_type(name).shape(case.message(), bottoms)


@pytest.mark.parametrize("others", [0, 131])
@pytest.mark.parametrize(("threshold", "share", "kept"), [
    (0.5, 0.5, 2), (0.499, 0.5, 1), (0.75, 0.75, 2), (0.749, 0.75, 1),
])  # fmt: skip
def test_boxes_that_overlap_by_the_threshold_itself_are_kept(
    threshold: float, share: float, kept: int, others: int
) -> None:
    """One box is a part of the other: what they share is exactly that part of what they cover.

    `others` are small boxes of scores between, which overlap nothing.
    """
    count = 2 + others
    options = (
        "num_classes: 2 share_location: true code_type: CORNER background_label_id: 0 "
        f"keep_top_k: 200 confidence_threshold: 0.1 "
        f"nms_param {{ nms_threshold: {threshold} top_k: 200 }}"
    )
    case = Case("DetectionOutput", f"detection_output_param {{ {options} }}",
                ((1, 4 * count), (1, 2 * count), (1, 2, 4 * count)))  # fmt: skip
    corner = 0.5 + np.arange(others) / 256
    small = np.stack([corner, corner, corner + 1 / 512, corner + 1 / 512], axis=1)
    boxes = np.concatenate([[[0, 0, 0.5, 0.5]], small, [[0, 0, 0.5, 0.5 * share]]])
    scores = np.linspace(0.9, 0.8, count)
    bottoms = [
        np.zeros((1, 4 * count), np.float32),
        np.stack([1 - scores, scores], axis=1).reshape(1, -1).astype(np.float32),
        np.stack([boxes.reshape(-1), np.full(4 * count, 0.1)])[None].astype(np.float32),
    ]
    rows = case.kind.run(case.message(), [], bottoms)[0]
    assert rows.shape == (1, 1, kept + others, 7)
    np.testing.assert_array_equal(rows, sorted_opencv(case.message(), [], bottoms)[0])


@pytest.mark.parametrize("eta", [1.0, 0.9, 0.97])
def test_many_boxes_are_suppressed_as_one_at_a_time(eta: float) -> None:
    count, classes = 463, 3
    options = (
        f"num_classes: {classes} code_type: CENTER_SIZE keep_top_k: -1 confidence_threshold: 0.3 "
        f"nms_param {{ nms_threshold: 0.7 top_k: 400 eta: {eta} }}"
    )
    case = Case("DetectionOutput", f"detection_output_param {{ {options} }}",
                ((1, count * 4), (1, count * classes), (1, 2, count * 4)), detections,
                makers=(offsets_of, scores_of, priors_of), dynamic=True)  # fmt: skip
    check(case)
