"""A model that passes change in place: find a layer's reader, merge two layers, drop one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from int8calib.arrays import Array
from int8calib.ncnn.param import NcnnLayer, blob_readers


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
