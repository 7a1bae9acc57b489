"""The fingerprint changes with what a network computes, and with nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import int8calib
from int8calib.caffe.network.fingerprint import network_fingerprint
from tests.generated import make_model

TEXT = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 7 dim: 11 } } }
layer { name: "a" type: "Convolution" bottom: "data" top: "a"
  convolution_param { num_output: 5 kernel_size: 3 pad: 1 } }
layer { name: "relu" type: "ReLU" bottom: "a" top: "a" }
layer { name: "b" type: "Convolution" bottom: "a" top: "b"
  convolution_param { num_output: 5 kernel_size: 1 } }
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("net"), TEXT)[1]


def fingerprint(text: str, model: Path, tmp_path: Path) -> str:
    (tmp_path / "other name.prototxt").write_text(text)
    return network_fingerprint(int8calib.load_caffe(tmp_path / "other name.prototxt", model).graph)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("\n", "\n# a comment\n"),
        ("num_output: 5 kernel_size: 3 pad: 1", "pad: 1 num_output: 5 kernel_size: 3"),
        ("dim: 1 dim: 3 dim: 7", "dim: 2 dim: 3 dim: 13"),
        ("layer {", 'name: "title"\nlayer {'),
    ],
)
def test_it_stays_where_nothing_else_is_computed(
    before: str, after: str, model: Path, tmp_path: Path
) -> None:
    assert before in TEXT
    assert fingerprint(TEXT.replace(before, after, 1), model, tmp_path) == fingerprint(
        TEXT, model, tmp_path
    )


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("pad: 1", "pad: 1 stride: 2"),
        ('type: "ReLU"', 'type: "TanH"'),
        ('bottom: "a" top: "a"', 'bottom: "a" top: "c"'),
    ],
)
def test_it_changes_with_the_layers(before: str, after: str, model: Path, tmp_path: Path) -> None:
    assert before in TEXT
    text = TEXT.replace(before, after, 1)
    assert fingerprint(text, model, tmp_path) != fingerprint(TEXT, model, tmp_path)


def test_it_changes_with_each_weight(model: Path, tmp_path: Path) -> None:
    (tmp_path / "net.prototxt").write_text(TEXT)
    net = int8calib.load_caffe(tmp_path / "net.prototxt", model)
    seen = {network_fingerprint(net.graph)}
    for place, layer in enumerate(net.graph.layers):
        for number, weight in enumerate(layer.weights):
            for index in (0, weight.size - 1):
                changed = weight.copy()
                changed.flat[index] = np.nextafter(changed.flat[index], np.float32(np.inf))
                weights = list(layer.weights)
                weights[number] = changed
                layers = list(net.graph.layers)
                layers[place] = replace(layer, weights=tuple(weights))
                seen.add(network_fingerprint(replace(net.graph, layers=tuple(layers))))
    assert len(seen) == 1 + 2 * 4
