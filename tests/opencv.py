"""OpenCV's dnn as an oracle: it reads the same files and gives every layer's top."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np

from int8calib.caffe.engine.run import Net
from int8calib.caffe.network.inputs import INPUT_TYPES


def opencv_tops(
    proto: Path, model: Path | None, inputs: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The first top of each layer that OpenCV knows, by layer name, in-place tops as they were."""
    files = [str(proto)] if model is None else [str(proto), str(model)]
    net = cv2.dnn.readNetFromCaffe(*files)
    net.enableFusion(False)
    net.enableWinograd(False)  # it costs three digits
    net.setPreferableBackend(cv2.dnn.DNN_BACKEND_OPENCV)
    for name, value in inputs.items():
        net.setInput(value, name)
    names = [name for name in net.getLayerNames() if name not in inputs]
    tops = net.forwardAndRetrieve(names)
    return {name: np.array(top[0]) for name, top in zip(names, tops, strict=True)}


def deviation(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, relative to the largest expected value."""
    assert found.shape == expected.shape, f"{found.shape} != {expected.shape}"
    return float(np.abs(found - expected).max(initial=0) / max(np.abs(expected).max(), 1e-30))


def layer_deviations(
    net: Net, proto: Path, model: Path | None, inputs: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """How far every layer of `net` is from OpenCV's, by layer name, as a share of its absmax.

    Every layer but the inputs must be there. Detections are compared as a set: OpenCV orders them
    otherwise and fills up with rows of score 0.
    """
    tops: dict[str, np.ndarray] = {}
    types = {layer.name: layer.type for layer in net.graph.layers}

    def keep(name: str, blob: str, top: np.ndarray) -> None:
        tops.setdefault(name, top.copy())

    net.forward(inputs, on_top=keep)
    expected = opencv_tops(proto, model, inputs)
    computed = {name for name, kind in types.items() if kind not in INPUT_TYPES}
    # OpenCV calls some layers by their top.
    renamed = {
        layer.tops[0].name: layer.name
        for layer in net.graph.layers
        if layer.name not in expected and layer.tops[0].version == 0
    }
    expected = {renamed.get(name, name): top for name, top in expected.items()}
    assert computed <= set(expected), computed - set(expected)
    found = {}
    for name in computed:
        compare = detections_deviation if types[name] == "DetectionOutput" else deviation
        found[name] = compare(tops[name], expected[name])
    return found


def detections_deviation(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference of two lists of detections (1, 1, rows, 7) in any order.

    Each of the 7 columns counts relative to its largest value, if that is above 1.
    """
    size = np.maximum(np.abs(expected).reshape(-1, 7).max(axis=0), 1)
    rows, wanted = (list(top.reshape(-1, 7) / size) for top in (found, expected))
    rows, wanted = ([row for row in own if row[2] > 0] for own in (rows, wanted))
    assert len(rows) == len(wanted), f"{len(rows)} detections; OpenCV finds {len(wanted)}"
    largest = 0.0
    for row in rows:
        differences = [float(np.abs(row - other).max()) for other in wanted]
        largest = max(largest, min(differences))
        wanted.pop(int(np.argmin(differences)))
    return largest
