"""A model that passes change in place, and the passes that fold weights into the layer before.

Folding rounds each operation to float32 by itself and in ncnnoptimize's order, so that the weights
are bit for bit those of that tool (source: ncnn, tools/ncnnoptimize.cpp).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from int8calib.arrays import Array
from int8calib.ncnn.param import NcnnLayer, blob_readers

ADD, MUL = 0, 2
"""Operations of BinaryOp."""
_ABSENT = -233


class Work:
    """A model being changed: layers by place, None where one is gone."""

    def __init__(self, layers: Sequence[NcnnLayer]) -> None:
        self.layers: list[NcnnLayer | None] = [
            replace(layer, weights=tuple(_as_float(array) for array in layer.weights))
            for layer in layers
        ]
        self.read_at_first = frozenset(blob_readers(layers))

    def alive(self) -> list[NcnnLayer]:
        """The layers that are left."""
        return [layer for layer in self.layers if layer is not None]

    def of_type(self, *types: str) -> Iterator[tuple[int, NcnnLayer]]:
        """Places and layers of some types, as they are when their turn comes."""
        for place in range(len(self.layers)):
            layer = self.layers[place]
            if layer is not None and layer.type in types:
                yield place, layer

    def reader(self, place: int, *types: str) -> tuple[int, NcnnLayer] | None:
        """The first later layer of these types whose only bottom is the top of that at `place`."""
        layer = self.layers[place]
        if layer is None or not layer.tops:
            return None
        for later in range(place + 1, len(self.layers)):
            other = self.layers[later]
            if other is not None and other.type in types and other.bottoms == layer.tops[:1]:
                return later, other
        return None

    def producer(self, blob: str, before: int, *types: str) -> int | None:
        """The place of the last earlier layer that makes `blob`, of these types if any."""
        for place in range(before - 1, -1, -1):
            layer = self.layers[place]
            if layer is not None and blob in layer.tops and (not types or layer.type in types):
                return place
        return None

    def _type(self, place: int) -> str:
        layer = self.layers[place]
        return "" if layer is None else layer.type

    def merge(self, place: int, layer: NcnnLayer, later: int) -> None:
        """Put `layer` at `place`; it makes the top of the layer at `later`, which goes."""
        gone = self.layers[later]
        assert gone is not None
        self.layers[place] = replace(layer, tops=(gone.tops[0], *layer.tops[1:]))
        self.layers[later] = None

    def drop(self, place: int, top: str) -> None:
        """Take a layer away whose bottom is its `top` unchanged: the producer makes that."""
        layer = self.layers[place]
        assert layer is not None
        if not layer.bottoms:
            return  # of a damaged model: it makes something of nothing, and stays
        maker = self.producer(layer.bottoms[0], place)
        if maker is None or self._type(maker) == "Input":
            return  # an input keeps its name
        above = self.layers[maker]
        assert above is not None
        tops = tuple(top if each == layer.bottoms[0] else each for each in above.tops)
        self.layers[maker] = replace(above, tops=tops)
        self.layers[place] = None


def _as_float(array: NDArray[Any]) -> Array:
    return np.asarray(array, np.float32)


def batch_norm_scale(work: Work) -> None:
    """Scale into the BatchNorm before it."""
    for place, norm in work.of_type("BatchNorm"):
        found = work.reader(place, "Scale")
        if found is None or found[1].integer(0) == _ABSENT:
            continue
        later, scale = found
        slope, mean, variance, bias = norm.weights
        slope, bias = slope * scale.weights[0], bias * scale.weights[0]
        if scale.integer(1):
            bias = bias + scale.weights[1]
        work.merge(place, replace(norm, weights=(slope, mean, variance, bias)), later)


def _bias_key(layer: NcnnLayer) -> int:
    return 1 if layer.type == "InnerProduct" else 5


def _scaled(layer: NcnnLayer, factor: Array, offset: Array | None) -> NcnnLayer:
    """`layer` with each output times `factor` plus `offset`; None adds no bias."""
    key, out = _bias_key(layer), layer.integer(0)
    weight = (layer.weights[0].reshape(out, -1) * factor[:, None]).reshape(-1)
    if layer.integer(key):
        bias = layer.weights[1] * factor
        return replace(layer, weights=(weight, bias if offset is None else bias + offset))
    if offset is None:
        return replace(layer, weights=(weight,))
    bias = np.zeros(out, np.float32) * factor + offset
    return replace(layer.with_params(**{f"p{key}": 1}), weights=(weight, bias))


def fold_batch_norm(kind: str) -> Callable[[Work], None]:
    """BatchNorm into the layer of type `kind` before it."""

    def run(work: Work) -> None:
        for place, layer in work.of_type(kind):
            found = work.reader(place, "BatchNorm")
            if found is None or not layer.weights:
                continue
            later, norm = found
            slope, mean, variance, bias = norm.weights
            deviation = np.sqrt(variance + np.float32(norm.number(1, 0.0)))
            factor = slope / deviation
            offset = bias - slope * mean / deviation
            work.merge(place, _scaled(layer, factor, offset), later)

    return run


def fold_constant(kind: str, operation: int) -> Callable[[Work], None]:
    """Multiplication or addition of a MemoryData of one value a channel."""

    def run(work: Work) -> None:
        for place, layer in work.of_type(kind):
            if not layer.weights:
                continue
            for later, other in work.of_type("BinaryOp"):
                if later <= place or other.integer(0) != operation or other.integer(1):
                    continue
                if len(other.bottoms) != 2 or other.bottoms[0] != layer.tops[0]:
                    continue
                constant = _constant(work, other.bottoms[1], later, layer.integer(0), operation)
                if constant is None:
                    break
                one = np.ones(layer.integer(0), np.float32)
                if operation == MUL:
                    changed = _scaled(layer, constant, None)
                else:
                    changed = replace(
                        _scaled(layer, one, constant), weights=_added(layer, constant)
                    )
                work.merge(place, changed, later)
                break

    return run


def _added(layer: NcnnLayer, constant: Array) -> tuple[Array, ...]:
    if layer.integer(_bias_key(layer)):
        return layer.weights[0], layer.weights[1] + constant
    return layer.weights[0], constant


def _constant(work: Work, blob: str, before: int, out: int, operation: int) -> Array | None:
    """The values of the MemoryData `blob` where they are one for each of `out` channels."""
    place = work.producer(blob, before, "MemoryData")
    if place is None:
        return None
    data = work.layers[place]
    assert data is not None
    sizes = tuple(data.integer(key) for key in (0, 1, 2))
    channels = sizes == (1, 1, out) and operation == ADD
    if sizes != (out, 0, 0) and not channels:
        return None
    values: Array = data.weights[0]
    return values


def inner_product_dropout(work: Work) -> None:
    """Dropout that scales into the InnerProduct before it."""
    for place, layer in work.of_type("InnerProduct"):
        found = work.reader(place, "Dropout")
        if found is None:
            continue
        later, dropout = found
        scale = np.float32(dropout.number(0, 1.0))
        if scale != 1:
            layer = _scaled(layer, np.full(layer.integer(0), scale), None)
        work.merge(place, layer, later)
