"""One layer in ncnn's Python package as an oracle: a line of a .param file written by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

FLOAT32 = b"\0\0\0\0"
"""What stands before float32 weights in a .bin file. Source: ncnn's src/modelbin.cpp."""


def ncnn_layer(
    kind: str, options: str, bottoms: Sequence[np.ndarray], binary: bytes = b""
) -> list[np.ndarray | None]:
    """The top of one layer for each image of `bottoms` (N, C, H, W); None where it is empty.

    `options` is the `key=value` text of the layer, `binary` its weights as the .bin file has them.
    """
    import ncnn

    names = [f"in{i}" for i in range(len(bottoms))]
    lines = [f"Input {name} 0 1 {name}" for name in names]
    lines.append(f"{kind} op {len(names)} 1 {' '.join(names)} out {options}")
    text = f"7767517\n{len(lines)} {len(lines)}\n" + "\n".join(lines) + "\n"
    net = ncnn.Net()
    net.opt.num_threads = 1
    net.opt.use_packing_layout = False
    net.opt.use_winograd_convolution = False
    assert net.load_param_mem(text) == 0
    net.load_model_mem(binary or b"\0")
    tops: list[np.ndarray | None] = []
    for image in range(len(bottoms[0])):
        extractor = net.create_extractor()
        for name, bottom in zip(names, bottoms, strict=True):
            array = np.ascontiguousarray(bottom[image], np.float32)
            assert extractor.input(name, ncnn.Mat(array).clone()) == 0
        code, top = extractor.extract("out")
        assert code == 0
        tops.append(None if top.empty() else np.array(top))
    return tops


def stacked(tops: Sequence[np.ndarray | None]) -> list[np.ndarray]:
    """The tops of all images as one batch."""
    assert all(top is not None for top in tops)
    return [np.stack([top for top in tops if top is not None])]
