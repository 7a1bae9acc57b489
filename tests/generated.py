"""Caffe models with generated weights of realistic ranges, written as real files.

Convolutions get He weights, BatchNorm the statistics of the net's own activations on a random
image, so that values neither die nor explode however deep the net is.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

import caffe_proto
from int8calib.layers.registry import find_type
from int8calib.net.graph import Layer
from int8calib.net.inputs import INPUT_TYPES
from int8calib.net.load import load_graph
from int8calib.net.shapes import infer_shapes

Weights = dict[str, tuple[np.ndarray, ...]]


def make_model(folder: Path, prototxt: str, seed: int = 1, name: str = "net") -> tuple[Path, Path]:
    """Write `prototxt` and a caffemodel for it into `folder`; returns both paths."""
    proto, model = folder / f"{name}.prototxt", folder / f"{name}.caffemodel"
    proto.write_text(prototxt, encoding="utf-8")
    weights = generate_weights(proto, seed)
    caffe_proto.write_caffemodel(model, caffe_proto.read_prototxt(proto), weights)
    return proto, model


def generate_weights(proto: Path, seed: int = 1, scale: float = 60.0) -> Weights:
    """Weights for every layer of a prototxt, found by running it once on noise of that size."""
    graph, inputs = load_graph(proto, None)
    rng = np.random.default_rng(seed)
    shapes = infer_shapes(graph, inputs)
    values: dict = {}
    weights: Weights = {}
    for layer in graph.layers:
        if layer.type in INPUT_TYPES:
            for top in layer.tops:
                shape = (1, *inputs[top.name][1:])
                values[top] = rng.normal(0, scale, shape).astype(np.float32)
            continue
        kind = find_type(layer.type)
        bottoms = [values[bottom] for bottom in layer.bottoms]
        blobs: tuple[np.ndarray, ...] = ()
        if kind.weights is not None:
            wanted = kind.weights(layer.params, [shapes[bottom] for bottom in layer.bottoms])
            blobs = _blobs(layer, list(wanted), bottoms, rng)
            if blobs:
                weights[layer.name] = blobs
        values.update(zip(layer.tops, kind.run(layer.params, blobs, bottoms), strict=True))
    return weights


def _blobs(layer: Layer, shapes: list, bottoms: list, rng: np.random.Generator) -> tuple:
    """The blobs of one layer."""
    if layer.type == "BatchNorm":
        axes = tuple(axis for axis in range(bottoms[0].ndim) if axis != 1)
        factor = 17.0
        mean, var = bottoms[0].mean(axis=axes), bottoms[0].var(axis=axes)
        spread = rng.uniform(0.8, 1.25, var.shape)
        return (
            (factor * mean).astype(np.float32),
            (factor * (var * spread + 1e-3)).astype(np.float32),
            np.array([factor], np.float32),
        )
    made = []
    for i, shape in enumerate(shapes):
        if i == 0 and len(shape) > 1:
            fan_in = int(np.prod(shape[1:]))
            values = rng.normal(0, np.sqrt(2 / fan_in), shape)
        elif i == 0:
            values = rng.uniform(0.1, 1.5, shape)
        else:
            values = rng.normal(0, 0.3, shape)
        made.append(values.astype(np.float32))
    return tuple(made)
