"""The fingerprint of a network, by which results are told to belong to it."""

from __future__ import annotations

import hashlib

import numpy as np

from int8calib.caffe.network.graph import Graph
from int8calib.caffe.network.inputs import INPUT_TYPES


def network_fingerprint(graph: Graph) -> str:
    """Hash all that decides what a network computes: its layers, parameters and weights.

    Parameters
    ----------
    graph
        The network as it was loaded, before BatchNorm is folded.

    Returns
    -------
    str
        A SHA-256 in hex. File names, comments, the order of fields, how weights were stored and
        the sizes of inputs do not count.
    """
    digest = hashlib.sha256()

    def add(part: bytes) -> None:
        digest.update(len(part).to_bytes(8, "little") + part)

    for layer in graph.layers:
        if layer.type not in INPUT_TYPES:
            add(layer.params.SerializePartialToString(deterministic=True))
        add(repr((layer.name, layer.type, layer.bottoms, layer.tops)).encode("utf-8", "replace"))
        for weight in layer.weights:
            add(repr(weight.shape).encode())
            digest.update(np.ascontiguousarray(weight, "<f4").data)
    return digest.hexdigest()
