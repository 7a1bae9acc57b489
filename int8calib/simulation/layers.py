"""The INT8 layers that a simulated network runs: sums over levels, then floats again.

They register as the types `Int8Convolution` and `Int8InnerProduct`, which no prototxt holds:
`int8calib.simulation.build` puts them into a graph. Their parameters are those of the Caffe layer;
their weights are what `Int8Weights` names. Bottoms after the first are not read: they only make
the engine keep a blob until the layer has run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caffe_proto import LayerParameter
from int8calib.arrays import Array, Shape
from int8calib.caffe.layers.registry import FastPath, LayerType, Scratch, add_type, find_type
from int8calib.levels import LEVELS
from int8calib.simulation.arithmetic import dequantize, quantize

EXACT = 1 << 24
"""Whole numbers up to here are exact in float32, and so are sums that stay below."""
PREFIX = "Int8"
"""What stands before a Caffe type in the name of its INT8 layer."""


@dataclass(frozen=True, eq=False)
class Int8Weights:
    """The weights of an INT8 layer, in the order in which the graph holds them.

    Attributes
    ----------
    levels
        the weights as whole numbers within -127..127, in the shape of the Caffe weights.
    factors
        float32 (num_output,): what a sum is multiplied with, 1 / (bottom scale x weight scale).
    bias
        float32 (num_output,), zeros where the layer has none.
    scale
        float32 (1,): what the bottom is multiplied with before it is rounded.
    limits
        float32 (2,): the smallest and the largest level of the bottom.
    """

    levels: Array
    factors: Array
    bias: Array
    scale: Array
    limits: Array

    def arrays(self) -> tuple[Array, ...]:
        """The arrays as a layer's weights."""
        return self.levels, self.factors, self.bias, self.scale, self.limits

    def quantize(self, bottom: Array, levels: Array) -> None:
        """Write the levels of a bottom into `levels`."""
        quantize(bottom, self.scale[0], levels, (int(self.limits[0]), int(self.limits[1])))


def sums_fit(rows: Array, largest: float = LEVELS) -> bool:
    """Whether whole sums of weight levels (rows, values) x bottom levels are exact in float32.

    In any order of adding, a sum stays within the largest level of the bottom times the absolute
    weights of its row.
    """
    return largest * float(np.abs(rows).sum(axis=1, dtype=np.float64).max()) <= EXACT


class _Int8Type:
    """What a Caffe type does in INT8: its own sums over levels, then sum x factor + bias.

    `outputs_last` says whether the outputs lie on the last axis of a top, or else on axis 1.
    """

    def __init__(self, source: str, *, outputs_last: bool) -> None:
        self._kind = find_type(source)
        self._last = outputs_last

    def layer_type(self) -> LayerType:
        """The INT8 layer as a type of the engine."""
        name = PREFIX + self._kind.name
        return LayerType(
            name, self.run, self.shape, plan=self.plan, macs=self._kind.macs, internal=True
        )

    def shape(self, params: LayerParameter, bottoms: Sequence[Shape]) -> Sequence[Shape]:
        """The shape of the float layer's top."""
        return self._kind.shape(params, bottoms[:1])

    def run(
        self, params: LayerParameter, weights: Sequence[Array], bottoms: Sequence[Array]
    ) -> list[Array]:
        """The definition, with sums in float64.

        Source: forward_int8 in ncnn's src/layer/convolution.cpp, convolutiondepthwise.cpp and
        innerproduct.cpp.
        """
        int8 = Int8Weights(*weights)
        levels = np.empty(bottoms[0].shape, np.float32)
        int8.quantize(np.ascontiguousarray(bottoms[0]), levels)
        sums = self._wide_sums(params, int8.levels, levels)
        top = np.ascontiguousarray(sums, np.float32)
        self._dequantize(top, int8)
        return [top]

    def plan(
        self,
        params: LayerParameter,
        weights: Sequence[Array],
        bottoms: Sequence[Shape],
        scratch: Scratch,
    ) -> FastPath:
        """The float type's own fast path over levels; float64 only where float32 would round."""
        int8 = Int8Weights(*weights)
        levels = scratch(bottoms[0])
        rows = int8.levels
        if self._last and params.inner_product_param.transpose:
            rows = rows.T
        fits = sums_fit(rows.reshape(len(int8.factors), -1), float(int8.limits[1]))
        plan = self._kind.plan if fits else None
        fast_path = plan(params, [int8.levels], [bottoms[0]], scratch) if plan else None

        def run(images: Sequence[Array], tops: Sequence[Array]) -> None:
            int8.quantize(images[0], levels)
            if fast_path is None:
                np.copyto(
                    tops[0], self._wide_sums(params, int8.levels, levels), casting="same_kind"
                )
            else:
                fast_path([levels], tops)
            self._dequantize(tops[0], int8)

        return run

    def _wide_sums(
        self, params: LayerParameter, weight: Array, levels: Array
    ) -> NDArray[np.float64]:
        """The float type's plain run in float64, whose sums are exact up to 2**53."""
        wide: list[Any] = [array.astype(np.float64) for array in (weight, levels)]
        sums: Any = self._kind.run(params, wide[:1], wide[1:])[0]
        return np.asarray(sums, np.float64)

    def _dequantize(self, top: Array, int8: Int8Weights) -> None:
        """Sums to floats, in place: one row per output, or for outputs last one per value."""
        outputs = len(int8.factors)
        for rows in top.reshape((-1, outputs, 1) if self._last else (len(top), outputs, -1)):
            dequantize(rows, int8.factors, int8.bias)


for _int8 in (
    _Int8Type("Convolution", outputs_last=False),
    _Int8Type("InnerProduct", outputs_last=True),
):
    add_type(_int8.layer_type(), replace=True)
