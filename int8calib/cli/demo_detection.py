"""The detector's half of `int8calib demo`: calibrate it on drawn scenes, run it, compare boxes."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from int8calib.errors import OptionError

if TYPE_CHECKING:
    from int8calib.arrays import Array
    from int8calib.cli.console import Console
    from int8calib.evaluation.average_precision import Detection
    from int8calib.images.decode import ImageU8

CALIBRATION_SCENES = 100
TEST_SCENES = 200
CALIBRATION_SEED = 1
TEST_SEED = 2
SHOWN = 4
"""Scenes on the picture."""
SHOWN_SCORE = 0.4
_ENLARGED = 2
"""How many times as large scenes are shown."""
Detect = Callable[["Array"], "Array"]
"""An input blob (C, H, W) to rows of label, score and box."""


def run_detection(console: Console, folder: Path, messages: Sequence[str]) -> None:
    """Draw scenes, calibrate the detector, and show what INT8 does to its boxes."""
    from int8calib.cli.main import run_command
    from int8calib.demo import DETECTOR_CAFFEMODEL, DETECTOR_PROTOTXT, MEAN, NORM, scenes
    from int8calib.files import write_atomic

    console.say(f"drawing {CALIBRATION_SCENES} scenes in {folder}")
    scenes.write_scenes(folder / "scenes", CALIBRATION_SCENES, CALIBRATION_SEED)
    proto, model = folder / DETECTOR_PROTOTXT.name, folder / DETECTOR_CAFFEMODEL.name
    write_atomic(proto, DETECTOR_PROTOTXT.read_bytes())
    write_atomic(model, DETECTOR_CAFFEMODEL.read_bytes())
    (folder / "classes.txt").write_text("\n".join(scenes.CLASSES) + "\n", encoding="utf-8")
    pixels = ["--mean", *(f"{m:g}" for m in MEAN), "--norm", f"{NORM:g}"]
    command = ["int8calib", "calibrate", "--proto", str(proto), "--model", str(model)]
    command += ["--images", str(folder / "scenes"), *pixels]
    command += ["--output", str(folder / "detector.table"), "--ncnn", str(folder / "detector")]
    run_command([*command[1:], *messages])
    _compare(console, folder)
    predict = ["int8calib", "predict", "--names", str(folder / "classes.txt")]
    predict += ["--param", *(str(folder / f"detector{end}.param") for end in ("", "-int8"))]
    predict += ["--bin", *(str(folder / f"detector{end}.bin") for end in ("", "-int8"))]
    predict += ["--images", str(folder / "scenes"), *pixels, "--output", str(folder / "boxes")]
    console.result("", "To repeat the calibration by hand:", shlex.join(command))
    console.result("To draw the boxes on pictures, float beside INT8:", shlex.join(predict))


def _compare(console: Console, folder: Path) -> None:
    """Mean average precision of both models, their time, and a picture with the boxes of both."""
    from statistics import median

    import numpy as np

    from int8calib.demo import MEAN, NORM, scenes
    from int8calib.evaluation.average_precision import mean_average_precision
    from int8calib.files import write_atomic
    from int8calib.images import Preprocess
    from int8calib.images.annotate import Box, draw_boxes, encode_png, side_by_side
    from int8calib.images.boxes import Truth

    how = Preprocess((3, scenes.SIZE, scenes.SIZE), mean=MEAN, norm=NORM)
    drawn = list(scenes.draw_scenes(TEST_SCENES, TEST_SEED))
    blobs = [how(image) for image, _ in drawn]
    truths = [[Truth(*each) for each in truths] for _, truths in drawn]
    detectors, seconds, where = _detectors(folder)
    found = {name: [_detections(run(blob)) for blob in blobs] for name, run in detectors.items()}
    console.result("", f"{TEST_SCENES} other scenes, {where}:")
    for name, each in found.items():
        precision = mean_average_precision(each, truths)
        console.result(f"  {name}: mean average precision at IoU 0.5 {100 * precision:.1f} %")
    if seconds:
        slow, fast = (1000 * median(seconds[name][3:]) for name in found)
        ratio = f"{slow / fast:.2f} times as fast"
        console.result(f"  {slow:.2f} ms a scene in float, {fast:.2f} ms in INT8: {ratio}")
    rows: list[ImageU8] = []
    for index in range(SHOWN):
        image = drawn[index][0].repeat(_ENLARGED, 0).repeat(_ENLARGED, 1)
        boxes = {
            name: [Box(d.label, d.score, *d.box) for d in each[index] if d.score >= SHOWN_SCORE]
            for name, each in found.items()
        }
        pictures = [draw_boxes(image, own, name, scenes.CLASSES) for name, own in boxes.items()]
        rows.append(side_by_side(pictures))
    picture = folder / "float-and-int8.png"
    write_atomic(picture, encode_png(np.concatenate(rows)))
    console.result(f"  boxes of both, float at the left: {picture}")


def _detectors(folder: Path) -> tuple[dict[str, Detect], dict[str, list[float]], str]:
    """Float and INT8 in ncnn, with the time of each run; simulated where ncnn is not installed."""
    from int8calib.ncnn.model import load_model
    from int8calib.ncnn.runtime import RuntimeNet

    seconds: dict[str, list[float]] = {"float": [], "INT8": []}
    try:
        nets = {
            name: RuntimeNet(load_model(folder / f"{file}.param", folder / f"{file}.bin"))
            for name, file in (("float", "detector"), ("INT8", "detector-int8"))
        }
    except OptionError:
        return (
            _simulated(folder),
            {},
            "simulated",
        )

    def runner(name: str) -> Detect:
        def run(blob: Array) -> Array:
            net = nets[name]
            found = net.run({"data": blob}, ["detection_out"])["detection_out"]
            seconds[name].append(net.seconds)
            return found.reshape(-1, 6)

        return run

    return {name: runner(name) for name in nets}, seconds, "in ncnn's runtime"


def _simulated(folder: Path) -> dict[str, Detect]:
    """Float and INT8 in numpy."""
    import int8calib

    net = int8calib.load_caffe(folder / "detector.prototxt", folder / "detector.caffemodel")
    int8 = int8calib.simulate(net, int8calib.read_table(folder / "detector.table"))

    def runner(each: int8calib.Net) -> Detect:
        def run(blob: Array) -> Array:
            (rows,) = each.forward({"data": blob[None]}).values()
            found: Array = rows.reshape(-1, 7)[:, 1:]
            return found[found[:, 0] > 0]

        return run

    return {"float": runner(net), "INT8": runner(int8)}


def _detections(rows: Array) -> list[Detection]:
    from int8calib.evaluation.average_precision import Detection

    return [Detection(int(row[0]), row[1], tuple(row[2:6])) for row in rows.tolist()]
