"""PyPI's ncnn package as an oracle: a model in memory, its blobs for one image."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from int8calib.ncnn.param import NcnnLayer, format_param
from int8calib.ncnn.weights import write_weights


def run_blobs(
    layers: Sequence[NcnnLayer],
    inputs: Mapping[str, np.ndarray],
    blobs: Sequence[str],
    *,
    winograd: bool = True,
    packing: bool = True,
    folder: Any = None,
) -> list[np.ndarray]:
    """The named blobs of one image in ncnn, one thread, floats as float32; `inputs` without batch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ncnn

    net = ncnn.Net()
    net.opt.num_threads = 1
    net.opt.lightmode = False
    net.opt.use_vulkan_compute = False
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    net.opt.use_bf16_storage = False
    net.opt.use_winograd_convolution = winograd
    net.opt.use_packing_layout = packing
    param, binary = folder / "oracle.param", folder / "oracle.bin"
    param.write_text(format_param(layers))
    binary.write_bytes(write_weights(layers))
    assert net.load_param(str(param)) == 0
    assert net.load_model(str(binary)) == 0
    extractor = net.create_extractor()
    kept = [np.ascontiguousarray(array, np.float32) for array in inputs.values()]
    for name, array in zip(inputs, kept, strict=True):
        assert extractor.input(name, ncnn.Mat(array).clone()) == 0
    found = []
    for blob in blobs:
        code, top = extractor.extract(blob)
        assert code == 0, f"{blob}: {code}"
        found.append(np.zeros(0, np.float32) if top.dims == 0 else np.array(top))
    return found
