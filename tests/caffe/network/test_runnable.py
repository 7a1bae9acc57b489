"""Networks that cannot run as a whole: which outputs and quantized layers are left."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import caffe_proto
import int8calib
from int8calib.caffe.layers import registry
from int8calib.caffe.network.graph import Graph
from int8calib.caffe.network.inputs import resolve_inputs
from int8calib.caffe.network.load import load_graph, load_unsized
from int8calib.caffe.network.runnable import layers_to_quantize, named_outputs, runnable_outputs
from int8calib.caffe.requirements import requirements_from_graph
from int8calib.errors import ModelError, OptionError, UnsupportedLayerError
from int8calib.ncnn.convert.network import convert_network
from tests.network_styles import conv, data, layer

INPUT = data(1, 3, 13, 11)
POINT = "num_output: 7 kernel_size: 1"


def load(folder: Path, text: str) -> tuple[Graph, dict]:
    proto = folder / "net.prototxt"
    proto.write_text(text, encoding="utf-8")
    return load_graph(proto, None)


def ways() -> dict[str, tuple[str, list[str], list[str]]]:
    """Network, its last blobs that can run, and a word of each reason."""
    head = INPUT + conv("c1", "data", POINT)
    return {
        "whole": (head + conv("c2", "c1", POINT, relu=False), ["c2"], []),
        "tail": (head + layer("Yolo", "det", "c1"), ["c1#1"], ["'det' (Yolo)"]),
        "in place": (head + layer("Odd", "o", "c1", "c1"), ["c1#1"], ["'o' (Odd)"]),
        "chain": (
            head + layer("Odd", "o", "c1") + layer("ReLU", "r", "o") + layer("ReLU", "s", "r"),
            ["c1#1"],
            ["'o' (Odd)"],
        ),
        "one after another": (
            head + layer("Odd", "o", "c1") + layer("Strange", "s", "o"),
            ["c1#1"],
            ["'o' (Odd)"],
        ),
        "two heads": (
            head
            + conv("loc", "c1", POINT, relu=False)
            + conv("conf", "c1", POINT, relu=False)
            + layer("Odd", "det", "loc conf"),
            ["loc", "conf"],
            ["'det' (Odd)"],
        ),
        "beside an output": (
            head + layer("Softmax", "prob", "c1") + layer("Odd", "o", "c1"),
            ["prob"],
            ["'o' (Odd)"],
        ),
        "two ends": (
            head + layer("Odd", "a", "c1") + layer("Strange", "b", "data"),
            ["c1#1"],
            ["'a' (Odd)", "'b' (Strange)"],
        ),
        "nothing": (INPUT + layer("Odd", "a", "data"), [], ["'a' (Odd)"]),
        "a shape that does not fit": (
            head + layer("Softmax", "s", "c1", param="softmax_param { axis: 7 }"),
            ["c1#1"],
            ["'s' (Softmax)"],
        ),
        "a size that is not known": (
            head + layer("Input", "im", "", param="") + layer("Concat", "j", "c1 im"),
            ["c1#1"],
            ["'im' (Input) makes a blob of unknown size"],
        ),
    }


@pytest.mark.parametrize("name", ways())
def test_last_blobs_that_can_run(name: str, tmp_path: Path) -> None:
    text, blobs, words = ways()[name]
    graph, inputs = load(tmp_path, text)
    found, reasons = runnable_outputs(graph, inputs)
    assert [str(blob) for blob in found] == blobs
    assert len(reasons) == len(words)
    assert all(word in reason for word, reason in zip(words, reasons, strict=True))


def test_reasons_name_the_output_and_what_is_compared(tmp_path: Path) -> None:
    graph, inputs = load(tmp_path, ways()["two heads"][0])
    (reason,) = runnable_outputs(graph, inputs)[1]
    assert reason == (
        "output det is left out: layer 'det' (Odd) is of a type that does not run; "
        "the last blobs that can run are loc, conf"
    )


def test_named_outputs(tmp_path: Path) -> None:
    graph, inputs = load(tmp_path, ways()["chain"][0])
    assert [str(blob) for blob in named_outputs(graph, ["c1", "data", "c1"], inputs)] == [
        "c1#1",
        "data",
    ]
    with pytest.raises(OptionError, match=r"outputs c11: no layer makes .* near names are c1$"):
        named_outputs(graph, ["c11"], inputs)
    with pytest.raises(
        OptionError, match=r"outputs s: layer 'o' \(Odd\) .* last blobs that can run are c1$"
    ):
        named_outputs(graph, ["s"], inputs)


def test_in_place_layer_that_cannot_run_leaves_the_version_before(tmp_path: Path) -> None:
    graph, inputs = load(tmp_path, ways()["in place"][0])
    assert [str(blob) for blob in named_outputs(graph, ["c1"], inputs)] == ["c1#1"]


def test_layers_behind_an_obstacle_stay_in_float(tmp_path: Path) -> None:
    text = INPUT + conv("c1", "data", POINT) + layer("LSTM", "l", "c1")
    text += conv("c2", "l", POINT) + conv("c3", "c2", POINT) + conv("c4", "c1", POINT)
    layers, blocked = layers_to_quantize(*load(tmp_path, text))
    assert [found.name for found in layers] == ["c1", "c4"]
    assert blocked == dict.fromkeys(["c2", "c3"], "layer 'l' (LSTM) is of a type that does not run")


def test_nothing_left_says_what_stands_in_the_way(tmp_path: Path) -> None:
    graph, inputs = load(tmp_path, INPUT + layer("Python", "p", "data") + conv("c", "p", POINT))
    with pytest.raises(ModelError, match=r"nothing is left .* 'p' \(Python\) .* c waits for it;"):
        layers_to_quantize(graph, inputs)
    graph, inputs = load(tmp_path, INPUT + layer("ReLU", "r", "data"))
    with pytest.raises(ModelError, match="has no Convolution or InnerProduct layer"):
        layers_to_quantize(graph, inputs)


@pytest.mark.parametrize("kind", ["Odd", "LSTM", "Im2col"])
def test_running_what_cannot_run_names_the_ways_out(kind: str, tmp_path: Path) -> None:
    proto = tmp_path / "net.prototxt"
    proto.write_text(INPUT + layer(kind, "o", "data"), encoding="utf-8")
    net = int8calib.load_caffe(proto, None)
    with pytest.raises(UnsupportedLayerError) as caught:
        net.forward({"data": np.zeros((1, 3, 13, 11))})
    message = str(caught.value)
    assert re.search(rf"'o' \({kind}\).*--outputs.*--exclude.*register_layer", message)
    assert len(message) < 500
    assert "AbsVal" not in message


def test_weights_behind_an_obstacle_may_be_anything(tmp_path: Path) -> None:
    text = INPUT + conv("c1", "data", POINT, relu=False) + layer("LSTM", "l", "c1")
    text += conv("c2", "l", POINT, relu=False) + layer("BatchNorm", "bn", "c2", "c2")
    text += layer("InnerProduct", "fc", "c2", param="inner_product_param { num_output: 5 }")
    proto, model = tmp_path / "net.prototxt", tmp_path / "net.caffemodel"
    proto.write_text(text, encoding="utf-8")
    good = (np.ones((7, 3, 1, 1), np.float32), np.ones(7, np.float32))
    fits = (np.ones((7, 7, 1, 1), np.float32), np.ones(7, np.float32))
    empty = {"bn": (np.ones(7, np.float32),) * 2 + (np.ones(0, np.float32),)}
    for bad in ((), (np.ones(2, np.float32),), (np.ones((3, 2, 5, 5), np.float32),) * 2, fits):
        weights = {"c1": good, "c2": bad, "fc": bad, "bn": (np.ones(3, np.float32),) * 3}
        caffe_proto.write_caffemodel(model, caffe_proto.read_prototxt(proto), weights)
        net = int8calib.load_caffe(proto, model)
        for fold in (True, False):
            assert [found.name for found in net.executor(fold_bn=fold).layers] == ["c1"]
        structure = caffe_proto.read_prototxt(proto)
        caffe_proto.write_caffemodel(model, structure, weights | empty)
        assert [found.name for found in int8calib.load_caffe(proto, model).executor().layers] == [
            "c1"
        ]
        found = int8calib.inspect(proto, model)
        assert [node.name for node in found.layers if node.quantized] == ["c1"]


def test_meaningless_layers_behind_an_obstacle_do_no_harm(tmp_path: Path) -> None:
    """Groups that do not divide, and a BatchNorm that makes nothing."""
    text = INPUT + conv("c1", "data", POINT, relu=False) + layer("LSTM", "l", "c1")
    text += conv("c2", "l", "num_output: 3 group: 2 kernel_size: 1 bias_term: false", relu=False)
    text += conv("c3", "l", POINT, relu=False)
    text += layer("BatchNorm", "bn", "c3").replace('top: "bn"', "")
    proto, model = tmp_path / "net.prototxt", tmp_path / "net.caffemodel"
    proto.write_text(text, encoding="utf-8")
    weights = {
        "c1": (np.ones((7, 3, 1, 1), np.float32), np.ones(7, np.float32)),
        "c2": (np.ones((3, 1, 1, 1), np.float32),),
        "c3": (np.ones((7, 5, 1, 1), np.float32), np.ones(7, np.float32)),
        "bn": (np.ones(7, np.float32), np.ones(7, np.float32), np.ones(1, np.float32)),
    }
    caffe_proto.write_caffemodel(model, caffe_proto.read_prototxt(proto), weights)
    executor = int8calib.load_caffe(proto, model).executor()
    assert [found.name for found in executor.layers] == ["c1"]
    assert list(executor.blocked) == ["c2", "c3"]
    quantized = [node.name for node in int8calib.inspect(proto, model).layers if node.quantized]
    assert quantized == ["c1"]
    needs = requirements_from_graph(load_unsized(proto, model))
    assert [(need.name, need.weight_count) for need in needs] == [("c1", 7), ("c3", 7)]


def test_no_input_is_an_error(tmp_path: Path) -> None:
    proto = tmp_path / "net.prototxt"
    proto.write_text(conv("c", "data", POINT).replace('bottom: "data"', ""), encoding="utf-8")
    with pytest.raises(ModelError, match="the network has no input that a layer reads; expected"):
        int8calib.load_caffe(proto, None)


@pytest.mark.parametrize("rule", ['stage: "deploy"', "min_level: 1", "phase: TEST stage: 's'"])
def test_layers_of_another_stage_are_named_where_nothing_else_is_left(
    rule: str, tmp_path: Path
) -> None:
    """As in DIGITS' files; Caffe leaves such layers out, too."""
    proto = tmp_path / "net.prototxt"
    staged = layer("ReLU", "r", "data").replace("layer {", f"layer {{ include {{ {rule} }}")
    proto.write_text(INPUT + staged, encoding="utf-8")
    with pytest.raises(ModelError, match="nothing is left without r, which include rules keep"):
        int8calib.load_caffe(proto, None)
    proto.write_text(INPUT + staged + layer("TanH", "t", "data"), encoding="utf-8")
    assert [str(blob) for blob in int8calib.load_caffe(proto, None).graph.outputs] == ["t"]


