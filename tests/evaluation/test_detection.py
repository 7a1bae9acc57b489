"""Detectors: boxes of the float and the INT8 net are paired, and what they are made of compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import int8calib
from int8calib.errors import ImageError, OptionError
from int8calib.evaluation.average_precision import Detection
from int8calib.evaluation.measures import match_boxes
from int8calib.images.boxes import Truth
from tests.evaluation_cases import coarse_table, loader_of, plain_precision
from tests.generated import make_model

SSD = """
layer { name: "data" type: "Input" top: "data"
  input_param { shape { dim: 1 dim: 3 dim: 29 dim: 37 } } }
layer { name: "c" type: "Convolution" bottom: "data" top: "c"
  convolution_param { num_output: 7 kernel_size: 3 stride: 4 } }
layer { name: "c/relu" type: "ReLU" bottom: "c" top: "c" }
layer { name: "loc" type: "Convolution" bottom: "c" top: "loc"
  convolution_param { num_output: 8 kernel_size: 1 } }
layer { name: "loc/power" type: "Power" bottom: "loc" top: "loc/power" power_param { scale: 0.01 } }
layer { name: "loc/perm" type: "Permute" bottom: "loc/power" top: "loc/perm"
  permute_param { order: 0 order: 2 order: 3 order: 1 } }
layer { name: "loc/flat" type: "Flatten" bottom: "loc/perm" top: "loc/flat" }
layer { name: "conf" type: "Convolution" bottom: "c" top: "conf"
  convolution_param { num_output: 6 kernel_size: 1 } }
layer { name: "conf/perm" type: "Permute" bottom: "conf" top: "conf/perm"
  permute_param { order: 0 order: 2 order: 3 order: 1 } }
layer { name: "conf/rows" type: "Reshape" bottom: "conf/perm" top: "conf/rows"
  reshape_param { shape { dim: 0 dim: -1 dim: 3 } } }
layer { name: "conf/prob" type: "Softmax" bottom: "conf/rows" top: "conf/prob" softmax_param { axis: 2 } }
layer { name: "conf/flat" type: "Flatten" bottom: "conf/prob" top: "conf/flat" }
layer { name: "prior" type: "PriorBox" bottom: "c" bottom: "data" top: "prior"
  prior_box_param { min_size: 9 max_size: 15 clip: false variance: 0.1 } }
layer { name: "out" type: "DetectionOutput" bottom: "loc/flat" bottom: "conf/flat" bottom: "prior"
  top: "out" detection_output_param { num_classes: 3 keep_top_k: 50 confidence_threshold: 0.05
    nms_param { nms_threshold: 0.45 } code_type: CENTER_SIZE } }
