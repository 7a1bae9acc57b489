"""Changed models: equalized and centered nets compute the same, written ones load elsewhere."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from int8calib.caffe.engine.run import Net, load_caffe
from int8calib.caffe.export import write_model
from int8calib.caffe.network.fold import fold_batch_norm
from int8calib.caffe.network.graph import Blob
from int8calib.caffe.network.quantized import quantized_layers
from int8calib.caffe.network.shapes import infer_shapes
from int8calib.caffe.requirements import requirements_from_graph
from int8calib.calibration.options import Options
from int8calib.calibration.pipeline import prepare, run_job
from int8calib.calibration.scales import Grid, WeightOptions
from int8calib.rounding.samples import SampledPositions, layer_matrices, weight_blob
from int8calib.simulation.build import simulate
from int8calib.table import check_table
from int8calib.tuning.channels import FIXED, scalable_channels
from int8calib.tuning.class_scores import center_scores
from int8calib.tuning.equalization import equalize
from int8calib.tuning.execution import Layerwise
from tests.generated import make_model
from tests.opencv import deviation, opencv_tops
from tests.tuning_nets import batches, chain


@pytest.fixture(scope="module")
def net(tmp_path_factory) -> Net:
    return chain(tmp_path_factory.mktemp("chain"))


@pytest.fixture(scope="module")
def folded(net) -> Net:
    return Net(fold_batch_norm(net.graph), net.input_shapes)


def grids_of(net: Net) -> dict[str, Grid]:
    return {f.name: WeightOptions().grid(f) for f in quantized_layers(net.graph)}


def equalized(net: Net) -> Net:
    shapes = infer_shapes(net.graph, net.input_shapes)
    found = equalize(net.graph, shapes, batches(7), grids_of(net), workers=1)
    assert any(share < 0.9 for share in found.left.values())
    return Net(found.graph, net.input_shapes)


def test_channels_that_may_be_scaled(folded) -> None:
    of = scalable_channels(folded.graph, infer_shapes(folded.graph, folded.input_shapes)).of
    last = {blob.name: ids for blob, ids in of.items()}
    assert (last["data"] == FIXED).all()
    assert (last["fc"] == FIXED).all()
    assert (last["prob"] == FIXED).all()
    assert np.array_equal(np.concatenate([last["a"], last["b"]]), last["pool"])
    assert np.array_equal(last["pool"], last["d"])  # a sum needs one factor on both sides
    assert np.array_equal(last["e"], last["gap"])
    free = [last[name] for name in ("c1", "dw", "a", "b", "e")]
    assert len(set(np.concatenate(free).tolist()) - {FIXED}) == 11 + 11 + 7 + 5 + 13


def test_an_equalized_net_computes_the_same(folded, tmp_path) -> None:
    found = equalized(folded)
    changed = [
        a.name
        for a, b in zip(folded.graph.layers, found.graph.layers, strict=True)
        if a.weights and not np.array_equal(a.weights[0], b.weights[0])
    ]
    assert len(changed) >= 3
    write_model(found, tmp_path / "n.prototxt", tmp_path / "n.caffemodel")
    image = batches(1, seed=99)[0]
    other = opencv_tops(tmp_path / "n.prototxt", tmp_path / "n.caffemodel", image)
    assert deviation(other["prob"], folded.forward(image)["prob"]) < 1e-4


def test_channels_with_one_value_an_image_stay_as_they_are(folded) -> None:
    shapes = infer_shapes(folded.graph, folded.input_shapes)
    found = equalize(folded.graph, shapes, batches(7), grids_of(folded), workers=1)
    readers = {name for names in found.left for name in names}
    assert readers == {"dw", "a", "b", "d", "e"}
    by_name = {layer.name: layer for layer in found.graph.layers}
    for layer in folded.graph.layers:
        if layer.name == "fc":
            np.testing.assert_array_equal(by_name["fc"].weights[0], layer.weights[0])


def test_equalizing_does_not_depend_on_workers(folded) -> None:
    # The first batch is done last where others run beside it.
    first = {"data": np.concatenate([batch["data"] for batch in batches(31)])}
    given = [first, *batches(6, seed=5)]
    shapes = infer_shapes(folded.graph, folded.input_shapes)
    a, b = (
        equalize(folded.graph, shapes, given, grids_of(folded), workers=workers)
        for workers in (1, 3)
    )
    assert a.left == b.left
    for one, other in zip(a.graph.layers, b.graph.layers, strict=True):
        assert all(np.array_equal(v, w) for v, w in zip(one.weights, other.weights, strict=True))


def test_centered_scores_keep_the_probabilities(folded, tmp_path) -> None:
    found = Net(center_scores(folded.graph), folded.input_shapes)
    fc = {layer.name: layer for layer in found.graph.layers}["fc"]
    assert np.abs(fc.weights[0].mean(axis=0)).max() < 1e-6
    assert abs(float(fc.weights[1].mean())) < 1e-6
    write_model(found, tmp_path / "n.prototxt", tmp_path / "n.caffemodel")
    image = batches(1, seed=17)[0]
    other = opencv_tops(tmp_path / "n.prototxt", tmp_path / "n.caffemodel", image)
    assert deviation(other["prob"], folded.forward(image)["prob"]) < 1e-4
    scores = folded.forward(image, outputs=["fc"])["fc"]
    assert deviation(other["fc"], scores - scores.mean()) < 1e-4


def test_scores_that_are_an_output_are_not_centered(folded) -> None:
    layers = tuple(layer for layer in folded.graph.layers if layer.type != "Softmax")
    graph = replace(folded.graph, layers=layers, outputs=(Blob("fc"),))
    assert center_scores(graph).layers[-1].weights[0] is graph.layers[-1].weights[0]


def test_a_written_model_is_read_by_opencv_and_by_this_package(net, folded, tmp_path) -> None:
    proto, model = tmp_path / "w.prototxt", tmp_path / "w.caffemodel"
    write_model(folded, proto, model)
    image = batches(1, seed=23)[0]
    expected = net.forward(image)["prob"]
    assert deviation(opencv_tops(proto, model, image)["prob"], expected) < 1e-4
    again = load_caffe(proto, model)
    assert np.array_equal(again.forward(image)["prob"], folded.forward(image)["prob"])
    assert not {"BatchNorm", "Scale"} & {layer.type for layer in again.graph.layers}
    assert "BatchNorm" not in proto.read_text()
    assert again.input_shapes == net.input_shapes


def test_the_table_of_a_written_model_fits_it_folded_or_not(folded, tmp_path) -> None:
    write_model(folded, tmp_path / "w.prototxt", tmp_path / "w.caffemodel")
    again = load_caffe(tmp_path / "w.prototxt", tmp_path / "w.caffemodel")
    options = Options(fold_bn=False)
    table = run_job(prepare(again, options), lambda: batches(5), options).table
    for fold in (True, False):
        assert (
            check_table(table, requirements=requirements_from_graph(again.graph, fold_bn=fold))
            == []
        )


def test_layer_by_layer_is_the_whole_net(folded) -> None:
    options = Options(method="minmax", fold_bn=False)
    given = batches(3)
    table = run_job(prepare(folded, options), lambda: given, options).table
    int8 = simulate(folded, table)
    nets = Layerwise(folded.graph, given, workers=2)
    found = {}
    for layer, int8_layer in zip(folded.graph.layers, int8.graph.layers, strict=True):
        if layer.name == "prob":
            found = dict(zip(("float", "int8"), nets.bottoms(layer.bottoms[0]), strict=True))
        nets.step(layer, int8_layer)
    for i, batch in enumerate(given):
        assert np.array_equal(found["float"][i], folded.forward(batch, outputs=["fc"])["fc"])
        assert np.array_equal(found["int8"][i], int8.forward(batch, outputs=["fc"])["fc"])
    with pytest.raises(KeyError):
        nets.bottoms(Blob("pool"))  # nothing reads it any more


@pytest.mark.parametrize("name", ["c1", "dw", "b", "e", "fc"])
def test_weights_times_all_columns_are_the_layers_outputs(folded, name) -> None:
    (found,) = (f for f in quantized_layers(folded.graph) if f.name == name)
    batch = batches(1)[0]
    tops: dict[str, np.ndarray] = {}
    folded.forward(batch, on_top=lambda layer, blob, top: tops.update({layer: top.copy()}))
    producer = folded.graph.producer(found.bottom)
    bottom = tops[producer.name]
    matrices = layer_matrices(found)
    columns = SampledPositions(found.layer, [bottom], 10**6).columns([bottom])
    outputs = matrices.weights @ columns + matrices.bias[:, :, None]
    assert deviation(outputs.reshape(-1), tops[name].reshape(-1)) < 1e-5
    assert np.array_equal(weight_blob(found, matrices.weights), found.layer.weights[0])


LIMITED = """
name: "limited"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 23 dim: 29 } } }
layer { name: "c1" type: "Convolution" bottom: "data" top: "c1"
  convolution_param { num_output: 11 kernel_size: 3 stride: 2 } }
