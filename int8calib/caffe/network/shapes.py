"""Shapes of all blobs before anything runs, and which layers cannot run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from int8calib.arrays import Shape
from int8calib.caffe.layers.registry import find_type, has_type, type_names
from int8calib.caffe.network.graph import QUANTIZED_TYPES, Blob, Graph, Layer
from int8calib.caffe.network.inputs import INPUT_TYPES, shape_advice
from int8calib.caffe.network.layer_shapes import top_shapes
from int8calib.caffe.network.unread import obstacle_reason, way_out
from int8calib.errors import ModelError, ShapeError, UnsupportedLayerError


@dataclass(frozen=True, eq=False)
class Obstacle:
    """Why a layer cannot run.

    Attributes
    ----------
    layer
        The layer that stands in the way: the one that cannot run, or one before it.
    reason
        What is wrong with it, as the rest of a sentence that begins with its label.
    error
        The error of its shape rule, where its type is known but its bottoms or options do not fit.
    """

    layer: Layer
    reason: str
    error: ModelError | None = None

    def __str__(self) -> str:
        """One line that names the layer and the reason."""
        return f"{self.layer.label} {self.reason}"

    @property
    def is_size(self) -> bool:
        """Whether nothing is wrong but the size of an input, which is not known."""
        return self.layer.type in INPUT_TYPES


@dataclass(frozen=True, eq=False)
class Reach:
    """How far a graph runs.

    Attributes
    ----------
    shapes
        The shape of every blob that can be made.
    blocked
        Each layer that cannot run, with what stands in its way: itself, or else the first layer
        on the way to it.
    lost
        Each blob that cannot be made, with the first layer on the way to it that cannot run.
    """

    shapes: Mapping[Blob, Shape]
    blocked: Mapping[Layer, Obstacle]
    lost: Mapping[Blob, Obstacle]


def reach(graph: Graph, inputs: Mapping[str, Shape]) -> Reach:
    """Follow the shapes from the inputs as far as layers can run.

    Parameters
    ----------
    graph
        The network, with or without weights.
    inputs
        Shapes of the inputs; what depends on others counts as blocked by them.

    Returns
    -------
    Reach
        Never raises for what a layer is or says: that becomes an `Obstacle`.
    """
    shapes: dict[Blob, Shape] = {}
    blocked: dict[Layer, Obstacle] = {}
    lost: dict[Blob, Obstacle] = {}
    for layer in graph.layers:
        earlier = _first(lost, layer.bottoms)
        obstacle = _own_obstacle(layer, inputs) or earlier
        if obstacle is None and layer.type in INPUT_TYPES:
            shapes.update({top: inputs[top.name] for top in layer.tops})
        elif obstacle is None:
            try:
                shapes.update(zip(layer.tops, top_shapes(graph, layer, shapes), strict=True))
            except (ShapeError, UnsupportedLayerError) as error:
                reason = str(error).removeprefix(f"{graph.source}: {layer.label}: ")
                obstacle = Obstacle(layer, f"cannot run: {reason}", error)
        if obstacle is not None:
            blocked[layer] = obstacle
            first = obstacle if earlier is None or earlier.is_size else earlier
            lost.update(dict.fromkeys(layer.tops, first))
    return Reach(shapes, blocked, lost)


def _own_obstacle(layer: Layer, inputs: Mapping[str, Shape]) -> Obstacle | None:
    """Why a layer cannot run whatever its bottoms are."""
    if layer.type in INPUT_TYPES:
        unknown = [top.name for top in layer.tops if top.name not in inputs]
        return Obstacle(layer, "makes a blob of unknown size") if unknown else None
    if not has_type(layer.type):
        return Obstacle(layer, _unknown_type(layer.type))
    if layer.unread:
        return Obstacle(layer, obstacle_reason(layer.unread))
    return None


def _unknown_type(name: str) -> str:
    """What to tell of a type that nobody has, and of one that differs in case only."""
    if not name.strip():
        return "has no type"
    near = [known for known in type_names() if known.lower() == name.strip().lower()]
    return f"is of a type that does not run{f' ({near[0]} does)' if near else ''}"


def _first(lost: Mapping[Blob, Obstacle], bottoms: Iterable[Blob]) -> Obstacle | None:
    """The obstacle on the way to `bottoms`; missing sizes come last, for they can be given."""
    obstacles = [lost[bottom] for bottom in bottoms if bottom in lost]
    return min(obstacles, key=lambda obstacle: obstacle.is_size, default=None)


def infer_shapes(
    graph: Graph, inputs: Mapping[str, Shape], layers: Iterable[Layer] | None = None
) -> dict[Blob, Shape]:
    """Infer the shape of every blob that `layers` make.

    Parameters
    ----------
    graph
        The network.
    inputs
        Shapes of its inputs.
    layers
        What is to run, in running order; each must be able to. By default all layers that can
        run; others are passed over where no quantized layer waits for them.

    Returns
    -------
    dict
        Blob to shape.

    Raises
    ------
    ShapeError
        Where a layer cannot take its bottoms, or an input has no size; names the layer.
    UnsupportedLayerError
        For one of `layers` that cannot run.
    """
    if layers is None:
        reached = reach(graph, inputs)
        refuse_misfits(reached)
        return dict(reached.shapes)
    shapes: dict[Blob, Shape] = {}
    for layer in layers:
        obstacle = _own_obstacle(layer, inputs)
        if obstacle is not None:
            raise _refused(graph, obstacle)
        if layer.type in INPUT_TYPES:
            shapes.update({top: inputs[top.name] for top in layer.tops})
        else:
            shapes.update(zip(layer.tops, top_shapes(graph, layer, shapes), strict=True))
    return shapes


def refuse_misfits(reached: Reach) -> None:
    """Raise the `ShapeError` of a layer that keeps a quantized layer, perhaps itself, from running.

    It speaks of a wrong input size or a wrong file, unlike a type or option that is not supported.
    """
    for layer, obstacle in reached.blocked.items():
        if layer.type in QUANTIZED_TYPES and isinstance(obstacle.error, ShapeError):
            raise obstacle.error


def refuse_unread(graph: Graph, reached: Reach) -> None:
    """Raise `ModelError` where a quantized layer depends on one that cannot run as it is written.

    That is a layer before it, itself, or a BatchNorm or Scale that may be folded into it.
    """
    folded = frozenset(("BatchNorm", "Scale"))
    for layer, obstacle in reached.blocked.items():
        needed = layer.type in QUANTIZED_TYPES or (layer.type in folded and layer.unread)
        if needed and obstacle.layer.unread:
            raise _refused(graph, obstacle)


def _refused(graph: Graph, obstacle: Obstacle) -> ModelError:
    """The error for a layer that is to run and cannot."""
    layer = obstacle.layer
    if obstacle.is_size:
        name = layer.tops[0].name
        return ShapeError(
            f"{graph.source}: the size of input {name!r} is not known; give it with "
            f"--input-shape {shape_advice(name, graph.inputs.get(name))} (input_shapes in Python)"
        )
    if layer.unread:
        return UnsupportedLayerError(f"{graph.source}: {obstacle}; {way_out(layer.unread)}")
    return UnsupportedLayerError(
        f"{graph.source}: {obstacle}; choose outputs before it (--outputs BLOB), leave layers "
        "behind it in float (--exclude NAME), or register the type (int8calib.register_layer)"
    )


def multiply_adds(graph: Graph, inputs: Mapping[str, Shape]) -> int:
    """Count the multiply-adds of one forward pass by the layers' own rules.

    Parameters
    ----------
    graph
        The network; layers that cannot run do not count.
    inputs
        The shape of each input.
    """
    found = reach(graph, inputs)
    refuse_misfits(found)
    return sum(
        layer_multiply_adds(layer, found.shapes)
        for layer in graph.layers
        if layer.type not in INPUT_TYPES and layer not in found.blocked
    )


def layer_multiply_adds(layer: Layer, shapes: Mapping[Blob, Shape]) -> int:
    """Count the multiply-adds of one layer; 0 for types that multiply no weights.

    Parameters
    ----------
    layer
        A layer of a known type.
    shapes
        At least the shapes of its bottoms and tops.
    """
    count = find_type(layer.type).macs
    bottoms, tops = ([shapes[blob] for blob in blobs] for blobs in (layer.bottoms, layer.tops))
    return 0 if count is None else count(layer.params, bottoms, tops)