@pytest.mark.parametrize(
    ("kind", "told"), [("convolution", "(Convolution does)"), ("", "has no type"), ("Odd", "run")]
)
def test_types_that_are_nearly_right(kind: str, told: str, tmp_path: Path) -> None:
    text = INPUT + layer(kind, "c", "data")
    graph, inputs = load(tmp_path, text)
    (reason,) = runnable_outputs(graph, inputs)[1]
    assert f"{told}; the last blobs that can run are nothing" in reason
    with pytest.raises(ModelError, match=r"nothing to calibrate \(layer 'c' .*" + re.escape(told)):
        layers_to_quantize(graph, inputs)
    with pytest.raises(ModelError, match=r"no layer can be converted: layer 'c' "):
        convert_network(int8calib.Net(graph, inputs))


def test_layers_that_no_input_reaches_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_types", dict(registry._types))
    int8calib.register_layer("Constant", lambda *_: [np.ones((1, 3, 5, 7), np.float32)],
                             lambda *_: [(1, 3, 5, 7)])  # fmt: skip
    text = INPUT + layer("ReLU", "r", "data") + layer("Constant", "k", "") + conv("c", "k", POINT)
    graph, inputs = load(tmp_path, text)
    with pytest.raises(ModelError, match=r"no input reaches c$"):
        layers_to_quantize(graph, inputs)


