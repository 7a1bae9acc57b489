"""An ncnn model as an executor: ncnn2table's golden tables, the runtime's blobs, bad input."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import int8calib
from int8calib import NcnnModel, NcnnNet, Options, WeightOptions
from int8calib.calibration.selection import grouped_in_float
from int8calib.errors import ModelError, ModelFileError, OptionError, ShapeError
from int8calib.ncnn.model import save_model
from int8calib.ncnn.param import NcnnLayer
from int8calib.ncnn.quantize import read_rows
from int8calib.ncnn.runtime import RuntimeNet
from tests.ncnn.execution.models import (
    REAL,
    golden_table,
    real_files,
    real_images,
    sequence_model,
    sequences,
    two_inputs,
)
from tests.ncnn.runtime import run_blobs

pytest.importorskip("ncnn")

BINS = 2048
SEQUENCE = ("Embed", "MultiHeadAttention", "RNN", "LSTM", "GRU")
AS_NCNN2TABLE = Options(
    method="kl",
    input_method="same",
    grouped="int8",
    weights=WeightOptions(winograd="6bit"),
)


def images(count: int = 12) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(4)
    return [
        {name: rng.normal(size=(1, 3, 11, 13)).astype(np.float32) for name in "ab"}
        for _ in range(count)
    ]


@pytest.mark.parametrize("kind", ["raw", "opt"])
@pytest.mark.parametrize("name", REAL)
def test_tables_are_those_of_ncnn2table(name: str, kind: str, shared: Path) -> None:
    golden = read_rows(golden_table(shared, name, kind), "golden")
    net = int8calib.load_ncnn(*real_files(shared, name), optimize=kind == "opt", engine="runtime")
    (blob,) = net.inputs
    batches = [{blob: image[None]} for image in real_images(shared, name)]
    table = int8calib.calibrate(net, lambda: batches, AS_NCNN2TABLE).table
    assert [layer.name for layer in table.layers] == list(golden.bottoms)
    assert not table.weight_rows
    for layer in table.layers:
        assert layer.evidence is not None
        expected = golden.weights[f"{layer.name}_param_0"]
        np.testing.assert_allclose(layer.weight_scales, expected, rtol=1e-6)
        threshold = 127 / float(golden.bottoms[layer.name][0])
        assert abs(layer.evidence.threshold - threshold) <= 2 * layer.evidence.absmax / BINS


def test_layers_are_described_as_ncnn_quantizes_them() -> None:
    net = NcnnNet(two_inputs())
    described = {
        layer.name: (layer.blob, layer.rows, layer.group, layer.winograd, layer.reads_input)
        for layer in net.layers
    }
    assert described == {
        "first": ("a", 5, 1, True, True),
        "left": ("y", 7, 1, False, False),
        "right": ("y", 5, 5, True, False),
        "other": ("b", 2, 1, False, True),
    }
    ends = {layer.name: (layer.first, layer.last) for layer in net.layers}
    assert ends["first"] == (True, False)
    assert ends["left"] == ends["right"] == (False, True)
    assert ends["other"] == (True, True)
    assert net.needed_inputs(["u"]) == ("a",)
    assert net.needed_inputs(["w", "v"]) == ("a", "b")
    assert set(net.blobs) == {"a", "b", "x", "y", "u", "v", "w"}


def test_blobs_are_those_of_ncnn_for_each_image_and_in_any_order(tmp_path: Path) -> None:
    model = two_inputs()
    net = NcnnNet(model)
    first, second = images(2)
    batch = {name: np.concatenate([first[name], second[name]]) for name in "ab"}
    names = ["w", "v", "x", "a", "u", "y"]
    tops = net.run(batch, names)
    assert list(tops) == names
    for index, each in enumerate((first, second)):
        image = {name: array[0] for name, array in each.items()}
        for name in names:
            (expected,) = run_blobs(model.layers, image, [name], folder=tmp_path)
            np.testing.assert_array_equal(tops[name][index], expected)
    runner = NcnnNet(model).runner(names)  # the first time sizes are checked, layer by layer
    for index, each in ((0, first), (0, first), (1, second)):
        heard: dict[str, np.ndarray] = {}
        runner(each, lambda blob, top, heard=heard: heard.__setitem__(blob, top.copy()))
        assert list(heard) == ["a", "x", "y", "u", "v", "w"]
        assert all(np.array_equal(heard[name][0], tops[name][index]) for name in names)


def test_tables_depend_neither_on_batches_nor_on_threads() -> None:
    model, given = two_inputs(), images()
    together = [
        {name: np.concatenate([each[name] for each in given[at : at + 5]]) for name in "ab"}
        for at in range(0, 12, 5)
    ]
    tables = [
        int8calib.calibrate(NcnnNet(model, threads=threads), lambda b=batches: b).table
        for batches, threads in ((given, 1), (together, 2))
    ]
    for one, other in zip(tables[0].layers, tables[1].layers, strict=True):
        assert one.bottom_scale == other.bottom_scale
        np.testing.assert_array_equal(one.weight_scales, other.weight_scales)
    assert tables[0]["left"].bottom_scale == tables[0]["right"].bottom_scale


@pytest.mark.parametrize("kind", SEQUENCE)
def test_weight_rows_are_absmax_scales_and_the_int8_model_is_near(kind: str) -> None:
    model = sequence_model(kind)
    net = NcnnNet(model)
    given = sequences(kind, 20, seed=5)
    table = int8calib.calibrate(net, lambda: given).table
    parts = [model.layers[1].weights[2 * i] for i in range(len(table.weight_rows))]
    for weights, (key, scales) in zip(parts, table.weight_rows.items(), strict=True):
        assert key.startswith("first_param_")
        rows = np.asarray(weights).reshape(len(scales), -1)
        expected = [127 / max(abs(float(value)) for value in row) for row in rows]
        np.testing.assert_allclose(scales, expected, rtol=1e-6)
    assert len(table.weight_rows) == {"Embed": 1, "MultiHeadAttention": 4}.get(kind, 2)
    int8 = net.quantized(table)
    assert int8.layers[1].weights[0].dtype == np.int8
    plain, quantized = RuntimeNet(model), RuntimeNet(int8)
    signal = noise = 0.0
    for batch in sequences(kind, 5, seed=6):
        image = {"in0": batch["in0"][0]}
        wanted, found = (each.run(image, ["out0"])["out0"] for each in (plain, quantized))
        signal, noise = signal + (wanted**2).sum(), noise + ((wanted - found) ** 2).sum()
    assert 30 < 10 * np.log10(signal / noise) < 60


def test_a_model_of_such_layers_alone_is_calibrated_too() -> None:
    model = sequence_model("LSTM")
    net = NcnnNet(replace(model, layers=model.layers[:2]))
    given = sequences("LSTM", 3, seed=7)
    done = int8calib.calibrate(net, lambda: given)
    assert not done.table.layers
    assert set(done.table.weight_rows) == {"first_param_0", "first_param_1"}
    assert net.quantized(done.table).layers[1].integer(8) == 2


@pytest.mark.parametrize(
    ("options", "quantized"),
    [
        ({}, {"fc", "first"}),
        ({"exclude": ("first",)}, {"fc"}),
        ({"exclude": ("f?",)}, {"first"}),
        ({"only": ("fi*",)}, {"first"}),
        ({"only": ("fc",)}, {"fc"}),
    ],
)
def test_patterns_mean_layers_of_weight_rows_too(
    options: dict[str, tuple[str, ...]], quantized: set[str]
) -> None:
    net = NcnnNet(sequence_model("GRU"))
    given = sequences("GRU", 3, seed=7)
    table = int8calib.calibrate(net, lambda: given, Options(**options)).table  # type: ignore[arg-type]
    int8 = net.quantized(table).layers
    assert {layer.name for layer in int8 if layer.integer(8)} == quantized
    with pytest.raises(ModelFileError, match="is INT8 already"):
        NcnnNet(replace(net.model, layers=int8)).quantized(table)


def test_layers_that_no_pattern_leaves_are_an_error() -> None:
    given = sequences("LSTM", 3, seed=7)
    nothing = Options(exclude=("fc", "first"))
    with pytest.raises(OptionError, match="all 2 layers that could be INT8 are left out"):
        int8calib.calibrate(NcnnNet(sequence_model("LSTM")), lambda: given, nothing)


def test_words_of_an_embed_are_whole_numbers() -> None:
    model = sequence_model("Embed")
    (batch,) = sequences("Embed", 1, seed=8)
    top = NcnnNet(model).run(batch, ["hidden"])["hidden"]
    rows = np.asarray(model.layers[1].weights[0]).reshape(37, 16)
    np.testing.assert_array_equal(top[0], rows[batch["in0"][0]])


def test_the_model_of_a_table_is_that_of_ncnn2int8(shared: Path, tmp_path: Path) -> None:
    """Byte for byte: the model that `quantize` makes of the golden table, which is tested there."""
    name = "waifu2x_cunet_noise0"
    net = int8calib.load_ncnn(*real_files(shared, name), engine="runtime")
    (tmp_path / "golden.table").write_text(golden_table(shared, name, "raw"))
    table = int8calib.read_table(tmp_path / "golden.table")
    net.write_int8(table, tmp_path / "i.param", tmp_path / "i.bin")
    again = int8calib.load_ncnn(tmp_path / "i.param", tmp_path / "i.bin", engine="runtime")
    image = real_images(shared, name)[0]
    (out,) = net.outputs
    wanted, found = (each.run({"Input1": image[None]}, [out])[out] for each in (net, again))
    assert 0 < np.abs(wanted - found).max() < 0.1 * np.abs(wanted).max()
    with pytest.raises(ModelFileError, match="is INT8 already"):
        int8calib.calibrate(again, lambda: [{"Input1": image[None]}])


def test_input_shapes_come_from_the_file_or_from_what_reads_them(shared: Path) -> None:
    shapes = {
        name: int8calib.load_ncnn(*real_files(shared, name), engine="runtime").input_shapes
        for name in REAL
    }
    assert shapes == {
        "pnnx_small": {"in0": (1, 3, 0, 0)},
        "realesr-animevideov3-x2": {"data": (1, 3, 0, 0)},
        "waifu2x_cunet_noise0": {"Input1": (1, 3, 312, 312)},
    }
    sequence = {kind: NcnnNet(sequence_model(kind)).input_shapes["in0"] for kind in SEQUENCE}
    assert sequence.pop("Embed") == (1, 0)
    assert set(sequence.values()) == {(1, 0, 16)}
    net = NcnnNet(two_inputs(), input_shapes={"b": (1, 3, 5, 7)})
    assert net.input_shapes == {"a": (1, 3, 11, 13), "b": (1, 3, 5, 7)}
    with pytest.raises(OptionError, match=r"two.param: 'c' is no input; the inputs are a, b"):
        NcnnNet(two_inputs(), input_shapes={"c": (1, 3, 5, 7)})


def test_grouped_convolutions_that_ncnn_garbles_stay_in_float(shared: Path) -> None:
    net = int8calib.load_ncnn(*real_files(shared, "pnnx_small"), engine="runtime")
    assert list(grouped_in_float(net.layers, Options())) == ["convdw_26"]
    assert not grouped_in_float(net.layers, Options(grouped="int8"))
    assert not grouped_in_float(NcnnNet(two_inputs()).layers, Options())


def test_fingerprints_tell_models_apart() -> None:
    model = two_inputs()
    other = list(model.layers)
    weights = other[2].weights
    other[2] = replace(other[2], weights=(weights[0] * 2, *weights[1:]))
    renamed = [*model.layers[:-1], replace(model.layers[-1], name="renamed")]
    prints = {
        NcnnNet(replace(model, layers=tuple(layers))).fingerprint
        for layers in (model.layers, list(model.layers), other, renamed)
    }
    assert len(prints) == 3


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """The two files of a small model."""
    pair = tmp_path / "two.param", tmp_path / "two.bin"
    save_model(two_inputs().layers, *pair)
    return pair


def test_a_weight_file_of_another_model_is_refused(files: tuple[Path, Path]) -> None:
    param, weights = files
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-8])
    with pytest.raises(ModelFileError, match=r"two.bin: layer 'other': the file ends within"):
        int8calib.load_ncnn(param, weights, engine="runtime")
    noise = np.random.default_rng(9).normal(0, 0.3, 5000).astype(np.float32).tobytes()
    weights.write_bytes(whole[:4] + noise)
    with pytest.raises(ModelFileError, match=r"two.bin: layer .* give the .bin of this .param"):
        int8calib.load_ncnn(param, weights, engine="runtime")
    values = np.frombuffer(whole, np.float32).copy()
    values[7] = np.nan
    weights.write_bytes(values.tobytes())
    with pytest.raises(ModelFileError, match=r"two.bin: layer 'first' has weights that are NaN"):
        int8calib.load_ncnn(param, weights, engine="runtime")


def test_the_package_that_is_missing_is_named(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ncnn", None)
    with pytest.raises(
        OptionError, match=r"ncnn is not installed; pip install 'int8calib\[ncnn\]'"
    ):
        int8calib.load_ncnn(*files, engine="runtime")


def test_what_cannot_run_is_told_in_one_line(files: tuple[Path, Path]) -> None:
    with pytest.raises(OptionError, match="engine 'gpu'; expected one of"):
        int8calib.load_ncnn(*files, engine="gpu")  # type: ignore[arg-type]
    net = int8calib.load_ncnn(*files, engine="runtime")
    (batch,) = images(1)
    with pytest.raises(ModelError, match=r"two.param: blob 'nosuch' is not in the model"):
        net.run(batch, ["nosuch"])
    with pytest.raises(ModelError, match=r"two.param: input 'b' is not given"):
        net.run({"a": batch["a"]}, ["w"])
    with pytest.raises(ModelError, match=r"two.param: the model has no input 'c'"):
        net.run({"c": batch["a"]}, ["x"])
    with pytest.raises(int8calib.ImageError, match="input 'b' is not given; the batch has a"):
        int8calib.calibrate(net, lambda: [{"a": batch["a"]}])
    unknown = files[0].read_text().replace("ReLU", "Nosuch")
    files[0].write_text(unknown)
    with pytest.raises(ModelError, match=r"two.param: layer .* is of type Nosuch, which ncnn"):
        int8calib.load_ncnn(*files, engine="runtime")


def test_images_whose_blobs_differ_in_shape_run_one_at_a_time() -> None:
    layers = (
        NcnnLayer("Input", "a", (), ("a",)),
        NcnnLayer("Reshape", "r", ("a",), ("x",), {0: -1}),
    )
    net = NcnnNet(NcnnModel(layers, "net.param"))
    top = net.run({"a": np.ones((3, 2, 5), np.float32)}, ["x"])["x"]
    assert top.shape == (3, 10)
    with pytest.raises(ShapeError, match="another shape in each image"):
        net._stacked("x", [np.zeros(3, np.float32), np.zeros(4, np.float32)])
