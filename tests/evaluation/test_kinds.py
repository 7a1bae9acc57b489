"""What a network is taken for by its outputs, and how values and images are measured."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

import int8calib
from int8calib.errors import OptionError
from int8calib.evaluation.outputs import compared_blobs
from tests.evaluation_cases import coarse_table, loader_of
from tests.generated import make_model

INPUT = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 13 dim: 11 } } }
"""


def conv(name: str, bottom: str, param: str) -> str:
    return (
        f'layer {{ name: "{name}" type: "Convolution" bottom: "{bottom}" top: "{name}" '
        f"convolution_param {{ {param} }} }}\n"
    )


def dense(name: str, bottom: str, size: int) -> str:
    return (
        f'layer {{ name: "{name}" type: "InnerProduct" bottom: "{bottom}" top: "{name}" '
        f"inner_product_param {{ num_output: {size} }} }}\n"
    )


SOFTMAX = 'layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }\n'
FLAT = 'layer { name: "flat" type: "Flatten" bottom: "prob" top: "flat" }\n'
SAME = "kernel_size: 3 pad: 1"
NETWORKS = {
    "classifier, sure": (dense("fc", "data", 5) + SOFTMAX, "classifier", True),
    "flattened": (dense("fc", "data", 5) + SOFTMAX + FLAT, "classifier", True),
    "scores": (dense("fc", "data", 5), "classifier", False),
    "image": (conv("c", "data", f"num_output: 3 {SAME}"), "image-to-image", True),
    "luma": (conv("c", "data", f"num_output: 1 {SAME}"), "image-to-image", False),
    "maps": (conv("c", "data", f"num_output: 7 {SAME}"), "regressor", False),
    "two": (dense("a", "data", 5) + dense("b", "data", 7), "regressor", False),
    "one value": (dense("a", "data", 1), "regressor", False),
}


def load(folder: Path, text: str) -> int8calib.Net:
    return int8calib.load_caffe(*make_model(folder, INPUT + text))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_outputs_tell_what_a_network_is(name: str, tmp_path: Path) -> None:
    text, kind, sure = NETWORKS[name]
    found = compared_blobs(load(tmp_path, text)).kind
    assert found is not None
    assert (found.name, found.sure) == (kind, sure)
    assert ("--kind" in str(found)) is not sure


def reshape(name: str, bottom: str, columns: int) -> str:
    return (
        f'layer {{ name: "{name}" type: "Reshape" bottom: "{bottom}" top: "{name}" '
        f"reshape_param {{ shape {{ dim: 0 dim: 39 dim: {columns} }} }} }}\n"
    )


def test_boxes_without_a_layer_that_decodes_them_are_told(tmp_path: Path) -> None:
    # 3 x 13 x 11 values are 39 x 11, and 12 x 13 x 1 are 39 x 4.
    small = conv("small", "data", "num_output: 12 kernel_h: 1 kernel_w: 11")
    text = small + reshape("boxes", "small", 4) + reshape("scores", "data", 11)
    found = compared_blobs(load(tmp_path, text)).kind
    assert found is not None
    assert found.name == "regressor"
    assert "DetectionOutput" in found.reason


@pytest.mark.parametrize(
    ("kind", "words"),
    [("thing", "expected one of classifier"), ("detector", "no output is made by Detection")],
)
def test_a_kind_that_it_cannot_be_is_refused(kind: str, words: str, tmp_path: Path) -> None:
    net = load(tmp_path, NETWORKS["two"][0])
    with pytest.raises(OptionError, match=words):
        compared_blobs(net, kind=kind)
    with pytest.raises(OptionError, match="kind classifier: the outputs are not one vector"):
        compared_blobs(net, kind="classifier")


def test_a_vector_may_be_named_values_and_then_has_no_class(tmp_path: Path) -> None:
    net = load(tmp_path, NETWORKS["scores"][0])
    x = np.random.default_rng(3).normal(0, 60, (4, 3, 13, 11)).astype(np.float32)
    table = coarse_table(net, 0.3)
    plain = int8calib.evaluate(net, table, loader_of(x)).tables[0]
    assert plain.agreement is not None
    found = int8calib.evaluate(net, table, loader_of(x), kind="regressor")
    assert found.tables[0].agreement is None
    assert found.tables[0].blobs == plain.blobs
    a, b = (
        each.forward({"data": x})["fc"].astype(float)
        for each in (net, int8calib.simulate(net, table))
    )
    expected = np.linalg.norm(a - b) / np.linalg.norm(a)
    assert found.tables[0].blobs[0].relative_error == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("peak", [None, 255.0])
def test_images_have_the_psnr_of_opencv(peak: float | None, tmp_path: Path) -> None:
    net = load(tmp_path, NETWORKS["image"][0])
    x = np.random.default_rng(3).normal(0, 60, (4, 3, 13, 11)).astype(np.float32)
    table = coarse_table(net, 0.3)
    found = int8calib.evaluate(net, table, loader_of(x, batch=3), peak=peak)
    a, b = (each.forward({"data": x})["c"] for each in (net, int8calib.simulate(net, table)))
    span = float(a.max() - a.min()) if peak is None else peak
    (blob,) = found.tables[0].blobs
    expected = cv2.PSNR(a.reshape(-1, 11), b.reshape(-1, 11), span)
    assert blob.psnr == pytest.approx(expected, abs=1e-3)
    assert found.kind is not None
    assert f"peak {span:.4g}" in found.kind.reason


@pytest.mark.parametrize("peak", [0.0, -1.0, float("inf"), float("nan")])
def test_a_peak_that_is_no_span_is_refused(peak: float, tmp_path: Path) -> None:
    net = load(tmp_path, NETWORKS["image"][0])
    with pytest.raises(OptionError, match="peak"):
        int8calib.evaluate(net, {}, loader_of(np.zeros((1, 3, 13, 11), np.float32)), peak=peak)
