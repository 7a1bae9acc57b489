"""A float graph and its INT8 layers to one graph that runs both, each layer beside its twins.

Every quantized layer stands there three times: in float; as a probe, which is the INT8 layer
reading the float bottom; and in the INT8 chain, behind all INT8 layers before it. One run of the
graph gives all that per-layer errors need, and the engine keeps blobs no longer than it must.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from int8calib.caffe.network.graph import Blob, Graph, Layer
from int8calib.caffe.network.inputs import INPUT_TYPES

MARK = "\0"
"""Stands in no blob name of a prototxt."""


@dataclass(frozen=True)
class Place:
    """One quantized layer's blobs: its float bottom and top, the probe's top, the INT8 chain's."""

    name: str
    bottom: Blob
    top: Blob
    probe: Blob
    chain: Blob


@dataclass(frozen=True, eq=False)
class SideBySide:
    """The joint graph, and where each quantized layer's blobs are, in running order."""

    graph: Graph
    places: tuple[Place, ...]


def side_by_side(graph: Graph, twins: Mapping[str, Layer]) -> SideBySide:
    """Join `graph` with its INT8 version; `twins` holds the INT8 layers by name."""
    layers: list[Layer] = []
    places: list[Place] = []
    renamed: dict[Blob, Blob] = {}
    for layer in graph.layers:
        layers.append(layer)
        twin = twins.get(layer.name)
        if twin is not None:
            place = _place(layer)
            places.append(place)
            # As a second bottom the float top stays alive until it has been compared.
            layers.append(replace(twin, bottoms=(place.bottom, place.top), tops=(place.probe,)))
            chained = renamed.get(place.bottom, place.bottom)
            layers.append(replace(twin, bottoms=(chained, place.top), tops=(place.chain,)))
            renamed[place.top] = place.chain
        elif layer.type not in INPUT_TYPES and any(b in renamed for b in layer.bottoms):
            tops = {top: _marked(top, "chain") for top in layer.tops}
            bottoms = tuple(renamed.get(bottom, bottom) for bottom in layer.bottoms)
            layers.append(replace(layer, bottoms=bottoms, tops=tuple(tops.values())))
            renamed.update(tops)
    return SideBySide(replace(graph, layers=tuple(layers)), tuple(places))


def _place(layer: Layer) -> Place:
    top = layer.tops[0]
    return Place(layer.name, layer.bottoms[0], top, _marked(top, "probe"), _marked(top, "chain"))


def _marked(blob: Blob, mark: str) -> Blob:
    return Blob(f"{blob.name}{MARK}{mark}", blob.version)
