"""ncnn's Python package as an oracle, and its INT8 model files written and read."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from int8calib.caffe.engine.run import Net
from int8calib.caffe.network.fold import fold_batch_norm
from int8calib.simulation.build import int8_layers
from int8calib.table.model import CalibrationTable

INT8_TAG = 0x000D4B38
"""What stands before INT8 weights in a .bin file. Source: ncnn's src/modelbin.cpp."""


def run(param: Path, binary: Path, images: Sequence[np.ndarray], output: str) -> np.ndarray:
    """The flattened `output` of each image (C, H, W) fed to the blob `data`, one row each.

    Packing is off: with it, x86 kernels of depthwise layers take the hardware's 12-bit
    approximate reciprocal for 1 / (bottom scale x weight scale).
    """
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads = 1
    net.opt.use_packing_layout = False
    assert net.load_param(str(param)) == 0
    assert net.load_model(str(binary)) == 0
    rows = []
    for image in images:
        extractor = net.create_extractor()
        extractor.input("data", ncnn.Mat(np.ascontiguousarray(image)).clone())
        code, top = extractor.extract(output)
        assert code == 0
        rows.append(np.array(top).reshape(-1))
    return np.array(rows)


def layer_bytes(
    weight: np.ndarray,
    bias: np.ndarray,
    weight_scales: np.ndarray,
    bottom_scale: float,
    top_scale: float | None = None,
) -> bytes:
    """One INT8 layer of a .bin file; `weight` holds whole numbers."""
    data = weight.astype(np.int8).tobytes()
    scales = [bottom_scale] if top_scale is None else [bottom_scale, top_scale]
    parts = [bias, weight_scales, np.array(scales)]
    numbers = b"".join(part.astype("<f4").tobytes() for part in parts)
    return struct.pack("<I", INT8_TAG) + data + b"\0" * (-len(data) % 4) + numbers


def int8_bytes(param: Path, net: Net, table: CalibrationTable) -> bytes:
    """The .bin file of `net` with `table`, for a .param file that ncnn2int8 wrote."""
    twins = int8_layers(fold_batch_norm(net.graph), table, optimized=True)
    lines = [line.split() for line in param.read_text().splitlines()[2:]]

    def scale_behind(blob: str) -> float:
        """The bottom scale of the INT8 layer that reads `blob`, or a Split of it."""
        for kind, name, bottoms, tops, *rest in lines:
            if blob not in rest[: int(bottoms)]:
                continue
            if name in twins:
                return table[name].bottom_scale
            if kind == "Split":
                return scale_behind(rest[int(bottoms) + int(tops) - 1])
        raise ValueError(f"no INT8 layer reads {blob}")

    data = b""
    for kind, name, bottoms, tops, *rest in lines:
        if kind not in ("Convolution", "ConvolutionDepthWise", "InnerProduct"):
            continue
        options = dict(word.split("=") for word in rest[int(bottoms) + int(tops) :])
        top = scale_behind(rest[int(bottoms)]) if int(options["8"]) > 100 else None
        levels, _, bias, *_ = twins[name].weights
        scales = np.asarray(table[name].weight_scales, np.float32)
        data += layer_bytes(levels.reshape(-1), bias, scales, table[name].bottom_scale, top)
    return data


def read_layers(param: Path, binary: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Weights and bias of each layer of an INT8 model whose weights are all INT8."""
    data, place = binary.read_bytes(), 0
    layers = {}

    def take(dtype: type, count: int) -> np.ndarray:
        nonlocal place
        array = np.frombuffer(data, dtype, count, place)
        place += -(-array.nbytes // 4) * 4
        return array

    for line in param.read_text().splitlines()[2:]:
        kind, name, bottoms, tops, *rest = line.split()
        if kind not in ("Convolution", "ConvolutionDepthWise", "InnerProduct"):
            continue
        options = dict(word.split("=") for word in rest[int(bottoms) + int(tops) :])
        outputs = int(options["0"])
        assert take(np.uint32, 1)[0] == INT8_TAG
        weight = take(np.int8, int(options["2" if kind == "InnerProduct" else "6"]))
        bias = take(np.float32, outputs)
        take(np.float32, int(options.get("7", outputs)))
        take(np.float32, 2 if int(options["8"]) > 100 else 1)
        layers[name] = (weight, bias)
    assert place == len(data)
    return layers


def sqnr(expected: np.ndarray, found: np.ndarray) -> float:
    """Signal to noise in dB; 300 where nothing differs."""
    a, b = expected.astype(np.float64).ravel(), found.astype(np.float64).ravel()
    return float(10 * np.log10(np.square(a).sum() / max(np.square(a - b).sum(), 1e-30 * (a @ a))))
