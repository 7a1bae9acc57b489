"""Say what can be done to a network's channels, and how much an error in each costs the outputs.

A factor on a channel of a layer's top can be taken back in the weights that read it, if all that
lies between scales along: ReLU, pooling, Concat, sums. What does not (a softmax, an output of the
network, the input) fixes its channels. The sensitivity of a channel makes errors of different
channels and layers comparable, whatever factors their values carry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from caffe_proto import caffe_pb2
from int8calib.arrays import Shape
from int8calib.caffe.layers.activation import homogeneous_limit
from int8calib.caffe.layers.convolution import groups
from int8calib.caffe.layers.windows import pair
from int8calib.caffe.network.graph import CONVOLUTIONS, Blob, Graph, Layer
from int8calib.caffe.network.quantized import sole_layer
from int8calib.rounding.samples import layer_matrices

Ids = NDArray[np.intp]
Float64Array = NDArray[np.float64]
FIXED = 0
PoolingParameter = caffe_pb2.PoolingParameter
KEEPS_FACTORS = (caffe_pb2.EltwiseParameter.SUM, caffe_pb2.EltwiseParameter.MAX)
"""Eltwise operations whose top is scaled as their bottoms are."""
SAME_CHANNELS = frozenset(("ReLU", "PReLU", "Pooling", "Dropout", "Split", "Flatten"))
"""Types that give f(s x) = s f(x) for each channel and s > 0, and keep the channels' order.

A ReLU does so below its limits, a Flatten if each channel is one value.
"""

LIMITED = frozenset(("ReLU", "ReLU6", "Clip"))
"""Types that do the same to every value, whether or not they scale along."""


@dataclass(frozen=True, eq=False)
class Channels:
    """For each blob the id of each channel's factor, (C,); the factor of FIXED stays 1.

    Channels with one id get one factor. `limits` tells of some ids the magnitude that some blob's
    values must stay below, times their factor, since they do not scale along beyond.
    """

    of: Mapping[Blob, Ids]
    limits: Mapping[int, float] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """How many ids there are, FIXED included."""
        return 1 + max((int(ids.max(initial=0)) for ids in self.of.values()), default=0)

    def families(self, bottoms: Mapping[str, Blob]) -> list[list[str]]:
        """The layers of `bottoms` (by name) grouped by shared factors; fixed ones left out."""
        families: list[tuple[set[int], list[str]]] = []
        for name, blob in bottoms.items():
            own = set(self.of[blob].tolist()) - {FIXED}
            if not own:
                continue
            joined = (own, [name])
            for other in [family for family in families if family[0] & own]:
                families.remove(other)
                joined = (joined[0] | other[0], [*other[1], *joined[1]])
            families.append(joined)
        return [names for _, names in families]


def scalable_channels(graph: Graph, shapes: Mapping[Blob, Shape]) -> Channels:
    """Find which channels of `graph` may be scaled; `shapes` are those of its blobs.

    What a Clip cuts off fixes its channels, unless a layer with weights reads its top: then its
    values can be told.
    """
    readers = graph.readers()

    def equal(layer: Layer, bottoms: list[Ids], tops: list[Ids]) -> list[tuple[Ids, Ids]] | None:
        if layer.type not in LIMITED:
            return _equal(layer, bottoms, tops)
        limit = homogeneous_limit(layer.type, layer.params)
        seen = any(can_scale_weights(reader) for reader in readers[layer.tops[0]])
        return [(bottoms[0], tops[0])] if limit == np.inf or (limit > 0 and seen) else None

    found = _found(graph, shapes, equal)
    limits: dict[int, float] = {}
    for blob, limit in limited_tops(graph).items():
        for number in found.of[blob].tolist():
            limits[number] = min(limit, limits.get(number, np.inf))
    return replace(found, limits=limits)


def limited_tops(graph: Graph) -> dict[Blob, float]:
    """The tops of layers that scale along up to some magnitude only, with that magnitude."""
    limits = {
        layer.tops[0]: homogeneous_limit(layer.type, layer.params)
        for layer in graph.layers
        if layer.type in LIMITED
    }
    return {blob: limit for blob, limit in limits.items() if limit < np.inf}


def copyable_channels(
    graph: Graph, shapes: Mapping[Blob, Shape], *, depthwise: bool = True
) -> Channels:
    """Find which channels must have as many copies as each other.

    Parameters
    ----------
    graph
        The network.
    shapes
        Those of its blobs.
    depthwise
        Whether the channels that a depthwise layer reads and makes are the same ones; False tells
        apart what is rounded before it and behind it.
    """

    def equal(layer: Layer, bottoms: list[Ids], tops: list[Ids]) -> list[tuple[Ids, Ids]] | None:
        if layer.type in LIMITED or (depthwise and is_depthwise(layer)):
            return [(bottoms[0], tops[0])]
        return _equal(layer, bottoms, tops)

    return _found(graph, shapes, equal)


_Equal = Callable[[Layer, list[Ids], list[Ids]], "list[tuple[Ids, Ids]] | None"]


def _found(graph: Graph, shapes: Mapping[Blob, Shape], equal: _Equal) -> Channels:
    """The channels of a graph, with those joined that `equal` pairs."""
    same = _DisjointSets()
    of: dict[Blob, Ids] = {}
    for layer in graph.layers:
        for top in layer.tops:
            shape = shapes.get(top, ())
            of[top] = same.new(shape[1]) if len(shape) > 1 else np.zeros(0, np.intp)
        _join(layer, of, same, equal)
    for blob in graph.outputs:
        same.fix(of[blob])
    return Channels({blob: same.roots(ids) for blob, ids in of.items()})


def _join(layer: Layer, of: Mapping[Blob, Ids], same: _DisjointSets, equal: _Equal) -> None:
    """Say which factors of a layer's bottoms and tops must be equal, or 1."""
    bottoms, tops = [of[b] for b in layer.bottoms], [of[t] for t in layer.tops]
    if can_scale_weights(layer) and _one_to_one(layer, bottoms):
        for a, b in equal(layer, bottoms, tops) or ():
            same.join(a, b)
        return
    pairs = equal(layer, bottoms, tops)
    if pairs is None:
        for ids in (*bottoms, *tops):
            same.fix(ids)
        return
    for a, b in pairs:
        same.join(a, b)


