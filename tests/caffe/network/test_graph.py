"""Graphs from prototxts: phases, versions, order, ancestors, inputs."""

from __future__ import annotations

import pytest

import caffe_proto
from int8calib.caffe.network.batch import is_batchable
from int8calib.caffe.network.build import NetState, build_graph, included
from int8calib.caffe.network.graph import Blob, Graph
from int8calib.caffe.network.inputs import resolve_inputs
from int8calib.caffe.network.shapes import infer_shapes
from int8calib.errors import ModelError, OptionError, ShapeError

INPUT = 'layer { name: "data" type: "Input" top: "data" input_param { shape { %s } } }\n'
DIMS = "dim: 1 dim: 3 dim: 7 dim: 11"


def graph_of(text: str, **state: object) -> Graph:
    net = caffe_proto.parse_prototxt(text, "net.prototxt")
    return build_graph(net, "net.prototxt", NetState(**state) if state else None)  # type: ignore[arg-type]


def relu(name: str, bottom: str, top: str, rules: str = "") -> str:
    return f'layer {{ name: "{name}" type: "ReLU" bottom: "{bottom}" top: "{top}" {rules} }}\n'


def test_in_place_tops_become_versions() -> None:
    graph = graph_of(
        INPUT % DIMS + relu("a", "data", "x") + relu("b", "x", "x") + relu("c", "x", "y")
    )
    assert [layer.tops for layer in graph.layers] == [
        (Blob("data"),),
        (Blob("x"),),
        (Blob("x", 1),),
        (Blob("y"),),
    ]
    assert graph.layers[3].bottoms == (Blob("x", 1),)
    assert graph.outputs == (Blob("y"),)
    assert str(Blob("x", 1)) == "x#1"
    assert graph.last_version("x") == Blob("x", 1)


@pytest.mark.parametrize(
    ("rules", "state", "there"),
    [
        ("", {}, True),
        ("include { phase: TEST }", {}, True),
        ("include { phase: TRAIN }", {}, False),
        ("exclude { phase: TEST }", {}, False),
        ("exclude { phase: TRAIN }", {}, True),
        ("include { phase: TRAIN } include { phase: TEST }", {}, True),
        ("include { stage: 'deploy' }", {}, False),
        ("include { stage: 'deploy' }", {"stages": frozenset({"deploy"})}, True),
        ("include { not_stage: 'deploy' }", {"stages": frozenset({"deploy"})}, False),
        ("include { min_level: 1 }", {}, False),
        ("include { min_level: 1 max_level: 3 }", {"level": 2}, True),
        ("include { max_level: 1 }", {"level": 2}, False),
        ("exclude { stage: 'a' stage: 'b' }", {"stages": frozenset({"a"})}, True),
        ("exclude { stage: 'a' stage: 'b' }", {"stages": frozenset({"a", "b"})}, False),
    ],
)
def test_rules_of_phase_stage_and_level(rules: str, state: dict, there: bool) -> None:
    # Expected values follow from Caffe's documentation of NetStateRule.
    text = INPUT % DIMS + relu("a", "data", "a") + relu("b", "data", "b", rules)
    layer = caffe_proto.parse_prototxt(text).layer[2]
    assert included(layer, NetState(**state)) is there
    assert ("b" in [layer.name for layer in graph_of(text, **state).layers]) is there


def test_layers_out_of_order_are_sorted() -> None:
    text = relu("c", "x", "y") + relu("b", "x", "x") + INPUT % DIMS + relu("a", "data", "x")
    names = [layer.name for layer in graph_of(text).layers]
    assert names.index("data") < names.index("a") < names.index("c")


def test_a_bottom_nobody_makes_is_an_error() -> None:
    with pytest.raises(ModelError, match=r"net\.prototxt: layer 'a' \(ReLU\) reads the blob 'z'"):
        graph_of(INPUT % DIMS + relu("a", "z", "y"))