layer { name: "r1" type: "ReLU6" bottom: "c1" top: "c1" }
layer { name: "dw" type: "Convolution" bottom: "c1" top: "dw"
  convolution_param { num_output: 11 kernel_size: 3 group: 11 } }
layer { name: "rdw" type: "Clip" bottom: "dw" top: "dw" clip_param { min: -2 max: 3 } }
layer { name: "b" type: "Convolution" bottom: "dw" top: "b"
  convolution_param { num_output: 7 kernel_size: 1 } }
layer { name: "rb" type: "Clip" bottom: "b" top: "b" clip_param { min: 0.5 max: 3 } }
layer { name: "e" type: "Convolution" bottom: "b" top: "e"
  convolution_param { num_output: 5 kernel_size: 1 } }
layer { name: "re" type: "ReLU6" bottom: "e" top: "e" }
layer { name: "gap" type: "Pooling" bottom: "e" top: "gap"
  pooling_param { pool: AVE global_pooling: true } }
layer { name: "fc" type: "InnerProduct" bottom: "gap" top: "fc"
  inner_product_param { num_output: 6 } }
"""


def test_channels_far_below_a_limit_are_equalized_through_it(tmp_path) -> None:
    plain = load_caffe(*make_model(tmp_path, LIMITED))
    layers = []
    for layer in plain.graph.layers:
        if layer.name == "c1":  # some channels reach 6, the others stay far below
            size = np.where(np.arange(11) % 3, 0.02, 4).astype(np.float32)
            weight, bias = layer.weights
            layer = replace(layer, weights=(weight * size.reshape(-1, 1, 1, 1), bias * size))
        layers.append(layer)
    net = Net(replace(plain.graph, layers=tuple(layers)), plain.input_shapes)
    shapes = infer_shapes(net.graph, net.input_shapes)
    channels = scalable_channels(net.graph, shapes)
    free = {blob.name: bool((ids != FIXED).all()) for blob, ids in channels.of.items()}
    # A Clip from 0.5 on never scales along; behind the last one only a mean is read by weights.
    assert free == {"data": False, "c1": True, "dw": True, "b": False, "e": False, "gap": False,
                    "fc": False}  # fmt: skip
    given = batches(9)
    found = equalize(net.graph, shapes, given, grids_of(net), workers=1)
    assert found.left[("dw",)] < 0.9
    wider = Net(found.graph, net.input_shapes)
    changed = {a.name: a.weights[0] / b.weights[0] for a, b in
               zip(found.graph.layers, net.graph.layers, strict=True) if a.weights}  # fmt: skip
    factors = changed["c1"].reshape(11, -1).mean(axis=1)
    largest = np.max([net.forward(b, outputs=["c1"])["c1"].max(axis=(0, 2, 3)) for b in given], 0)
    near = largest > 6 / 1.25
    assert 0 < near.sum() < 11
    np.testing.assert_allclose(factors[near], 1, rtol=1e-5)
    assert (factors * largest)[~near].max() <= 6 / 1.25 * 1.001
    assert factors[~near].max() > 1.5
    for batch in batches(9) + batches(5, seed=41):
        expected, top = (n.forward(batch, outputs=["fc"])["fc"] for n in (net, wider))
        assert deviation(top, expected) < 1e-4