def _equal(layer: Layer, bottoms: list[Ids], tops: list[Ids]) -> list[tuple[Ids, Ids]] | None:
    """Which factors a layer hands on as they are; None where it does not hand on any."""
    pairs: list[tuple[Ids, Ids]] = []
    if layer.type in SAME_CHANNELS:
        pairs = [(bottoms[0], top) for top in tops]
    elif layer.type == "Concat" and layer.params.concat_param.axis == 1:
        pairs = [(np.concatenate(bottoms), tops[0])]
    elif layer.type == "Eltwise" and layer.params.eltwise_param.operation in KEEPS_FACTORS:
        pairs = [(bottom, tops[0]) for bottom in bottoms]
    fits = pairs and all(len(a) == len(b) for a, b in pairs)
    return pairs if fits else None


def is_depthwise(layer: Layer) -> bool:
    """Whether a layer makes each channel of one channel of its bottom."""
    if layer.type not in CONVOLUTIONS or len(layer.bottoms) != 1 or not layer.weights:
        return False
    outputs, inputs = layer.weights[0].shape[:2]
    return bool(inputs == 1 and outputs > 1 and groups(layer.params) == outputs)


def can_scale_weights(layer: Layer) -> bool:
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


def channel_sensitivity(graph: Graph, shapes: Mapping[Blob, Shape]) -> dict[Blob, Float64Array]:
    """Estimate for each blob, float64 (C,), the squared error at the outputs for one of its values.

    Squared weights, passed from the outputs back to the inputs: exact for errors that are
    independent of each other, and near enough to tell channels that matter from channels that do
    not. Outputs have 1 for each channel. Blobs without axis 1 have one value.
    """
    result: dict[Blob, Float64Array] = {}
    for layer in reversed(graph.layers):
        if any(blob not in shapes for blob in (*layer.bottoms, *layer.tops)):
            continue  # it cannot run, so its bottoms count as outputs
        tops = [result.get(top, np.ones(_channel_count(shapes, top))) for top in layer.tops]
        result.update(zip(layer.tops, tops, strict=True))
        if not tops or not layer.bottoms:
            continue
        for bottom, part in zip(layer.bottoms, _backward(layer, shapes, tops), strict=True):
            result[bottom] = result[bottom] + part if bottom in result else part
    return result


