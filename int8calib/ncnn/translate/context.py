"""What the translation of one ncnn layer sees and makes.

ncnn's blobs have no batch; the engine's have it as axis 0, and ncnn's axes behind it: (N, W),
(N, H, W), (N, C, H, W), (N, C, D, H, W). So ncnn's axis k is the engine's axis k + 1, and what ncnn
does to its outermost axis, such as one factor a channel, the engine does to axis 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np

from caffe_proto import LayerParameter
from int8calib.arrays import Array, Shape
from int8calib.caffe.network.graph import FUSED_ACTIVATION, Blob, Layer
from int8calib.errors import ShapeError, UnsupportedLayerError
from int8calib.ncnn.param import NcnnLayer
from int8calib.ncnn.translate.layers.registry import REFUSED, engine_axis
from int8calib.ncnn.translate.options import Options, pack_options


class Translation:
    """One ncnn layer being translated: its shapes, and the engine's layers made so far."""

    def __init__(self, layer: NcnnLayer, shapes: Mapping[str, Shape], batch: str) -> None:
        """`batch`: an input, which tells layers without bottoms how many images there are."""
        self.layer = layer
        self.options = Options(layer)
        self.layers: list[Layer] = []
        self.batch = batch
        self._shapes = shapes

    def shape(self, index: int = 0) -> Shape:
        """Bottom `index`'s shape, the batch included."""
        return self._shapes[self.layer.bottoms[index]]

    def axis(self, name: str = "axis") -> int:
        """The axis that option `name` gives for bottom 0, as the engine counts it."""
        return engine_axis(self.options.integer(name), len(self.shape()))

    def weights(self, *shapes: Shape) -> tuple[Array, ...]:
        """The layer's blobs as float32 in these shapes, as many as it has of them.

        Raises `ShapeError` where they do not fit, `UnsupportedLayerError` for INT8 weights.
        """
        if len(self.layer.weights) < len(shapes):
            raise ShapeError(f"has {len(self.layer.weights)} blobs of weights, not {len(shapes)}")
        blobs = []
        for blob, shape in zip(self.layer.weights, shapes, strict=False):
            if blob.dtype == np.int8:
                raise UnsupportedLayerError("its weights are INT8; load the float model")
            if blob.size != np.prod(shape, dtype=np.int64):
                raise ShapeError(f"weights of {blob.size} values do not fit {shape}")
            blobs.append(np.ascontiguousarray(blob, np.float32).reshape(shape))
        return tuple(blobs)

    def add(
        self,
        kind: str,
        weights: Sequence[Array] = (),
        *,
        suffix: str = "",
        bottoms: Sequence[str] | None = None,
        tops: Sequence[str] | None = None,
        **fields: Any,
    ) -> None:
        """Add a layer of Caffe's type `kind`; name, bottoms and tops are ncnn's unless given.

        `fields` are those of its `LayerParameter`, messages as dicts.
        """
        name, bottoms, tops = self._named(suffix, bottoms, tops)
        params = LayerParameter(name=name, type=kind, bottom=bottoms, top=tops, **fields)
        self._append(params, weights)

    def add_ncnn(
        self,
        weights: Sequence[Array] = (),
        *,
        layer: NcnnLayer | None = None,
        kind: str = "",
        suffix: str = "",
        bottoms: Sequence[str] | None = None,
        tops: Sequence[str] | None = None,
    ) -> None:
        """Add a layer that does what ncnn's layer (this one, or `layer`) does.

        `kind` names a part of what it does.
        """
        name, bottoms, tops = self._named(suffix, bottoms, tops)
        self._append(pack_options(layer or self.layer, name, bottoms, tops, kind), weights)

    def refuse(self, reason: str) -> None:
        """Put a layer that cannot run in place of this one, and say why."""
        params = LayerParameter(
            name=self.layer.name, type=REFUSED, bottom=self.layer.bottoms, top=self.layer.tops
        )
        params.python_param.module = reason
        self.layers = []
        self._append(params, ())
        self.layers = [replace(self.layers[0], stands_for=self.layer.type)]

    def add_activation(self, before: str) -> None:
        """Add the activation that is part of the layer, from the blob `before` to its top."""
        kind, values = self.options.integer("activation_type"), self._activation_values()
        chosen = _ACTIVATIONS.get(kind)
        if chosen is None or len(values) < chosen[1]:
            raise UnsupportedLayerError(f"activation {kind} with {list(values)} is not supported")
        blobs: dict[str, Any] = {"suffix": FUSED_ACTIVATION, "bottoms": (before,)}
        if kind in (_SIGMOID, _HARD_SWISH):
            own = dict(enumerate(values)) if kind == _HARD_SWISH else {}
            self.add_ncnn(layer=NcnnLayer(chosen[0], "", (), (), own), **blobs)
        else:
            self.add(chosen[0], **blobs, **chosen[2](values))

    def _activation_values(self) -> tuple[float, ...]:
        return self.options.numbers("activation_params")

    def between(self, suffix: str) -> str:
        """The name of a blob between two of the layers made here."""
        return f"{self.layer.name}{suffix}"

    def _named(
        self, suffix: str, bottoms: Sequence[str] | None, tops: Sequence[str] | None
    ) -> tuple[str, Sequence[str], Sequence[str]]:
        return (
            self.layer.name + suffix,
            self.layer.bottoms if bottoms is None else bottoms,
            self.layer.tops if tops is None else tops,
        )

    def _append(self, params: LayerParameter, weights: Sequence[Array]) -> None:
        bottoms, tops = (tuple(map(Blob, names)) for names in (params.bottom, params.top))
        self.layers.append(Layer(params.name, params.type, params, bottoms, tops, tuple(weights)))


Translator: TypeAlias = Callable[[Translation], None]

_SIGMOID, _HARD_SWISH = 4, 6
_ACTIVATIONS: Mapping[int, tuple[str, int, Callable[[Sequence[float]], dict[str, Any]]]] = {
    1: ("ReLU", 0, lambda values: {}),
    2: ("ReLU", 1, lambda values: {"relu_param": {"negative_slope": values[0]}}),
    3: ("Clip", 2, lambda values: {"clip_param": {"min": values[0], "max": values[1]}}),
    _SIGMOID: ("Sigmoid", 0, lambda values: {}),
    5: ("Mish", 0, lambda values: {}),
    _HARD_SWISH: ("HardSwish", 2, lambda values: {}),
}
"""For each activation type: the layer's type, how many values it takes, and Caffe's parameters."""
