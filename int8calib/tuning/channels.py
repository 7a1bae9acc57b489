"""A graph comes in; which channels of its blobs may be scaled together, and how, goes out.

A factor on a channel of a layer's top can be taken back in the weights that read it, if all that
lies between scales along: ReLU, pooling, Concat, sums. What does not (a softmax, an output of the
net, the input) fixes its channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from caffe_proto import caffe_pb2
from int8calib.arrays import Shape
from int8calib.caffe.layers.activation import relu_limits
from int8calib.caffe.layers.convolution import groups
from int8calib.caffe.network.graph import CONVOLUTIONS, Blob, Graph, Layer

Ids = NDArray[np.intp]
FIXED = 0
KEEPS_FACTORS = (caffe_pb2.EltwiseParameter.SUM, caffe_pb2.EltwiseParameter.MAX)
"""Eltwise operations whose top is scaled as their bottoms are."""
SAME_CHANNELS = frozenset(("ReLU", "PReLU", "Pooling", "Dropout", "Split"))
"""Types that give f(s x) = s f(x) for each channel and s > 0, and keep the channels' order.

A ReLU does so if it has no limits.
"""


@dataclass(frozen=True, eq=False)
class Channels:
    """For each blob the number of each channel's factor, (C,); FIXED stays 1.

    Channels with one number get one factor.
    """

    of: Mapping[Blob, Ids]

    def families(self, bottoms: Mapping[str, Blob]) -> list[list[str]]:
        """The layers of `bottoms` (by name) grouped by shared factors; fixed ones left out."""
        families: list[tuple[set[int], list[str]]] = []
        for name, blob in bottoms.items():
            own = set(self.of[blob].tolist()) - {FIXED}
            if not own:
                continue
            joined: tuple[set[int], list[str]] = (own, [name])
            for other in [family for family in families if family[0] & own]:
                families.remove(other)
                joined = (joined[0] | other[0], [*other[1], *joined[1]])
            families.append(joined)
        return [names for _, names in families]


def scalable_channels(graph: Graph, shapes: Mapping[Blob, Shape]) -> Channels:
    """Which channels of `graph` may be scaled; `shapes` are those of its blobs."""
    same = _Union()
    of: dict[Blob, Ids] = {}
    for layer in graph.layers:
        for top in layer.tops:
            shape = shapes.get(top, ())
            of[top] = same.new(shape[1]) if len(shape) > 1 else np.zeros(0, np.intp)
        _join(layer, of, same)
    for blob in graph.outputs:
        same.fix(of[blob])
    return Channels({blob: same.roots(ids) for blob, ids in of.items()})


def _join(layer: Layer, of: Mapping[Blob, Ids], same: _Union) -> None:
    """Say which factors of a layer's bottoms and tops must be equal, or 1."""
    bottoms, tops = [of[b] for b in layer.bottoms], [of[t] for t in layer.tops]
    if scales_weights(layer) and _one_to_one(layer, bottoms):
        return
    pairs = _equal(layer, bottoms, tops)
    if pairs is None:
        for ids in (*bottoms, *tops):
            same.fix(ids)
        return
    for a, b in pairs:
        same.join(a, b)


def _equal(layer: Layer, bottoms: list[Ids], tops: list[Ids]) -> list[tuple[Ids, Ids]] | None:
    """Which factors a layer hands on as they are; None where it does not hand on any."""
    pairs: list[tuple[Ids, Ids]] = []
    if layer.type == "ReLU" and relu_limits(layer.params) != (None, None):
        return None
    if layer.type in SAME_CHANNELS:
        pairs = [(bottoms[0], top) for top in tops]
    elif layer.type == "Concat" and layer.params.concat_param.axis == 1:
        pairs = [(np.concatenate(bottoms), tops[0])]
    elif layer.type == "Eltwise" and layer.params.eltwise_param.operation in KEEPS_FACTORS:
        pairs = [(bottom, tops[0]) for bottom in bottoms]
    fits = pairs and all(len(a) == len(b) for a, b in pairs)
    return pairs if fits else None


def scales_weights(layer: Layer) -> bool:
    """Whether a layer's weights can take factors of its bottom and its top."""
    if len(layer.bottoms) != 1 or len(layer.tops) != 1 or not layer.weights:
        return False
    return layer.type in CONVOLUTIONS or (
        layer.type == "InnerProduct"
        and layer.params.inner_product_param.axis == 1
        and not layer.params.inner_product_param.transpose
    )


def _one_to_one(layer: Layer, bottoms: list[Ids]) -> bool:
    """Whether the weights' inputs are the bottom's channels, each maybe at several places."""
    weight = layer.weights[0]
    if layer.type == "InnerProduct":
        return len(bottoms[0]) > 0 and int(weight.shape[1]) % len(bottoms[0]) == 0
    return int(weight.shape[1]) * groups(layer.params) == len(bottoms[0])


class _Union:
    """Sets of numbers that grow together; the set of FIXED stays fixed."""

    def __init__(self) -> None:
        self._parent = [FIXED]

    def new(self, count: int) -> Ids:
        first = len(self._parent)
        self._parent += range(first, first + count)
        return np.arange(first, first + count)

    def root(self, number: int) -> int:
        while self._parent[number] != number:
            self._parent[number] = self._parent[self._parent[number]]
            number = self._parent[number]
        return number

    def join(self, a: Ids, b: Ids) -> None:
        for x, y in zip(a.tolist(), b.tolist(), strict=True):
            low, high = sorted((self.root(x), self.root(y)))
            self._parent[high] = low

    def fix(self, ids: Ids) -> None:
        for number in ids.tolist():
            self._parent[self.root(number)] = FIXED

    def roots(self, ids: Ids) -> Ids:
        return np.array([self.root(number) for number in ids.tolist()], np.intp)
