"""What `predict` shows of a model with several outputs."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from int8calib.caffe.engine.run import load_caffe
from int8calib.cli.main import main
from int8calib.ncnn.layout import blob_layout
from int8calib.ncnn.model import save_model
from int8calib.ncnn.param import parse_param
from tests.generated import make_model
from tests.network_styles import data, layer


def test_class_scores_among_several_outputs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ncnn")
    text = data(1, 3, 13, 11) + "".join(
        layer("InnerProduct", name, "data", param=f"inner_product_param {{ num_output: {size} }}")
        for name, size in (("box", 4), ("fc", 3), ("turn", 2))
    )
    proto, model = make_model(tmp_path, text + layer("Softmax", "prob", "fc"))
    pair = [str(tmp_path / f"n.{end}") for end in ("param", "bin")]
    words = ["--proto", str(proto), "--model", str(model), "--output", *pair, "--quiet"]
    assert main(["convert", *words]) == 0
    image = np.random.default_rng(3).integers(0, 256, (13, 11, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), image)
    expected = load_caffe(proto, model).forward(
        {"data": image.transpose(2, 0, 1)[None].astype(np.float32)}
    )
    words = ["predict", "--param", pair[0], "--bin", pair[1], "--images", str(tmp_path / "a.png")]
    for blob, more in (("prob", ()), ("turn", ("--scores", "turn"))):
        assert main([*words, "--topk", "1", *more]) == 0
        shown = capsys.readouterr().out.split()[-2:]
        scores = expected[blob].reshape(-1)
        assert int(shown[1]) == scores.argmax()
        assert float(shown[0]) == pytest.approx(scores.max(), rel=3e-3)
    text = Path(pair[0]).read_text().replace("Softmax", "Sigmoid")
    Path(pair[0]).write_text(text)
    assert main(words) == 2
    assert "--scores" in capsys.readouterr().err


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Classifiers of 3 and of 2 classes, one of another input, a detector, and an image."""
    pytest.importorskip("ncnn")
    head = "7767517\n{count} 9\nInput data 0 1 data 0=11 1=13 2=3\n"
    dense = "InnerProduct fc 1 1 data fc 0={classes} 2={weights}\nSoftmax prob 1 1 fc prob\n"
    texts = {
        "three": head.format(count=3) + dense.format(classes=3, weights=3 * 429),
        "two": head.format(count=3) + dense.format(classes=2, weights=2 * 429),
        "other": head.format(count=3).replace("0=11", "0=33").replace("2=3", "2=1")
        + dense.format(classes=3, weights=3 * 429),
        "scores": head.format(count=2) + "InnerProduct fc 1 1 data fc 0=3 2=1287\n",
        "box": head.format(count=3)
        + "Split s 1 3 data a b c\nDetectionOutput out 3 1 a b c out 0=3\n",
    }
    for name, text in texts.items():
        layers = parse_param(text, name)
        rng = np.random.default_rng(5)
        filled = [
            replace(
                layer,
                weights=tuple(rng.normal(size=b.size).astype("f4") for b in blob_layout(layer)),
            )
            for layer in layers
        ]
        save_model(filled, tmp_path / f"{name}.param", tmp_path / f"{name}.bin")
    cv2.imwrite(str(tmp_path / "a.png"), np.full((13, 11, 3), 7, np.uint8))
    return tmp_path


def predict(models: Path, *names: str) -> list[str]:
    files = [[str(models / f"{name}{end}") for name in names] for end in (".param", ".bin")]
    return ["predict", "--param", *files[0], "--bin", *files[1], "--images", str(models / "a.png")]


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (("three", "other"), "their inputs are data 1x13x33 and data 3x13x11"),
        (("three", "scores"), "the first has no blob 'prob', which holds class scores"),
        (("three", "two"), "they have 3 and 2 classes"),
        (("three", "box"), "box.param gives boxes"),
        (("box", "three"), "box.param gives boxes"),
    ],
)
def test_two_models_that_are_not_of_one_network_are_refused(
    pair: tuple[str, str], message: str, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(predict(models, *pair)) == 2
    told = capsys.readouterr()
    assert "cannot be compared: " in told.err
    assert message in told.err
    assert told.out == ""


def test_scores_of_a_detector_are_refused(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*predict(models, "box"), "--scores", "out"]) == 2
    assert "--scores out: the model gives boxes; leave it out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("box", ("--topk", "3"), "--topk 3: the model gives boxes"),
        ("three", ("--min-score", "0.5"), "--min-score 0.5: the model gives no boxes"),
        ("three", ("--input-shape", "image=1,3,5,5"), "--input-shape: is for images that fill"),
        ("three", ("--batch", "2"), "unrecognized arguments: --batch"),
    ],
)
def test_options_without_effect_are_refused(
    name: str,
    more: tuple[str, ...],
    message: str,
    models: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit, match="2"):
        sys.exit(main([*predict(models, name), *more]))
    assert message in capsys.readouterr().err


def test_a_score_is_a_share(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*predict(models, "box"), "--min-score", "7"]) == 2
    assert "--min-score 7: expected a score, 0 to 1" in capsys.readouterr().err


@pytest.mark.parametrize("count", [2, 3, 4])
def test_names_of_other_classes_are_warned_of(
    count: int, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = models / "names.txt"
    names.write_text("".join(f"name{i}\n" for i in range(count)))
    assert main([*predict(models, "three"), "--names", str(names)]) == 0
    told = capsys.readouterr()
    warned = f"holds {count} names, and the model has 3 classes" in told.err
    assert warned == (count != 3)
    assert "name0" in told.out
