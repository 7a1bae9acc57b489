"""The compiled loop that measures are made of: sums of squares and products of two vectors.

Imported inside the functions that need it, as all kernels are. Arrays in, arrays out, nothing
shared between threads. All sums are float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from int8calib.compiled import kernel


@kernel("float32[:], float32[:], out float64[:] ->", reorder=True)
def products(a: Any, b: Any, sums: Any) -> None:
    """Write the sums of a * a, b * b, a * b and (a - b)**2 to `sums` (4,)."""
    aa = bb = ab = difference = 0.0
    for i in range(a.shape[0]):
        x, y = np.float64(a[i]), np.float64(b[i])
        aa += x * x
        bb += y * y
        ab += x * y
        difference += (x - y) * (x - y)
    sums[0], sums[1], sums[2], sums[3] = aa, bb, ab, difference
