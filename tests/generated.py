"""Caffe models with generated weights of realistic ranges, written as real files.

Convolutions and inner products get He weights whose filters sum to 0, as trained ones nearly do,
scaled so that their outputs have a standard deviation of 1; BatchNorm gets the statistics of the
net's own activations on a random image. So values neither die nor explode however deep the net.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

import caffe_proto
from int8calib.caffe.layers.registry import find_type
from int8calib.caffe.network.graph import Blob, Graph, Layer
from int8calib.caffe.network.inputs import INPUT_TYPES
from int8calib.caffe.network.load import load_graph
from int8calib.caffe.network.shapes import infer_shapes

Weights = dict[str, tuple[np.ndarray, ...]]


def make_model(
    folder: Path, prototxt: str, seed: int = 1, name: str = "net", opening: float = 0.0
) -> tuple[Path, Path]:
    """Write `prototxt` and a caffemodel for it into `folder`; returns both paths.

    `opening` is the mean offset of Scale layers: above 0 it keeps most of each ReLU open, which
    keeps rounding errors of deep networks from growing.
    """
    proto, model = folder / f"{name}.prototxt", folder / f"{name}.caffemodel"
    proto.write_text(prototxt, encoding="utf-8")
    weights = generate_weights(proto, seed, opening=opening)
    caffe_proto.write_caffemodel(model, caffe_proto.read_prototxt(proto), weights)
    return proto, model


def generate_weights(
    proto: Path, seed: int = 1, scale: float = 60.0, opening: float = 0.0
) -> Weights:
    """Weights for every layer of a prototxt, found by running it once on noise of that size."""
    graph, inputs = load_graph(proto, None)
    rng = np.random.default_rng(seed)
    shapes = infer_shapes(graph, inputs)
    branches = _residual_branches(graph)
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
        gamma = 0.25 if branches.intersection(layer.tops) else 1.0
        if kind.weights is not None:
            wanted = kind.weights(layer.params, [shapes[bottom] for bottom in layer.bottoms])
            blobs = _blobs(layer, list(wanted), bottoms, rng, gamma, opening)
            if blobs:
                weights[layer.name] = blobs
        values.update(zip(layer.tops, kind.run(layer.params, blobs, bottoms), strict=True))
    return weights


def _residual_branches(graph: Graph) -> set[Blob]:
    """The bottom of each Eltwise that is made last.

    Where it is a Scale's top it gets a small gamma, as deep residual networks learn: with branches
    as strong as the sum they are added to, random networks double rounding errors every few layers.
    """
    order = {top: i for i, layer in enumerate(graph.layers) for top in layer.tops}
    sums = [layer for layer in graph.layers if layer.type == "Eltwise"]
    return {max(layer.bottoms, key=order.__getitem__) for layer in sums}


def _blobs(
    layer: Layer,
    shapes: list,
    bottoms: list,
    rng: np.random.Generator,
    gamma: float,
    opening: float,
) -> tuple:
    """The blobs of one layer; `gamma` and `opening` are the size of a Scale's factors, offsets."""
    if layer.type == "BatchNorm":
        return _statistics(bottoms[0], rng)
    made = []
    for i, shape in enumerate(shapes):
        if i == 0 and len(shape) > 1:
            values = _filters(layer, shape, bottoms, rng)
        elif i == 0:
            values = rng.uniform(0.1, 1.5, shape) * (gamma if layer.type == "Scale" else 1)
        else:
            values = rng.normal(opening if layer.type == "Scale" else 0, 0.3, shape)
        made.append(values.astype(np.float32))
    return tuple(made)


def _statistics(bottom: np.ndarray, rng: np.random.Generator) -> tuple:
    """BatchNorm's blobs: about the statistics of this bottom, times Caffe's moving factor.

    Other images differ from this one, however few pixels it has: the mean is a little off, and the
    variance has a floor.
    """
    axes = tuple(axis for axis in range(bottom.ndim) if axis != 1)
    factor = 17.0
    mean, var = bottom.mean(axis=axes), bottom.var(axis=axes)
    spread = rng.uniform(0.8, 1.25, var.shape)
    floor = (0.1 + mean.size / bottom.size) * float(np.square(bottom).mean())
    mean += rng.normal(0, np.sqrt(floor), mean.shape)
    return (
        (factor * mean).astype(np.float32),
        (factor * (var * spread + floor)).astype(np.float32),
        np.array([factor], np.float32),
    )


def _filters(layer: Layer, shape: tuple, bottoms: list, rng: np.random.Generator) -> np.ndarray:
    """A weight that turns these bottoms into a top of standard deviation 1."""
    weight = rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
    if shape[1] > 1:
        weight -= weight.mean(axis=tuple(range(1, len(shape))), keepdims=True)
    kind = find_type(layer.type)
    (wanted, *more) = kind.weights(layer.params, [bottom.shape for bottom in bottoms])
    blank = [np.zeros(extra, np.float32) for extra in more]
    tops = kind.run(layer.params, [weight.astype(np.float32).reshape(wanted), *blank], bottoms)
    return weight / max(float(tops[0].std()), 1e-6)
