"""Commands with `--param --bin`: an ncnn model from calibration to INT8, and bad input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from int8calib.cli.main import main
from int8calib.ncnn.model import load_model, save_model
from int8calib.ncnn.quantize import quantize_model, read_rows
from tests.ncnn.execution.models import (
    golden_table,
    real_files,
    real_images,
    sequence_model,
    sequences,
    write_two,
)
from tests.ncnn.runtime import run_blobs

pytest.importorskip("ncnn")

BINS = 2048
AS_NCNN2TABLE = ("--like", "ncnn2table", "--engine", "runtime")


def files(param: Path, weights: Path) -> list[str]:
    return ["--param", str(param), "--bin", str(weights)]


def write_arrays(folder: Path, images: list[np.ndarray]) -> str:
    """A folder of .npy files, one for each image."""
    folder.mkdir()
    for index, image in enumerate(images):
        np.save(folder / f"{index:03}.npy", image)
    return str(folder)


@pytest.fixture
def two(tmp_path: Path) -> list[str]:
    """The options of a small model with the inputs a and b, and of arrays for both."""
    return write_two(tmp_path)


@pytest.mark.parametrize("name", ["pnnx_small", "waifu2x_cunet_noise0"])
def test_from_a_model_to_int8_as_with_ncnns_tools(name: str, shared: Path, tmp_path: Path) -> None:
    arrays = write_arrays(tmp_path / "arrays", real_images(shared, name))
    table, prefix = tmp_path / "net.table", tmp_path / "net"
    pair = real_files(shared, name)
    words = [*files(*pair), "--images", arrays, *AS_NCNN2TABLE, "--quiet"]
    assert main(["calibrate", *words, "--output", str(table), "--ncnn", str(prefix)]) == 0
    golden, found = (
        read_rows(golden_table(shared, name, "raw"), "g"),
        read_rows(table.read_text(), "t"),
    )
    report = {row["name"]: row for row in json.loads(Path(f"{table}.json").read_text())["layers"]}
    assert list(found.weights) == list(golden.weights)
    for key, scales in golden.weights.items():
        np.testing.assert_allclose(found.weights[key], scales, rtol=1e-6)
    for key, (scale,) in golden.bottoms.items():
        bin_width = report[key]["evidence"]["absmax"] / BINS
        assert abs(127 / found.bottoms[key][0] - 127 / scale) <= 2 * bin_width
    float_model, source = load_model(f"{prefix}.param", f"{prefix}.bin"), load_model(*pair)
    assert [layer.name for layer in float_model.layers] == [layer.name for layer in source.layers]
    int8 = load_model(f"{prefix}-int8.param", f"{prefix}-int8.bin").layers
    image = {float_model.layers[0].tops[0]: real_images(shared, name)[0]}
    wanted, found = (
        run_blobs(
            layers, image, [int8[-1].tops[0]], winograd=False, packing=False, folder=tmp_path
        )[0]
        for layers in (quantize_model(source.layers, golden), int8)
    )
    assert np.abs(found - wanted).max() <= 0.02 * np.abs(wanted).max()


def test_pictures_fill_the_input(shared: Path, tmp_path: Path) -> None:
    """Pixels of the golden table's crops, which the option --input-shape names the size of."""
    cv2 = pytest.importorskip("cv2")
    (tmp_path / "crops").mkdir()
    for path in sorted((shared / "golden" / "png227").glob("*.png")):
        cv2.imwrite(str(tmp_path / "crops" / path.name), cv2.imread(str(path))[:64, :64])
    pair = files(*real_files(shared, "pnnx_small"))
    words = ["calibrate", *pair, "--images", str(tmp_path / "crops"), "--channel-order", "rgb"]
    words += ["--norm", str(1 / 255), *AS_NCNN2TABLE, "--quiet", "--output"]
    for index, more in enumerate((["--input-shape", "in0=1,3,64,64"], ["--resize", "none"])):
        assert main([*words, str(tmp_path / f"{index}.table"), *more]) == 0
        found = read_rows((tmp_path / f"{index}.table").read_text(), "t")
        golden = read_rows(golden_table(shared, "pnnx_small", "raw"), "g")
        for key, (scale,) in golden.bottoms.items():
            assert found.bottoms[key][0] == pytest.approx(scale, rel=2 / 128)
    (tmp_path / "0.table.toml").rename(tmp_path / "again.toml")
    again = ["calibrate", "--config", str(tmp_path / "again.toml"), "--quiet"]
    before = (tmp_path / "0.table").read_text()
    assert main(again) == 0
    assert (tmp_path / "0.table").read_text() == before


