"""The two types that all stages share: arrays of activations or weights, and shapes."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float32]
"""Activations (N, C, H, W or any other axes) or weights, always float32."""

Shape: TypeAlias = tuple[int, ...]
"""The sizes of an array's axes."""
