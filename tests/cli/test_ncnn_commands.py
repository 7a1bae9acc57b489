"""The commands `convert` and `quantize`: from a Caffe model to an INT8 model that runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from int8calib.caffe.engine.run import load_caffe
from int8calib.cli.main import main, run_command
from int8calib.demo import CAFFEMODEL, MEAN, NORM, PROTOTXT, draw
from int8calib.errors import ModelError
from int8calib.images import Preprocess, open_source
from int8calib.ncnn.model import load_model
from int8calib.simulation.build import simulate
from int8calib.table import read_table
from tests.generated import make_model
from tests.ncnn.runtime import run_blobs
from tests.network_styles import conv, data, layer, pool
from tests.tuning_nets import demo_loader

MODEL = ("--proto", str(PROTOTXT), "--model", str(CAFFEMODEL))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the demo's table, its float and its INT8 model, all by commands."""
    folder = tmp_path_factory.mktemp("ncnn")
    draw.write_images(folder / "images", 24, 5)
    pixels = ("--mean", *map(str, MEAN), "--norm", str(NORM), "--quiet")
    table = str(folder / "net.table")
    commands = (
        ("calibrate", *MODEL, "--images", str(folder / "images"), *pixels, "--output", table),
        ("convert", *MODEL, "--output", str(folder / "net.param"), str(folder / "net.bin")),
        (
            *("quantize", "--param", str(folder / "net.param"), "--bin", str(folder / "net.bin")),
            *("--table", table, "--output", str(folder / "i.param"), str(folder / "i.bin")),
        ),
    )
    for words in commands:
        assert main(list(words)) == 0
    return folder