@pytest.mark.filterwarnings("ignore:.*not understood")
def test_cases_of_the_collection(shared: Path) -> None:
    if not (shared / "cases").is_dir():
        pytest.skip("no folder of cases")
    for case, last, quantized in (("b8_tail", ["c2"], ["c1", "c2"]), ("b6_ctpn", ["c1"], ["c1"])):
        folder = shared / "cases" / case
        graph, inputs = load_graph(folder / "net.prototxt", folder / "net.caffemodel")
        assert [blob.name for blob in runnable_outputs(graph, inputs)[0]] == last
        assert [found.name for found in layers_to_quantize(graph, inputs)[0]] == quantized
    folder = shared / "cases/e1_crnn"
    shape = {"data": (1, 1, 32, 101)}
    graph, inputs = load_graph(folder / "net.prototxt", folder / "net.caffemodel", shape)
    assert [found.name for found in layers_to_quantize(graph, inputs)[0]] == ["c1", "c2"]
    assert resolve_inputs(graph, shape) == shape


def calibrated(folder: Path, text: str, **options: object) -> int8calib.Calibration:
    """A calibration over two random images; weights by layer name, whatever else is there."""
    proto, model = folder / "net.prototxt", folder / "net.caffemodel"
    proto.write_text(text, encoding="utf-8")
    rng = np.random.default_rng(5)
    weights = {
        name: (rng.normal(size=shape).astype(np.float32), rng.normal(size=7).astype(np.float32))
        for name, shape in (("c1", (7, 3, 1, 1)), ("c2", (7, 7, 1, 1)), ("c3", (7, 7, 1, 1)))
    }
    caffe_proto.write_caffemodel(model, caffe_proto.read_prototxt(proto), weights)
    images = [{"data": rng.normal(size=(1, 3, 13, 11)).astype(np.float32)} for _ in range(2)]
    net = int8calib.load_caffe(proto, model)
    return int8calib.calibrate(net, lambda: iter(images), int8calib.Options(**options))  # type: ignore[arg-type]