def _channel_count(shapes: Mapping[Blob, Shape], blob: Blob) -> int:
    shape = shapes.get(blob, ())
    return shape[1] if len(shape) > 1 else 1


def _backward(
    layer: Layer, shapes: Mapping[Blob, Shape], tops: list[Float64Array]
) -> list[Float64Array]:
    """The sensitivity of a layer's bottoms, from that of its tops."""
    counts = [_channel_count(shapes, bottom) for bottom in layer.bottoms]
    if can_scale_weights(layer):
        return [_through_weights(layer, counts[0], tops[0], shapes)]
    if layer.type == "Concat" and sum(counts) == len(tops[0]):
        return np.split(tops[0], np.cumsum(counts)[:-1])
    share = _pooling_share(layer, shapes) if layer.type == "Pooling" else 1.0
    if layer.type in ("ReLU", "PReLU", "ReLU6"):
        share = 0.5  # about half of the values pass
    whole = tops[0] * share
    return [whole if len(whole) == n else np.full(n, whole.mean()) for n in counts]


def _through_weights(
    layer: Layer, count: int, top: Float64Array, shapes: Mapping[Blob, Shape]
) -> Float64Array:
    squares = np.square(layer_matrices(sole_layer(layer)).weights, dtype=np.float64)
    group, outputs, _ = squares.shape
    sums = np.einsum("gm,gmk->gk", top.reshape(group, outputs), squares)
    # Every window's taps fall on as many positions as there are in the bottom.
    return np.asarray(sums.reshape(count, -1).sum(axis=1) * _windows_share(layer, shapes))


def _windows_share(layer: Layer, shapes: Mapping[Blob, Shape]) -> float:
    """Output positions per position of the bottom."""
    if layer.type == "InnerProduct":
        return 1.0
    bottom, top = shapes[layer.bottoms[0]], shapes[layer.tops[0]]
    return float(np.prod(top[2:])) / float(np.prod(bottom[2:]))


def _pooling_share(layer: Layer, shapes: Mapping[Blob, Shape]) -> float:
    """Pooling's share: a maximum passes one value of its window, a mean the 1/n of each."""
    bottom, top = (float(np.prod(shapes[b][2:])) for b in (layer.bottoms[0], layer.tops[0]))
    if layer.params.pooling_param.pool == PoolingParameter.MAX:
        return top / bottom
    param = layer.params.pooling_param
    if param.global_pooling:
        return 1 / bottom**2
    kernel = pair("kernel_size", [param.kernel_size], param.kernel_h, param.kernel_w, 1)
    return top / bottom / (kernel[0] * kernel[1])


class _DisjointSets:
    """Sets of ids that are joined (union-find); the set of FIXED keeps FIXED as its root."""

    def __init__(self) -> None:
        self._parent = [FIXED]

    def new(self, count: int) -> Ids:
        """`count` new ids, each a set of its own."""
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
        for each in ids.tolist():
            self._parent[self.root(each)] = FIXED

    def roots(self, ids: Ids) -> Ids:
        return np.array([self.root(each) for each in ids.tolist()], np.intp)
