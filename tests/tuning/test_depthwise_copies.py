"""Copies of channels through depthwise layers, PReLU and limits, in numpy and in ncnn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from int8calib import TuneOptions, tune
from int8calib.caffe.engine.run import Net, load_caffe
from int8calib.caffe.network.graph import Blob
from int8calib.caffe.network.shapes import infer_shapes, multiply_adds
from int8calib.calibration.options import Options
from int8calib.calibration.pipeline import prepare, run_job
from int8calib.evaluation.outputs import ComparedBlobs
from int8calib.ncnn.convert.deploy import ncnn_pair
from int8calib.ncnn.translate.back import with_weights
from int8calib.ncnn.translate.network import translate_model
from int8calib.simulation.build import simulate
from int8calib.tuning.channel_splitting import split_channels, split_layer
from int8calib.tuning.channels import copyable_channels
from int8calib.tuning.execution import reference_outputs
from tests.generated import make_model
from tests.ncnn.runtime import run_blobs
from tests.opencv import deviation
from tests.tuning_nets import batches, sqnr

SCORES = Blob("fc")


@pytest.fixture(autouse=True)
def few_images_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("int8calib.tuning.execution.MIN_IMAGES", 1)


@pytest.fixture
def any_gain_is_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("int8calib.tuning.channel_splitting.WORTH", 0.0)


# What MobileNets have between two convolutions that mix channels, with PReLU and limits.
MOBILE = """
name: "mobile"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 21 dim: 19 } } }
layer { name: "c1" type: "Convolution" bottom: "data" top: "c1"
  convolution_param { num_output: 8 kernel_size: 3 stride: 2 } }
layer { name: "p1" type: "PReLU" bottom: "c1" top: "c1" }
layer { name: "dw" type: "Convolution" bottom: "c1" top: "dw"
  convolution_param { num_output: 8 group: 8 kernel_size: 3 bias_term: false } }
layer { name: "r6" type: "ReLU6" bottom: "dw" top: "dw" }
layer { name: "pw" type: "Convolution" bottom: "dw" top: "pw"
  convolution_param { num_output: 16 kernel_size: 1 } }
layer { name: "r2" type: "ReLU" bottom: "pw" top: "pw" }
layer { name: "dw2" type: "DepthwiseConvolution" bottom: "pw" top: "dw2"
  convolution_param { num_output: 16 kernel_size: 3 } }
layer { name: "r3" type: "ReLU" bottom: "dw2" top: "dw2" }
layer { name: "gap" type: "Pooling" bottom: "dw2" top: "gap"
  pooling_param { pool: AVE global_pooling: true } }
layer { name: "fc" type: "InnerProduct" bottom: "gap" top: "fc"
  inner_product_param { num_output: 6 } }
layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }
"""


def mobile(folder: Path) -> tuple[Net, list[dict[str, np.ndarray]]]:
    return load_caffe(*make_model(folder, MOBILE)), batches(6, 5, (3, 21, 19))


def test_copies_pass_through_depthwise_layers_prelu_and_limits(tmp_path: Path) -> None:
    net, _ = mobile(tmp_path)
    rng = np.random.default_rng(9)
    counts = {"c1": rng.integers(1, 5, 8), "pw": rng.integers(1, 5, 16)}
    counts |= {"dw": counts["c1"], "dw2": counts["pw"]}
    shapes = infer_shapes(net.graph, net.input_shapes)
    channels = copyable_channels(net.graph, shapes)
    copies = np.ones(channels.count, np.intp)
    for layer in net.graph.layers:
        if layer.name in counts:
            copies[channels.of[layer.tops[0]]] = counts[layer.name]
    of = {blob: copies[ids] for blob, ids in channels.of.items()}
    none = {blob: np.zeros(len(ids)) for blob, ids in channels.of.items()}
    wider = Net(
        replace(
            net.graph, layers=tuple(split_layer(layer, of, none) for layer in net.graph.layers)
        ),
        net.input_shapes,
    )
    image = batches(1, 77, (3, 21, 19))[0]
    tops = {
        name: {n: top.copy() for n, top in each.forward(image, outputs=["c1", "dw", "fc"]).items()}
        for name, each in (("old", net), ("new", wider))
    }
    assert deviation(tops["new"]["fc"], tops["old"]["fc"]) < 1e-5
    for name in ("c1", "dw"):
        repeated = np.repeat(tops["old"][name], counts[name], axis=1)
        np.testing.assert_allclose(tops["new"][name], repeated, rtol=1e-4, atol=1e-4)
    for layer in wider.graph.layers:
        if layer.name in ("dw", "dw2"):
            assert layer.weights[0].shape[:2] == (counts[layer.name].sum(), 1)


@pytest.mark.usefixtures("any_gain_is_worth_it")
def test_rounding_before_and_behind_depthwise_layers_becomes_finer(tmp_path: Path) -> None:
    net, given = mobile(tmp_path)
    options = Options(method="minmax", fold_bn=False)
    table = run_job(prepare(net, options), lambda: given, options).table
    reference = reference_outputs(net.graph, given, ComparedBlobs(SCORES, (SCORES,), ()), workers=1)
    found = split_channels(
        net.graph, net.input_shapes, given, table, reference, 5.0,
        workers=1, progress=lambda *step: None,
    )  # fmt: skip
    assert found.grown["c1"] == found.grown["dw"]
    assert found.grown["pw"] == found.grown["dw2"]
    work = multiply_adds(found.graph, net.input_shapes) / multiply_adds(net.graph, net.input_shapes)
    assert found.work == pytest.approx(work - 1)
    wider = Net(found.graph, net.input_shapes)
    fresh = batches(20, 71, (3, 21, 19))
    float_error = sqnr(net, wider, fresh)
    plain = sqnr(net, simulate(net, table), fresh)
    again = run_job(prepare(wider, options), lambda: given, options).table
    assert float_error > plain + 10
    assert sqnr(net, simulate(wider, again), fresh) > plain + 1


def test_wider_models_run_in_ncnn(tmp_path: Path) -> None:
    pytest.importorskip("ncnn")
    net, given = mobile(tmp_path)
    tuning = TuneOptions(change_model=True, more_work=1.0, techniques=("copies", "rounding"))
    pair = ncnn_pair(net, run_job(prepare(net, Options()), lambda: given, Options()).table)
    model = translate_model(pair.float_model, {})
    done = tune(model, lambda: [dict(batch) for batch in given * 2], tuning=tuning)
    changed = with_weights(pair.float_model, done.net.graph)
    image = {"data": given[0]["data"][0]}
    found, expected = (
        run_blobs(layers, image, ["prob"], packing=False, folder=tmp_path)[0]
        for layers in (changed.layers, pair.float_model.layers)
    )
    grown = {layer.name: layer.integer(0) for layer in changed.layers if layer.weights}
    assert grown["pw"] == grown["dw2"] > 16
    np.testing.assert_allclose(found, expected, atol=0.05)
