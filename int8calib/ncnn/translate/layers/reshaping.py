"""The same memory in another shape: Reshape, Squeeze and ExpandDims."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from int8calib.arrays import Array, Shape
from int8calib.errors import ShapeError, UnsupportedLayerError
from int8calib.ncnn.translate.layers.registry import blob_shape, extents, ncnn_layer
from int8calib.ncnn.translate.layers.sizes import evaluate
from int8calib.ncnn.translate.options import Options

_ABSENT, _NO_AXIS = -233, 233


def _reshape_shape(options: Options, bottoms: Sequence[Shape]) -> list[Shape]:
    for name in ("input_batch_axis", "output_batch_axis"):
        if options.integer(name) != _NO_AXIS:
            raise UnsupportedLayerError(f"{name} {options.integer(name)} is not supported")
    if expression := options.text("shape_expr"):
        return [_filled(evaluate(expression, bottoms), bottoms[0])]
    names = [name for name in "whdc" if options.integer(name) != _ABSENT]
    if names not in (["w"], ["w", "h"], ["w", "h", "c"], ["w", "h", "d", "c"]):
        raise ShapeError(f"the sizes {names} are no shape; expected w, then h, then c, then d")
    given, own = {name: options.integer(name) for name in names}, extents(bottoms[0])
    return [_filled([size or own[name] for name, size in given.items()], bottoms[0])]


def _filled(sizes: Sequence[int], bottom: Shape) -> Shape:
    """A blob of these sizes w, h, ..., of which one may be -1: what is left."""
    count, known = prod(bottom[1:]), prod(size for size in sizes if size != -1)
    whole = [count // known if size == -1 and known else size for size in sizes]
    if prod(whole) != count or min(whole) < 0 or len(sizes) > 4:
        raise ShapeError(f"{count} values of {bottom} do not fit into {list(reversed(sizes))}")
    return blob_shape(bottom[0], whole)


@ncnn_layer("Reshape", shape=_reshape_shape, view=True)
def reshape(options: Options, weights: Sequence[Array], bottoms: Sequence[Array]) -> list[Array]:
    """The same values in the sizes w, h, d, c: 0 copies the bottom's, -1 is what is left.

    Source: ncnn's reshape.cpp.
    """
    shape = _reshape_shape(options, [bottom.shape for bottom in bottoms])[0]
    return [bottoms[0].reshape(shape)]


def _axis_order(dims: int) -> str:
    return {1: "w", 2: "hw", 3: "chw", 4: "cdhw"}[dims]


def _squeeze_shape(options: Options, bottoms: Sequence[Shape]) -> list[Shape]:
    batch, *sizes = bottoms[0]
    dims = len(sizes)
    axes = options.integers("axes")
    if axes:
        gone = {axis % dims for axis in axes if -dims <= axis < dims}
    else:
        chosen = {name for name in "whdc" if options.integer(f"squeeze_{name}")}
        gone = {i for i, name in enumerate(_axis_order(dims)) if name in chosen}
    left = [size for i, size in enumerate(sizes) if i not in gone or size != 1]
    return [(batch, *(left or [1]))]


@ncnn_layer("Squeeze", shape=_squeeze_shape, view=True)
def squeeze(options: Options, weights: Sequence[Array], bottoms: Sequence[Array]) -> list[Array]:
    """The bottom without those of the axes named that are 1 long. Source: ncnn's squeeze.cpp."""
    return [bottoms[0].reshape(_squeeze_shape(options, [bottoms[0].shape])[0])]


def _expand_shape(options: Options, bottoms: Sequence[Shape]) -> list[Shape]:
    batch, *sizes = bottoms[0]
    axes = options.integers("axes")
    dims = len(sizes) + len(axes)
    if not axes or dims > 4 or not all(-dims <= axis < dims for axis in axes):
        raise ShapeError(f"axes {list(axes)} do not expand {len(sizes)} axes to at most 4")
    # A negative axis counts from behind the top of one axis more, as in ncnn.
    new = {axis if axis >= 0 else len(sizes) + 1 + axis for axis in axes}
    old = iter(sizes)
    if len(new) != len(axes):
        raise ShapeError(f"axes {list(axes)} name one axis twice")
    return [(batch, *(1 if i in new else next(old) for i in range(dims)))]


@ncnn_layer("ExpandDims", shape=_expand_shape, view=True)
def expand_dims(
    options: Options, weights: Sequence[Array], bottoms: Sequence[Array]
) -> list[Array]:
    """The bottom with new axes of 1 at the places named. Source: ncnn's expanddims.cpp."""
    return [bottoms[0].reshape(_expand_shape(options, [bottoms[0].shape])[0])]
