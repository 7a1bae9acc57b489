"""Requirements on a table: from the weights alone, whether or not the network can run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import caffe_proto
from int8calib.caffe.network.load import load_graph, load_unsized
from int8calib.caffe.requirements import requirements_from_graph
from int8calib.cli.main import main
from int8calib.errors import WeightsError
from tests.network_styles import STYLES, conv, conv_bn, data, layer

SIZED = data(1, 3, 23, 19)
OPEN = {
    "no size": layer("Data", "data", ""),
    "free width": layer(
        "Input", "data", "", param="input_param { shape { dim: 1 dim: 3 dim: 23 dim: -1 } }"
    ),
    "python data": layer("Python", "data", ""),
}


def save(folder: Path, text: str, weights: dict[str, tuple[np.ndarray, ...]]) -> tuple[Path, Path]:
    proto, model = folder / "net.prototxt", folder / "net.caffemodel"
    proto.write_text(text, encoding="utf-8")
    caffe_proto.write_caffemodel(model, caffe_proto.read_prototxt(proto), weights)
    return proto, model


def random_weights(**shapes: list[tuple[int, ...]]) -> dict[str, tuple[np.ndarray, ...]]:
    rng = np.random.default_rng(11)
    return {
        name: tuple(rng.uniform(0.1, 1, shape).astype(np.float32) for shape in blobs)
        for name, blobs in shapes.items()
    }


@pytest.mark.parametrize("front", OPEN)
def test_scales_need_no_size(front: str, tmp_path: Path) -> None:
    behind = conv_bn("c1", "data", "num_output: 7 kernel_size: 3") + layer(
        "InnerProduct", "fc", "c1", param="inner_product_param { num_output: 5 }"
    )
    weights = random_weights(
        c1=[(7, 3, 3, 3)], fc=[(5, 7 * 21 * 17), (5,)],
        **{"c1/bn": [(7,), (7,), (1,)], "c1/scale": [(7,), (7,)]},
    )  # fmt: skip
    proto, model = save(tmp_path, OPEN[front] + behind, weights)
    found = requirements_from_graph(load_unsized(proto, model))
    assert [(need.name, need.weight_count) for need in found] == [("c1", 7), ("fc", 5)]
    # absmax scales by hand, of 127 levels.
    _, var, moving = weights["c1/bn"]
    spread = np.sqrt(var / moving + 1e-5)
    factor = (weights["c1/scale"][0] / spread).reshape(7, 1)
    raw = weights["c1"][0].reshape(7, -1)
    rows = {
        "raw": 127 / np.abs(raw).max(axis=1),
        "folded": 127 / np.abs(raw * factor).max(axis=1),
        "fc": 127 / np.abs(weights["fc"][0]).max(axis=1),
    }
    np.testing.assert_allclose(found[0].weight_scales_raw, rows["raw"], rtol=1e-5)
    np.testing.assert_allclose(found[0].weight_scales_folded, rows["folded"], rtol=1e-5)
    np.testing.assert_allclose(found[1].weight_scales_folded, rows["fc"], rtol=1e-5)
    six = requirements_from_graph(load_unsized(proto, model), winograd="6bit")
    assert [need.levels for need in six] == [31, 127]
    np.testing.assert_allclose(six[0].weight_scales_raw, rows["raw"] * 31 / 127, rtol=1e-5)
    # 27 weights a row: what they add up to by hand, far from what winograd holds.
    levels = np.floor(np.abs(raw * factor) * rows["folded"][:, None] + 0.5)
    assert found[0].level_sums is not None
    sums = found[0].level_sums(found[0].weight_scales_folded)
    np.testing.assert_allclose(sums, levels.sum(axis=1), atol=1)
    assert found[1].level_sums is None
    sized = requirements_from_graph(load_graph(*save(tmp_path, SIZED + behind, weights))[0])
    for one, other in zip(found, sized, strict=True):
        np.testing.assert_array_equal(one.weight_scales_folded, other.weight_scales_folded)
        assert (one.levels, one.bottom) == (other.levels, other.bottom)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({}, "layer 'c1' .* has no weights; is it the caffemodel of this prototxt"),
        ({"c1": [(7, 3, 5, 5), (7,)]}, r"blob 0 has shape \(7, 3, 5, 5\)"),
        ({"c1": [(5, 3, 3, 3), (7,)]}, r"blob 0 has shape \(5, 3, 3, 3\)"),
        ({"c1": [(7, 3, 3, 3), (5,)]}, r"blob 1 has shape \(5,\)"),
        ({"c1": [(7, 3, 3, 3)]}, "has 1 blobs; the prototxt asks for 2"),
        ({"c1": [(189,), (7,)]}, r"blob 0 has shape \(189,\)"),
    ],
)
def test_weights_that_do_not_fit_are_errors_without_a_size(
    shapes: dict, message: str, tmp_path: Path
) -> None:
    text = OPEN["no size"] + conv("c1", "data", "num_output: 7 kernel_size: 3")
    proto, model = save(tmp_path, text, random_weights(**shapes))
    with pytest.raises(WeightsError, match=message):
        load_unsized(proto, model)


def test_layers_without_weights_ask_for_rows_alone(tmp_path: Path) -> None:
    text = SIZED + conv("c1", "data", "num_output: 7 kernel_size: 3") + layer("LSTM", "l", "c1")
    text += conv("c2", "l", "num_output: 5 kernel_size: 3")
    proto, model = save(tmp_path, text, random_weights(c1=[(7, 3, 3, 3), (7,)]))
    known, unknown = requirements_from_graph(load_unsized(proto, model))
    assert known.weight_scales_raw is not None
    assert (unknown.name, unknown.weight_count) == ("c2", 5)
    assert unknown.weight_scales_raw is unknown.weight_scales_folded is unknown.level_sums is None


def test_table_check_needs_no_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], shared: Path
) -> None:
    if not (shared / "cases").is_dir():
        pytest.skip("no folder of cases")
    case = shared / "cases/no_size"
    (weight, *_) = caffe_proto.read_weights(case / "net.caffemodel")["conv"]
    scales = 127 / np.abs(weight.reshape(4, -1)).max(axis=1)
    table = tmp_path / "net.table"
    words = ["table", "check", str(table), "--proto", f"{case}/net.prototxt"]
    words += ["--model", f"{case}/net.caffemodel"]
    for factor, code in ((1.0, 0), (5.0, 1)):
        row = " ".join(f"{scale * factor:.9g}" for scale in scales)
        table.write_text(f"conv_param_0 {row}\nconv 1.5\n", encoding="utf-8")
        assert main(words) == code, capsys.readouterr().err
    assert "is 5 times what the weights give" in capsys.readouterr().out


def test_every_style_gives_the_same_with_and_without_sizes(tmp_path: Path) -> None:
    from tests.generated import make_model

    proto, model = make_model(tmp_path, STYLES["bottleneck"]())
    text = proto.read_text(encoding="utf-8")
    start = text.index("layer {", 1)
    bare = tmp_path / "bare.prototxt"
    bare.write_text(OPEN["no size"] + text[start:], encoding="utf-8")
    sized = requirements_from_graph(load_graph(proto, model)[0])
    free = requirements_from_graph(load_unsized(bare, model))
    assert len(sized) == len(free) > 10
    for one, other in zip(sized, free, strict=True):
        np.testing.assert_array_equal(one.weight_scales_folded, other.weight_scales_folded)
