"""A graph and images in, two sets of blobs out, one layer at a time: in float and in INT8.

All images pass one layer before the next one runs. So a layer's INT8 form can be chosen when all
that stands before it is settled, and a whole tuning costs about two passes of the network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import numpy as np

from int8calib.arrays import Array, Shape
from int8calib.caffe.layers.registry import find_type
from int8calib.caffe.network.graph import Blob, Graph, Layer
from int8calib.caffe.network.inputs import INPUT_TYPES
from int8calib.caffe.network.shapes import infer_shapes, reach
from int8calib.workers import Batch, work_through

Values = list[Array]
"""One blob: its array for each batch."""


class Layerwise:
    """The blobs of both nets that layers still to come need, for all batches.

    Where no INT8 layer stands before a blob, both nets share its arrays.
    """

    def __init__(self, graph: Graph, batches: Sequence[Batch], *, workers: int) -> None:
        self.graph = graph
        self._batches = batches
        self._workers = workers
        self._float: dict[Blob, Values] = {}
        self._int8: dict[Blob, Values] = {}
        self._last = {blob: i for i, layer in enumerate(graph.layers) for blob in layer.bottoms}
        self._done = 0
        inputs = {name: array.shape for name, array in batches[0].items()}
        self._blocked = reach(graph, inputs).blocked

    @property
    def live(self) -> Mapping[Blob, Values]:
        """The blobs of the float net that layers still to come read."""
        return self._float

    def bottoms(self, blob: Blob) -> tuple[Values, Values]:
        """A blob in the float net and in the INT8 net."""
        return self._float[blob], self._int8[blob]

    def step(self, layer: Layer, twin: Layer) -> None:
        """Run the next layer: `layer` in the float net, `twin` (maybe the same) in the other."""
        if layer in self._blocked:
            pass  # no output that is compared depends on it
        elif layer.type in INPUT_TYPES:
            for top in layer.tops:
                self._float[top] = self._int8[top] = [batch[top.name] for batch in self._batches]
        else:
            self._run(layer, twin)
        for blob in (*layer.bottoms, *layer.tops):
            if self._last.get(blob, -1) <= self._done:
                self._float.pop(blob, None)
                self._int8.pop(blob, None)
        self._done += 1

    def _run(self, layer: Layer, twin: Layer) -> None:
        same = twin is layer and all(self._float[b] is self._int8[b] for b in layer.bottoms)
        count = len(self._batches)
        real: list[list[Array]] = [[] for _ in range(count)]
        quantized = real if same else [[] for _ in range(count)]

        def work(kernels: tuple[OneLayer, OneLayer], i: int) -> int:
            real[i] = kernels[0].run([self._float[b][i] for b in layer.bottoms])
            if not same:
                quantized[i] = kernels[1].run([self._int8[b][i] for b in layer.bottoms])
            return 1

        work_through(
            range(count),
            lambda: (OneLayer(layer), OneLayer(twin)),
            work,
            workers=self._workers,
            progress=lambda done: None,
        )
        for number, top in enumerate(layer.tops):
            self._float[top] = [tops[number] for tops in real]
            if same:
                self._int8[top] = self._float[top]
            else:
                self._int8[top] = [tops[number] for tops in quantized]


class OneLayer:
    """One layer that runs alone; its kernel is planned anew where the bottoms' shapes change."""

    def __init__(self, layer: Layer) -> None:
        self._layer = layer
        self._kind = find_type(layer.type)
        self._shapes: list[Shape] = []

    def run(self, bottoms: Sequence[Array]) -> list[Array]:
        """The tops, as arrays of their own."""
        layer, kind = self._layer, self._kind
        if kind.plan is None:
            return list(kind.run(layer.params, layer.weights, bottoms))
        shapes = [bottom.shape for bottom in bottoms]
        if shapes != self._shapes:
            self._kernel = kind.plan(layer.params, layer.weights, shapes, _take)
            self._shapes = shapes
        tops = [np.empty(shape, np.float32) for shape in kind.shape(layer.params, shapes)]
        self._kernel(bottoms, tops)
        return tops


def _take(shape: Shape) -> Array:
    return np.empty(shape, np.float32)


def bytes_per_image(graph: Graph, inputs: Mapping[str, Shape]) -> int:
    """The most memory that `Layerwise` holds for one image, both nets together."""
    shapes = infer_shapes(graph, {name: (1, *shape[1:]) for name, shape in inputs.items()})
    last = {blob: i for i, layer in enumerate(graph.layers) for blob in layer.bottoms}
    held: dict[Blob, int] = {}
    most = 0
    for i, layer in enumerate(graph.layers):
        held.update({top: 8 * prod(shapes.get(top, ())) for top in layer.tops})
        most = max(most, sum(held.values()))
        held = {blob: size for blob, size in held.items() if last.get(blob, -1) > i}
    return most
