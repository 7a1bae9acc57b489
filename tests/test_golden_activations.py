"""Every layer's top against real Caffe's, for all models with golden activations."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

import int8calib
from tests.caffe.network.test_fold import synthetic_input

MODELS = (
    "bons_imagenet_mod11l",
    "cgo_cifar10",
    "cgo_cifar10_opt",
    "cifar10_full_everpeace",
    "deeplandmark_1_F",
    "lenet_everpeace",
    "mtcnn_det1",
    "mtcnn_det3",
    "pcn_3",
    "squeezenet_v1.1",
    "waifu2x_upconv_7_anime_style_art_rgb_scale20x",
    "wechat_sr",
)


def worst_deviation(
    net: int8calib.Net, inputs: dict[str, np.ndarray], blobs: dict[str, dict]
) -> tuple[float, str]:
    """The largest deviation over all values of all layers, as a share of the blob's absmax."""
    found: dict[str, float] = {}

    def compare(layer: str, blob: str, top: np.ndarray) -> None:
        if layer == "input" and f"input/{blob}" not in blobs:
            return  # a legacy input; these golden values are of the net with a layer "data"
        golden = blobs[f"{layer}/{blob}"]
        assert list(top.shape) == golden["shape"], layer
        values = top.reshape(-1)[golden["positions"]]
        differences = [
            np.abs(values - golden["values"]).max(),
            abs(np.abs(top).max() - golden["absmax"]),
        ]
        found[f"{layer}/{blob}"] = float(max(differences) / max(golden["absmax"], 1e-30))

    net.forward(inputs, on_top=compare)
    unseen = set(blobs) - set(found)
    # Real Caffe inserts Split layers where a blob has several readers.
    assert all("_split" in name or name == "data/data" for name in unseen), unseen
    worst = max(found, key=found.__getitem__)
    return found[worst], worst


@pytest.mark.parametrize("name", MODELS)
def test_every_layer_is_what_real_caffe_gives(shared: Path, name: str) -> None:
    golden = json.loads((shared / f"golden/{name}.caffe_activations.json").read_text())
    folder = shared / "models" / name
    net = int8calib.load_caffe(folder / golden["prototxt"], folder / golden["caffemodel"])
    x = synthetic_input(golden["input_shape"], golden["amplitude"])
    deviation, layer = worst_deviation(net, {golden["input"]: x}, golden["blobs"])
    assert deviation < 1e-5, layer


@pytest.mark.parametrize("image", ["000", "500"])
@pytest.mark.parametrize("prototxt", ["deploy.prototxt", "deploy_legacy_input.prototxt"])
def test_squeezenet_on_real_images(shared: Path, image: str, prototxt: str) -> None:
    golden = json.loads((shared / "golden/squeezenet_v1.0.caffe_activations.json").read_text())
    blobs = {name[4:]: blob for name, blob in golden.items() if name.startswith(image)}
    folder = shared / "models/squeezenet_v1.0"
    net = int8calib.load_caffe(folder / prototxt, folder / "squeezenet_v1.0.caffemodel")
    pixels = cv2.imread(str(shared / f"golden/png227/{image}.png")).astype(np.float32)
    x = (pixels - np.array([104, 117, 123], np.float32)).transpose(2, 0, 1)[None]
    deviation, layer = worst_deviation(net, {"data": x}, blobs)
    assert deviation < 1e-5, layer
