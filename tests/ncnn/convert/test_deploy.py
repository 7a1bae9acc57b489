"""The INT8 models that are written, run by ncnn itself, give what the simulation says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import int8calib
from int8calib.evaluation.outputs import compared_blobs
from int8calib.images import Preprocess, open_source
from int8calib.ncnn.convert.deploy import ncnn_pair
from int8calib.ncnn.convert.network import blob_names
from int8calib.rounding.unsigned import network_groups, unsigned_table
from tests.generated import make_model
from tests.ncnn.runtime import run_blobs
from tests.network_styles import STYLES

LEAST = 70.0
"""dB: sums of INT8 are equal, float steps may round otherwise."""


def sqnr(expected: np.ndarray, found: np.ndarray) -> float:
    error = float(np.square(expected - found).sum())
    return 10 * np.log10(float(np.square(expected).sum()) / max(error, 1e-30))


def compare(
    net: int8calib.Net, images: np.ndarray, folder: Path, *, offsets: bool = False
) -> dict[str, float]:
    """The SQNR of each compared blob; class scores must have the same order at the top."""
    done = int8calib.calibrate(net, lambda: ({"data": image[None]} for image in images))
    table = done.table
    if offsets:
        table = unsigned_table(table, network_groups(net, table), done.statistics.histograms)
        assert any(rows.unsigned for rows in table.layers)
    simulated = int8calib.simulate(net, table)
    layers = ncnn_pair(net, table).int8_model.layers
    assert sum(bool(layer.params.get(8)) for layer in layers) == len(table.layers) > 2
    compared = compared_blobs(net)
    names = blob_names(net.graph)
    pairs: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for image in images:
        wanted = [blob.name for blob in compared.tensors]
        tops = simulated.forward({"data": image[None]}, outputs=wanted)
        blobs = [names[blob] for blob in compared.tensors]
        # With packing x86 scales depthwise layers by an approximate reciprocal.
        found = run_blobs(layers, {"data": image}, blobs, packing=False, folder=folder)
        for blob, top in zip(compared.tensors, found, strict=True):
            expected = tops[blob.name].ravel()
            pairs.setdefault(str(blob), []).append((expected, top.ravel()))
            if blob == compared.scores:
                assert top.argmax() == expected.argmax()
    return {
        blob: sqnr(*(np.concatenate(side) for side in zip(*both, strict=True)))
        for blob, both in pairs.items()
    }


@pytest.mark.parametrize("offsets", [False, True])
@pytest.mark.parametrize("style", STYLES)
def test_generated_networks(style: str, offsets: bool, tmp_path: Path) -> None:
    pytest.importorskip("ncnn")
    net = int8calib.load_caffe(*make_model(tmp_path, STYLES[style](), opening=0.5))
    ((_, shape),) = net.input_shapes.items()
    images = np.random.default_rng(5).normal(0, 60, (5, *shape[1:])).astype(np.float32)
    found = compare(net, images, tmp_path, offsets=offsets)
    assert all(value > LEAST for value in found.values()), found


def test_squeezenet(shared: Path, tmp_path: Path) -> None:
    pytest.importorskip("ncnn")
    place = shared / "models" / "squeezenet_v1.1"
    net = int8calib.load_caffe(place / "deploy.prototxt", place / "squeezenet_v1.1.caffemodel")
    how = Preprocess(tuple(net.input_shapes["data"][1:]), mean=(104, 117, 123))
    source = open_source(shared / "images" / "imagenet_300", limit=7)
    images = np.stack([how(source.load(i)) for i in range(len(source))])
    found = compare(net, images, tmp_path)
    assert all(value > LEAST for value in found.values()), found