BLOCKED = (
    INPUT
    + conv("c1", "data", POINT)
    + conv("c2", "c1", POINT)
    + layer("Python", "p", "c2")
    + conv("c3", "p", POINT)
)


def test_calibration_leaves_blocked_layers_in_float(tmp_path: Path) -> None:
    found = calibrated(tmp_path, BLOCKED)
    whole = calibrated(tmp_path, BLOCKED.replace('bottom: "p"', 'bottom: "c2"'))
    rows = {row.name: row for row in whole.table.layers}
    assert [row.name for row in found.table.layers] == ["c1", "c2"]
    for row in found.table.layers:
        assert row.bottom_scale == rows[row.name].bottom_scale
        np.testing.assert_array_equal(row.weight_scales, rows[row.name].weight_scales)
    (warning,) = [line for line in found.warnings if "float" in line]
    assert warning == (
        "c3 stays in float: layer 'p' (Python) is of a type that does not run; "
        "--exclude says that it is meant"
    )
    assert warning in found.table.meta["warnings"]
    assert not [line for line in whole.warnings if "float" in line]


def test_blocked_layers_may_be_excluded_and_not_asked_for(tmp_path: Path) -> None:
    for options in ({"exclude": ("c3",)}, {"exclude": ("*3",)}, {"only": ("c1", "c2")}):
        found = calibrated(tmp_path, BLOCKED, **options)
        assert not [line for line in found.warnings if "float" in line]
        assert len(found.table.layers) == 2
    with pytest.raises(OptionError, match=r"only c3: cannot be INT8: layer 'p' \(Python\) is of"):
        calibrated(tmp_path, BLOCKED, only=("c3",))


def test_all_blobs_are_those_that_can_be_made(tmp_path: Path) -> None:
    assert set(calibrated(tmp_path, BLOCKED, all_blobs=True).table.blob_scales) == {
        "data",
        "c1",
        "c2",
    }


def test_batch_norm_of_the_batch_is_warned_of(tmp_path: Path) -> None:
    norm = layer("BatchNorm", "bn", "c1", "c1", "batch_norm_param { %s }")
    text = INPUT + conv("c1", "data", POINT, relu=False) + norm + conv("c2", "c1", POINT)
    proto, model = tmp_path / "net.prototxt", tmp_path / "net.caffemodel"
    for option, warned in (
        ("use_global_stats: false", True),
        ("use_global_stats: true", False),
        ("eps: 1e-3", False),
    ):
        proto.write_text(text % option, encoding="utf-8")
        rng = np.random.default_rng(7)
        weights = {
            "c1": (rng.normal(size=(7, 3, 1, 1)), rng.normal(size=7)),
            "bn": (rng.normal(size=7), rng.uniform(1, 2, 7), np.ones(1)),
            "c2": (rng.normal(size=(7, 7, 1, 1)), rng.normal(size=7)),
        }
        as_float = {k: tuple(b.astype(np.float32) for b in v) for k, v in weights.items()}
        caffe_proto.write_caffemodel(model, caffe_proto.read_prototxt(proto), as_float)
        net = int8calib.load_caffe(proto, model)
        images = rng.normal(size=(2, 3, 13, 11)).astype(np.float32)
        done = int8calib.calibrate(net, lambda images=images: iter([{"data": images}]))
        for lines in (done.warnings, int8calib.inspect(proto, model).warnings):
            assert bool([x for x in lines if "bn: BatchNorm with use_global" in x]) is warned
        # The stored statistics are taken, whatever the prototxt says.
        weight, bias = (blob.reshape(7, -1).astype(float) for blob in weights["c1"])
        mean, var, _ = (blob[:, None] for blob in weights["bn"])
        made = weight @ images[0].reshape(3, -1) + bias
        eps = 1e-3 if "eps" in option else 1e-5
        expected = (made - mean) / np.sqrt(var + eps)
        found = net.forward({"data": images[:1]}, outputs=["c1"])["c1"]
        np.testing.assert_allclose(found.reshape(7, -1), expected, rtol=1e-4, atol=1e-5)
