"""Inspection: shapes, sizes and work against runs, files, loops and papers; the command."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

import caffe_proto
import int8calib
from int8calib.cli.main import main
from tests.generated import make_model
from tests.network_styles import STYLES, conv, conv_bn, data, head, layer
from tests.rows import expected_rows

INPUT = data(1, 3, 23, 19)
PLAIN = INPUT + conv("conv1", "data", "num_output: 7 kernel_size: 3") + head("conv1", 5)


def inspect(text: str, folder: Path, **options: object) -> int8calib.Inspection:
    proto = folder / "net.prototxt"
    proto.write_text(text, encoding="utf-8")
    return int8calib.inspect(proto, **options)  # type: ignore[arg-type]


def counted_macs(net: int8calib.Net, tops: dict[str, np.ndarray]) -> dict[str, int]:
    """One multiply-add for every weight of an output channel, at every output value."""
    counts = {}
    for node in net.graph.layers:
        if node.type in ("Convolution", "InnerProduct"):
            channels = np.moveaxis(tops[node.name], 1, 0)
            pairs = zip(node.weights[0], channels, strict=True)
            counts[node.name] = sum(own.size for own, values in pairs for _ in values.flat)
    return counts


@pytest.mark.parametrize("name", STYLES)
def test_table_is_what_a_run_and_the_files_say(name: str, tmp_path: Path) -> None:
    proto, model = make_model(tmp_path, STYLES[name]())
    found = int8calib.inspect(proto, model)
    net = int8calib.load_caffe(proto, model)
    tops: dict[str, np.ndarray] = {}
    images = np.random.default_rng(1).normal(0, 60, net.input_shapes["data"])
    net.forward({"data": images}, on_top=lambda node, blob, top: tops.update({node: top.copy()}))
    weights = caffe_proto.read_weights(model)
    macs = counted_macs(net, tops)
    assert [node.name for node in found.layers] == list(tops)
    for node in found.layers:
        if node.type != "DetectionOutput":  # its number of rows depends on the image
            assert node.shapes == (tops[node.name].shape,), node.name
        assert node.parameters == sum(blob.size for blob in weights.get(node.name, ()))
        assert node.macs == macs.get(node.name, 0), node.name
        assert node.supported
    assert found.parameters == sum(blob.size for blobs in weights.values() for blob in blobs)
    assert found.macs == found.quantized_macs == sum(macs.values())
    assert found.complete
    quantized = {node.name for node in found.layers if node.quantized}
    assert quantized == {key for key, _ in expected_rows(STYLES[name]()) if "_param_" not in key}
    bare = int8calib.inspect(proto)
    assert bare == dataclasses.replace(found, caffemodel=None)


# Multiply-adds and parameters, in millions, as the networks' papers state them.
PAPERS = {
    "mobilenet_v1": (569, 1, 4.2, 0.1),  # Howard et al. 2017, table 4
    "resnet18": (1800, 50, 11.7, 0.1),  # He et al. 2016, table 1
    "resnet50": (3800, 100, 25.6, 0.1),
    "googlenet_v1": (1500, 100, 6.8, 0.3),  # Szegedy et al. 2015, sections 5 and 6
}


@pytest.mark.parametrize("name", PAPERS)
def test_totals_are_those_of_the_papers(name: str, shared: Path) -> None:
    macs, macs_off, parameters, parameters_off = PAPERS[name]
    found = int8calib.inspect(shared / f"networks/{name}.prototxt")
    assert abs(found.macs / 1e6 - macs) <= macs_off
    assert abs(found.parameters / 1e6 - parameters) <= parameters_off


def test_every_real_prototxt_can_be_inspected(shared: Path) -> None:
    files = sorted(shared.glob("models/*/*.prototxt"))
    assert len(files) > 30
    for file in files:
        found = int8calib.inspect(file)
        assert found.complete or "train_val" in file.name, file


def test_declared_batch_does_not_count(tmp_path: Path) -> None:
    one = inspect(PLAIN, tmp_path)
    ten = inspect(PLAIN.replace("dim: 1 ", "dim: 10 ", 1), tmp_path)
    assert ten.macs == one.macs
    assert ten.layers[1].shapes == ((10, 7, 21, 17),)


@pytest.mark.parametrize(
    ("front", "channels", "warning"),
    [
        ("transform_param { crop_size: 19 }", 3, "channels are not in the prototxt; 3 taken"),
        ("transform_param { crop_size: 19 force_gray: true }", 1, ""),
    ],
)
def test_channels_may_be_unknown(front: str, channels: int, warning: str, tmp_path: Path) -> None:
    text = PLAIN.replace(INPUT, layer("Data", "data", "", param=front))
    found = inspect(text, tmp_path)
    assert found.inputs == {"data": (1, channels, 19, 19)}
    assert found.layers[1].parameters == 7 * channels * 9 + 7
    assert warning in "".join(found.warnings)


def test_sizes_may_be_unknown(tmp_path: Path) -> None:
    text = layer("Data", "data", "") + conv_bn("conv1", "data", "num_output: 7 kernel_size: 3")
    found = inspect(text, tmp_path)
    assert found.inputs == {"data": None}
    assert not found.complete
    conv1, norm = found.layers[1:3]
    assert (conv1.shapes, conv1.parameters, conv1.macs) == ((None,), None, None)
    assert conv1.quantized
    assert norm.why == "folded into conv1"
    assert "input data: its size is not in the prototxt" in found.warnings[0]
    given = inspect(text, tmp_path, input_shapes={"data": (1, 3, 23, 19)})
    assert given.complete
    assert given.macs == 21 * 17 * 7 * 27


WHY = {
    "conv1": (True, "Convolution"),
    "grouped": (True, "ConvolutionDepthWise"),
    "fc": (True, "InnerProduct"),
    "up": (False, "ncnn has no INT8 Deconvolution"),
    "both": (False, "reads several blobs"),
    "data": (False, "input"),
    "conv1/relu": (False, "runs in float"),
    "a_param_b": (False, "ncnn takes its rows for weight rows"),
    "two words": (False, "holds white space"),
    "late": (False, "behind layer 'warp' (Python), which cannot run"),
}


def test_every_layer_says_why_it_stays_in_float(tmp_path: Path) -> None:
    options = "num_output: 6 group: 2 kernel_size: 3"
    text = (
        INPUT
        + conv("conv1", "data", "num_output: 6 kernel_size: 3")
        + conv("grouped", "conv1", options, relu=False)
        + layer("Deconvolution", "up", "grouped", param=f"convolution_param {{ {options} }}")
        + layer("Convolution", "both", "conv1 up", param="convolution_param { num_output: 3 "
                "kernel_size: 1 }").replace('top: "both"', 'top: "both" top: "both2"')
        + conv("a_param_b", "both", "num_output: 3 kernel_size: 1", relu=False)
        + conv("two words", "both2", "num_output: 3 kernel_size: 1", relu=False)
        + layer("InnerProduct", "fc", "up", param="inner_product_param { num_output: 5 }")
        + layer("Python", "warp", "up")
        + conv("late", "warp", "num_output: 3 kernel_size: 1", relu=False)
    )  # fmt: skip
    found = {node.name: node for node in inspect(text, tmp_path).layers}
    for name, (quantized, why) in WHY.items():
        assert found[name].quantized is quantized, name
        assert why in found[name].why, name
    assert not found["warp"].supported


def test_command_lists_what_a_gpu_leaves_to_the_cpu(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = STYLES["ssd"]() + layer("NoSuchType", "own", "conv1")
    proto, _ = make_model(tmp_path, STYLES["ssd"]())
    proto.write_text(text, encoding="utf-8")
    words = ["inspect", "--proto", str(proto)]
    assert main([*words, "--gpu"]) == 0
    out = capsys.readouterr().out.splitlines()
    place = out.index("with a GPU, these run on the CPU, between two transfers:")
    assert out[place + 1 :] == ["  DetectionOutput: detections"]
    assert main([*words, "--gpu", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["on_cpu"] == {"DetectionOutput": ["detections"]}
    plain, _ = make_model(tmp_path, STYLES["fire"](), name="plain")
    assert main(["inspect", "--proto", str(plain), "--gpu"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "with a GPU, all layers run there"


def test_command_prints_table_totals_and_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    proto, model = make_model(tmp_path, STYLES["inverted_residual"]())
    words = ["inspect", "--proto", str(proto), "--model", str(model)]
    assert main(words) == 0
    said = capsys.readouterr()
    found = int8calib.inspect(proto, model)
    for node in found.layers:
        (line,) = [line for line in said.out.splitlines() if line.split()[:1] == [node.name]]
        assert node.type in line
        assert "x".join(map(str, node.shapes[0] or ())) in line
        assert f"{node.macs:,}" in line
        assert node.why in line
    assert f"{found.parameters:,} parameters" in said.out
    assert f"{found.macs:,} multiply-adds" in said.out
    assert said.err.strip() == f"warning: {found.warnings[0]}"
    assert main([*words, "--json"]) == 0
    out = json.loads(capsys.readouterr().out)
    assert out == json.loads(json.dumps(found.as_json()))
    assert out["layers"][1]["name"] == "conv1"
    assert main([*words, "--input-shape", "data=1,3,61,67", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["inputs"] == {"data": [1, 3, 61, 67]}
    assert main(["inspect", "--proto", str(tmp_path / "gone.prototxt")]) == 2
    assert "gone.prototxt" in capsys.readouterr().err
