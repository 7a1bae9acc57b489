"""The layers of ONNX models against what the package onnx computes for their nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import int8calib
from int8calib.errors import ModelError, OptionError
from int8calib.onnx.layers import onnx_layers

onnx = pytest.importorskip("onnx", reason="the extra frameworks is not installed")

RNG = np.random.default_rng(53)


def model(nodes: list[Any], weights: dict[str, np.ndarray], shape: tuple[int, ...]) -> Any:
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_empty_tensor_value_info(nodes[-1].output[0])],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def values(net: Any, image: np.ndarray, blobs: list[str]) -> list[np.ndarray]:
    """Blobs as the package onnx computes them."""
    del net.graph.output[:]
    net.graph.output.extend(onnx.helper.make_empty_tensor_value_info(blob) for blob in blobs)
    from onnx.reference import ReferenceEvaluator

    return ReferenceEvaluator(net).run(blobs, {"x": image})


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def convolved(x: np.ndarray, layer: int8calib.QuantLayer) -> np.ndarray:
    """A convolution without padding, by what is known of the layer."""
    weights = layer.weights
    outputs, channels, height, width = weights.shape
    assert layer.kernel == (height, width)
    reach = [(k - 1) * d + 1 for k, d in zip(layer.kernel, layer.dilation, strict=True)]
    size = [(x.shape[2 + i] - reach[i]) // layer.stride[i] + 1 for i in range(2)]
    top = np.zeros((len(x), outputs, *size))
    for o in range(outputs):
        first = o // (outputs // layer.group) * channels
        for i, j in np.ndindex(*size):
            rows = i * layer.stride[0] + np.arange(height) * layer.dilation[0]
            columns = j * layer.stride[1] + np.arange(width) * layer.dilation[1]
            window = x[:, first : first + channels][:, :, rows][:, :, :, columns]
            top[:, o, i, j] = (window * weights[o]).sum(axis=(1, 2, 3))
    return top


CONVOLUTIONS: list[dict[str, Any]] = [
    {},
    {"group": 2},
    {"group": 4, "strides": [2, 3]},
    {"dilations": [3, 1]},
    {"strides": [1, 2], "dilations": [1, 2], "kernel_shape": [3, 2]},
]


@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
def test_a_convolution_is_what_onnx_computes(options: dict[str, Any]) -> None:
    weights = normal(8, 4 // options.get("group", 1), 3, 2)
    net = model([onnx.helper.make_node("Conv", ["x", "w"], ["y"], **options)], {"w": weights}, ())
    (layer,) = onnx_layers(net)
    image = normal(2, 4, 11, 13)
    (expected,) = values(net, image, ["y"])
    np.testing.assert_allclose(convolved(image, layer), expected, rtol=1e-4, atol=1e-4)
    kind = "ConvolutionDepthWise" if "group" in options else "Convolution"
    assert (layer.kind, layer.name, layer.blob, layer.reads_input) == (kind, "y", "x", True)


@pytest.mark.parametrize(
    ("operator", "shape", "options"),
    [("Gemm", (7, 5), {}), ("Gemm", (5, 7), {"transB": 1}), ("MatMul", (7, 5), {})],
)
def test_a_matrix_has_its_outputs_first(
    operator: str, shape: tuple[int, int], options: dict[str, Any]
) -> None:
    node = onnx.helper.make_node(operator, ["x", "w"], ["y"], name="fc", **options)
    net = model([node], {"w": normal(*shape)}, ())
    (layer,) = onnx_layers(net)
    rows = normal(3, 7)
    (expected,) = values(net, rows, ["y"])
    np.testing.assert_allclose(rows @ layer.weights.T, expected, rtol=1e-5, atol=1e-5)
    assert (layer.kind, layer.name, layer.rows) == ("InnerProduct", "fc", 5)


def test_weights_may_be_constants_of_several_kinds() -> None:
    node, kernel = onnx.helper.make_node, normal(5, 3, 1, 1)
    half = onnx.numpy_helper.from_array(normal(7, 5, 1, 1).astype(np.float16), "half")
    nodes = [
        node("Identity", ["w"], ["same"]),
        node("Conv", ["x", "same"], ["a"]),
        node("Constant", [], ["half"], value=half),
        node("Conv", ["a", "half"], ["b"]),
    ]
    one, two = onnx_layers(model(nodes, {"w": kernel}, ()))
    np.testing.assert_array_equal(one.weights, kernel)
    np.testing.assert_array_equal(two.weights, onnx.numpy_helper.to_array(half))
    assert two.weights.dtype == np.float32


def test_what_ncnn_runs_in_float_is_no_layer() -> None:
    node, weights = onnx.helper.make_node, {"w": normal(4, 4, 3, 3), "m": normal(4, 4)}
    floats = [
        node("ConvTranspose", ["x", "w"], ["y"]),
        node("Conv", ["x", "computed"], ["y"]),
        node("Conv", ["x", "w"], ["y"], domain="elsewhere"),
        node("Gemm", ["x", "m"], ["y"], transA=1),
        node("Gemm", ["x", "m"], ["y"], alpha=0.5),
        node("MatMul", ["m", "x"], ["y"]),
        node("MatMul", ["x", "stack"], ["y"]),
        node("Conv", ["x", "line"], ["y"]),
        node("Conv", ["x"], ["y"]),
    ]
    others = {"stack": normal(2, 4, 4), "line": normal(4, 4, 3)}
    for each in floats:
        assert onnx_layers(model([each], {**weights, **others}, ())) == ()


def test_first_and_last_layers_are_told_by_the_graph() -> None:
    node = onnx.helper.make_node
    nodes = [
        node("Relu", ["x"], ["r"]),
        node("Conv", ["x", "w"], ["left"]),
        node("Conv", ["r", "w"], ["right"]),
        node("Add", ["left", "right"], ["sum"]),
        node("Conv", ["sum", "w"], ["middle"]),
        node("Sigmoid", ["middle"], ["s"]),
        node("Conv", ["s", "w"], ["one"]),
        node("Conv", ["middle", "w"], ["two"]),
    ]
    layers = onnx_layers(model(nodes, {"w": normal(3, 3, 1, 1)}, ()))
    assert [each.name for each in layers] == ["left", "right", "middle", "one", "two"]
    assert [each.name for each in layers if each.first] == ["left", "right"]
    assert [each.name for each in layers if each.last] == ["one", "two"]
    assert [each.name for each in layers if each.reads_input] == ["left"]


def test_old_models_list_their_weights_among_the_inputs() -> None:
    net = model([onnx.helper.make_node("Conv", ["x", "w"], ["y"])], {"w": normal(3, 3, 1, 1)}, ())
    kind = onnx.TensorProto.FLOAT
    net.graph.input.append(onnx.helper.make_tensor_value_info("w", kind, (3, 3, 1, 1)))
    (layer,) = onnx_layers(net)
    assert layer.reads_input


def test_nodes_without_outputs_are_passed_over() -> None:
    node = onnx.helper.make_node
    nodes = [node("Input", [], ["x"]), node("Conv", ["x", "w"], ["y"]), node("Output", ["y"], [])]
    net = model(nodes[:2], {"w": normal(3, 3, 1, 1)}, ())
    net.graph.node.append(nodes[2])
    (layer,) = onnx_layers(net)
    assert (layer.first, layer.last) == (True, True)


def test_something_else_is_refused() -> None:
    with pytest.raises(OptionError, match=r"str is no ONNX model; give what onnx\.load returns"):
        onnx_layers("net.onnx")


def test_onnxruntime_folds_batch_norm_before(tmp_path: Path) -> None:
    """What the guide says of `optimized_model_filepath`."""
    runtime = pytest.importorskip("onnxruntime", reason="the extra frameworks is not installed")
    node, kernel = onnx.helper.make_node, normal(5, 3, 1, 1)
    gain, offset, mean, variance = normal(5), normal(5), normal(5), normal(5) ** 2
    nodes = [
        node("Conv", ["x", "w"], ["a"], "conv"),
        node("BatchNormalization", ["a", "gain", "offset", "mean", "variance"], ["y"]),
    ]
    weights = {"w": kernel, "gain": gain, "offset": offset, "mean": mean, "variance": variance}
    net = model(nodes, weights, (1, 3, 7, 7))
    output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, (1, 5, 7, 7))
    net.graph.output[0].CopyFrom(output)
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(tmp_path / "folded.onnx")
    runtime.InferenceSession(net.SerializeToString(), options)
    (layer,) = onnx_layers(onnx.load(tmp_path / "folded.onnx"))
    expected = kernel * (gain / np.sqrt(variance + 1e-5))[:, None, None, None]
    assert layer.name == "conv"
    np.testing.assert_allclose(layer.weights, expected, rtol=1e-4)


def test_weights_that_are_in_another_file_are_asked_for(tmp_path: Path) -> None:
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], name="c")
    path = tmp_path / "net.onnx"
    onnx.save_model(
        model([node], {"w": normal(7, 3, 5, 5)}, (1, 3, 11, 13)),
        path,
        save_as_external_data=True,
        location="net.bin",
        size_threshold=0,
    )
    assert [layer.name for layer in onnx_layers(onnx.load(path))] == ["c"]
    with pytest.raises(ModelError, match=r"node 'c' \(Conv\): its weights 'w' cannot be read"):
        onnx_layers(onnx.load(path, load_external_data=False))


def test_groups_that_do_not_divide_the_outputs_are_refused() -> None:
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], name="c", group=3)
    with pytest.raises(ModelError, match="layer 'c': its 7 outputs make no 3 groups"):
        onnx_layers(model([node], {"w": normal(7, 1, 5, 5)}, (1, 3, 11, 13)))
