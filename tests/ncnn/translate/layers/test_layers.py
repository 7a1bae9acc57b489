"""Each ncnn layer in the numpy engine against ncnn's own runtime, two images at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from int8calib.ncnn.schema import parameter_names
from int8calib.ncnn.translate.network import obstacles, translate_model, translated_types
from tests.layer_cases import by_type, check_each
from tests.ncnn.runtime import run_blobs
from tests.ncnn.translate.cases import CASES, Case
from tests.ncnn.translate.models import model_of

BATCH = 2
ELSEWHERE = {
    *("Input", "MemoryData", "DetectionOutput", "YoloDetectionOutput", "Yolov3DetectionOutput")
}
"""Types that other tests of this folder hold to ncnn."""


def images_of(case: Case) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    inputs = {
        f"in{i}": rng.standard_normal((BATCH, *shape)).astype(np.float32)
        for i, shape in enumerate(case.bottoms)
    }
    if case.line.startswith(
        ("UnaryOp 0=5", "UnaryOp 0=6", "UnaryOp 0=8", "UnaryOp 0=17", "Log")
    ) or (case.line.split()[1:2] in (["0=6"], ["0=9"]) and case.line.startswith("BinaryOp")):
        inputs = {name: np.abs(x) + np.float32(0.1) for name, x in inputs.items()}
    if case.line.startswith(("UnaryOp 0=12", "UnaryOp 0=13")):
        inputs = {name: np.tanh(x) for name, x in inputs.items()}
    if "0=9" in case.line and case.line.startswith("Reduction"):
        inputs = {name: np.abs(x) for name, x in inputs.items()}
    return inputs


def assert_near(found: np.ndarray, expected: np.ndarray, what: object) -> None:
    assert found.shape == expected.shape, f"{what}: {found.shape}, ncnn {expected.shape}"
    largest = np.abs(expected).max()
    assert np.abs(found - expected).max() <= 1e-4 * largest, what


@pytest.mark.parametrize("cases", by_type(CASES).values(), ids=by_type(CASES))
def test_layer_gives_what_ncnn_gives(cases: list[Case], tmp_path: Path) -> None:
    pytest.importorskip("ncnn")
    check_each(cases, check, tmp_path)


def check(case: Case, folder: Path) -> None:
    model, inputs = model_of(case), images_of(case)
    net = translate_model(model, {name: (1, *x.shape[1:]) for name, x in inputs.items()})
    assert not obstacles(net)
    tops = [f"out{i}" for i in range(case.tops)]
    found = net.forward(inputs, outputs=tops)
    for image in range(BATCH):
        single = {name: x[image] for name, x in inputs.items()}
        expected = run_blobs(model.layers, single, tops, winograd=False, folder=folder)
        for name, top in zip(tops, expected, strict=True):
            # Boxes are the same for all images, so they have no batch.
            own = found[name][0 if case.line.startswith("PriorBox") else image]
            assert_near(own, top, f"{case} image {image} {name}")


def test_every_type_has_a_case() -> None:
    assert set(translated_types()) - ELSEWHERE == {case.line.split()[0] for case in CASES}


def test_options_have_names() -> None:
    assert parameter_names("Pooling")["pad_top"] == 13
