"""Inspection: shapes, sizes and work against runs, files, loops and papers; every warning."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
from generated import make_model
from network_styles import STYLES, conv, conv_bn, data, head, layer, pool
from rows import expected_rows

import caffe_proto
import int8calib
from int8calib.cli.main import main

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
    assert found.macs == found.quantised_macs == sum(macs.values())
    assert found.complete
    quantised = {node.name for node in found.layers if node.quantised}
    assert quantised == {key for key, _ in expected_rows(STYLES[name]()) if "_param_" not in key}
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
    assert conv1.quantised
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
    for name, (quantised, why) in WHY.items():
        assert found[name].quantised is quantised, name
        assert why in found[name].why, name
    assert not found["warp"].supported


def warned(text: str, folder: Path, **options: object) -> str:
    return "\n".join(inspect(text, folder, **options).warnings)


def test_a_clean_network_has_no_warnings(tmp_path: Path) -> None:
    assert int8calib.inspect(*make_model(tmp_path, PLAIN)).warnings == ()


def test_unknown_types_say_whether_they_matter(tmp_path: Path) -> None:
    off = layer("Python", "tail", "prob")
    assert "layer 'tail' (Python) is of a type that does not run; no layer to quantise needs it" in (
        warned(PLAIN + off, tmp_path)
    )
    on = PLAIN.replace('bottom: "data"', 'bottom: "odd"') + layer("Invented", "odd", "data")
    text = warned(on, tmp_path)
    assert "layer 'odd' (Invented) is of a type that does not run; it stands before conv1, fc" in text
    assert "--exclude" in text


def test_batch_norm_that_folds_and_that_stays(tmp_path: Path) -> None:
    text = INPUT + layer("BatchNorm", "first", "data")
    text += conv_bn("conv1", "first", "num_output: 7 kernel_size: 3")
    found = warned(text, tmp_path)
    assert "1 BatchNorm and 1 Scale to be folded into the layers before them" in found
    assert "1 BatchNorm with nothing before it to be folded into: first" in found


def change(model: Path, proto: Path, edit: dict[str, tuple[np.ndarray, ...]]) -> Path:
    weights = caffe_proto.read_weights(model) | edit
    caffe_proto.write_caffemodel(model, caffe_proto.read_prototxt(proto), weights)
    return model


def test_dead_channels_and_outliers(tmp_path: Path) -> None:
    text = INPUT + conv_bn("conv1", "data", "num_output: 7 kernel_size: 3") + head("conv1", 2)
    text += layer("InnerProduct", "wide", "data", param="inner_product_param { num_output: 3 }")
    proto, model = make_model(tmp_path, text)
    weights = {name: list(blobs) for name, blobs in caffe_proto.read_weights(model).items()}
    weights["conv1"][0] = weights["conv1"][0].copy()
    weights["conv1"][0][[2, 5]] = 0
    weights["conv1/scale"][0] = weights["conv1/scale"][0].copy()
    weights["conv1/scale"][0][3] = 0  # dead through folding
    row = np.ones(3 * 23 * 19, np.float32)
    row[7] = 5000
    weights["wide"][0] = weights["wide"][0].copy()
    weights["wide"][0][1] = row
    change(model, proto, {name: tuple(blobs) for name, blobs in weights.items()})
    text = "\n".join(int8calib.inspect(proto, model).warnings)
    assert "conv1: 3 of 7 output channels are dead" in text
    ratio = 5000 / np.sqrt(np.mean(row.astype(float) ** 2))
    assert 30 < ratio < 40
    assert "wide" not in text
    wider = np.ones((3, 3 * 47 * 43), np.float32)
    wider[2, 11] = 1e5
    ratio = 1e5 / np.sqrt(np.mean(wider[2].astype(float) ** 2))
    text = data(1, 3, 47, 43) + layer(
        "InnerProduct", "wide", "data", param="inner_product_param { num_output: 3 }"
    )
    proto, model = make_model(tmp_path, text)
    change(model, proto, {"wide": (wider, np.zeros(3, np.float32))})
    (warning,) = int8calib.inspect(proto, model).warnings
    assert f"wide: 1 of 3 output channels have a huge outlier, up to {ratio:.0f} times" in warning


def test_weights_that_are_no_numbers(tmp_path: Path) -> None:
    proto, model = make_model(tmp_path, PLAIN)
    bad = np.full((7, 3, 3, 3), np.nan, np.float32)
    change(model, proto, {"conv1": (bad, np.zeros(7, np.float32))})
    assert "conv1: weights that are NaN or infinite" in int8calib.inspect(proto, model).warnings


def test_weights_that_do_not_fit_are_warned_of(tmp_path: Path) -> None:
    _, model = make_model(tmp_path, PLAIN)
    other = PLAIN.replace("num_output: 7", "num_output: 11")
    found = inspect(other, tmp_path, caffemodel=model)
    assert "layer 'conv1' (Convolution): blob 0 has shape (7, 3, 3, 3)" in found.warnings[0]
    assert found.layers[1].parameters == 11 * 27 + 11


def test_more_of_the_caffemodel_than_is_used(tmp_path: Path) -> None:
    _, model = make_model(tmp_path, PLAIN)
    part = INPUT + conv("conv1", "data", "num_output: 7 kernel_size: 3")
    assert "holds weights of 1 more layers: fc" in warned(part, tmp_path, caffemodel=model)


def test_names_that_stand_twice(tmp_path: Path) -> None:
    text = PLAIN + conv("conv1", "data", "num_output: 3 kernel_size: 1")
    found = warned(text, tmp_path)
    assert "two layers are named conv1: weights and table rows go by name" in found
    assert "layer conv1 makes the blob conv1 again, without reading it" in found
    with pytest.raises(int8calib.Int8CalibError, match="two layers are named"):
        int8calib.load_caffe(tmp_path / "net.prototxt", None)


def test_a_reshape_that_fixes_the_batch(tmp_path: Path) -> None:
    shape = "reshape_param {{ shape {{ dim: {} dim: -1 }} }}"
    for first, warns in ((1, False), (0, False), (7, True)):
        text = INPUT + pool("pool1", "data", "pool: MAX kernel_size: 2 stride: 2")
        text += conv("conv1", "pool1", "num_output: 7 kernel_size: 1")
        text += layer("Reshape", "fix", "conv1", param=shape.format(first))
        text += layer("InnerProduct", "fc", "fix", param="inner_product_param { num_output: 2 }")
        found = warned(text, tmp_path)
        assert ("layer 'fix' (Reshape) fixes the batch" in found) is warns


def test_layers_that_score_are_named(tmp_path: Path) -> None:
    text = PLAIN + layer("SoftmaxWithLoss", "loss", "fc label") + layer("Data", "labels", "", "label")
    assert inspect(text, tmp_path).left_out == ("loss", "labels")


def test_shared_parameters_count_once(tmp_path: Path) -> None:
    named = 'param { name: "w" } param { name: "b" }'
    options = f"{named} convolution_param {{ num_output: 3 kernel_size: 3 pad: 1 }}"
    text = INPUT + layer("Convolution", "a", "data", param=options)
    found = inspect(text + layer("Convolution", "b", "a", param=options), tmp_path)
    assert [node.parameters for node in found.layers] == [0, 84, 84]
    assert found.parameters == 84


STRANGE = {
    "no kernel": INPUT + conv("c", "data", "num_output: 3"),
    "no outputs": INPUT + conv("c", "data", "kernel_size: 3"),
    "stride 0": INPUT + conv("c", "data", "num_output: 3 kernel_size: 3 stride: 0"),
    "kernel 0": INPUT + conv("c", "data", "num_output: 3 kernel_size: 0"),
    "group 0": INPUT + conv("c", "data", "num_output: 3 kernel_size: 3 group: 0"),
    "kernel too large": INPUT + conv("c", "data", "num_output: 3 kernel_size: 99"),
    "pooling without a kernel": INPUT + pool("p", "data", "pool: MAX"),
    "pooling of stride 0": INPUT + pool("p", "data", "pool: MAX kernel_size: 2 stride: 0"),
    "impossible reshape": INPUT
    + layer("Reshape", "r", "data", param="reshape_param { shape { dim: 0 dim: 17 } }"),
    "sum of different shapes": INPUT
    + pool("p", "data", "pool: MAX kernel_size: 2 stride: 2")
    + layer("Eltwise", "e", "data p"),
    "a bottom too few": INPUT + layer("Concat", "c", "") + layer("ReLU", "r", ""),
    "a top too many": INPUT
    + layer("ReLU", "r", "data").replace('top: "r"', 'top: "r" top: "s"'),
    "no top": INPUT + layer("ReLU", "r", "data").replace('top: "r"', ""),
    "axis beyond": INPUT + layer("Softmax", "s", "data", param="softmax_param { axis: 9 }"),
    "slice of too much": INPUT
    + layer("Slice", "s", "data", param="slice_param { slice_point: 7 }"),
    "flat input": data(5, 7) + conv("c", "data", "num_output: 3 kernel_size: 1"),
    "inner product of nothing": INPUT + layer("InnerProduct", "f", "data"),
    "nothing at all": "",
    "only a name": 'name: "empty"',
    "a circle": layer("ReLU", "a", "b") + layer("ReLU", "b", "a"),
    "nobody makes it": layer("ReLU", "a", "gone"),
    "no prototxt": "this is no prototxt {",
    "input of size 0": data(1, 3, 0, 0) + conv("c", "data", "num_output: 3 kernel_size: 1"),
    "no name": INPUT + layer("ReLU", "", "data", "x"),
    "no type": INPUT + layer("", "x", "data"),
}


@pytest.mark.parametrize("name", STRANGE)
def test_strange_networks_give_a_line_and_no_traceback(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    proto = tmp_path / "net.prototxt"
    proto.write_text(STRANGE[name], encoding="utf-8")
    code = main(["inspect", "--proto", str(proto)])
    said = capsys.readouterr()
    assert code in (0, 2)
    assert len([line for line in said.err.splitlines() if "error:" in line]) == (code == 2)
    if code == 0 and name not in ("input of size 0", "no name"):
        assert "warning:" in said.err
    # What inspect warns of, or refuses, the engine refuses with an error of its own.
    model = tmp_path / "net.caffemodel"
    caffe_proto.write_caffemodel(model, caffe_proto.NetParameter(name="none"), {})
    with pytest.raises(int8calib.Int8CalibError):
        int8calib.calibrate(int8calib.load_caffe(proto, model), list)


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


def mangled(text: str, rng: np.random.Generator) -> str:
    """The prototxt with some numbers, types and blob names replaced, and fields dropped."""
    for _ in range(rng.integers(1, 5)):
        pattern, others = [
            (r"\b\d+\b", ("0", "1", "2", "255", "4294967295", "-1")),
            (r'type: "\w+"', ()),
            (r'(?:bottom|top): "[^"]+"', ()),
            (r'\w+: [^\s{}"]+', ("",)),
        ][rng.integers(4)]
        found = list(re.finditer(pattern, text))
        spot = found[rng.integers(len(found))]
        other = rng.choice(others or [match.group() for match in found])
        text = text[: spot.start()] + str(other) + text[spot.end() :]
    return text


@pytest.mark.parametrize("name", STYLES)
def test_damaged_networks_are_inspected_or_refused(name: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    inspected = refused = 0
    for _ in range(60):
        try:
            inspected += len(inspect(mangled(STYLES[name](), rng), tmp_path).layers) > 0
        except int8calib.Int8CalibError as error:
            assert "\n" not in str(error)
            refused += 1
    assert inspected + refused == 60
    assert min(inspected, refused) > 0
