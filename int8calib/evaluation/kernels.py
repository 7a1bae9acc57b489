"""The compiled loop that measures are made of: sums of squares and products of two vectors."""

from __future__ import annotations

from typing import Any

import numpy as np

from int8calib.compiled import kernel


@kernel("float32[:], float32[:], out float64[:] ->", reorder=True)
def products(a: Any, b: Any, sums: Any) -> None:
    """Sum a * a, b * b, a * b and (a - b)**2, in float64.

    Parameters
    ----------
    a, b : float32 (n,)
    sums : float64 (4,)
        The result.
    """
    aa = bb = ab = difference = 0.0
    for i in range(a.shape[0]):
        x, y = np.float64(a[i]), np.float64(b[i])
        aa += x * x
        bb += y * y
        ab += x * y
        difference += (x - y) * (x - y)
    sums[0], sums[1], sums[2], sums[3] = aa, bb, ab, difference
