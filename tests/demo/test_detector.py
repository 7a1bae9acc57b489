"""The demo's detector: its scenes, its file against OpenCV, and what the command shows."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from caffe_proto import read_prototxt
from int8calib.caffe.engine.run import load_caffe
from int8calib.cli import demo_detection
from int8calib.cli.main import main
from int8calib.demo import DETECTOR_CAFFEMODEL, DETECTOR_PROTOTXT, MEAN, NORM, scenes
from int8calib.demo.train_detector import matched_priors, priors_of
from tests.opencv import deviation, opencv_tops

MOST_BYTES = 400_000


def blobs(count: int, seed: int) -> np.ndarray:
    images = np.stack([image for image, _ in scenes.draw_scenes(count, seed)]).astype(np.float32)
    return ((images - np.array(MEAN, np.float32)) * np.float32(NORM)).transpose(0, 3, 1, 2).copy()


def test_scenes_repeat_and_boxes_hold_their_shapes() -> None:
    first, again = (list(scenes.draw_scenes(9, 5)) for _ in range(2))
    assert all(
        np.array_equal(a[0], b[0]) and a[1] == b[1] for a, b in zip(first, again, strict=True)
    )
    truths = [truth for _, each in first for truth in each]
    assert {truth.label for truth in truths} == set(range(1, len(scenes.CLASSES)))
    for truth in truths:
        left, top, right, bottom = truth.box
        assert 0 <= left < right <= 1
        assert 0 <= top < bottom <= 1
        for side in (right - left, bottom - top):
            assert 0.7 * scenes.RADII[0] < side * scenes.SIZE < 2.1 * scenes.RADII[1]


def test_the_stored_detector_is_small_and_runs_as_in_opencv() -> None:
    assert DETECTOR_CAFFEMODEL.stat().st_size <= MOST_BYTES
    net = load_caffe(DETECTOR_PROTOTXT, DETECTOR_CAFFEMODEL)
    image = {"data": blobs(1, 77)}
    names = ["mbox_loc", "mbox_conf_flatten", "mbox_priorbox"]
    other = opencv_tops(DETECTOR_PROTOTXT, DETECTOR_CAFFEMODEL, image)
    for name, found in net.forward(image, outputs=names).items():
        assert deviation(other[name].reshape(found.shape), found) < 1e-4


def test_priors_of_the_training_are_those_of_the_network() -> None:
    net = load_caffe(DETECTOR_PROTOTXT, DETECTOR_CAFFEMODEL)
    (found,) = net.forward({"data": blobs(1, 3)}, outputs=["mbox_priorbox"]).values()
    priors, variances = priors_of(read_prototxt(DETECTOR_PROTOTXT))
    np.testing.assert_allclose(found[0, 0].reshape(-1, 4), priors, atol=1e-6)
    np.testing.assert_allclose(found[0, 1].reshape(-1, 4)[5], variances)


def test_every_shape_gets_a_prior_and_decodes_to_its_box() -> None:
    priors, variances = priors_of(read_prototxt(DETECTOR_PROTOTXT))
    for _, truths in scenes.draw_scenes(7, 8):
        encoded, labels = matched_priors(truths, priors, variances)
        decoded = set()
        for place in np.flatnonzero(labels):
            prior, code = priors[place].astype(float), encoded[place].astype(float)
            center, side = (prior[:2] + prior[2:]) / 2, prior[2:] - prior[:2]
            middle = center + code[:2] * variances[:2] * side
            half = np.exp(code[2:] * variances[2:]) * side / 2
            box = (*(middle - half), *(middle + half))
            owner = min(truths, key=lambda truth: np.abs(np.subtract(truth.box, box)).max())
            assert np.abs(np.subtract(owner.box, box)).max() < 1e-5
            assert owner.label == labels[place]
            decoded.add(owner)
        assert decoded == set(truths)


@pytest.mark.usefixtures("few_columns")
@pytest.mark.long
def test_the_demo_compares_float_and_int8(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ncnn")
    for name, scenes_used in (("CALIBRATION", 40), ("TUNING", 16), ("TEST", 60)):
        monkeypatch.setattr(demo_detection, f"{name}_SCENES", scenes_used)
    assert main(["demo", "--detection", "--output", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    in_float, calibrated, tuned = (float(x) for x in re.findall(r"at IoU 0\.5 ([\d.]+) %", shown))
    assert in_float > 80
    assert in_float - 15 < calibrated < in_float + 3
    assert in_float - 4 < tuned < in_float + 4
    assert tuned > calibrated + 3
    picture = cv2.imread(str(tmp_path / "float-and-int8.png"))
    half = picture.shape[1] // 2
    assert picture.shape[0] > picture.shape[1]
    assert half > scenes.SIZE
    for name in ("detector.param", "detector-int8.bin", "tuned-int8.bin", "tuned.table"):
        assert (tmp_path / name).stat().st_size > 0
