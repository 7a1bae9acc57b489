"""Small ncnn models with random weights, and the real ones with their golden tables."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from int8calib.ncnn.layout import blob_layout
from int8calib.ncnn.model import NcnnModel, save_model
from int8calib.ncnn.param import NcnnLayer, Value

REAL = {
    "pnnx_small": ("small", 64),
    "realesr-animevideov3-x2": ("realesr-animevideov3-x2", 64),
    "waifu2x_cunet_noise0": ("noise0_model", 84),
}
"""Each real model with the name of its files and the side of the crops of its golden table."""
WORDS, WIDTH, STEPS, HIDDEN = 37, 16, 7, 12


def ncnn_layer(
    kind: str, name: str, bottoms: Sequence[str], tops: Sequence[str], params: dict[int, Value]
) -> NcnnLayer:
    """A layer with random weights, different for each name."""
    layer = NcnnLayer(kind, name, tuple(bottoms), tuple(tops), params)
    rng = np.random.default_rng(sum(map(ord, name)))
    weights = [rng.normal(0, 0.3, blob.size).astype(np.float32) for blob in blob_layout(layer)]
    return replace(layer, weights=tuple(weights))


def two_inputs() -> NcnnModel:
    """Two inputs; a blob that two layers read through a Split; a constant; three outputs."""
    conv = {0: 5, 1: 3, 4: 1, 5: 1, 6: 5 * 3 * 9}
    return NcnnModel(
        (
            NcnnLayer("Input", "a", (), ("a",), {0: 13, 1: 11, 2: 3}),
            NcnnLayer("Input", "b", (), ("b",), {0: 13, 1: 11, 2: 3}),
            ncnn_layer("Convolution", "first", ["a"], ["x"], conv),
            NcnnLayer("ReLU", "relu", ("x",), ("y",)),
            NcnnLayer("Split", "s", ("y",), ("y_0", "y_1")),
            ncnn_layer("Convolution", "left", ["y_1"], ["u"], {0: 7, 1: 1, 5: 0, 6: 35}),
            ncnn_layer("ConvolutionDepthWise", "right", ["y_0"], ["v"], {0: 5, 1: 3, 6: 45, 7: 5}),
            ncnn_layer("Convolution", "other", ["b"], ["w"], {0: 2, 1: 1, 6: 6}),
        ),
        "two.param",
    )


def batch_norm_model() -> NcnnModel:
    """A convolution with BatchNorm and ReLU behind it, and another convolution."""
    rng = np.random.default_rng(12)
    stats = [rng.uniform(0.5, 2, 5), rng.normal(size=5), rng.uniform(1, 3, 5), rng.normal(size=5)]
    norm = NcnnLayer("BatchNorm", "bn", ("x",), ("y",), {0: 5})
    return NcnnModel(
        (
            NcnnLayer("Input", "in0", (), ("in0",)),
            ncnn_layer("Convolution", "conv1", ["in0"], ["x"], {0: 5, 1: 3, 4: 1, 5: 1, 6: 135}),
            replace(norm, weights=tuple(each.astype(np.float32) for each in stats)),
            NcnnLayer("ReLU", "relu", ("y",), ("z",)),
            ncnn_layer("Convolution", "conv2", ["z"], ["out0"], {0: 3, 1: 1, 5: 1, 6: 15}),
        ),
        "norm.param",
    )


def sequence_model(kind: str) -> NcnnModel:
    """A layer of type `kind` over a sequence, and an InnerProduct on its top."""
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}.get(kind, 0)
    params: dict[int, Value] = {0: WIDTH, 1: 4, 2: WIDTH * WIDTH}  # MultiHeadAttention
    out = WIDTH
    if gates:
        params, out = {0: HIDDEN, 1: 2 * gates * HIDDEN * WIDTH, 2: 2}, 2 * HIDDEN
    if kind == "Embed":
        params = {0: WIDTH, 1: WORDS, 2: 0, 3: WORDS * WIDTH}
    return NcnnModel(
        (
            NcnnLayer("Input", "in0", (), ("in0",)),
            ncnn_layer(kind, "first", ["in0"], ["hidden"], params),
            ncnn_layer("InnerProduct", "fc", ["hidden"], ["out0"], {0: 11, 1: 1, 2: 11 * out}),
        ),
        f"{kind}.param",
    )


def sequences(kind: str, count: int, seed: int) -> list[dict[str, np.ndarray]]:
    """Batches of one for `sequence_model`: words for an Embed, else vectors."""
    rng = np.random.default_rng(seed)
    if kind == "Embed":
        return [{"in0": rng.integers(0, WORDS, (1, STEPS))} for _ in range(count)]
    return [{"in0": rng.normal(size=(1, STEPS, WIDTH)).astype(np.float32)} for _ in range(count)]


def real_files(shared: Path, name: str) -> tuple[Path, Path]:
    """The `.param` and `.bin` of a real model."""
    stem = shared / "ncnn_models" / name / REAL[name][0]
    return Path(f"{stem}.param"), Path(f"{stem}.bin")


def real_images(shared: Path, name: str) -> list[np.ndarray]:
    """The images of its golden table: crops of the upper left corner, RGB from 0 to 1."""
    side = REAL[name][1]
    images = []
    for path in sorted((shared / "golden" / "png227").glob("*.png")):
        pixels = cv2.imread(str(path))[:side, :side, ::-1].astype(np.float32)
        images.append(np.ascontiguousarray((pixels * np.float32(1 / 255.0)).transpose(2, 0, 1)))
    return images


def golden_table(shared: Path, name: str, kind: str) -> str:
    """What ncnn2table wrote: `kind` is raw or opt, for the model before or after ncnnoptimize."""
    path = shared / "golden" / "ncnn_models" / "ncnn" / name / f"{kind}.kl.table.gz"
    return gzip.decompress(path.read_bytes()).decode()


def write_two(folder: Path) -> list[str]:
    """Write `two_inputs` and arrays for both inputs; the options of the command line for them."""
    pair = folder / "two.param", folder / "two.bin"
    save_model(two_inputs().layers, *pair)
    rng = np.random.default_rng(1)
    words = ["--param", str(pair[0]), "--bin", str(pair[1])]
    for name in "ab":
        np.save(folder / f"{name}.npy", rng.normal(size=(12, 3, 11, 13)).astype(np.float32))
        words += ["--images", f"{name}={folder / name}.npy"]
    return words