"""


def test_boxes_and_what_they_are_made_of(tmp_path: Path) -> None:
    net = int8calib.load_caffe(*make_model(tmp_path, SSD))
    x = np.random.default_rng(5).normal(0, 60, (4, 3, 29, 37)).astype(np.float32)
    table = coarse_table(net, 0.3)
    (result,) = int8calib.evaluate(net, table, loader_of(x, batch=1)).tables
    simulated = int8calib.simulate(net, table)
    pairs = []
    for image in x:
        tops = [each.forward({"data": image[None]})["out"] for each in (net, simulated)]
        pairs.append(match_boxes(*tops))
    assert result.boxes is not None
    assert result.boxes.matched == sum(pair.matched for pair in pairs)
    assert result.boxes.float_boxes == sum(pair.float_boxes for pair in pairs) > 10
    assert result.boxes.int8_boxes == sum(pair.int8_boxes for pair in pairs)
    assert 0.3 < result.boxes.value < 1
    assert [blob.blob for blob in result.blobs] == ["loc/flat", "conf/flat"]
    assert result.agreement is None
    strict = int8calib.evaluate(net, table, loader_of(x, batch=1), box_score=0.9).tables[0].boxes
    assert strict is not None
    assert strict.float_boxes < result.boxes.float_boxes


def detections(net: int8calib.Net, images: np.ndarray) -> list[list[Detection]]:
    """What a network finds, image by image."""
    found = []
    for image in images:
        rows = net.forward({"data": image[None]})["out"].reshape(-1, 7).tolist()
        found.append([Detection(int(r[1]), r[2], tuple(r[3:])) for r in rows if r[0] == 0])
    return found


def test_a_detector_is_judged_by_the_boxes_of_float_and_of_labels(tmp_path: Path) -> None:
    net = int8calib.load_caffe(*make_model(tmp_path, SSD))
    x = np.random.default_rng(5).normal(0, 60, (5, 3, 29, 37)).astype(np.float32)
    table = coarse_table(net, 0.3)
    nets = [detections(each, x) for each in (net, int8calib.simulate(net, table))]
    kept = [[Truth(d.label, d.box) for d in image if d.score >= 0.3] for image in nets[0]]
    labels = [[Truth(t.label, t.box) for t in image[::3]] for image in kept]
    assert all(labels)

    def batches():  # type: ignore[no-untyped-def]
        for image, boxes in zip(x, labels, strict=True):
            yield int8calib.Labeled({"data": image[None]}, [boxes])

    found = int8calib.evaluate(net, table, batches)
    assert found.kind is not None
    assert (found.kind.name, found.kind.sure) == ("detector", True)
    (result,) = found.tables
    for given, truths, which in (
        (result.against_float, kept, 1),
        (result.against_labels, labels, 1),
        (found.float_boxes, labels, 0),
    ):
        classes = {t.label for image in truths for t in image}
        expected = [plain_precision(nets[which], truths, label, 0.5) for label in classes]
        assert given is not None
        assert given.mean_precision == pytest.approx(np.mean(expected))
        assert given.recall.total == sum(map(len, truths))
    assert result.against_float is not None
    assert result.boxes is not None
    assert result.against_float.recall.hits == result.boxes.matched
    assert 0.2 < result.against_float.mean_precision < 1
    plain = int8calib.evaluate(net, table, loader_of(x, batch=1))
    assert plain.float_boxes is plain.tables[0].against_labels is None
    assert plain.tables[0].against_float == result.against_float


def test_boxes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    net = int8calib.load_caffe(*make_model(tmp_path, SSD))
    x = np.zeros((2, 3, 29, 37), np.float32)
    box = [Truth(1, (0.1, 0.1, 0.5, 0.5))]
    with pytest.raises(ImageError, match="1 lists of boxes for 2 images"):
        int8calib.evaluate(net, {}, lambda: [int8calib.Labeled({"data": x}, [box])])
    with pytest.raises(OptionError, match="no output of the network is a list of detections"):
        int8calib.evaluate(
            net, {}, lambda: [int8calib.Labeled({"data": x}, [box] * 2)], outputs=["conf"]
        )


def test_tuning_a_detector_keeps_the_result_with_most_boxes(tmp_path: Path) -> None:
    net = int8calib.load_caffe(*make_model(tmp_path, SSD))
    x = np.random.default_rng(5).normal(0, 60, (12, 3, 29, 37)).astype(np.float32)
    options = int8calib.TuneOptions(validation=0.5, max_drop=100, min_agreement=0.0)
    found = int8calib.tune(net, loader_of(x, batch=1), tuning=options)
    assert found.target_met
    assert found.evidence is not None
    held_out = x[1::2]
    truths = [
        [Truth(d.label, d.box) for d in image if d.score >= 0.3]
        for image in detections(net, held_out)
    ]
    classes = {t.label for image in truths for t in image}
    (best,) = (table for table in found.evidence.tables if table.name == found.chosen)
    shares = {
        table.name: table.against_float.mean_precision + table.against_float.recall.value
        for table in found.evidence.tables
        if table.against_float
    }
    step = 2 / sum(map(len, truths))
    assert shares[found.chosen] >= max(shares.values()) - step
    int8 = int8calib.simulate(net, found.table)
    expected = [
        plain_precision(detections(int8, held_out), truths, label, 0.5) for label in classes
    ]
    assert best.against_float is not None
    assert best.against_float.mean_precision == pytest.approx(np.mean(expected))


@pytest.mark.parametrize("bottom_scale", [0.3])
def test_each_layer_of_a_detector_has_its_error(bottom_scale: float, tmp_path: Path) -> None:
    net = int8calib.load_caffe(*make_model(tmp_path, SSD))
    x = np.random.default_rng(5).normal(0, 60, (2, 3, 29, 37)).astype(np.float32)
    found = int8calib.analyze(net, coarse_table(net, bottom_scale), loader_of(x, batch=1))
    effects = {layer.name: layer.output_sqnr for layer in found.layers}
    assert set(effects) == {"c", "loc", "conf"}
    assert all(layer.agreement is None for layer in found.layers)
    assert all(value is not None and 0 < value < 100 for value in effects.values())


YOLO = """
layer { name: "data" type: "Input" top: "data"
  input_param { shape { dim: 1 dim: 3 dim: 29 dim: 37 } } }
