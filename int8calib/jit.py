"""numba's one home: plain Python loops come in, compiled kernels go out.

Importing this module loads numba, so it is imported by the `kernels.py` files only, and these
inside the functions that need them. The types that signatures are written in are handed on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numba
from numba import float32, float64, int32, int64, uint16, void

__all__ = [
    "Kernel",
    "float32",
    "float64",
    "int32",
    "int64",
    "kernel",
    "readonly",
    "uint16",
    "void",
]


class Kernel:
    """A function compiled by numba at its first call, for its one signature, without the GIL.

    numba keeps the machine code in `__pycache__` or the user's cache folder. Where neither can be
    written it refuses to decorate at all, and where the disk is full it fails after compiling:
    here both only cost the cache. `py_func` is the plain Python function.
    """

    def __init__(
        self, py_func: Callable[..., Any], signature: object, *, reorder: bool = False
    ) -> None:
        """Keep the function; nothing is compiled yet. `reorder`: see `kernel`."""
        self.py_func = py_func
        self._fastmath = {"reassoc", "contract"} if reorder else set[str]()
        self._signature = signature
        self._compiled: Callable[..., Any] | None = None
        self._lock = threading.Lock()

    def __call__(self, *arguments: Any) -> Any:
        """Run the compiled function; the first call loads it."""
        return self.load()(*arguments)

    def load(self) -> Callable[..., Any]:
        """The compiled function: compiled or read from the cache, unless that was done before."""
        with self._lock:
            if self._compiled is None:
                try:
                    self._compiled = self._compile(cache=True)
                except (RuntimeError, OSError):
                    self._compiled = self._compile(cache=False)
        return self._compiled

    def _compile(self, cache: bool) -> Callable[..., Any]:
        decorate = numba.njit(
            self._signature,
            nogil=True,
            cache=cache,
            error_model="numpy",
            fastmath=self._fastmath,
        )
        compiled: Callable[..., Any] = decorate(self.py_func)
        return compiled


def kernel(
    signature: object, *, reorder: bool = False
) -> Callable[[Callable[..., Any]], Kernel]:
    """Decorate a function as a `Kernel` with this numba signature.

    `reorder`: the compiler may add up in any order, as SIMD does, and fuse products into sums.
    """
    return lambda function: Kernel(function, signature, reorder=reorder)


def readonly(dtype: Any) -> Any:
    """Return numba's type of a contiguous vector that the kernel only reads."""
    return numba.types.Array(dtype, 1, "C", readonly=True)