def test_statistics_keep_the_weight_rows(tmp_path: Path) -> None:
    """Sequences of two lengths, in a folder; the widths of fc's blob tell that they arrived whole."""
    save_model(sequence_model("GRU").layers, tmp_path / "g.param", tmp_path / "g.bin")
    given = [batch["in0"][0] for batch in sequences("GRU", 9, 3)]
    arrays = write_arrays(tmp_path / "x", [*given[:5], *(array[:4] for array in given[5:])])
    words = [*files(tmp_path / "g.param", tmp_path / "g.bin"), "--images", arrays, "--quiet"]
    assert main(["calibrate", *words, "--output", str(tmp_path / "a.table")]) == 0
    assert main(["collect", *words, "--output", str(tmp_path / "s.npz")]) == 0
    stored = [str(tmp_path / "s.npz"), "--quiet", "--output", str(tmp_path / "b.table")]
    assert main(["thresholds", *stored]) == 0
    text = (tmp_path / "a.table").read_text()
    assert text == (tmp_path / "b.table").read_text()
    assert [line.split()[0] for line in text.splitlines()] == [
        *("fc_param_0", "fc", "first_param_0", "first_param_1")
    ]
    report = json.loads((tmp_path / "a.table.json").read_text())
    assert report["meta"]["images"] == 9
    hidden = [
        run_blobs(sequence_model("GRU").layers, {"in0": array}, ["hidden"], folder=tmp_path)[0]
        for array in [*given[:5], *(array[:4] for array in given[5:])]
    ]
    absmax = max(float(np.abs(top).max()) for top in hidden)
    assert report["layers"][0]["evidence"]["absmax"] == pytest.approx(absmax, rel=1e-6)


def test_a_model_of_weight_rows_alone_needs_no_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layers = sequence_model("MultiHeadAttention").layers[:2]
    save_model(layers, tmp_path / "m.param", tmp_path / "m.bin")
    np.save(tmp_path / "x.npy", np.ones((3, 7, 16), np.float32))
    words = [*files(tmp_path / "m.param", tmp_path / "m.bin"), "--output", str(tmp_path / "t")]
    words += ["--engine", "runtime", "--images", str(tmp_path / "x.npy")]
    assert main(["calibrate", *words]) == 0
    shown = capsys.readouterr()
    assert "t: layers: 1 with weight rows only, which depend on no images" in shown.err
    assert shown.out == ""
    assert "warning" not in shown.err
    assert len((tmp_path / "t").read_text().splitlines()) == 4


