"""One graph that runs a float network and its INT8 layers side by side, to compare them.

Every quantized layer stands there three times: in float; isolated, which is the INT8 layer reading
the float bottom; and accumulated, behind all INT8 layers before it. One run of the graph gives all
that the errors of layers need, and the engine keeps blobs no longer than it must.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from int8calib.caffe.network.graph import Blob, Graph, Layer
from int8calib.caffe.network.inputs import INPUT_TYPES

MARK = "\0"
"""Stands in no blob name of a prototxt."""


@dataclass(frozen=True)
class LayerBlobs:
    """One quantized layer's blobs: its float bottom and top, and its top in INT8.

    Attributes
    ----------
    isolated
        the top of the INT8 layer on the float bottom.
    accumulated
        its top with all layers before it in INT8 too.
    """

    name: str
    bottom: Blob
    top: Blob
    isolated: Blob
    accumulated: Blob


@dataclass(frozen=True, eq=False)
class SideBySide:
    """The joint graph, and each quantized layer's blobs in it, in running order."""

    graph: Graph
    layers: tuple[LayerBlobs, ...]


def side_by_side(graph: Graph, int8: Mapping[str, Layer]) -> SideBySide:
    """Join a float graph with its INT8 version.

    Parameters
    ----------
    graph
        The float graph.
    int8
        The INT8 layers that take the place of its layers, by name (`int8_layers`).

    Returns
    -------
    SideBySide
        The joint graph. Its blobs of the float graph keep their names.
    """
    layers: list[Layer] = []
    compared: list[LayerBlobs] = []
    renamed: dict[Blob, Blob] = {}
    for layer in graph.layers:
        layers.append(layer)
        fast = int8.get(layer.name)
        if fast is not None:
            blobs = _layer_blobs(layer)
            compared.append(blobs)
            # As a second bottom the float top stays alive until it has been compared.
            layers.append(replace(fast, bottoms=(blobs.bottom, blobs.top), tops=(blobs.isolated,)))
            bottom = renamed.get(blobs.bottom, blobs.bottom)
            layers.append(replace(fast, bottoms=(bottom, blobs.top), tops=(blobs.accumulated,)))
            renamed[blobs.top] = blobs.accumulated
        elif layer.type not in INPUT_TYPES and any(b in renamed for b in layer.bottoms):
            tops = {top: _marked(top, "accumulated") for top in layer.tops}
            bottoms = tuple(renamed.get(bottom, bottom) for bottom in layer.bottoms)
            layers.append(replace(layer, bottoms=bottoms, tops=tuple(tops.values())))
            renamed.update(tops)
    return SideBySide(replace(graph, layers=tuple(layers)), tuple(compared))


def _layer_blobs(layer: Layer) -> LayerBlobs:
    top = layer.tops[0]
    isolated, accumulated = (_marked(top, kind) for kind in ("isolated", "accumulated"))
    return LayerBlobs(layer.name, layer.bottoms[0], top, isolated, accumulated)


def _marked(blob: Blob, mark: str) -> Blob:
    return Blob(f"{blob.name}{MARK}{mark}", blob.version)