def test_the_models_run_as_the_engine_and_the_simulation(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("ncnn")
    net = load_caffe(PROTOTXT, CAFFEMODEL)
    int8 = simulate(net, read_table(folder / "net.table"))
    out = net.graph.outputs[0].name
    for batch in (each.batch for each in demo_loader(6, seed=31)):
        image = {name: array[0] for name, array in batch.items()}
        for name, expected, most in (("net", net, 1e-4), ("i", int8, 2e-2)):
            layers = load_model(folder / f"{name}.param", folder / f"{name}.bin").layers
            # Depthwise layers are scaled by an approximate reciprocal where packing is on.
            (found,) = run_blobs(layers, image, [out], packing=False, folder=tmp_path)
            wanted = expected.forward(batch)[out].ravel()
            assert np.abs(found.ravel() - wanted).max() <= most
            assert found.argmax() == wanted.argmax()


def test_calibrate_writes_the_same_models_in_one_go(folder: Path, tmp_path: Path) -> None:
    words = [*MODEL, "--images", str(folder / "images"), "--mean", *map(str, MEAN), "--quiet"]
    words += ["--norm", str(NORM), "--output", str(tmp_path / "t"), "--ncnn", str(tmp_path / "n")]
    assert main(["calibrate", *words, "--rounding", "nearest"]) == 0
    for mine, other in (("n", "net"), ("n-int8", "i")):
        for end in ("param", "bin"):
            made, expected = tmp_path / f"{mine}.{end}", folder / f"{other}.{end}"
            assert made.read_bytes() == expected.read_bytes()


@pytest.mark.parametrize(
    ("more", "share"), [(["--no-offsets"], 0.9), ([], 0.5), (["--equalize"], 0.4)]
)
def test_calibrate_rounds_weights_so_that_outputs_err_less(
    more: list[str], share: float, folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("ncnn")
    words = [*MODEL, "--images", str(folder / "images"), "--mean", *map(str, MEAN), "--quiet"]
    words += ["--norm", str(NORM), "--output", str(tmp_path / "t"), "--ncnn", str(tmp_path / "n")]
    assert main(["calibrate", *words, *more]) == 0
    # The table and the float model are those of plain rounding.
    assert (tmp_path / "t").read_text() == (folder / "net.table").read_text()
    for end in ("param", "bin"):
        assert (tmp_path / f"n.{end}").read_bytes() == (folder / f"net.{end}").read_bytes()
    plain = load_model(folder / "i.param", folder / "i.bin").layers
    found = load_model(tmp_path / "n-int8.param", tmp_path / "n-int8.bin").layers
    for a, b in zip(plain, found, strict=True):
        assert (a.type, a.name) == (b.type, b.name)
        if more == ["--no-offsets"] and a.integer(8):
            assert a.params == b.params
            moved = np.abs(a.weights[0].astype(int) - b.weights[0].astype(int))
            assert moved.sum() > 0
            assert (moved == 0).mean() > 0.5
            np.testing.assert_array_equal(a.weights[-1], b.weights[-1])
    net = load_caffe(PROTOTXT, CAFFEMODEL)
    out = net.graph.producer(net.graph.outputs[0]).bottoms[0].name
    names = [layer.name for layer in net.graph.layers]
    blob = next(layer.tops[0] for layer in found if layer.name == names[-2])
    errors = {"plain": 0.0, "found": 0.0}
    for each in demo_loader(40, seed=31):
        expected = net.forward(each.batch, outputs=[out])[out].ravel()
        image = {name: array[0] for name, array in each.batch.items()}
        for name, layers in (("plain", plain), ("found", found)):
            (top,) = run_blobs(layers, image, [blob], packing=False, folder=tmp_path)
            error = (top.ravel() - top.mean()) - (expected - expected.mean())
            errors[name] += float(np.square(error).sum())
    assert errors["found"] < share * errors["plain"]


def test_groups_that_ncnn_computes_wrongly_stay_in_float(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ncnn")
    grouped = conv("g", "c", "num_output: 16 group: 2 kernel_size: 3")
    text = data(1, 3, 19, 17) + conv("c", "data", "num_output: 6 kernel_size: 3") + grouped
    text += pool("p", "g", "pool: AVE global_pooling: true") + conv(
        "d", "p", "num_output: 5 kernel_size: 1"
    )
    make_model(tmp_path, text)
    image = np.random.default_rng(3).normal(0, 60, (7, 3, 19, 17)).astype(np.float32)
    np.save(tmp_path / "images.npy", image)
    words = ["--proto", str(tmp_path / "net.prototxt"), "--model", str(tmp_path / "net.caffemodel")]
    words += ["--images", str(tmp_path / "images.npy"), "--output", str(tmp_path / "t"), "--quiet"]
    assert main(["calibrate", *words, "--ncnn", str(tmp_path / "n")]) == 0
    layers = load_model(tmp_path / "n-int8.param", tmp_path / "n-int8.bin").layers
    assert {layer.name: layer.integer(8) for layer in layers if layer.name in "cgd"} == {
        **{"c": 2, "g": 0, "d": 2}
    }
    (found,) = run_blobs(layers, {"data": image[0]}, [layers[-1].tops[0]], folder=tmp_path)
    net = load_caffe(tmp_path / "net.prototxt", tmp_path / "net.caffemodel")
    (expected,) = net.forward({"data": image[:1]}).values()
    assert np.abs(found.ravel() - expected.ravel()).max() < 0.05 * np.abs(expected).max()
    files = ["--param", str(tmp_path / "n.param"), "--bin", str(tmp_path / "n.bin")]
    made = ["--output", str(tmp_path / "i.param"), str(tmp_path / "i.bin")]
    for more, warned in ([], False), (["--grouped", "int8"], True):
        assert main(["calibrate", *words, *more]) == 0
        capsys.readouterr()
        assert main(["quantize", *files, "--table", str(tmp_path / "t"), *made]) == 0
        assert ("g: ncnn on x86 returns uninit" in capsys.readouterr().err) == warned
    assert main(["table", "check", str(tmp_path / "t"), *files[:2]]) == 0
    assert "g: had better stay in float" in capsys.readouterr().out


def test_evaluation_in_the_runtime_is_that_of_the_simulation(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ncnn")
    words = [*MODEL, "--images", str(folder / "images"), "--mean", *map(str, MEAN)]
    words += ["--norm", str(NORM), "--table", str(folder / "net.table"), "--json"]
    results = []
    for more in ([], ["--runtime"]):
        assert main(["evaluate", *words, *more]) == 0
        results.append(json.loads(capsys.readouterr().out))
    times = results[1].pop("runtime")
    assert times["threads"] == 1
    assert all(value > 0 for value in times["milliseconds"].values())
    simulated, real = (result["tables"][0] for result in results)
    assert abs(simulated["agreement"]["hits"] - real["agreement"]["hits"]) <= 1
    pair = [result["blobs"][0]["sqnr"] for result in (simulated, real)]
    assert pair[0] == pytest.approx(pair[1], abs=1.5)


def test_predictions_are_those_of_the_engine(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ncnn")
    names = [f"class{i}" for i in range(10)]
    (tmp_path / "names.txt").write_text("\n".join(names))
    words = ["--param", *(str(folder / f"{name}.param") for name in ("net", "i"))]
    words += ["--bin", *(str(folder / f"{name}.bin") for name in ("net", "i"))]
    words += ["--images", str(folder / "images"), "--mean", *map(str, MEAN), "--norm", str(NORM)]
    words += ["--names", str(tmp_path / "names.txt"), "--limit", "4", "--topk", "3"]
    assert main(["predict", *words]) == 0
    shown = capsys.readouterr().out
    net = load_caffe(PROTOTXT, CAFFEMODEL)
    ((name, shape),) = net.input_shapes.items()
    preprocess = Preprocess(shape[1:], mean=MEAN, norm=NORM)
    source = open_source(folder / "images", limit=4)
    for index in range(4):
        (scores,) = net.forward({name: preprocess(source.load(index))[None]}).values()
        best = int(scores.argmax())
        found = [float(text) for text in re.findall(rf"([\d.]+) {names[best]}\b", shown)]
        assert min(abs(score - scores.max()) for score in found) < 2e-4
    assert shown.count("class") == 4 * 3 * 2


def test_detections_are_drawn(shared: Path, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    pytest.importorskip("ncnn")
    model = shared / "models" / "yufacedet_v1"
    files = [str(tmp_path / f"f.{end}") for end in ("param", "bin")]
    given = ("--model", str(next(model.glob("*.caffemodel"))), "--quiet")
    words = ["convert", "--proto", str(model / "alt_newer.prototxt"), *given, "--output", *files]
    assert main(words) == 0
    words = ["predict", "--param", files[0], "--bin", files[1], "--limit", "2"]
    words += ["--images", str(shared / "images" / "faces"), "--output", str(tmp_path / "drawn")]
    assert main([*words, "--mean", "104", "117", "123"]) == 0
    assert "score" in capsys.readouterr().out
    drawn = sorted((tmp_path / "drawn").iterdir())
    originals = open_source(shared / "images" / "faces", limit=2)
    assert len(drawn) == 2
    for index, path in enumerate(drawn):
        picture, original = cv2.imread(str(path)), originals.load(index)
        assert picture.shape[1] == original.shape[1]
        below = picture[-original.shape[0] :]
        assert 0 < (below != original).any(axis=2).mean() < 0.2


def test_most_layers_are_int8(folder: Path) -> None:
    layers = load_model(folder / "i.param", folder / "i.bin").layers
    int8 = [layer.name for layer in layers if layer.params.get(8)]
    assert int8 == [row.name for row in read_table(folder / "net.table").layers]
    small, large = ((folder / f"{name}.bin").stat().st_size for name in ("i", "net"))
    assert small < 0.4 * large


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--param": "{folder}/nosuch.param"}, "nosuch.param: cannot be read"),
        ({"--bin": "{folder}/net.param"}, "the file ends within weights"),
        ({"--param": "{folder}/net.bin"}, "no text"),
        ({"--table": "{folder}/net.param"}, "is an ncnn structure file"),
        ({"--param": "{folder}/i.param", "--bin": "{folder}/i.bin"}, "is INT8 already"),
    ],
)
def test_bad_input_leaves_no_file(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, str],
    message: str,
) -> None:
    words = {
        "--param": "{folder}/net.param",
        "--bin": "{folder}/net.bin",
        "--table": "{folder}/net.table",
    }
    words |= changes
    given = [part.format(folder=folder) for pair in words.items() for part in pair]
    output = [str(tmp_path / "a.param"), str(tmp_path / "a.bin")]
    assert main(["quantize", *given, "--output", *output]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert message in error
    assert list(tmp_path.iterdir()) == []


def test_both_files_or_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.bin").mkdir()
    output = [str(tmp_path / "a.param"), str(tmp_path / "a.bin")]
    assert main(["convert", *MODEL, "--output", *output]) == 2
    assert "folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_half_precision_is_half_the_size(tmp_path: Path) -> None:
    sizes = []
    for more in ((), ("--fp16",), ("--no-optimize", "--fp16")):
        output = [str(tmp_path / "a.param"), str(tmp_path / "a.bin")]
        assert main(["convert", *MODEL, *more, "--quiet", "--output", *output]) == 0
        sizes.append((tmp_path / "a.bin").stat().st_size)
    assert sizes[1] < 0.55 * sizes[0]
    assert sizes[2] < 0.6 * sizes[0]


STEM_ALONE = conv("conv1", "data", "num_output: 7 kernel_size: 3")
STEM = STEM_ALONE + conv("conv2", "conv1", "num_output: 5 kernel_size: 3 stride: 2", relu=False)
TAILS = {
    "type": layer("Yolov9Output", "end", "conv2"),
    "option": pool("end", "conv2", "pool: WILD kernel_size: 2"),
    "shape": layer("Eltwise", "end", "conv2 conv1"),
}


@pytest.mark.parametrize("command", ["convert", "calibrate"])
@pytest.mark.parametrize("tail", TAILS)
def test_a_tail_that_cannot_run_is_left_out(
    tail: str, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, model = make_model(tmp_path, data(1, 3, 17, 13) + STEM, name="plain")
    proto = plain.with_name("net.prototxt")
    proto.write_text(plain.read_text(encoding="utf-8") + TAILS[tail], encoding="utf-8")
    image = np.random.default_rng(7).normal(0, 60, (3, 17, 13)).astype(np.float32)
    np.save(tmp_path / "images.npy", image[None])
    words = [command, "--proto", str(proto), "--model", str(model), "--output"]
    if command == "convert":
        words += [str(tmp_path / "n.param"), str(tmp_path / "n.bin")]
    else:
        words += [str(tmp_path / "t"), "--ncnn", str(tmp_path / "n")]
        words += ["--images", str(tmp_path / "images.npy")]
    assert main(words) == 0
    assert "output end is left out: layer 'end'" in capsys.readouterr().err
    _expect_opencvs(tmp_path, plain, model, image, "conv2")


def test_outputs_to_convert_for(tmp_path: Path) -> None:
    plain, model = make_model(tmp_path, data(1, 3, 17, 13) + STEM, name="plain")
    proto = plain.with_name("net.prototxt")
    behind = layer("LSTM", "lstm", "conv1") + conv("conv2", "lstm", "num_output: 5 kernel_size: 3")
    proto.write_text(plain.read_text("utf-8").replace(STEM, STEM_ALONE + behind), "utf-8")
    image = np.random.default_rng(8).normal(0, 60, (3, 17, 13)).astype(np.float32)
    words = ["convert", "--proto", str(proto), "--model", str(model), "--output"]
    words += [str(tmp_path / "n.param"), str(tmp_path / "n.bin"), "--no-optimize"]
    with pytest.raises(ModelError, match=r"layer 'lstm' .*'conv2' .*is behind it.*--outputs BLOB"):
        run_command(words)
    assert main([*words, "--outputs", "conv1"]) == 0
    _expect_opencvs(tmp_path, plain, model, image, "conv1")


def _expect_opencvs(folder: Path, proto: Path, model: Path, image: np.ndarray, blob: str) -> None:
    """Compare the last blob of the written model, run by ncnn, with OpenCV's `blob`."""
    pytest.importorskip("ncnn")
    layers = load_model(folder / "n.param", folder / "n.bin").layers
    out = layers[-1].tops[0]
    (found,) = run_blobs(layers, {"data": image}, [out], packing=False, folder=folder)
    net = cv2.dnn.readNetFromCaffe(str(proto), str(model))
    net.setInput(image[None])
    name = f"{blob}/relu" if blob == "conv1" else blob
    wanted = net.forward(name)
    np.testing.assert_allclose(found.ravel(), wanted.ravel(), atol=1e-3, rtol=1e-4)
