"""A decorator for layers that map each value by itself: one formula serves both paths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from caffe_proto import LayerParameter
from int8calib.arrays import Array, Shape, namespace
from int8calib.caffe.layers.registry import FastPath, Scratch, layer
from int8calib.caffe.layers.shapes import need_count

Formula: TypeAlias = Callable[[LayerParameter, Array, Array], None]


def elementwise(
    *names: str, check: Callable[[LayerParameter], object] | None = None
) -> Callable[[Formula], Formula]:
    """Register a formula as the layer types `names`.

    Parameters
    ----------
    names
        The Caffe types.
    check
        `check(params)` raises `ShapeError` for options that have no meaning.

    Returns
    -------
    callable
        The decorator of `formula(params, x, out)`, which writes into `out` (float32, shaped as
        `x`). `out` may be `x` itself, so it must not read an entry of `x` that it has written.
        Its functions are those of `namespace(x)`, so that it runs on a device too.
    """

    def shape(params: LayerParameter, bottoms: Sequence[Shape]) -> list[Shape]:
        need_count(bottoms, 1)
        if check is not None:
            check(params)
        return [bottoms[0]]

    def add(formula: Formula) -> Formula:
        def plan(
            params: LayerParameter,
            weights: Sequence[Array],
            bottoms: Sequence[Shape],
            scratch: Scratch,
        ) -> FastPath:
            def fast_path(bottoms: Sequence[Array], tops: Sequence[Array]) -> None:
                formula(params, bottoms[0], tops[0])

            return fast_path

        def run(
            params: LayerParameter, weights: Sequence[Array], bottoms: Sequence[Array]
        ) -> list[Array]:
            top = namespace(bottoms[0]).empty(bottoms[0].shape, np.float32)
            formula(params, bottoms[0], top)
            return [top]

        run.__doc__, run.__module__ = formula.__doc__, formula.__module__
        layer(*names, shape=shape, plan=plan, inplace=True)(run)
        return formula

    return add
