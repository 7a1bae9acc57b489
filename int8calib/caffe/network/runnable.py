"""What a network is good for whose parts cannot all run: outputs to compare, layers to quantize.

Every function says in words what it leaves out and what stands in the way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches

from int8calib.arrays import Shape
from int8calib.caffe.network.graph import Blob, Graph, Layer
from int8calib.caffe.network.inputs import INPUT_TYPES
from int8calib.caffe.network.quantized import QuantizedLayer, quantized_layers
from int8calib.caffe.network.shapes import Obstacle, reach
from int8calib.errors import ModelError, OptionError

SHOWN = 5
"""How many names a message gives before it only counts."""


def listed(names: Iterable[str]) -> str:
    """Up to `SHOWN` names in a row, and how many more there are."""
    every = tuple(names)
    more = f" and {len(every) - SHOWN} more" if len(every) > SHOWN else ""
    return ", ".join(every[:SHOWN]) + more


def runnable_outputs(
    graph: Graph, inputs: Mapping[str, Shape]
) -> tuple[tuple[Blob, ...], tuple[str, ...]]:
    """The last blobs that can run, which tell what the whole network does.

    Parameters
    ----------
    graph
        The network.
    inputs
        The shape of each input, as in `Net.input_shapes`.

    Returns
    -------
    blobs
        The outputs that can run and, in place of the others, the last blobs on the way to them:
        those that only layers that cannot run read. Inputs are not among them; it may be empty.
    reasons
        One line for each layer that ends a path before its output; empty where all can run.
    """
    blocked = reach(graph, inputs).blocked
    running = [layer for layer in graph.layers if layer not in blocked]
    read = {bottom for layer in running for bottom in layer.bottoms}
    blobs = tuple(
        top
        for layer in running
        if layer.type not in INPUT_TYPES
        for top in layer.tops
        if top not in read
    )
    ends = {blob: blocked[layer] for layer in blocked for blob in layer.tops}
    lost: dict[Layer, tuple[Obstacle, list[str]]] = {}
    for blob in graph.outputs:
        if blob in ends:
            obstacle = ends[blob]
            lost.setdefault(obstacle.layer, (obstacle, []))[1].append(blob.name)
    there = listed(blob.name for blob in blobs) or "nothing"
    reasons = tuple(
        f"output {listed(names)} is left out: {obstacle}; the last blobs that can run are {there}"
        for obstacle, names in lost.values()
    )
    return blobs, reasons


def named_outputs(
    graph: Graph, names: Iterable[str], inputs: Mapping[str, Shape]
) -> tuple[Blob, ...]:
    """The last version that can run of each named blob, for the option --outputs.

    Parameters
    ----------
    graph
        The network.
    names
        Names of blobs.
    inputs
        The shape of each input.

    Raises
    ------
    OptionError
        For a name that no blob has, with near names, and for a blob that cannot run, with what
        stands in the way and the last blobs that can.
    """
    blocked = reach(graph, inputs).blocked
    versions: dict[str, list[Layer]] = {}
    for layer in graph.layers:
        for top in layer.tops:
            versions.setdefault(top.name, []).append(layer)
    chosen = []
    for name in dict.fromkeys(names):
        makers = [layer for layer in versions.get(name, ()) if layer not in blocked]
        if not makers:
            can = [blob.name for blob in runnable_outputs(graph, inputs)[0]]
            if name in versions:
                problem = f"{blocked[versions[name][0]]}; the last blobs that can run are"
            else:
                problem = "no layer makes such a blob; near names are"
                can = get_close_matches(name, versions, n=3, cutoff=0.5) or can
            raise OptionError(f"{graph.source}: outputs {name}: {problem} {listed(can)}")
        chosen.append(max(top for top in makers[-1].tops if top.name == name))
    return tuple(chosen)


def layers_to_quantize(
    graph: Graph, inputs: Mapping[str, Shape]
) -> tuple[tuple[QuantizedLayer, ...], tuple[str, ...]]:
    """The quantized layers whose bottoms can be observed.

    Parameters
    ----------
    graph
        The network with weights, BatchNorm folded or not.
    inputs
        The shape of each input, as in `Net.input_shapes`.

    Returns
    -------
    layers
        In running order.
    warnings
        One line for each layer in the way of others that therefore stay in float.

    Raises
    ------
    ModelError
        Where nothing is left to quantize; says what stands in the way.
    """
    blocked = reach(graph, inputs).blocked
    every = quantized_layers(graph)
    layers = tuple(layer for layer in every if layer.layer not in blocked)
    waiting: dict[Layer, tuple[Obstacle, list[str]]] = {}
    for layer in every:
        if layer.layer in blocked:
            obstacle = blocked[layer.layer]
            waiting.setdefault(obstacle.layer, (obstacle, []))[1].append(layer.name)
    if not layers:
        raise ModelError(f"{graph.source}: {_nothing_left(graph, waiting)}")
    warnings = tuple(
        f"{listed(names)} stay{'s' if len(names) == 1 else ''} in float: {obstacle} and stands "
        "before; --exclude says that this is meant"
        for obstacle, names in waiting.values()
    )
    return layers, warnings


def _nothing_left(graph: Graph, waiting: Mapping[Layer, tuple[Obstacle, list[str]]]) -> str:
    """Why there is no layer to quantize."""
    if not waiting:
        return "has no Convolution or InnerProduct layer, so there is nothing to calibrate"
    obstacle, names = next(iter(waiting.values()))
    return (
        f"nothing is left to quantize: {obstacle} and stands before {listed(names)}; "
        "int8calib.register_layer() teaches the type"
    )
