"""What all stages share of arrays: their two types, and numpy or CuPy, whichever made one."""

from __future__ import annotations

import sys
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float32]
"""Activations (N, C, H, W or any other axes) or weights, always float32."""

Shape: TypeAlias = tuple[int, ...]
"""The sizes of an array's axes."""


MASKED = "a masked array, whose mask would be lost; give x.filled(...), or x.data without one"
"""What messages say of an array that `is_masked`."""


def is_masked(x: Any) -> bool:
    """Return whether something is a masked array of numpy's, whatever is masked in it."""
    return isinstance(x, np.ma.MaskedArray)


def namespace(x: Any) -> Any:
    """Return the module whose functions take this array.

    Parameters
    ----------
    x : array
        A numpy array, or one on a device.

    Returns
    -------
    module
        numpy for numpy's arrays; else what the array names itself (``__array_namespace__``); else
        cupy, whose arrays name nothing.
    """
    if isinstance(x, np.ndarray | np.generic):
        return np
    own = getattr(x, "__array_namespace__", None)
    return sys.modules["cupy"] if own is None else own()


def to_host(x: Any) -> Any:
    """Return an array as numpy's: the same one, or a copy of one on a device.

    Parameters
    ----------
    x : array
        A numpy array, or one on a device.

    Returns
    -------
    ndarray
    """
    return x if isinstance(x, np.ndarray | np.generic) else x.get()


def is_array(x: Any) -> bool:
    """Return whether something is an array that `namespace` and `to_host` take.

    Parameters
    ----------
    x : object
        Anything.

    Returns
    -------
    bool
    """
    if isinstance(x, np.ndarray) or type(x).__module__.partition(".")[0] == "cupy":
        return hasattr(x, "dtype")
    return hasattr(x, "__array_namespace__") and hasattr(x, "get")
