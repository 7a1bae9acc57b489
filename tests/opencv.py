"""OpenCV's dnn as an oracle: it reads the same files and gives every layer's top."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np


def opencv_tops(
    proto: Path, model: Path, inputs: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The first top of each layer that OpenCV knows, by layer name, in-place tops as they were."""
    net = cv2.dnn.readNetFromCaffe(str(proto), str(model))
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
