"""What `predict` shows of a model with several outputs."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from int8calib.caffe.engine.run import load_caffe
from int8calib.cli.main import main
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
