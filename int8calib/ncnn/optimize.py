"""A simpler ncnn model that computes the same: folded weights, fused activations, no dead layers.

The passes and their order are those of ncnnoptimize, so that tables made for its models fit
(source: ncnn, tools/ncnnoptimize.cpp).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from int8calib.ncnn.param import NcnnLayer, Value, blob_readers
from int8calib.ncnn.rewrite import (
    Work,
    batch_norm_scale,
    fold_batch_norm,
    fold_constant,
    inner_product_dropout,
)
from int8calib.ncnn.schema import tidied, value_of
from int8calib.ncnn.weights import store_weights

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
    work = Work(layers)
    for run in _PASSES:
        run(work)
    return tuple(map(tidied, store_weights(work.alive(), half=fp16)))


def _global_mean(work: Work) -> None:
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


def _shared_prelu(work: Work) -> None:
    for place, layer in work.of_type("PReLU"):
        if layer.integer(0) == 1:
            slope = float(layer.weights[0][0])
            work.layers[place] = NcnnLayer(
                "ReLU", layer.name, layer.bottoms, layer.tops, {0: slope}
            )


def _fuse_activation(kind: str) -> Callable[[Work], None]:
    def run(work: Work) -> None:
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


def _scalar_constant(work: Work) -> None:
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


def _weighted_sum(work: Work) -> None:
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


def _drop_identities(kind: str, same: Callable[[NcnnLayer], bool]) -> Callable[[Work], None]:
    """Take away layers of one type whose top is their bottom."""

    def run(work: Work) -> None:
        for place, layer in work.of_type(kind):
            if len(layer.bottoms) == 1 and len(layer.tops) == 1 and same(layer):
                work.drop(place, layer.tops[0])

    return run


def _is_identity_pooling(layer: NcnnLayer) -> bool:
    sizes = [value_of(layer, key) for key in (1, 11, 2, 12)]
    pads = [value_of(layer, key) for key in (3, 13, 14, 15)]
    return sizes == [1] * 4 and pads == [0] * 4 and not layer.integer(4)


def _split_without_need(work: Work) -> None:
    """Splits of which a pass has left one reader; tops that nobody ever read are outputs."""
    for place, layer in work.of_type("Split"):
        readers = blob_readers(work.alive())
        used = [top for top in layer.tops if top in readers]
        unread = [top for top in layer.tops if top not in work.read_at_first]
        if len(used) <= 1 and not unread:
            work.drop(place, used[0] if used else layer.tops[0])


def _drop_behind(
    first: str, second: str, same: Callable[[NcnnLayer], bool]
) -> Callable[[Work], None]:
    """Take away what changes nothing behind global pooling or InnerProduct, whose top is 1-d."""

    def run(work: Work) -> None:
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


def _reshape_before_binary_op(work: Work) -> None:
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


def _convolution_to_inner_product(first: str) -> Callable[[Work], None]:
    """A Convolution whose bottom is 1-d is an InnerProduct; repeated for chains of them."""

    def run(work: Work) -> None:
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


def _unread_constants(work: Work) -> None:
    readers = blob_readers(work.alive())
    for place, layer in work.of_type("MemoryData"):
        if layer.tops[0] not in readers:
            work.layers[place] = None


_PASSES: Sequence[Callable[[Work], None]] = (
    batch_norm_scale,
    *(
        fold(kind)
        for kind in ("Convolution", "ConvolutionDepthWise", "Deconvolution")
        for fold in (
            fold_batch_norm,
            lambda kind: fold_constant(kind, MUL),
            lambda kind: fold_constant(kind, ADD),
        )
    ),
    fold_batch_norm("DeconvolutionDepthWise"),
    fold_batch_norm("InnerProduct"),
    fold_constant("InnerProduct", ADD),
    inner_product_dropout,
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
