"""The scale with which ncnn really quantizes each bottom, after its tools have fused layers.

ncnn2int8 lets a convolution give INT8 itself where only INT8 convolutions read its top. The float
value between is the same, so this changes no result, except where the readers have different
bottom scales: the top is then rounded once, with the scale of one of them.
"""

from __future__ import annotations

from collections.abc import Container, Mapping

import numpy as np

from int8calib.caffe.layers.activation import dropout_factor
from int8calib.caffe.network.graph import (
    CONVOLUTIONS,
    FUSED_ACTIVATION,
    Blob,
    Graph,
    Layer,
)

ACTIVATIONS = frozenset(("ReLU", "ReLU6", "Clip", "Sigmoid", "Mish", "HardSwish"))
"""Activations that ncnnoptimize makes part of a convolution."""


def input_scales(
    graph: Graph, scales: Mapping[str, np.float32], *, optimized: bool
) -> dict[str, np.float32]:
    """Give each layer the scale that ncnn uses for its bottom.

    Parameters
    ----------
    graph
        The network.
    scales
        The bottom scale that the table has for each layer, by name.
    optimized
        Whether the model went through ncnnoptimize.

    Returns
    -------
    dict
        By name; the scales of several readers of a requantized top become one.
    """
    used = dict(scales)
    for readers in requantized(graph, scales, optimized=optimized).values():
        used.update({reader.name: scales[readers[-1].name] for reader in readers})
    return used


def requantized(
    graph: Graph, int8: Container[str], *, optimized: bool
) -> dict[str, tuple[Layer, ...]]:
    """Find the convolutions that ncnn2int8 lets give INT8 themselves.

    The scale is that of the last reader: caffe2ncnn gives it the first top of its Split layer. Of
    the readers of a Split that the network has itself it is that of the first top, so these are
    listed from the last to the first.
    Source: fuse_requantize in ncnn's tools/quantize/ncnn2int8.cpp, and tools/caffe/caffe2ncnn.cpp.

    Parameters
    ----------
    graph
        The network.
    int8
        The names of the layers that run in INT8.
    optimized
        Whether the model went through ncnnoptimize.

    Returns
    -------
    dict
        The name of each such convolution, with the layers that read its top.
    """
    readers = graph.readers()
    fused = {}
    for layer in graph.layers:
        if layer.type not in CONVOLUTIONS or layer.name not in int8:
            continue
        final = _final_readers(layer.tops[0], readers, optimized=optimized)
        if final and all(r.type in CONVOLUTIONS and r.name in int8 for r in final):
            fused[layer.name] = tuple(final)
    return fused


def _final_readers(
    blob: Blob, readers: Mapping[Blob, list[Layer]], *, optimized: bool, activated: bool = False
) -> list[Layer]:
    """Who reads a convolution's top once what ncnn fuses or drops is gone.

    That is Split, an activation that is part of the convolution, and in an optimized model Dropout
    and one activation right behind.
    """
    result: list[Layer] = []
    for reader in readers[blob]:
        alone = len(readers[blob]) == 1
        active = reader.type in ACTIVATIONS
        inside = reader.name.endswith(FUSED_ACTIVATION)
        if reader.type == "Split" or (optimized and alone and _is_dropped(reader)):
            for top in reversed(reader.tops):
                result += _final_readers(top, readers, optimized=optimized, activated=True)
        elif alone and not activated and (inside or (optimized and active)):
            result += _final_readers(reader.tops[0], readers, optimized=optimized, activated=True)
        else:
            result.append(reader)
    return result


def _is_dropped(layer: Layer) -> bool:
    """Whether ncnnoptimize drops a layer: a Dropout that leaves values as they are."""
    return layer.type == "Dropout" and dropout_factor(layer.params) == 1
