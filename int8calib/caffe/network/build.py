"""A `Graph` from a parsed prototxt: phases filtered, data layers as inputs, layers in order.

In-place tops become versions of their blob.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace

from caffe_proto import LayerParameter, NetParameter, caffe_pb2, unread_fields
from int8calib.arrays import Shape
from int8calib.caffe.layers.registry import has_type
from int8calib.caffe.network.graph import Blob, Graph, Layer
from int8calib.caffe.network.inputs import INPUT_TYPES, input_shapes
from int8calib.caffe.network.unread import layer_notes, net_notes, stopping
from int8calib.errors import ModelError
from int8calib.limits import name_list
from int8calib.words import listed

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


@dataclass(frozen=True)
class NetState:
    """What the rules are held against: the phase (TEST), a level and named stages."""

    phase: int = caffe_pb2.TEST
    level: int = 0
    stages: frozenset[str] = frozenset()


def build_graph(
    net: NetParameter,
    source: str,
    state: NetState | None = None,
    *,
    unique: bool = True,
    ignore_fields: Sequence[str] = (),
) -> Graph:
    """Build the graph of an upgraded `NetParameter`, still without weights.

    Parameters
    ----------
    net
        As `caffe_proto.read_prototxt` gives it.
    source
        The prototxt in messages.
    state
        The phase, level and stages to build for; by default the TEST phase.
    unique
        Whether layers of one name are refused.
    ignore_fields
        Fields that nobody understood and that shall not matter, such as
        ``convolution_param.foo``; a name stands for all that is inside of it.

    Raises
    ------
    ModelError
        Where a bottom is made by no layer, layers wait for each other, or two share a name.
    """
    if isinstance(ignore_fields, str):
        ignore_fields = (ignore_fields,)
    ignore_fields = name_list(ignore_fields, "ignore_fields", "fields of the prototxt")
    every = list(net.layer)
    wanted = [layer for layer in every if included(layer, state or NetState())]
    if not wanted:
        raise ModelError(f"{source}: holds no layer for the TEST phase")
    if unique:
        _check_names(wanted, source)
    wanted = [*_data_of_other_phases(every, wanted), *wanted]
    computing = [_as_input(layer) for layer in wanted if not _scores(layer)]
    layers = _version_blobs(_running_order(computing, source, every), ignore_fields)
    used = {bottom for layer in layers for bottom in layer.bottoms}
    layers = tuple(part for layer in layers for part in _input_by_input(layer, used))
    inputs: dict[str, Shape | None] = {}
    for layer in layers:
        if layer.type in INPUT_TYPES:
            shapes = input_shapes(layer.params)
            inputs.update({top.name: shapes[top.name] for top in layer.tops})
    staged = [layer.name for layer in every if _is_for_a_stage(layer, state or NetState())]
    if not inputs and staged:
        raise ModelError(
            f"{source}: nothing is left without {listed(staged)}, which include rules keep for "
            "another level or stage; remove these rules"
        )
    outputs = tuple(
        top
        for layer in layers
        for top in layer.tops
        if top not in used and layer.type not in INPUT_TYPES
    )
    unread, notes = net_notes(net, ignore_fields)
    running = {id(layer) for layer in computing}
    for params in every:
        notes += layer_notes(params, ignore_fields, runs=id(params) in running)
    return Graph(net.name, source, layers, inputs, outputs, notes=tuple(notes), unread=unread)


def _scores(layer: LayerParameter) -> bool:
    """Whether a layer only scores what the network gives; forks name theirs alike."""
    if layer.type in LOSS_TYPES:
        return True
    named_so = layer.type.upper().endswith(("LOSS", "ACCURACY"))  # V1 types are in capitals
    return named_so and not has_type(layer.type)


def _data_of_other_phases(
    every: Sequence[LayerParameter], wanted: Sequence[LayerParameter]
) -> list[LayerParameter]:
    """Data layers of another phase that make what nothing makes in this one.

    A prototxt for training alone batches its network in the TRAIN phase only.
    """
    missing = {bottom for layer in wanted for bottom in layer.bottom}
    missing.difference_update(top for layer in wanted for top in layer.top)
    chosen = []
    for layer in every:
        if layer.type in INPUT_TYPES and missing.intersection(layer.top):
            chosen.append(layer)
            missing.difference_update(layer.top)
    return chosen


def _as_input(layer: LayerParameter) -> LayerParameter:
    """A layer of an unknown type without bottoms, such as data in Python, as an Input."""
    if layer.bottom or layer.type in INPUT_TYPES or has_type(layer.type):
        return layer
    return LayerParameter(name=layer.name, type="Input", top=layer.top)


def _check_names(layers: Sequence[LayerParameter], source: str) -> None:
    """Weights and table rows go by layer name, blobs by theirs: refuse those that stand twice."""
    seen: dict[str, str] = {}
    for layer in layers:
        for number, top in enumerate(layer.top):
            if top in layer.top[:number]:
                raise ModelError(
                    f"{source}: layer {layer.name!r} ({layer.type}) has two tops named {top!r}; "
                    "names must differ"
                )
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


def _running_order(
    layers: Sequence[LayerParameter], source: str, every: Sequence[LayerParameter]
) -> list[LayerParameter]:
    """File order where that runs, as Caffe demands; `every` layer of the file is for messages.

    Otherwise each time the earliest layer that is ready, in-place layers before the other readers
    of their blob: a blob's name stands for what it is in the end.
    """
    if _runs(layers):
        return list(layers)
    missing = [set(layer.bottom) for layer in layers]
    readers: dict[str, list[int]] = {}
    for i, bottoms in enumerate(missing):
        for bottom in bottoms:
            readers.setdefault(bottom, []).append(i)
    # Ready layers as (0 for in place, 1 for others; place in the file), the next one first.
    rank = [0 if bottoms.intersection(layers[i].top) else 1 for i, bottoms in enumerate(missing)]
    ready = [(rank[i], i) for i, bottoms in enumerate(missing) if not bottoms]
    heapq.heapify(ready)
    order = []
    while ready:
        _, i = heapq.heappop(ready)
        order.append(i)
        for top in layers[i].top:
            for reader in readers.pop(top, ()):
                missing[reader].discard(top)
                if not missing[reader]:
                    heapq.heappush(ready, (rank[reader], reader))
    if len(order) < len(layers):
        left = sorted(set(range(len(layers))).difference(order))
        raise ModelError(_stuck([(layers[i], missing[i]) for i in left], source, every))
    return [layers[i] for i in order]


def _runs(layers: Sequence[LayerParameter]) -> bool:
    """Whether each layer finds its bottoms made by layers before it."""
    made = set[str]()
    for layer in layers:
        if not made.issuperset(layer.bottom):
            return False
        made.update(layer.top)
    return True


def _stuck(
    waiting: Sequence[tuple[LayerParameter, set[str]]],
    source: str,
    every: Sequence[LayerParameter],
) -> str:
    """Why none of the `waiting` layers, each with the blobs that it lacks, can run."""
    # An in-place layer changes its blob; another has to make it.
    tops = {top for layer, _ in waiting for top in layer.top if top not in layer.bottom}
    for layer, missing in waiting:
        for bottom in sorted(missing - tops):
            made = "which no layer makes and no input names"
            for other in every:
                if bottom in other.top and bottom not in other.bottom:
                    made = f"which layer {other.name!r} makes, but that is not part of TEST"
            return (
                f"{source}: layer {layer.name!r} ({layer.type}) reads the blob {bottom!r}, {made}"
            )
    names = ", ".join(repr(layer.name) for layer, _ in waiting[:5])
    return f"{source}: the layers {names} wait for each other in a circle"


def _version_blobs(
    layers: Sequence[LayerParameter], ignore_fields: Sequence[str]
) -> tuple[Layer, ...]:
    """Layers with their bottoms and tops as blob versions."""
    current: dict[str, Blob] = {}
    result = []
    for params in layers:
        bottoms = tuple(current[name] for name in params.bottom)
        tops = []
        for name in params.top:
            current[name] = Blob(name, current[name].version + 1) if name in current else Blob(name)
            tops.append(current[name])
        unread = stopping(params, ignore_fields)
        result.append(Layer(params.name, params.type, params, bottoms, tuple(tops), unread=unread))
    return tuple(result)


def included(layer: LayerParameter, state: NetState) -> bool:
    """Whether a layer takes part in a network of a phase, level and stages.

    With include rules one of them must hold; otherwise no exclude rule may. Source: Caffe's
    Net::FilterNet and Net::StateMeetsRule. The older `phase` field of a layer itself is no rule
    in Caffe and is not looked at. A layer whose rules hold something that is not understood takes
    part unless what is understood speaks against it: it then cannot run as written. A value given
    twice is not understood.

    Parameters
    ----------
    layer
        The layer with its rules.
    state
        The phase, level and stages.
    """
    unread = unread_fields(layer)
    twice = any(one.kind == "repeated" and one.field.startswith("include.") for one in unread)
    if twice and layer.type not in INPUT_TYPES:
        return True
    if layer.include:
        return any(_meets(rule, state) for rule in layer.include)
    if any(one.field.startswith("exclude.") for one in unread):
        return True
    return not any(_meets(rule, state) for rule in layer.exclude)


def _is_for_a_stage(layer: LayerParameter, state: NetState) -> bool:
    """Whether a layer takes part in another level or stage only, whatever the phase."""
    asked = any(
        rule.stage or rule.HasField("min_level") or rule.HasField("max_level")
        for rule in layer.include
    )
    return asked and not included(layer, state)


def _meets(rule: caffe_pb2.NetStateRule, state: NetState) -> bool:
    """Whether `state` meets every condition of `rule`."""
    return (
        (not rule.HasField("phase") or rule.phase == state.phase)
        and (not rule.HasField("min_level") or state.level >= rule.min_level)
        and (not rule.HasField("max_level") or state.level <= rule.max_level)
        and state.stages.issuperset(rule.stage)
        and state.stages.isdisjoint(rule.not_stage)
    )
