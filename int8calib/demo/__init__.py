"""The built-in demo: drawn pictures and a small trained network that goes with them.

`draw` makes the pictures, `demo.prototxt` defines the network, `train` fits it and writes
`demo.caffemodel`; `scenes`, `detector.prototxt` and `train_detector` are the same for a detector.
This module says where the two files lie and how the network wants its pixels.
"""

from __future__ import annotations

from pathlib import Path

__all__ = [
    "CAFFEMODEL",
    "DETECTOR_CAFFEMODEL",
    "DETECTOR_PROTOTXT",
    "MEAN",
    "NORM",
    "PROTOTXT",
]

PROTOTXT = Path(__file__).with_name("demo.prototxt")
CAFFEMODEL = Path(__file__).with_name("demo.caffemodel")
DETECTOR_PROTOTXT = Path(__file__).with_name("detector.prototxt")
DETECTOR_CAFFEMODEL = Path(__file__).with_name("detector.caffemodel")

MEAN: tuple[float, float, float] = (104.0, 117.0, 123.0)
"""Subtracted from the blue, green and red channel (0..255) first."""

NORM: float = 0.017
"""Multiplied with the difference afterwards."""
