"""A simpler ncnn model that computes the same: folded weights, fused activations, no dead layers.

The passes and their order are those of ncnnoptimize, so that tables made for its models fit
(source: ncnn, tools/ncnnoptimize.cpp).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from int8calib.arrays import Array
from int8calib.ncnn.param import NcnnLayer, Value, blob_readers
from int8calib.ncnn.quantize import stored_blobs
from int8calib.ncnn.schema import tidied, value_of

ADD, SUB, MUL, DIV, MAX, MIN, RSUB, RDIV = 0, 1, 2, 3, 4, 5, 7, 8
"""Operations of BinaryOp."""
_SWAPPED = {ADD: ADD, MUL: MUL, MAX: MAX, MIN: MIN, SUB: RSUB, DIV: RDIV}
_ABSENT = -233
_MEAN = 3
_ACTIVATIONS = {"ReLU": 1, "Clip": 3, "Sigmoid": 4, "Mish": 5, "HardSwish": 6}
_FUSES: Mapping[str, frozenset[str]] = {
    "Convolution": frozenset(_ACTIVATIONS),
    "ConvolutionDepthWise": frozenset(_ACTIVATIONS),
    "InnerProduct": frozenset(_ACTIVATIONS),
    "Convolution1D": frozenset(_ACTIVATIONS) - {"HardSwish"},
    "Deconvolution": frozenset(("ReLU", "Clip", "Sigmoid")),
    "DeconvolutionDepthWise": frozenset(("ReLU", "Clip", "Sigmoid")),
}
"""The activations that each type of layer takes in."""


def optimize_model(layers: Sequence[NcnnLayer], *, fp16: bool = False) -> tuple[NcnnLayer, ...]:
    """The model as ncnnoptimize leaves it, shape hints left out.

    Parameters
    ----------
    layers : sequence of NcnnLayer
        A float model with weights.
    fp16 : bool
        Store weights as float16 (ncnnoptimize's flag 65536), else as float32.

    Raises
    ------
    ModelFileError
        For parameters of the wrong kind.
    """
    work = _Work(layers)
    for run in _PASSES:
        run(work)
    return tuple(
        tidied(replace(layer, weights=tuple(stored_blobs(layer, half=fp16))))
        for layer in work.alive()
    )


class _Work:
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


def _batch_norm_scale(work: _Work) -> None:
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


def _fold_batch_norm(kind: str) -> Callable[[_Work], None]:
    def run(work: _Work) -> None:
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


def _fold_constant(kind: str, operation: int) -> Callable[[_Work], None]:
    """Multiplication or addition of a MemoryData of one value a channel."""

    def run(work: _Work) -> None:
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


def _constant(work: _Work, blob: str, before: int, out: int, operation: int) -> Array | None:
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


def _inner_product_dropout(work: _Work) -> None:
    for place, layer in work.of_type("InnerProduct"):
        found = work.reader(place, "Dropout")
        if found is None:
            continue
        later, dropout = found
        scale = np.float32(dropout.number(0, 1.0))
        if scale != 1:
            layer = _scaled(layer, np.full(layer.integer(0), scale), None)
        work.merge(place, layer, later)


def _global_mean(work: _Work) -> None:
    """A mean over the columns and one over the rows: global average pooling."""

    def axis(layer: NcnnLayer) -> Value | None:
        plain = layer.integer(0) == _MEAN and not layer.integer(1, 1) and layer.number(2, 1.0) == 1
        axes = layer.array(3)
        return axes[0] if plain and len(axes) == 1 else None

    for place, layer in work.of_type("Reduction"):
        found = work.reader(place, "Reduction")
        if axis(layer) not in (2, 3) or found is None or axis(found[1]) != 2:
            continue
        later, second = found
        pooling = NcnnLayer("Pooling", second.name, layer.bottoms, second.tops, {0: 1, 4: 1})
        work.layers[later], work.layers[place] = pooling, None


def _shared_prelu(work: _Work) -> None:
    for place, layer in work.of_type("PReLU"):
        if layer.integer(0) == 1:
            slope = float(layer.weights[0][0])
            work.layers[place] = NcnnLayer(
                "ReLU", layer.name, layer.bottoms, layer.tops, {0: slope}
            )


def _fuse_activation(kind: str) -> Callable[[_Work], None]:
    def run(work: _Work) -> None:
        for place, layer in work.of_type(kind):
            found = work.reader(place, *_FUSES[kind])
            if found is None:
                continue
            later, activation = found
            code, values = _activation(activation)
            changed = layer.with_params(p9=code, p10=values or None)
            work.merge(place, changed, later)

    return run


def _activation(layer: NcnnLayer) -> tuple[int, tuple[float, ...]]:
    """The activation type and parameters that stand for a layer."""
    code = _ACTIVATIONS[layer.type]
    if layer.type == "ReLU":
        slope = layer.number(0, 0.0)
        return (2, (slope,)) if slope else (code, ())
    if layer.type in ("Clip", "HardSwish"):
        values = (value_of(layer, 0), value_of(layer, 1))
        return code, tuple(float(value) for value in values if isinstance(value, (int, float)))
    return code, ()


def _scalar_constant(work: _Work) -> None:
    for place, data in work.of_type("MemoryData"):
        if tuple(data.integer(key) for key in (0, 1, 2)) != (1, 0, 0):
            continue
        for later, layer in work.of_type("BinaryOp"):
            if later <= place or len(layer.bottoms) != 2 or data.tops[0] not in layer.bottoms:
                continue
            operation = layer.integer(0)
            first = layer.bottoms[0] == data.tops[0]
            if first and operation not in _SWAPPED:
                continue
            rest = layer.bottoms[1:] if first else layer.bottoms[:1]
            changed = layer.with_params(
                p0=_SWAPPED[operation] if first else operation, p1=1, p2=float(data.weights[0][0])
            )
            work.layers[later] = replace(changed, bottoms=rest)
            work.layers[place] = None
            break


def _weighted_sum(work: _Work) -> None:
    """A sum of blobs times scalars: Eltwise with coefficients."""
    for place, layer in work.of_type("BinaryOp"):
        if layer.integer(0) != ADD or layer.integer(1) or len(layer.bottoms) != 2:
            continue
        bottoms, coefficients, gone = [], [], []
        for bottom in layer.bottoms:
            maker = work.producer(bottom, place, "BinaryOp")
            product = None if maker is None else work.layers[maker]
            if product is None or product.integer(0) != MUL or not product.integer(1):
                bottoms.append(bottom)
                coefficients.append(1.0)
                continue
            bottoms.append(product.bottoms[0])
            coefficients.append(product.number(2, 0.0))
            gone.append(maker)
        if gone:
            for maker in gone:
                work.layers[maker or 0] = None
            work.layers[place] = NcnnLayer(
                "Eltwise", layer.name, tuple(bottoms), layer.tops, {0: 1, 1: tuple(coefficients)}
            )


def _drop_identities(kind: str, same: Callable[[NcnnLayer], bool]) -> Callable[[_Work], None]:
    """Take away layers of one type whose top is their bottom."""

    def run(work: _Work) -> None:
        for place, layer in work.of_type(kind):
            if len(layer.bottoms) == 1 and len(layer.tops) == 1 and same(layer):
                work.drop(place, layer.tops[0])

    return run


def _is_identity_pooling(layer: NcnnLayer) -> bool:
    sizes = [value_of(layer, key) for key in (1, 11, 2, 12)]
    pads = [value_of(layer, key) for key in (3, 13, 14, 15)]
    return sizes == [1] * 4 and pads == [0] * 4 and not layer.integer(4)


def _split_without_need(work: _Work) -> None:
    """Splits of which a pass has left one reader; tops that nobody ever read are outputs."""
    for place, layer in work.of_type("Split"):
        readers = blob_readers(work.alive())
        used = [top for top in layer.tops if top in readers]
        unread = [top for top in layer.tops if top not in work.read_at_first]
        if len(used) <= 1 and not unread:
            work.drop(place, used[0] if used else layer.tops[0])


def _drop_behind(
    first: str, second: str, same: Callable[[NcnnLayer], bool]
) -> Callable[[_Work], None]:
    """Take away what changes nothing behind global pooling or InnerProduct, whose top is 1-d."""

    def run(work: _Work) -> None:
        for place, layer in work.of_type(first):
            if first == "Pooling" and not layer.integer(4):
                continue
            found = work.reader(place, second)
            if found is not None and same(found[1]):
                work.merge(place, layer, found[0])

    return run


def _is_one_dimensional(layer: NcnnLayer) -> bool:
    return layer.integer(1, _ABSENT) == layer.integer(2, _ABSENT) == _ABSENT and not layer.integer(
        3
    )


def _reshape_before_binary_op(work: _Work) -> None:
    for place, layer in work.of_type("Reshape"):
        if (layer.integer(0, _ABSENT), layer.integer(1, _ABSENT), layer.integer(3)) != (1, 1, 0):
            continue
        for later, other in work.of_type("BinaryOp"):
            if later > place and len(other.bottoms) == 2 and layer.tops[0] in other.bottoms:
                bottoms = tuple(
                    layer.bottoms[0] if each == layer.tops[0] else each for each in other.bottoms
                )
                work.layers[later] = replace(other, bottoms=bottoms)
                work.layers[place] = None
                break


def _convolution_to_inner_product(first: str) -> Callable[[_Work], None]:
    """A Convolution whose bottom is 1-d is an InnerProduct; repeated for chains of them."""

    def run(work: _Work) -> None:
        changed = True
        while changed:
            changed = False
            for place, layer in work.of_type(first):
                if first == "Pooling" and not layer.integer(4):
                    continue
                found = work.reader(place, "Convolution")
                if found is None or not found[1].weights:
                    continue
                later, convolution = found
                params: dict[int, Value] = {
                    0: convolution.integer(0),
                    1: convolution.integer(5),
                    2: convolution.integer(6),
                }
                params |= {k: convolution.params[k] for k in (8, 9, 10) if k in convolution.params}
                work.layers[later] = replace(convolution, type="InnerProduct", params=params)
                changed = first == "InnerProduct"

    return run


def _unread_constants(work: _Work) -> None:
    readers = blob_readers(work.alive())
    for place, layer in work.of_type("MemoryData"):
        if layer.tops[0] not in readers:
            work.layers[place] = None


_PASSES: Sequence[Callable[[_Work], None]] = (
    _batch_norm_scale,
    *(
        fold(kind)
        for kind in ("Convolution", "ConvolutionDepthWise", "Deconvolution")
        for fold in (
            _fold_batch_norm,
            lambda kind: _fold_constant(kind, MUL),
            lambda kind: _fold_constant(kind, ADD),
        )
    ),
    _fold_batch_norm("DeconvolutionDepthWise"),
    _fold_batch_norm("InnerProduct"),
    _fold_constant("InnerProduct", ADD),
    _inner_product_dropout,
    _global_mean,
    _shared_prelu,
    *(_fuse_activation(kind) for kind in _FUSES),
    _scalar_constant,
    _weighted_sum,
    _drop_identities("Dropout", lambda layer: layer.number(0, 1.0) == 1),
    _drop_identities("Pooling", _is_identity_pooling),
    _drop_identities("Noop", lambda layer: True),
    _split_without_need,
    _drop_behind("Pooling", "Flatten", lambda layer: True),
    _drop_behind("Pooling", "Reshape", _is_one_dimensional),
    _reshape_before_binary_op,
    _convolution_to_inner_product("Pooling"),
    _convolution_to_inner_product("InnerProduct"),
    _drop_behind("InnerProduct", "Flatten", lambda layer: True),
    _unread_constants,
)
