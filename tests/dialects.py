"""The network that the tests of dialects spell in many ways, and how they calibrate it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import int8calib
from int8calib.cli.main import main
from int8calib.table import write_table
from tests.generated import make_model
from tests.network_styles import conv, data, layer, pool

SHAPE = (1, 3, 23, 19)
IMAGES = np.random.default_rng(5).normal(0, 60, (2, *SHAPE[1:])).astype(np.float32)
POOL = "pool: MAX kernel_size: 3 stride: 2"
STEM = conv("conv1", "data", "num_output: 7 kernel_size: 5 pad: 2")
BODY = pool("pool1", "conv1", POOL) + conv("conv2", "pool1", "num_output: 5 kernel_size: 3")
FC = layer("InnerProduct", "fc", "conv2", param="inner_product_param { num_output: 11 }")
NET = STEM + BODY + FC
PLAIN = data(*SHAPE) + NET + layer("Softmax", "prob", "fc")
BACKWARDS = "\n".join(reversed((data(*SHAPE) + NET).strip().splitlines()))
LABELS = (
    layer("SoftmaxWithLoss", "loss", "fc label")
    + layer("Accuracy", "accuracy", "fc label", param="include { phase: TEST }")
    + layer("HomemadeLoss", "extra_loss", "fc label")
    + layer("Slice", "halves", "label", "half", param="slice_param { axis: 0 }")
    + layer("Silence", "quiet", "half")
)


def data_layer(phase: str, kind: str = "Data", options: str = "") -> str:
    rule = f"include {{ phase: {phase} }}"
    return layer(kind, "data", "", param=f'top: "label" {rule} {options}')


def make_plain(folder: Path) -> tuple[Path, Path, str]:
    """The plain spelling's files, and the text of its table."""
    proto, model = make_model(folder, PLAIN)
    return proto, model, by_library(folder, proto, model, shape=False)


def batches() -> list[dict[str, np.ndarray]]:
    return [{"data": image[None]} for image in IMAGES]


def by_command(
    folder: Path, proto: Path, model: Path, *more: str, images: dict[str, np.ndarray] | None = None
) -> str:
    """The table that `int8calib calibrate` writes."""
    images = images or {"data": IMAGES}
    words = ["calibrate", "--proto", str(proto), "--model", str(model), "--quiet"]
    for name, arrays in images.items():
        np.save(folder / f"{name}.npy", arrays)
        words += ["--images", f"{name}={folder / name}.npy"]
    assert main([*words, "--output", str(folder / "net.table"), *more]) == 0
    return (folder / "net.table").read_text(encoding="utf-8")


def by_library(folder: Path, proto: Path, model: Path, *, shape: bool) -> str:
    shapes = {"data": SHAPE} if shape else None
    net = int8calib.load_caffe(proto, model, input_shapes=shapes)
    write_table(folder / "library.table", int8calib.calibrate(net, batches).table)
    return (folder / "library.table").read_text(encoding="utf-8")


def write(folder: Path, text: str) -> Path:
    path = folder / "spelled.prototxt"
    path.write_text(text, encoding="utf-8")
    return path
