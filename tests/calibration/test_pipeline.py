"""The whole pipeline: golden tables of ncnn2table, and what happens at the edges."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import caffe_proto
import int8calib
from int8calib import Options, WeightOptions
from int8calib.errors import ModelError
from int8calib.images import Preprocess, batches, open_source
from int8calib.ncnn.requirements import read_param
from int8calib.table import check_table, read_table
from int8calib.table.ncnn import write as ncnn_text
from tests.caffe.engine.test_engine import NET
from tests.generated import make_model
from tests.histogram_cases import is_near_tie

GOLDEN = {
    "squeezenet_v1.0": ("squeezenet_v1.0.caffemodel", 227, 1.0),
    "squeezenet_v1.1": ("squeezenet_v1.1.caffemodel", 227, 1.0),
    "bons_imagenet_mod11l": ("MobilenetV2-mod11l-ImageNet_iter_850000.caffemodel", 224, 0.017),
}
HEAD = 'layer { name: "data" type: "Input" top: "data" input_param { shape { %s } } }\n'


def golden_loader(shared: Path, size: int, norm: float) -> Callable[[], Iterator]:
    source = open_source(shared / "golden/png227")
    preprocess = Preprocess((3, size, size), mean=(104, 117, 123), norm=norm)
    return lambda: (batch.blobs for batch in batches(source, preprocess))


@pytest.mark.parametrize("name", GOLDEN)
def test_tables_match_ncnn2table_row_for_row(shared: Path, name: str) -> None:
    model, size, norm = GOLDEN[name]
    folder = shared / "models" / name
    net = int8calib.load_caffe(folder / "deploy.prototxt", folder / model)
    six_bit = WeightOptions(winograd="6bit")
    options = Options(method="kl", input_method="same", weights=six_bit)
    result = int8calib.calibrate(net, golden_loader(shared, size, norm), options)
    table = result.table
    golden = read_table(shared / f"golden/ncnn_{name}/kl.table")
    assert [row.name for row in table.layers] == [row.name for row in golden.layers]
    bins = []
    for row, expected in zip(table.layers, golden.layers, strict=True):
        np.testing.assert_allclose(
            row.weight_scales, expected.weight_scales, rtol=1e-4, err_msg=row.name
        )
        assert row.evidence is not None
        width = row.evidence.absmax / 2048
        bins.append(abs(127 / row.bottom_scale - 127 / expected.bottom_scale) / width)
    for row, expected, difference in zip(table.layers, golden.layers, bins, strict=True):
        histogram = result.statistics.histograms[row.evidence.blob]
        assert difference < 2.1 or is_near_tie(histogram, 127 / expected.bottom_scale), row.name
    assert sum(difference < 0.1 for difference in bins) >= 0.8 * len(bins)
    param = read_param(shared / f"golden/ncnn_{name}/optimized.param")
    errors = [f for f in check_table(table, requirements=param) if f.severity == "error"]
    assert not errors, errors[0].message


def random_loader(*shape: int, seed: int = 1, count: int = 5) -> Callable[[], Iterator]:
    images = np.random.default_rng(seed).normal(0, 60, (count, *shape)).astype(np.float32)
    return lambda: iter([{"data": images[i : i + 1]} for i in range(count)])


def test_workers_batches_and_cache_give_the_same_text(tmp_path: Path) -> None:
    net = int8calib.load_caffe(*make_model(tmp_path, NET))
    images = np.random.default_rng(1).normal(0, 60, (7, 3, 37, 29)).astype(np.float32)
    texts = set()
    for workers, cache, size in [(1, 0, 1), (2, 0, 3), (2, 1 << 30, 2), (3, 60_000, 7)]:
        cuts = range(0, 7, size)
        result = int8calib.calibrate(
            net,
            lambda: iter([{"data": images[i : i + size]} for i in cuts]),  # noqa: B023
            Options(workers=workers, cache_bytes=cache),
        )
        texts.add(ncnn_text(result.table))
    assert len(texts) == 1


def test_consumers_of_one_blob_share_its_scale(tmp_path: Path) -> None:
    text = HEAD % "dim: 1 dim: 3 dim: 13 dim: 11" + "".join(
        f'layer {{ name: "{name}" type: "Convolution" bottom: "data" top: "{name}" '
        f"convolution_param {{ num_output: 2 kernel_size: {size} }} }}\n"
        for name, size in [("one", 1), ("three", 3), ("five", 5)]
    )
    net = int8calib.load_caffe(*make_model(tmp_path, text))
    table = int8calib.calibrate(net, random_loader(3, 13, 11)).table
    assert len({row.bottom_scale for row in table.layers}) == 1
    assert len(table.layers) == 3


def test_a_dead_bottom_stays_in_float_with_a_warning(tmp_path: Path) -> None:
    text = HEAD % "dim: 1 dim: 3 dim: 13 dim: 11" + (
        'layer { name: "a" type: "Convolution" bottom: "data" top: "a" '
        "convolution_param { num_output: 2 kernel_size: 3 } }\n"
        'layer { name: "gone" type: "Power" bottom: "a" top: "gone" power_param { scale: 0 } }\n'
        'layer { name: "b" type: "Convolution" bottom: "gone" top: "b" '
        "convolution_param { num_output: 2 kernel_size: 3 } }\n"
    )
    net = int8calib.load_caffe(*make_model(tmp_path, text))
    done = int8calib.calibrate(net, random_loader(3, 13, 11))
    assert [row.name for row in done.table.layers] == ["a"]
    assert any("b: its bottom gone is 0" in warning for warning in done.warnings)


def test_dead_weight_rows_are_one_warning(tmp_path: Path) -> None:
    text = HEAD % "dim: 1 dim: 3 dim: 13 dim: 11" + "".join(
        f'layer {{ name: "c{i}" type: "Convolution" bottom: "data" top: "c{i}" '
        "convolution_param { num_output: 5 kernel_size: 1 } }\n"
        for i in range(6)
    )
    proto, model = make_model(tmp_path, text)
    weights = {name: list(parts) for name, parts in caffe_proto.read_weights(model).items()}
    for i, dead in enumerate((0, 2, 1, 4, 0, 3)):
        weights[f"c{i}"][0] = weights[f"c{i}"][0].copy()
        weights[f"c{i}"][0][:dead] = 0
    caffe_proto.write_caffemodel(model, caffe_proto.read_prototxt(proto), weights)
    done = int8calib.calibrate(int8calib.load_caffe(proto, model), random_loader(3, 13, 11))
    assert [line for line in done.warnings if "weight rows" in line] == [
        "10 weight rows are dead (nothing in them counts) and get the scale 1: "
        "c1 2 of 5, c2 1 of 5, c3 4 of 5 and 1 more"
    ]


def test_a_network_without_quantized_layers_is_an_error(tmp_path: Path) -> None:
    text = HEAD % "dim: 1 dim: 3 dim: 13 dim: 11"
    text += 'layer { name: "r" type: "ReLU" bottom: "data" top: "r" }\n'
    net = int8calib.load_caffe(*make_model(tmp_path, text))
    with pytest.raises(ModelError, match="nothing to calibrate"):
        int8calib.calibrate(net, random_loader(3, 13, 11))


def test_layers_behind_the_last_convolution_never_block(tmp_path: Path) -> None:
    text = HEAD % "dim: 1 dim: 3 dim: 13 dim: 11" + (
        'layer { name: "a" type: "Convolution" bottom: "data" top: "a" '
        "convolution_param { num_output: 2 kernel_size: 3 } }\n"
        'layer { name: "odd" type: "NobodyKnows" bottom: "a" top: "odd" }\n'
    )
    proto = tmp_path / "net.prototxt"
    proto.write_text(text.replace("NobodyKnows", "ReLU"))
    _, model = make_model(tmp_path, proto.read_text())
    proto.write_text(text)
    net = int8calib.load_caffe(proto, model)
    assert [
        row.name for row in int8calib.calibrate(net, random_loader(3, 13, 11)).table.layers
    ] == ["a"]


def test_raw_weights_without_folding(tmp_path: Path) -> None:
    net = int8calib.load_caffe(*make_model(tmp_path, NET))
    raw = int8calib.calibrate(net, random_loader(3, 37, 29), Options(fold_bn=False)).table
    conv = next(layer for layer in net.graph.layers if layer.name == "conv1")
    absmax = np.abs(conv.weights[0]).max(axis=(1, 2, 3))
    np.testing.assert_allclose(raw["conv1"].weight_scales, 127 / absmax, rtol=1e-6)
    folded = int8calib.calibrate(net, random_loader(3, 37, 29)).table
    assert not np.allclose(folded["conv1"].weight_scales, raw["conv1"].weight_scales, rtol=0.01)
    for a, b in zip(raw.layers, folded.layers, strict=True):
        assert a.bottom_scale == pytest.approx(b.bottom_scale, rel=2e-3)
