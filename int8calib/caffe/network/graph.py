"""A network that is not running yet: `NetParameter` and weights in, a frozen `Graph` out.

Phases are filtered, data layers become inputs, in-place tops become versions of their blob, and
layers stand in an order in which they can run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from caffe_proto import LayerParameter, NetParameter
from int8calib.arrays import Array, Shape
from int8calib.caffe.layers.registry import has_type
from int8calib.caffe.network.inputs import INPUT_TYPES, input_shapes
from int8calib.caffe.network.phase import NetState, included
from int8calib.errors import ModelError

LOSS_TYPES = frozenset(
    {
        "Accuracy",
        "ContrastiveLoss",
        "DetectionEvaluate",
        "EuclideanLoss",
        "HingeLoss",
        "InfogainLoss",
        "MultiBoxLoss",
        "MultinomialLogisticLoss",
        "SigmoidCrossEntropyLoss",
        "SmoothL1Loss",
        "SoftmaxWithLoss",
        "CenterLoss",
        "TripletLoss",
        "L1Loss",
        "FocalLoss",
        "HDF5Output",
    }
)
"""Types that score or store what the network gives; a network that runs does without."""


class Blob(NamedTuple):
    """One version of a blob: `version` counts the in-place layers that have rewritten `name`."""

    name: str
    version: int = 0

    def __str__(self) -> str:
        """The text form, which keys statistics: `name`, or `name#version`."""
        return f"{self.name}#{self.version}" if self.version else self.name


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer: its message, its float32 weights, and the blob versions it reads and makes."""

    name: str
    type: str
    params: LayerParameter
    bottoms: tuple[Blob, ...]
    tops: tuple[Blob, ...]
    weights: tuple[Array, ...] = ()

    @property
    def label(self) -> str:
        """How messages name the layer."""
        return f"layer {self.name!r} ({self.type})"


@dataclass(frozen=True, eq=False)
class Graph:
    """Layers in running order, the inputs with their shapes, and the blobs nobody reads.

    `inputs` maps a blob name to its shape as the prototxt gives it (None where it does not say);
    `source` names the prototxt in messages; `unused_weights` lists layers of the caffemodel that
    the prototxt does not have.
    """

    name: str
    source: str
    layers: tuple[Layer, ...]
    inputs: Mapping[str, Shape | None]
    outputs: tuple[Blob, ...]
    unused_weights: tuple[str, ...] = field(default=())

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


def build_graph(
    net: NetParameter, source: str, state: NetState | None = None, *, unique: bool = True
) -> Graph:
    """The graph of an upgraded `NetParameter`, still without weights.

    Raises `ModelError` where a bottom is made by no layer, layers wait for each other, or, if
    `unique`, two layers share a name.
    """
    wanted = [layer for layer in net.layer if included(layer, state or NetState())]
    if not wanted:
        raise ModelError(f"{source}: holds no layer for the TEST phase")
    if unique:
        _check_names(wanted, source)
    wanted = [*_data_of_other_phases(net, wanted), *wanted]
    computing = [_as_input(layer) for layer in wanted if not _scores(layer)]
    layers = _version_blobs(_running_order(computing, source))
    used = {bottom for layer in layers for bottom in layer.bottoms}
    layers = tuple(part for layer in layers for part in _input_by_input(layer, used))
    inputs: dict[str, Shape | None] = {}
    for layer in layers:
        if layer.type in INPUT_TYPES:
            shapes = input_shapes(layer.params)
            inputs.update({top.name: shapes[top.name] for top in layer.tops})
    outputs = tuple(
        top
        for layer in layers
        for top in layer.tops
        if top not in used and layer.type not in INPUT_TYPES
    )
    return Graph(net.name, source, layers, inputs, outputs)


def _scores(layer: LayerParameter) -> bool:
    """Whether a layer only scores what the network gives; forks name theirs alike."""
    if layer.type in LOSS_TYPES:
        return True
    return layer.type.endswith(("Loss", "Accuracy")) and not has_type(layer.type)


