"""The frozen structure of a network: layers in running order and the blobs between them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

from caffe_proto import LayerParameter, Unread
from int8calib.arrays import Array, Shape
from int8calib.errors import ModelError

CONVOLUTIONS = frozenset(("Convolution", "ConvolutionDepthwise", "DepthwiseConvolution"))
QUANTIZED_TYPES = CONVOLUTIONS | {"InnerProduct"}
"""Types that ncnn can run in INT8."""
_WITH_FOREIGN_NAMES = QUANTIZED_TYPES | {"ConvolutionDepthWise"}

FUSED_ACTIVATION = ":activation"
"""What stands behind the name of a layer in that of the activation that is a part of it."""


class Blob(NamedTuple):
    """One version of a blob: `version` counts the in-place layers that have rewritten `name`."""

    name: str
    version: int = 0

    def __str__(self) -> str:
        """The text form, which keys statistics: `name`, or `name#version`."""
        return f"{self.name}#{self.version}" if self.version else self.name


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer: its message, its float32 weights, and the blob versions it reads and makes.

    `unread` is what its part of the prototxt says and nobody understood: a layer that has any
    cannot run as it is written. `stands_for` is the type, in the words of another framework, of
    what is a layer here only to say that it cannot run.
    """

    name: str
    type: str
    params: LayerParameter
    bottoms: tuple[Blob, ...]
    tops: tuple[Blob, ...]
    weights: tuple[Array, ...] = ()
    unread: tuple[Unread, ...] = ()
    stands_for: str = ""

    @property
    def label(self) -> str:
        """How messages name the layer."""
        return f"layer {self.name!r} ({self.stands_for or self.type})"

    @property
    def is_quantized(self) -> bool:
        """Whether ncnn can run a layer of this type in INT8, whether or not it can run here."""
        return (self.stands_for or self.type) in _WITH_FOREIGN_NAMES

    def copy_params(self) -> LayerParameter:
        """A copy of the message, which others may change."""
        params = LayerParameter()
        params.CopyFrom(self.params)
        return params

    def with_bias(self, weight: Array, bias: Array) -> Layer:
        """Return a Convolution, Deconvolution or InnerProduct with another weight and a bias.

        Parameters
        ----------
        weight
            In the shape of the layer's type; it may have more or fewer outputs than before.
        bias
            Float32 (num_output,); the layer need not have had one.
        """
        params = self.copy_params()
        inner = self.type == "InnerProduct"
        param = params.inner_product_param if inner else params.convolution_param
        param.num_output, param.bias_term = bias.size, True
        return replace(self, params=params, weights=(weight, bias))


@dataclass(frozen=True)
class FieldNote:
    """Something of a prototxt that was not understood and left out.

    Attributes
    ----------
    layer, type
        The layer that holds it; both empty outside of the layers.
    field
        Its name, inside of a layer with dots, such as ``convolution_param.foo``.
    line
        Its line, 0 where it stands in no file.
    what
        What was not understood, with the value.
    reason
        Why that does no harm.
    """

    layer: str
    type: str
    field: str
    line: int
    what: str
    reason: str

    def as_json(self) -> dict[str, Any]:
        """The same as JSON values."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Graph:
    """Layers in running order, the inputs with their shapes, and the blobs nobody reads.

    `inputs` maps a blob name to its shape as the prototxt gives it (None where it does not say);
    `source` names the prototxt in messages; `unused_weights` lists layers of the caffemodel that
    the prototxt does not have; `notes` tells what was left out of the prototxt without harm, and
    `unread` what stands outside of its layers and looks like one.
    """

    name: str
    source: str
    layers: tuple[Layer, ...]
    inputs: Mapping[str, Shape | None]
    outputs: tuple[Blob, ...]
    unused_weights: tuple[str, ...] = field(default=())
    notes: tuple[FieldNote, ...] = ()
    unread: tuple[Unread, ...] = ()

    @property
    def facts(self) -> dict[str, Any]:
        """What reports say of the network, as JSON values: what of its prototxt was left out."""
        notes = [note.as_json() for note in self.notes]
        return {"ignored_fields": notes} if notes else {}

    def last_version(self, name: str) -> Blob:
        """The version of blob `name` at the end of a run; raises `ModelError` for unknown ones."""
        versions = [top for layer in self.layers for top in layer.tops if top.name == name]
        if not versions:
            raise ModelError(f"{self.source}: no layer makes a blob named {name!r}")
        return max(versions)

    def producer(self, blob: Blob) -> Layer:
        """The layer that makes `blob`."""
        return next(layer for layer in self.layers if blob in layer.tops)

    def readers(self) -> dict[Blob, list[Layer]]:
        """Which layers read each blob version."""
        table: dict[Blob, list[Layer]] = {top: [] for layer in self.layers for top in layer.tops}
        for layer in self.layers:
            for bottom in dict.fromkeys(layer.bottoms):
                table[bottom].append(layer)
        return table

    def ancestors(self, wanted: Iterable[Blob]) -> tuple[Layer, ...]:
        """The layers that must run so that `wanted` exist, in running order."""
        needed = set(wanted)
        chosen = []
        for layer in reversed(self.layers):
            if needed.intersection(layer.tops):
                chosen.append(layer)
                needed.update(layer.bottoms)
        return tuple(reversed(chosen))