def test_a_circle_is_an_error() -> None:
    with pytest.raises(ModelError, match="'a', 'b' wait for each other"):
        graph_of(INPUT % DIMS + relu("a", "y", "x") + relu("b", "x", "y"))


def test_two_layers_of_one_name_are_an_error() -> None:
    with pytest.raises(ModelError, match="two layers are named 'a'"):
        graph_of(INPUT % DIMS + relu("a", "data", "x") + relu("a", "x", "y"))


def test_losses_and_labels_are_dropped() -> None:
    text = (
        'layer { name: "data" type: "Data" top: "data" top: "label" '
        "transform_param { crop_size: 13 mean_value: 1 mean_value: 2 mean_value: 3 } }\n"
        + relu("a", "data", "fc")
        + 'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" top: "loss" }\n'
        + 'layer { name: "acc" type: "Accuracy" bottom: "fc" bottom: "label" top: "acc" }\n'
    )
    graph = graph_of(text)
    assert [layer.name for layer in graph.layers] == ["data", "a"]
    assert dict(graph.inputs) == {"data": (1, 3, 13, 13)}
    assert graph.outputs == (Blob("fc"),)


def test_only_ancestors_are_needed() -> None:
    text = INPUT % DIMS + relu("a", "data", "a") + relu("b", "data", "b") + relu("c", "a", "c")
    graph = graph_of(text)
    assert [layer.name for layer in graph.ancestors([Blob("c")])] == ["data", "a", "c"]


def test_given_shapes_replace_and_complete() -> None:
    graph = graph_of(INPUT % DIMS + relu("a", "data", "a"))
    assert resolve_inputs(graph) == {"data": (1, 3, 7, 11)}
    assert resolve_inputs(graph, {"data": (2, 3, 5, 5)}) == {"data": (2, 3, 5, 5)}
    with pytest.raises(OptionError, match="'dat', but the inputs are 'data'"):
        resolve_inputs(graph, {"dat": (1, 1, 1, 1)})
    unknown = graph_of('layer { name: "data" type: "Data" top: "data" }\n' + relu("a", "data", "a"))
    with pytest.raises(ShapeError, match="size of input 'data' is not in the prototxt"):
        resolve_inputs(unknown)


def test_shape_errors_name_file_and_layer() -> None:
    text = INPUT % DIMS + (
        'layer { name: "big" type: "Convolution" bottom: "data" top: "y" '
        "convolution_param { num_output: 2 kernel_size: 9 } }\n"
    )
    graph = graph_of(text)
    with pytest.raises(ShapeError, match=r"net\.prototxt: layer 'big' \(Convolution\): a 7x11"):
        infer_shapes(graph, resolve_inputs(graph))


def test_batchable_means_one_entry_per_image() -> None:
    shape = (
        'layer {{ name: "r" type: "Reshape" bottom: "data" top: "r" '
        "reshape_param {{ shape {{ {} }} }} }}\n"
    )
    for dims, batchable in [("dim: 0 dim: -1", True), ("dim: -1 dim: 11", False)]:
        graph = graph_of(INPUT % DIMS + shape.format(dims))
        inputs = resolve_inputs(graph)
        assert is_batchable(graph, inputs, graph.layers) is batchable


def test_shapes_that_do_not_fit_the_tops_are_not_guessed() -> None:
    # Source: Caffe's InputLayer::LayerSetUp checks that there is one shape, or one for each top.
    for sizes, a, b in (([5], 5, 5), ([5, 7], 5, 7), ([5, 7, 11], None, None)):
        shapes = "".join(f"shape {{ dim: 2 dim: {size} }} " for size in sizes)
        text = f'layer {{ name: "d" type: "Input" top: "a" top: "b" input_param {{ {shapes} }} }}'
        found = graph_of(text + relu("r", "a", "r") + relu("s", "b", "s")).inputs
        assert found == {"a": a and (2, a), "b": b and (2, b)}