def _data_of_other_phases(
    net: NetParameter, wanted: Sequence[LayerParameter]
) -> list[LayerParameter]:
    """Data layers of another phase that make what nothing makes in this one.

    A prototxt for training alone batches its network in the TRAIN phase only.
    """
    made = {top for layer in wanted for top in layer.top}
    found = []
    for layer in net.layer:
        missing = {bottom for other in wanted for bottom in other.bottom} - made
        if layer.type in INPUT_TYPES and missing.intersection(layer.top):
            found.append(layer)
            made.update(layer.top)
    return found


def _as_input(layer: LayerParameter) -> LayerParameter:
    """A layer of an unknown type without bottoms, such as data in Python, as an Input."""
    if layer.bottom or layer.type in INPUT_TYPES or has_type(layer.type):
        return layer
    return LayerParameter(name=layer.name, type="Input", top=layer.top)


def _check_names(layers: Sequence[LayerParameter], source: str) -> None:
    """Weights and table rows go by layer name, so two layers must not share one."""
    seen: dict[str, str] = {}
    for layer in layers:
        if layer.name in seen and not {layer.type, seen[layer.name]} & INPUT_TYPES:
            raise ModelError(
                f"{source}: two layers are named {layer.name!r} "
                f"({seen[layer.name]} and {layer.type}); names must differ"
            )
        seen[layer.name] = layer.type


def _input_by_input(layer: Layer, used: set[Blob]) -> list[Layer]:
    """A data layer as one layer for each top that something reads; other layers as they are.

    So a blob that needs the images needs no labels.
    """
    if layer.type not in INPUT_TYPES:
        return [layer]
    return [replace(layer, tops=(top,)) for top in layer.tops if top in used]


def _running_order(layers: Sequence[LayerParameter], source: str) -> list[LayerParameter]:
    """File order where that runs, as Caffe demands.

    Otherwise each time the earliest layer that is ready, in-place layers before the other readers
    of their blob: a blob's name stands for what it is in the end.
    """
    if _runs(layers):
        return list(layers)
    waiting, order, made = list(layers), [], set[str]()
    while waiting:
        ready = [layer for layer in waiting if made.issuperset(layer.bottom)]
        if not ready:
            raise ModelError(_stuck(waiting, source))
        layer = next((layer for layer in ready if set(layer.bottom) & set(layer.top)), ready[0])
        waiting.remove(layer)
        order.append(layer)
        made.update(layer.top)
    return order


def _runs(layers: Sequence[LayerParameter]) -> bool:
    """Whether each layer finds its bottoms made by layers before it."""
    made = set[str]()
    for layer in layers:
        if not made.issuperset(layer.bottom):
            return False
        made.update(layer.top)
    return True


def _stuck(waiting: Sequence[LayerParameter], source: str) -> str:
    """Why none of the `waiting` layers can run."""
    tops = {top for layer in waiting for top in layer.top}
    for layer in waiting:
        for bottom in layer.bottom:
            if bottom not in tops:
                return (
                    f"{source}: layer {layer.name!r} ({layer.type}) reads the blob {bottom!r}, "
                    "which no layer makes and no input names"
                )
    names = ", ".join(repr(layer.name) for layer in waiting[:5])
    return f"{source}: the layers {names} wait for each other in a circle"


def _version_blobs(layers: Sequence[LayerParameter]) -> tuple[Layer, ...]:
    """Layers with their bottoms and tops as blob versions."""
    current: dict[str, Blob] = {}
    result = []
    for params in layers:
        bottoms = tuple(current[name] for name in params.bottom)
        for name in params.top:
            current[name] = Blob(name, current[name].version + 1) if name in current else Blob(name)
        tops = tuple(current[name] for name in params.top)
        result.append(Layer(params.name, params.type, params, bottoms, tops))
    return tuple(result)