layer { name: "c" type: "Convolution" bottom: "data" top: "c"
  convolution_param { num_output: 7 kernel_size: 3 stride: 4 } }
layer { name: "relu" type: "ReLU" bottom: "c" top: "c" }
layer { name: "fine" type: "Convolution" bottom: "c" top: "fine"
  convolution_param { num_output: 14 kernel_size: 1 } }
layer { name: "pool" type: "Pooling" bottom: "c" top: "pool" pooling_param { kernel_size: 2 stride: 2 } }
layer { name: "raw" type: "Convolution" bottom: "pool" top: "raw"
  convolution_param { num_output: 14 kernel_size: 1 } }
layer { name: "small" type: "Power" bottom: "fine" top: "small" power_param { scale: 0.02 } }
layer { name: "large" type: "Power" bottom: "raw" top: "large" power_param { scale: 0.02 } }
layer { name: "out" type: "Yolov3DetectionOutput" bottom: "small" bottom: "large" top: "out"
  yolov3_detection_output_param { num_classes: 2 num_box: 2 confidence_threshold: 0.3
    nms_threshold: 0.45 biases: 5 biases: 7 biases: 11 biases: 9 biases: 13 biases: 17
    biases: 19 biases: 15 mask: 0 mask: 1 mask: 2 mask: 3 anchors_scale: 4 anchors_scale: 8 } }
"""


def test_yolo_is_compared_by_boxes_and_by_all_its_grids(tmp_path: Path) -> None:
    net = int8calib.load_caffe(*make_model(tmp_path, YOLO))
    x = np.random.default_rng(5).normal(0, 60, (4, 3, 29, 37)).astype(np.float32)
    table = coarse_table(net, 0.3)
    found = int8calib.evaluate(net, table, loader_of(x, batch=1))
    assert found.outputs == ("out",)
    assert found.notes == ()
    (result,) = found.tables
    assert [blob.blob for blob in result.blobs] == ["small", "large"]
    simulated = int8calib.simulate(net, table)
    counts = np.zeros(2, int)
    for image in x:
        tops = [each.forward({"data": image[None]})["out"] for each in (net, simulated)]
        counts += [(top[..., 0] >= 0).sum() for top in tops]
    assert result.boxes is not None
    assert (result.boxes.float_boxes, result.boxes.int8_boxes) == tuple(counts)
    assert result.boxes.float_boxes > 10
    assert 0.2 < result.boxes.value < 1


def test_a_tail_of_a_fork_is_compared(shared: Path) -> None:
    """A file of the kind that public detectors are, whose output only some programs compute."""
    folder = shared / "cases" / "b8_tail"
    net = int8calib.load_caffe(folder / "net.prototxt", folder / "net.caffemodel")
    x = np.random.default_rng(5).normal(0, 60, (3, 3, 32, 32)).astype(np.float32)
    found = int8calib.evaluate(net, coarse_table(net, 0.3), loader_of(x))
    assert [blob.blob for blob in found.tables[0].blobs] == ["c2"]
