"""Register functions of ncnn's layers as internal types of the engine, and what they share.

Blobs have ncnn's axes behind the batch: (N, W), (N, H, W), (N, C, H, W) or (N, C, D, H, W).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from caffe_proto import LayerParameter
from int8calib.arrays import Array, Shape
from int8calib.caffe.layers.registry import LayerType, add_type
from int8calib.caffe.layers.registry import ShapeRule as CaffeShapeRule
from int8calib.errors import ShapeError, UnsupportedLayerError
from int8calib.ncnn.translate.options import PREFIX, Options, unpack_options

Run: TypeAlias = Callable[[Options, Sequence[Array], Sequence[Array]], Sequence[Array]]
ShapeRule: TypeAlias = Callable[[Options, Sequence[Shape]], Sequence[Shape]]


OWN: set[str] = set()
"""The ncnn types that have functions of their own."""


def ncnn_layer(
    name: str,
    *,
    shape: ShapeRule,
    weights: ShapeRule | None = None,
    view: bool = False,
    part: bool = False,
) -> Callable[[Run], Run]:
    """Register a function as the ncnn layer type `name`.

    Parameters
    ----------
    name
        The ncnn type; the engine knows it as ``ncnn.<name>``.
    shape, weights, view
        As in the engine's `LayerType`, with `Options` for parameters.
    part
        Whether it is a part of what an ncnn layer does, and no type of ncnn's.

    Returns
    -------
    callable
        The decorator of `run(options, weights, bottoms)`, which returns the tops by functions of
        `namespace(bottom)`.
    """

    def add(run: Run) -> Run:
        def of_message(
            params: LayerParameter, blobs: Sequence[Array], bottoms: Sequence[Array]
        ) -> Sequence[Array]:
            return run(unpack_options(params), blobs, bottoms)

        kind = LayerType(
            PREFIX + name,
            of_message,
            _of_message(shape),
            None if weights is None else _of_message(weights),
            view=view,
            internal=True,
            host=False,
        )
        add_type(kind, replace=True)
        if not part:
            OWN.add(name)
        return run

    return add


def _of_message(rule: ShapeRule) -> CaffeShapeRule:
    def of_message(params: LayerParameter, bottoms: Sequence[Shape]) -> Sequence[Shape]:
        return rule(unpack_options(params), bottoms)

    return of_message


def same_shape(options: Options, bottoms: Sequence[Shape]) -> list[Shape]:
    """One top, shaped as the first bottom."""
    return [bottoms[0]]


def engine_axis(axis: int, ndim: int) -> int:
    """Count ncnn's `axis` from the front, the batch included, for a bottom of `ndim` axes.

    Raises `ShapeError` where there is no such axis.
    """
    dims = ndim - 1
    if not -dims <= axis < dims:
        raise ShapeError(f"axis {axis} is out of range for {dims} axes")
    return axis % dims + 1


def extents(shape: Shape) -> dict[str, int]:
    """The sizes w, h, d and c of a blob, 1 where it has no such axis."""
    _, *sizes = shape
    named = dict.fromkeys("whdc", 1)
    order = {1: "w", 2: "hw", 3: "chw", 4: "cdhw"}.get(len(sizes))
    if order is None:
        raise ShapeError(f"bottom has shape {shape}; ncnn has blobs of 1 to 4 axes and the batch")
    named.update(zip(order, sizes, strict=True))
    return named


def blob_shape(batch: int, sizes: Sequence[int]) -> Shape:
    """The shape of a blob of the sizes w, h, (d,) c, as many as it has axes."""
    return (batch, *(int(size) for size in reversed(sizes)))


def _refused(params: LayerParameter, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    raise UnsupportedLayerError(params.python_param.module)


def _never(
    params: LayerParameter, blobs: Sequence[Array], bottoms: Sequence[Array]
) -> Sequence[Array]:
    raise UnsupportedLayerError(params.python_param.module)


REFUSED = "ncnn"
"""The type of a layer that has no equivalent; its message says why, as Caffe's module name."""

add_type(LayerType(REFUSED, _never, _refused, internal=True, host=False), replace=True)
