"""The detector's half of `int8calib demo`: calibrate and tune it on drawn scenes, compare boxes.

Its depthwise layers read channels of very different ranges, which one threshold cannot fit:
calibrated, it loses boxes, and tuning, which equalizes channels, brings them back.
"""

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
TUNING_SCENES = 60
"""Scenes that `tune` uses, of those to calibrate with: enough here, in a third of the time."""
FLOAT, CALIBRATED, TUNED = "float", "INT8, calibrated", "INT8, tuned"
FILES = {FLOAT: "detector", CALIBRATED: "detector-int8", TUNED: "tuned-int8"}
"""The ncnn models that are compared, by how they are called."""
_ENLARGED = 2
"""How many times as large scenes are shown."""
Detect = Callable[["Array"], "Array"]
"""An input blob (C, H, W) to rows of label, score and box."""


def run_detection(console: Console, folder: Path, messages: Sequence[str]) -> None:
    """Draw scenes, calibrate and tune the detector, and show what INT8 does to its boxes."""
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
    given = ["--proto", str(proto), "--model", str(model), "--images", str(folder / "scenes")]
    given += pixels
    calibrate = ["calibrate", *given, "--output", str(folder / "detector.table")]
    calibrate += ["--ncnn", str(folder / "detector")]
    tune = ["tune", *given, "--tune-images", str(TUNING_SCENES), "--more-work", "0"]
    tune += ["--output", str(folder / "tuned.table"), "--ncnn", str(folder / "tuned")]
    tune += ["--write-model", str(folder / "tuned.caffemodel"), str(folder / "tuned.prototxt")]
    for command in (calibrate, tune):
        run_command([*command, *messages])
    _compare(console, folder)
    predict = ["predict", "--names", str(folder / "classes.txt")]
    predict += ["--param", *(str(folder / f"{name}.param") for name in ("detector", "tuned-int8"))]
    predict += ["--bin", *(str(folder / f"{name}.bin") for name in ("detector", "tuned-int8"))]
    predict += ["--images", str(folder / "scenes"), *pixels, "--output", str(folder / "boxes")]
    for what, command in (
        ("To repeat the calibration by hand:", calibrate),
        ("To repeat the tuning:", tune),
        ("To draw the boxes on pictures, float beside tuned INT8:", predict),
    ):
        console.result("", what, shlex.join(["int8calib", *command]))


def _compare(console: Console, folder: Path) -> None:
    """Mean average precision of each model, their time, and a picture with boxes."""
    from statistics import median

    import numpy as np

    from int8calib.demo import MEAN, NORM, scenes
    from int8calib.evaluation.average_precision import box_accuracy
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
        own = box_accuracy(each, truths)
        console.result(
            f"  {name}: mean average precision at IoU 0.5 {100 * own.mean_precision:.1f} %, "
            f"{100 * own.recall.value:.1f} % of the boxes found"
        )
    if seconds:
        slow, fast = (1000 * median(seconds[name][3:]) for name in (FLOAT, TUNED))
        ratio = f"{slow / fast:.2f} times as fast"
        console.result(f"  {slow:.2f} ms a scene in float, {fast:.2f} ms in INT8: {ratio}")
    rows: list[ImageU8] = []
    for index in range(SHOWN):
        image = drawn[index][0].repeat(_ENLARGED, 0).repeat(_ENLARGED, 1)
        boxes = {
            name: [Box(d.label, d.score, *d.box) for d in each[index] if d.score >= SHOWN_SCORE]
            for name, each in found.items()
            if name in (FLOAT, TUNED)
        }
        pictures = [draw_boxes(image, own, name, scenes.CLASSES) for name, own in boxes.items()]
        rows.append(side_by_side(pictures))
    picture = folder / "float-and-int8.png"
    write_atomic(picture, encode_png(np.concatenate(rows)))
    console.result(f"  boxes of float, at the left, and of tuned INT8: {picture}")


def _detectors(folder: Path) -> tuple[dict[str, Detect], dict[str, list[float]], str]:
    """Each model in ncnn, with the time of each run; simulated where ncnn is not installed."""
    from int8calib.ncnn.model import load_model
    from int8calib.ncnn.runtime import RuntimeNet

    seconds: dict[str, list[float]] = {name: [] for name in FILES}
    try:
        nets = {
            name: RuntimeNet(load_model(folder / f"{file}.param", folder / f"{file}.bin"))
            for name, file in FILES.items()
        }
    except OptionError:
        return _simulated(folder), {}, "simulated"

    def runner(name: str) -> Detect:
        def run(blob: Array) -> Array:
            net = nets[name]
            found = net.run({"data": blob}, ["detection_out"])["detection_out"]
            seconds[name].append(net.seconds)
            return found.reshape(-1, 6)

        return run

    return {name: runner(name) for name in nets}, seconds, "in ncnn's runtime"


def _simulated(folder: Path) -> dict[str, Detect]:
    """Each model in numpy."""
    import int8calib

    plain, tuned = (
        int8calib.load_caffe(folder / f"{file}.prototxt", folder / f"{file}.caffemodel")
        for file in ("detector", "tuned")
    )
    tables = (int8calib.read_table(folder / f"{file}.table") for file in ("detector", "tuned"))
    int8 = (
        int8calib.simulate(net, table) for net, table in zip((plain, tuned), tables, strict=True)
    )

    def runner(each: int8calib.Net) -> Detect:
        def run(blob: Array) -> Array:
            (rows,) = each.forward({"data": blob[None]}).values()
            found: Array = rows.reshape(-1, 7)[:, 1:]
            return found[found[:, 0] > 0]

        return run

    return dict(zip(FILES, map(runner, (plain, *int8)), strict=True))


def _detections(rows: Array) -> list[Detection]:
    from int8calib.evaluation.average_precision import Detection

    return [Detection(int(row[0]), row[1], tuple(row[2:6])) for row in rows.tolist()]
