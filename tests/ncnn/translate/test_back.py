"""Weights changed in a translated network and put back: ncnn's runtime gives the same tops."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from int8calib.caffe.engine.run import Net
from int8calib.errors import ModelError
from int8calib.ncnn.layout import blob_layout
from int8calib.ncnn.model import NcnnModel
from int8calib.ncnn.param import parse_param
from int8calib.ncnn.translate.back import with_weights
from int8calib.ncnn.translate.network import translate_model
from int8calib.ncnn.weights import write_weights
from tests.ncnn.runtime import run_blobs

LINES = """7767517
6 6
Input in 0 1 in 0=13 1=11 2=3 -23330=4,3,13,11,3
Convolution c1 1 1 in a 0=5 1=3 4=1 6=135 9=1 -23330=4,3,13,11,5
ConvolutionDepthWise c2 1 1 a b 0=5 1=3 5=1 6=45 7=5
Convolution c3 1 1 b c 0=7 1=1 5=1 6=35 9=2 -23310=1,0.1
Pooling p 1 1 c d 0=1 4=1
InnerProduct fc 1 1 d out 0=11 2=77
"""


@pytest.fixture
def model() -> NcnnModel:
    rng = np.random.default_rng(2)
    layers = []
    for layer in parse_param(LINES, "net.param"):
        blobs = [rng.standard_normal(b.size).astype(np.float32) for b in blob_layout(layer)]
        if layer.name == "c3":
            blobs[0] = blobs[0].astype(np.float16)
        layers.append(replace(layer, weights=tuple(blobs)))
    return NcnnModel(tuple(layers), "net.param")


def run_both(model: NcnnModel, net: Net, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    image = np.random.default_rng(4).standard_normal((3, 11, 13)).astype(np.float32)
    own = net.forward({"in": image[None]})["out"][0]
    (expected,) = run_blobs(model.layers, {"in": image}, ["out"], folder=folder)
    return own, expected


def test_a_model_that_did_not_change_comes_back_byte_by_byte(model: NcnnModel) -> None:
    again = with_weights(model, translate_model(model).graph)
    assert write_weights(again.layers) == write_weights(model.layers)
    assert [layer.params for layer in again.layers] == [layer.params for layer in model.layers]


def changed(net: Net, name: str, outputs: int) -> Net:
    """The network with the first `outputs` outputs of a layer doubled, biases on top."""
    layers = []
    for layer in net.graph.layers:
        if layer.name == name:
            weight = np.concatenate([layer.weights[0], layer.weights[0][:outputs]]) / 2
            bias = np.linspace(-1, 1, len(weight), dtype=np.float32)
            layer = layer.with_bias(weight, bias)
        layers.append(layer)
    return Net(replace(net.graph, layers=tuple(layers)), net.input_shapes)


def test_other_weights_and_a_new_bias_run_in_ncnn(model: NcnnModel, tmp_path: Path) -> None:
    pytest.importorskip("ncnn")
    net = changed(translate_model(model), "fc", 0)
    back = with_weights(model, net.graph)
    assert back.layer("fc").params[1] == 1
    assert back.layer("c3").weights[0].dtype == np.float16
    own, expected = run_both(back, net, tmp_path)
    assert np.abs(own - expected).max() < 1e-4 * np.abs(expected).max()


def test_more_outputs_run_in_ncnn(model: NcnnModel, tmp_path: Path) -> None:
    pytest.importorskip("ncnn")
    net = changed(translate_model(model), "fc", 4)
    back = with_weights(model, net.graph)
    assert back.layer("fc").params[0] == 15
    assert not any(30 in layer.params for layer in back.layers)
    own, expected = run_both(back, net, tmp_path)
    assert own.shape == (15,)
    assert np.abs(own - expected).max() < 1e-4 * np.abs(expected).max()


def test_a_layer_that_is_gone_is_named(model: NcnnModel) -> None:
    graph = translate_model(model).graph
    left = tuple(layer for layer in graph.layers if layer.name != "c2")
    with pytest.raises(ModelError, match="no layer 'c2'"):
        with_weights(model, replace(graph, layers=left))
