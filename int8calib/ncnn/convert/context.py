"""What the conversion of one Caffe layer sees and makes.

ncnn has no batch axis, so Caffe's axis k is ncnn's axis k - 1. Its blobs of one axis stand for
Caffe's (N, C) and (N, C, 1, 1) alike: global pooling and InnerProduct make such, and layers behind
them mostly take them as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from int8calib.arrays import Shape
from int8calib.caffe.network.graph import Blob, Layer
from int8calib.errors import ModelError
from int8calib.ncnn.param import Value, WrittenFloat

BlobName: TypeAlias = "Blob | str"


@dataclass(frozen=True, eq=False)
class Node:
    """An ncnn layer whose blobs are Caffe's, or names of blobs between the nodes of one layer."""

    type: str
    name: str
    bottoms: tuple[BlobName, ...]
    tops: tuple[BlobName, ...]
    params: Mapping[int, Value] = field(default_factory=dict)
    weights: tuple[NDArray[Any], ...] = ()


class Conversion:
    """One Caffe layer being converted: its shapes, and the nodes made so far."""

    def __init__(
        self, layer: Layer, shapes: Mapping[Blob, Shape], axes: Mapping[Blob, int], source: str
    ) -> None:
        self.layer = layer
        self.nodes: list[Node] = []
        self.notes: list[str] = []
        self.top_axes: int | None = None
        self._shapes = shapes
        self._axes = axes
        self._source = source

    @property
    def params(self) -> Any:
        """The layer's `LayerParameter`."""
        return self.layer.params

    def shape(self, index: int = 0) -> Shape:
        """Bottom `index`'s shape in Caffe, the batch axis included."""
        return self._shapes[self.layer.bottoms[index]]

    def top_shape(self, index: int = 0) -> Shape:
        """Top `index`'s shape in Caffe."""
        return self._shapes[self.layer.tops[index]]

    def axes(self, index: int = 0) -> int:
        """How many axes bottom `index` has in ncnn."""
        return self._axes[self.layer.bottoms[index]]

    def add(
        self,
        kind: str,
        params: Mapping[int, Value] | None = None,
        *weights: NDArray[Any],
        bottoms: Sequence[BlobName] | None = None,
        tops: Sequence[BlobName] | None = None,
        suffix: str = "",
    ) -> None:
        """Add an ncnn layer; bottoms, tops and name are the Caffe layer's unless given."""
        self.nodes.append(
            Node(
                kind,
                self.layer.name + suffix,
                self.layer.bottoms if bottoms is None else tuple(bottoms),
                self.layer.tops if tops is None else tuple(tops),
                params or {},
                tuple(np.ascontiguousarray(blob, np.float32).reshape(-1) for blob in weights),
            )
        )

    def between(self, suffix: str) -> str:
        """The name of a blob between two nodes of this layer."""
        return f"{self.layer.name}{suffix}"

    def axis(self, axis: int, index: int = 0) -> int:
        """Caffe's `axis` of bottom `index` as ncnn counts it; negative ones count from the end."""
        count = len(self.shape(index))
        if axis == 0 or axis == -count:
            raise self.refused(f"axis {axis}", "ncnn has no batch axis")
        if not -count < axis < count:
            raise self.refused(f"axis {axis}", f"the bottom has {count} axes")
        if axis < 0 and self.axes(index) == count - 1:
            return axis
        return axis - 1 if axis > 0 else axis + count - 1

    def spread(self, index: int) -> BlobName:
        """Bottom `index` with all of Caffe's axes, by a Reshape where ncnn has only one."""
        blob = self.layer.bottoms[index]
        count = len(self.shape(index)) - 1
        if self.axes(index) == count:
            return blob
        name = self.between(f"_bottom{index}")
        self.add(
            "Reshape",
            sizes(self.shape(index)),
            bottoms=(blob,),
            tops=(name,),
            suffix=f"_reshape{index}",
        )
        return name

    def even_bottoms(self) -> tuple[BlobName, ...]:
        """All bottoms with the same number of axes."""
        counts = {self.axes(i) for i in range(len(self.layer.bottoms))}
        if len(counts) == 1:
            return self.layer.bottoms
        self.top_axes = max(counts)
        return tuple(self.spread(i) for i in range(len(self.layer.bottoms)))

    def note(self, text: str) -> None:
        """Say what the user should know of this layer in ncnn."""
        self.notes.append(f"{self.layer.label}: {text}")

    def refused(self, option: str, reason: str) -> ModelError:
        """The error for an option that ncnn cannot express."""
        return ModelError(f"{self._source}: {self.layer.label}: {option}: {reason}")


Converter: TypeAlias = Callable[[Conversion], None]


def real(value: float) -> WrittenFloat:
    """A float parameter with the seven digits that caffe2ncnn writes."""
    return WrittenFloat(f"{value:e}")


def reals(values: Sequence[float]) -> tuple[WrittenFloat, ...]:
    """An array of float parameters."""
    return tuple(real(value) for value in values)


def sizes(shape: Shape) -> dict[int, Value]:
    """A Reshape's parameters for a Caffe shape: 0=w 1=h 2=c, the batch left out."""
    dims = shape[1:] or (1,)
    if len(dims) == 1:
        return {0: int(dims[0])}
    if len(dims) == 2:
        return {0: int(dims[1]), 1: int(dims[0])}
    if len(dims) == 3:
        return {0: int(dims[2]), 1: int(dims[1]), 2: int(dims[0])}
    return {0: int(dims[3]), 1: int(dims[2]), 11: int(dims[1]), 2: int(dims[0])}
