"""Inspection of a model: every layer with its shape, size, work and part in INT8."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from int8calib.arrays import Shape
from int8calib.caffe.inspection.findings import find_warnings
from int8calib.caffe.inspection.lenient import Reading, load_lenient
from int8calib.caffe.layers.registry import find_type, has_type
from int8calib.caffe.network.fold import fold_chains
from int8calib.caffe.network.graph import QUANTIZED_TYPES, Layer
from int8calib.caffe.network.inputs import INPUT_TYPES
from int8calib.caffe.network.quantized import quantized_layer
from int8calib.inspection import InspectedLayer, Inspection
from int8calib.table.rules import grouped_problem, name_problem


def inspect(
    prototxt: str | os.PathLike[str],
    caffemodel: str | os.PathLike[str] | None = None,
    *,
    input_shapes: Mapping[str, Shape] | None = None,
    ignore_fields: Sequence[str] = (),
) -> Inspection:
    """Tell what a network is, what it costs, and what INT8 means for it, without running it.

    Parameters
    ----------
    prototxt, caffemodel : path
        The files; without a caffemodel all but the weights is told.
    input_shapes, ignore_fields : optional
        As for `load_caffe`.

    Returns
    -------
    Inspection
        What does not fit is a warning in it.

    Raises
    ------
    ModelError
        Where a file cannot be read or holds no graph.
    OptionError
        For a shape given to something that is no input.
    """
    reading = load_lenient(prototxt, caffemodel, input_shapes, ignore_fields)
    graph = reading.graph
    folded = {link: layer.name for layer, chain in fold_chains(graph).items() for link in chain}
    layers = tuple(_layer(reading, layer, folded) for layer in graph.layers)
    kept = {layer.name for layer in graph.layers}
    return Inspection(
        network=graph.name,
        prototxt=os.fspath(prototxt),
        caffemodel=None if caffemodel is None else os.fspath(caffemodel),
        inputs=reading.inputs,
        outputs=tuple(top.name for top in graph.outputs),
        layers=layers,
        parameters=_distinct_parameters(graph.layers),
        macs=sum(layer.macs or 0 for layer in layers),
        quantized_macs=sum(layer.macs or 0 for layer in layers if layer.quantized),
        complete=all(layer.macs is not None for layer in layers),
        left_out=tuple(name for name in reading.names if name not in kept),
        warnings=tuple(find_warnings(reading, folded)),
    )


def _layer(reading: Reading, layer: Layer, folded: Mapping[Layer, str]) -> InspectedLayer:
    shapes = tuple(reading.shapes.get(top) for top in layer.tops)
    known = None not in shapes and all(bottom in reading.shapes for bottom in layer.bottoms)
    if layer.type in INPUT_TYPES:
        parameters: int | None = 0
    else:
        parameters = _count(layer) if known or (reading.weighed and layer.weights) else None
    quantized, why = _part_in_int8(reading, layer, folded)
    return InspectedLayer(
        name=layer.name,
        type=layer.type,
        bottoms=tuple(bottom.name for bottom in layer.bottoms),
        tops=tuple(top.name for top in layer.tops),
        shapes=shapes,
        parameters=parameters,
        macs=_macs(reading, layer, shapes) if known else None,
        supported=(has_type(layer.type) and not layer.unread) or layer.type in INPUT_TYPES,
        quantized=quantized,
        why=why,
    )


def _count(layer: Layer) -> int:
    return sum(blob.size for blob in layer.weights)


def _distinct_parameters(layers: Sequence[Layer]) -> int:
    """The parameters of all layers; those shared by name count once."""
    seen: set[str] = set()
    total = 0
    for layer in layers:
        names = [spec.name for spec in layer.params.param]
        for blob, name in zip(layer.weights, [*names, *[""] * len(layer.weights)], strict=False):
            if not name or name not in seen:
                total += blob.size
            seen.add(name)
    return total


def _macs(reading: Reading, layer: Layer, shapes: Sequence[Shape | None]) -> int:
    """Multiply-adds for one image: those of the declared batch, shared out."""
    kind = find_type(layer.type) if has_type(layer.type) else None
    if kind is None or kind.macs is None or not shapes:
        return 0
    tops = [shape for shape in shapes if shape is not None]
    bottoms = [reading.shapes[bottom] for bottom in layer.bottoms]
    batch = next((shape[0] for shape in reading.inputs.values() if shape), 1)
    return kind.macs(layer.params, bottoms, tops) // batch


def _part_in_int8(reading: Reading, layer: Layer, folded: Mapping[Layer, str]) -> tuple[bool, str]:
    """Whether a table has rows for the layer, and as what or why not."""
    if layer in folded:
        return False, f"folded into {folded[layer]}"
    if layer.type in INPUT_TYPES:
        return False, "input"
    if layer in reading.blocked:
        obstacle = reading.blocked[layer]
        if obstacle.layer is layer:
            return False, obstacle.reason
        return False, f"behind {obstacle.layer.label}, which cannot run"
    if layer.type == "Deconvolution":
        return False, "ncnn has no INT8 Deconvolution"
    if layer.type not in QUANTIZED_TYPES:
        return False, "runs in float"
    problem = name_problem(layer.name)
    if problem is not None:
        return False, problem
    described = quantized_layer(layer)
    if described is None:
        return False, "reads several blobs"
    problem = grouped_problem(described.group, described.outputs)
    if problem is not None:
        return False, f"{problem}; --grouped int8 quantizes it all the same"
    return True, described.kind
