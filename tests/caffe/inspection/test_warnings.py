"""Inspection: every warning, and networks that are strange or damaged."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import caffe_proto
import int8calib
from int8calib.cli.main import main
from tests.caffe.inspection.test_inspection import INPUT, PLAIN, inspect
from tests.generated import make_model
from tests.network_styles import STYLES, conv, conv_bn, data, head, layer, pool


def warned(text: str, folder: Path, **options: object) -> str:
    return "\n".join(inspect(text, folder, **options).warnings)


def test_a_clean_network_has_no_warnings(tmp_path: Path) -> None:
    assert int8calib.inspect(*make_model(tmp_path, PLAIN)).warnings == ()


def test_unknown_types_say_whether_they_matter(tmp_path: Path) -> None:
    off = layer("Python", "tail", "prob")
    assert (
        "layer 'tail' (Python) is of a type that does not run; no layer to quantize needs it"
        in (warned(PLAIN + off, tmp_path))
    )
    on = PLAIN.replace('bottom: "data"', 'bottom: "odd"') + layer("Invented", "odd", "data")
    text = warned(on, tmp_path)
    assert (
        "layer 'odd' (Invented) is of a type that does not run; conv1, fc behind it stay in float"
        in text
    )


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
    assert "3 output channels are dead, all weights 0: conv1 (3 of 7)" in text
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


def test_dead_channels_of_many_layers_are_one_line(tmp_path: Path) -> None:
    text = INPUT
    for i in range(7):
        text += conv(f"c{i}", f"c{i - 1}" if i else "data", "num_output: 5 kernel_size: 1")
    proto, model = make_model(tmp_path, text)
    for value, what in ((0.0, "all weights 0"), (1e-37, "no weight above 1e-37")):
        weights = {}
        for name, (weight, bias) in caffe_proto.read_weights(model).items():
            changed = weight.copy()
            changed[[1, 3]] = 0
            changed[1, 2] = value if name == "c6" else 0
            weights[name] = (changed, bias)
        changed_model = change(model, proto, weights)
        (warning,) = int8calib.inspect(proto, changed_model).warnings
        assert warning == (
            f"14 output channels are dead, {what}: c0 (2 of 5), c1 (2 of 5), c2 (2 of 5), "
            "c3 (2 of 5), c4 (2 of 5) and 2 more"
        )


def test_layers_one_after_another_that_cannot_run(tmp_path: Path) -> None:
    text = INPUT + layer("Im2col", "a", "data") + layer("Transpose", "b", "a")
    text += conv("c", "b", "num_output: 5 kernel_size: 1")
    first, second = inspect(text, tmp_path).warnings
    assert first.startswith("layer 'a' (Im2col) is of a type that does not run; c behind it stay")
    assert second == (
        "layer 'b' (Transpose) is of a type that does not run; layer 'a' (Im2col) before it does "
        "not run either"
    )


def test_three_dimensions_are_told_and_stay_in_float(tmp_path: Path) -> None:
    """One layer of three dimensions each; what stands before and beside it goes on."""
    sizes = "kernel_size: 3 kernel_size: 3 kernel_size: 2"
    fold = "reshape_param { shape { dim: 0 dim: 1 dim: 3 dim: 23 dim: 19 } }"
    kinds = {
        "Convolution": f"convolution_param {{ num_output: 5 {sizes} }}",
        "Deconvolution": f"convolution_param {{ num_output: 5 {sizes} }}",
        "Pooling": "pooling_param { kernel_size: 2 }",
    }
    for kind, options in kinds.items():
        text = INPUT + conv("c", "data", "num_output: 3 kernel_size: 1")
        text += layer("Reshape", "v", "data", param=fold) + layer(kind, "three", "v", param=options)
        found = inspect(text + conv("d", "three", "num_output: 5 kernel_size: 1"), tmp_path)
        layers = {node.name: node for node in found.layers}
        assert layers["c"].quantized
        assert not layers["three"].quantized
        assert "3-d" in layers["three"].why, kind
        assert layers["d"].why == f"behind layer 'three' ({kind}), which cannot run"
        assert [line for line in found.warnings if "3-d" in line]
        net = int8calib.load_caffe(tmp_path / "net.prototxt", None)
        assert list(net.executor().blocked) == (["three", "d"] if kind == "Convolution" else ["d"])


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
    text = (
        PLAIN + layer("SoftmaxWithLoss", "loss", "fc label") + layer("Data", "labels", "", "label")
    )
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
    "a top too many": INPUT + layer("ReLU", "r", "data").replace('top: "r"', 'top: "r" top: "s"'),
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
    "no top and no kernel": INPUT
    + conv("c", "data", "num_output: 3 kernel_size: 0", relu=False).replace('top: "c"', ""),
    "no top of a window": INPUT
    + conv("c", "data", "num_output: 3 kernel_size: 3", relu=False).replace('top: "c"', ""),
    "no top behind it": data(1, 3, 1, 1)
    + conv("c", "data", "num_output: 3 kernel_size: 3 pad: 1", relu=False).replace('top: "c"', ""),
    "BatchNorm without a top": INPUT
    + conv("c", "data", "num_output: 3 kernel_size: 1", relu=False)
    + layer("BatchNorm", "b", "c").replace('top: "b"', ""),
    "no bottom": INPUT
    + conv("c", "data", "num_output: 3 kernel_size: 1").replace('bottom: "data"', ""),
    "no boxes": INPUT
    + layer(
        "Yolov3DetectionOutput", "y", "data", param="yolov3_detection_output_param { num_box: 0 }"
    ),
    "groups behind an unknown type": INPUT
    + layer("Odd", "o", "data")
    + conv("c", "o", "num_output: 3 kernel_size: 1 group: 2"),
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
    assert "internal error" not in said.err
    assert len([line for line in said.err.splitlines() if "error:" in line]) == (code == 2)
    if code == 0 and name not in ("input of size 0", "no name"):
        assert "warning:" in said.err
    # What inspect warns of, or refuses, the engine refuses with an error of its own.
    model = tmp_path / "net.caffemodel"
    caffe_proto.write_caffemodel(model, caffe_proto.NetParameter(name="none"), {})
    with pytest.raises(int8calib.Int8CalibError):
        int8calib.calibrate(int8calib.load_caffe(proto, model), list)


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
        except int8calib.Int8CalibError:
            refused += 1
    assert inspected + refused == 60
    assert min(inspected, refused) > 0