def test_figures_are_those_of_the_two_models_in_ncnn(
    two: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = str(tmp_path / "t")
    assert main(["calibrate", *two, "--quiet", "--output", table]) == 0
    words = ["evaluate", *two, "--table", table, "--outputs", "u", "w", "--json"]
    assert main([*words, "--runtime"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["images"] == 12
    assert set(found["runtime"]["milliseconds"]) == {"float", table}
    plain = load_model(tmp_path / "two.param", tmp_path / "two.bin").layers
    int8 = quantize_model(plain, read_rows(Path(table).read_text(), "t"))
    images = {name: np.load(tmp_path / f"{name}.npy") for name in "ab"}
    for number, blob in enumerate(("u", "w")):
        signal = noise = 0.0
        for index in range(12):
            image = {name: array[index] for name, array in images.items()}
            wanted, top = (
                run_blobs(layers, image, [blob], folder=tmp_path)[0].astype(float)
                for layers in (plain, int8)
            )
            signal, noise = signal + (wanted**2).sum(), noise + ((wanted - top) ** 2).sum()
        row = found["tables"][0]["blobs"][number]
        assert row["blob"] == blob
        assert row["sqnr"] == pytest.approx(10 * np.log10(signal / noise), abs=0.01)


def test_labels_are_compared_with_the_only_vector(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = real_images(shared, "pnnx_small")[:6]
    arrays = write_arrays(tmp_path / "x", images)
    pair = real_files(shared, "pnnx_small")
    table = tmp_path / "t"
    words = [*files(*pair), "--images", arrays, "--quiet"]
    assert main(["calibrate", *words, "--output", str(table)]) == 0
    layers = load_model(*pair).layers
    best = [
        int(run_blobs(layers, {"in0": image}, ["out0"], folder=tmp_path)[0].argmax())
        for image in images
    ]
    labels = [best[0], *((label + 1) % 10 for label in best[1:3]), *best[3:]]
    rows = [f"{index:03}.npy {label}" for index, label in enumerate(labels)]
    (tmp_path / "labels.txt").write_text("\n".join(rows))
    more = ["--table", str(table), "--labels", str(tmp_path / "labels.txt"), "--topk", "1"]
    capsys.readouterr()
    assert main(["evaluate", *words[:-1], *more, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["float"]["topk"]["1"]["hits"] == 4
    assert found["tables"][0]["agreement"]["total"] == 6


def test_a_network_as_a_table(two: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", *two[:4], "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    shown = {
        layer["name"]: (layer["shapes"], layer["parameters"], layer["macs"], layer["quantized"])
        for layer in found["layers"]
    }
    assert shown["first"] == ([[1, 5, 11, 13]], 5 * 3 * 9 + 5, 5 * 3 * 9 * 11 * 13, True)
    assert shown["left"] == ([[1, 7, 11, 13]], 35, 35 * 11 * 13, True)
    assert shown["right"] == ([[1, 5, 9, 11]], 45, 45 * 9 * 11, True)
    assert shown["other"] == ([[1, 2, 11, 13]], 6, 6 * 11 * 13, True)
    assert shown["relu"] == ([[1, 5, 11, 13]], 0, 0, False)
    assert found["outputs"] == ["u", "v", "w"]
    assert found["complete"]
    assert main(["inspect", *two[:2], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["macs"] == 0


def test_layers_of_a_model_that_a_gpu_leaves_to_the_cpu(
    two: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", *two[:4], "--gpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["on_cpu"] == {}
    assert main(["inspect", *two[:2], "--gpu"]) == 2
    assert "--gpu: give --bin too" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("first_param_0 ", "first_param_0 9 ", "first: 6 weight scales, Convolution needs 5"),
        ("left_param_0 ", "left_param_0 9999 #", "no number"),
        ("\nright ", "\nright 5\n# ", "reads the same blob y"),
        ("other ", "nosuch ", "nosuch has a bottom scale but no weight scales"),
    ],
)
def test_tables_are_checked_against_the_weights(
    two: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    old: str,
    new: str,
    message: str,
) -> None:
    table = tmp_path / "t"
    assert main(["calibrate", *two, "--quiet", "--output", str(table)]) == 0
    assert main(["table", "check", str(table), *two[:4]]) == 0
    assert capsys.readouterr().out == ""
    text = table.read_text()
    assert old in text
    table.write_text(text.replace(old, new, 1))
    assert main(["table", "check", str(table), *two[:4]]) == 1
    assert message in capsys.readouterr().out


def test_scales_of_other_weights_are_found(
    two: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "t"
    assert main(["calibrate", *two, "--quiet", "--output", str(table)]) == 0
    lines = table.read_text().splitlines()
    wrong = [
        " ".join([key, *(f"{3 * float(scale):.9g}" for scale in scales)])
        if key == "left_param_0"
        else line
        for line in lines
        for key, *scales in [line.split()]
    ]
    table.write_text("\n".join(wrong) + "\n")
    assert main(["table", "check", str(table), *two[:2]]) == 0
    assert main(["table", "check", str(table), *two[:4]]) == 1
    assert "is 3 times what the weights give" in capsys.readouterr().out


def test_one_image_at_a_time(
    two: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["calibrate", *two, "--output", str(tmp_path / "t"), "--ncnn", str(tmp_path / "n")]
    assert main([*words, "--batch", "4", "--engine", "runtime"]) == 0
    said = capsys.readouterr().err
    assert "ncnn takes one image at a time; --batch 4 is not used" in said
    assert "weights are rounded to nearest" in said
    assert main([*words, "--engine", "runtime", "--rounding", "nearest"]) == 0
    assert "weights are rounded" not in capsys.readouterr().err


def test_an_optimized_model_is_calibrated_and_written(tmp_path: Path) -> None:
    """BatchNorm is folded into the weights of which the table has the scales."""
    from tests.ncnn.execution.models import batch_norm_model

    model = batch_norm_model()
    save_model(model.layers, tmp_path / "n.param", tmp_path / "n.bin")
    rng = np.random.default_rng(2)
    images = rng.normal(size=(8, 3, 7, 5)).astype(np.float32)
    np.save(tmp_path / "x.npy", images)
    words = ["calibrate", *files(tmp_path / "n.param", tmp_path / "n.bin"), "--quiet"]
    words += ["--images", str(tmp_path / "x.npy"), "--output"]
    assert main([*words, str(tmp_path / "plain"), "--ncnn", str(tmp_path / "p")]) == 0
    assert main([*words, str(tmp_path / "o"), "--ncnn", str(tmp_path / "o"), "--optimize"]) == 0
    kinds = {
        name: [
            layer.type
            for layer in load_model(tmp_path / f"{name}.param", tmp_path / f"{name}.bin").layers
        ]
        for name in ("p", "o", "p-int8", "o-int8")
    }
    for name, found in kinds.items():
        assert ("BatchNorm" in found) == name.startswith("p")
    out = model.layers[-1].tops[0]
    for prefix in ("p", "o"):
        int8 = load_model(tmp_path / f"{prefix}-int8.param", tmp_path / f"{prefix}-int8.bin").layers
        for image in images[:2]:
            (top,) = run_blobs(int8, {"in0": image}, [int8[-1].tops[0]], folder=tmp_path)
            (wanted,) = run_blobs(model.layers, {"in0": image}, [out], folder=tmp_path)
            assert np.abs(top - wanted).max() < 0.05 * np.abs(wanted).max()


@pytest.mark.parametrize(
    ("kind", "multiplied"),
    [
        # Steps, times gates, times inputs and what comes back from the last step, both directions.
        ("LSTM", 7 * 2 * 4 * 12 * (16 + 12)),
        ("GRU", 7 * 2 * 3 * 12 * (16 + 12)),
        ("MultiHeadAttention", 4 * 7 * 16 * 16 + 2 * 7 * 7 * 16),
        ("Embed", 0),
    ],
)
def test_multiplications_over_sequences(
    kind: str, multiplied: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(sequence_model(kind).layers, tmp_path / "m.param", tmp_path / "m.bin")
    shape = "1,7" if kind == "Embed" else "1,7,16"
    words = [*files(tmp_path / "m.param", tmp_path / "m.bin"), "--input-shape", f"in0={shape}"]
    assert main(["inspect", *words, "--json"]) == 0
    layers = {layer["name"]: layer for layer in json.loads(capsys.readouterr().out)["layers"]}
    assert layers["first"]["macs"] == multiplied
    out = 24 if kind in ("LSTM", "GRU") else 16
    assert (layers["fc"]["shapes"], layers["fc"]["macs"]) == ([[1, 7, 11]], 7 * 11 * out)
