"""Detectors, and networks that make images, in ncnn's runtime: float, kl, mse and tuned.

Run by `python -m benchmarks.accuracy --detectors`.
"""

from __future__ import annotations

import json
import math
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cases import Case, detectors
from benchmarks.stages import (
    KL,
    LEVELS,
    MSE,
    TUNED,
    Report,
    float_net,
    make,
    table_lines,
)
from int8calib.evaluation.average_precision import Detection, box_accuracy
from int8calib.images.boxes import Truth
from int8calib.ncnn.runtime import RuntimeNet

STAGES = (KL, MSE, LEVELS, TUNED)
HEADS = ("model", "", "boxes", "mAP", "recall", "PSNR dB", "relative error %")
MIN_SCORE = 0.3
IMAGES = 120
"""Images of each model at most, half of them to measure on."""


def table(work: Path, names: Sequence[str], limit: int | None, say: Report) -> list[str]:
    """The lines of the table."""
    rows = []
    for case in detectors(work, names):
        rows += _rows(case, _measured(case, work, limit or IMAGES, say))
    said = (
        "INT8 against the float model's own output, on one half of "
        f"{limit or IMAGES} images; the other half calibrates or tunes. "
        f"Detectors: mean average precision and recall of the float model's boxes of at least "
        f"score {MIN_SCORE:g} (so many of them in `boxes`) at IoU 0.5, in %; recall counts INT8 "
        "boxes of that score. Others: PSNR with the span of the float output as the peak."
    )
    return [said, "", *table_lines(HEADS, rows)]


def _measured(case: Case, work: Path, limit: int, say: Report) -> dict[str, Any]:
    """The figures of each stage, from the file if they are there."""
    path = work / f"{case.name}-{limit}.json"
    done: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    wanted = [stage for stage in STAGES if stage.name not in done]
    if not wanted:
        return done
    images = list(case.images)
    random.Random(1).shuffle(images)
    half = min(limit, len(images)) // 2
    used, held_out = images[:half], images[half : 2 * half]
    inputs = list(case.blobs(held_out))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        expected = _outputs(float_net(case, folder), inputs)
        for stage in wanted:
            made = make(case, stage, used, folder)
            found = _outputs(made.net, inputs)
            compare = _boxes if case.kind == "detector" else _pixels
            done[stage.name] = compare(expected, found)
            path.write_text(json.dumps(done))
            say(f"{case.name}, {stage.name}: {made.seconds:.0f} s, {done[stage.name]}")
    return done


def _outputs(net: RuntimeNet, inputs: Sequence[tuple[str, np.ndarray]]) -> list[np.ndarray]:
    out = net.outputs[-1]
    return [net.run({name: blob}, [out])[out] for name, blob in inputs]


def _boxes(expected: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> dict[str, Any]:
    theirs = [_detections(rows) for rows in expected]
    truths = [[Truth(d.label, d.box) for d in each if d.score >= MIN_SCORE] for each in theirs]
    result = box_accuracy([_detections(rows) for rows in found], truths, MIN_SCORE)
    return {
        "boxes": result.recall.total,
        "mAP": result.mean_precision,
        "recall": result.recall.value,
    }


def _detections(rows: np.ndarray) -> list[Detection]:
    return [Detection(int(r[0]), r[1], tuple(r[2:6])) for r in rows.reshape(-1, 6).tolist()]


def _pixels(expected: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> dict[str, Any]:
    a, b = (np.concatenate([x.ravel() for x in each]).astype(float) for each in (expected, found))
    error = float(np.square(a - b).mean())
    span = float(a.max() - a.min())
    relative = math.sqrt(error / float(np.square(a).mean()))
    return {"psnr": 10 * math.log10(span * span / error), "relative": relative}


def _rows(case: Case, done: dict[str, Any]) -> list[dict[str, str]]:
    rows = []
    for stage in STAGES:
        found = done[stage.name]
        row = {"model": "" if rows else case.name, "": stage.name}
        if "mAP" in found:
            row |= {"boxes": str(found["boxes"])}
            row |= {key: f"{100 * found[key]:.1f}" for key in ("mAP", "recall")}
        else:
            row["PSNR dB"] = f"{found['psnr']:.1f}"
            row["relative error %"] = f"{100 * found['relative']:.2f}"
        rows.append(row)
    return rows
