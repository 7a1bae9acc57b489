"""What a network is good for whose parts cannot all run: outputs to compare, layers to quantize.

Every function says in words what it leaves out and what stands in the way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches

from int8calib.arrays import Shape
from int8calib.caffe.network.graph import Blob, Graph, Layer
from int8calib.caffe.network.inputs import INPUT_TYPES
from int8calib.caffe.network.quantized import QuantizedLayer, quantized_layers
from int8calib.caffe.network.shapes import Obstacle, reach
from int8calib.errors import ModelError, OptionError
from int8calib.limits import name_list
from int8calib.words import listed


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
    reached = reach(graph, inputs)
    running = [layer for layer in graph.layers if layer not in reached.blocked]
    read = {bottom for layer in running for bottom in layer.bottoms}
    blobs = tuple(
        top
        for layer in running
        if layer.type not in INPUT_TYPES
        for top in layer.tops
        if top not in read
    )
    lost: dict[Layer, tuple[Obstacle, list[str]]] = {}
    for blob in graph.outputs:
        if blob in reached.lost:
            obstacle = reached.lost[blob]
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
    lost = reach(graph, inputs).lost
    versions: dict[str, list[Blob]] = {}
    for layer in graph.layers:
        for top in layer.tops:
            versions.setdefault(top.name, []).append(top)
    chosen = []
    for name in dict.fromkeys(name_list(names, f"{graph.source}: outputs")):
        made = [blob for blob in versions.get(name, ()) if blob not in lost]
        if not made:
            can = [blob.name for blob in runnable_outputs(graph, inputs)[0]]
            if name in versions:
                problem = f"{lost[versions[name][0]]}; the last blobs that can run are"
            else:
                problem = "no layer makes such a blob; near names are"
                can = get_close_matches(name, versions, n=3, cutoff=0.5) or can
            raise OptionError(f"{graph.source}: outputs {name}: {problem} {listed(can)}")
        chosen.append(made[-1])
    return tuple(chosen)


def layers_to_quantize(
    graph: Graph, inputs: Mapping[str, Shape]
) -> tuple[tuple[QuantizedLayer, ...], dict[str, str]]:
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
    blocked
        The name of each other one, which stays in float, with what stands in its way.

    Raises
    ------
    ModelError
        Where nothing is left to quantize (says what stands in the way), or no input reaches it.
    """
    obstacles = reach(graph, inputs).blocked
    layers = tuple(layer for layer in quantized_layers(graph) if layer.layer not in obstacles)
    # By type: where the options of a layer are the obstacle, it is none of the quantized layers.
    blocked = {
        layer.name: obstacle
        for layer, obstacle in obstacles.items()
        if layer.is_quantized and len(layer.bottoms) == 1
    }
    if not layers:
        raise ModelError(f"{graph.source}: {_nothing_left(blocked, obstacles)}")
    before = graph.ancestors(layer.bottom for layer in layers)
    if not any(layer.type in INPUT_TYPES for layer in before):
        raise ModelError(f"{graph.source}: no input reaches {listed(x.name for x in layers)}")
    return layers, {name: str(obstacle) for name, obstacle in blocked.items()}


def _nothing_left(blocked: Mapping[str, Obstacle], others: Mapping[Layer, Obstacle]) -> str:
    """Why there is no layer to quantize; `others`: what stands in the way of any layer."""
    if not blocked:
        why = f" ({next(iter(others.values()))})" if others else ""
        return f"has no Convolution or InnerProduct layer, so there is nothing to calibrate{why}"
    obstacle = next(iter(blocked.values()))
    behind = [
        name
        for name, other in blocked.items()
        if other.layer is obstacle.layer and name != obstacle.layer.name
    ]
    waiting = f", and {listed(behind)} wait{'s' * (len(behind) == 1)} for it" if behind else ""
    teach = "; int8calib.register_layer() teaches a type" if obstacle.error is None else ""
    return f"nothing is left to quantize: {obstacle}{waiting}{teach}"


def batch_statistics(graph: Graph) -> Iterator[str]:
    """A warning where a BatchNorm asks for the statistics of the batch, as in training.

    Caffe then normalizes by the batch's own mean and variance even in the TEST phase. ncnn has no
    such mode. Source: BatchNormLayer::LayerSetUp of Caffe's batch_norm_layer.cpp, ncnn's
    caffe2ncnn.cpp.
    """
    names = [
        layer.name
        for layer in graph.layers
        if layer.type == "BatchNorm"
        and layer.params.batch_norm_param.HasField("use_global_stats")
        and not layer.params.batch_norm_param.use_global_stats
    ]
    if names:
        yield (
            f"{listed(names)}: BatchNorm with use_global_stats: false; Caffe takes the statistics "
            "of each batch, here as in ncnn the stored ones are taken"
        )
