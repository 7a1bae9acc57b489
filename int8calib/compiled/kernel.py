"""The decorator `kernel`: a function is compiled, or read from the cache, when first called."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FunctionType
from typing import Any

from int8calib.compiled import machine
from int8calib.compiled.cache import compile_key, load_code, save_code
from int8calib.compiled.signature import parse_signature


class Kernel:
    """A Python function that runs as machine code, without the GIL.

    It takes contiguous arrays and numbers of its signature, and raises TypeError for others: for
    read-only arrays where it writes, and for numbers that do not fit. It writes its results into
    arrays that it is given, or returns a number. It reads no globals but numbers, and calls none
    but functions of `math`, `numpy` and Python itself. An error inside it, which it should not
    have, is a RuntimeError.

    Attributes
    ----------
    py_func : callable
        The plain Python function, which the compiled one must agree with.
    """

    def __init__(self, py_func: Callable[..., Any], signature: str, *, reorder: bool) -> None:
        """Keep the function; nothing is compiled yet."""
        if not isinstance(py_func, FunctionType):
            raise TypeError(f"a kernel is a function; found {py_func!r}")
        self.py_func = py_func
        self._text = f"{signature} reorder={reorder}"
        self._signature = parse_signature(signature)
        self._reorder = reorder
        self._call: Callable[..., int] | None = None
        self._engine: object = None
        self._lock = threading.Lock()

    def __call__(self, *arguments: Any) -> Any:
        """Run the compiled function; the first call compiles it or reads it from the cache."""
        values = self._signature.values(arguments)
        call = self._call or self._load()
        result, error = self._signature.new_result(), ctypes.c_void_p()
        if call(ctypes.byref(result), ctypes.byref(error), *values) not in machine.DONE:
            name = f"{self.py_func.__module__}.{self.py_func.__name__}"
            raise RuntimeError(f"{name} raised an error; its py_func tells which")
        return result.value if self._signature.result else None

    def _load(self) -> Callable[..., int]:
        with self._lock:
            if self._call is None:
                address, self._engine = self._link()
                self._call = self._signature.prototype(address)
        return self._call

    def _link(self) -> tuple[int, object]:
        """The kept code, or newly compiled code; see `machine.link`."""
        key = compile_key(self.py_func, self._text)
        kept = load_code(self.py_func, key)
        if kept is not None:
            with suppress(LookupError):
                return machine.link(kept)
        built = machine.compile_function(self.py_func, self._signature, reorder=self._reorder)
        linked = machine.link(built)
        save_code(self.py_func, key, built)
        return linked


def kernel(signature: str, *, reorder: bool = False) -> Callable[[Callable[..., Any]], Kernel]:
    """Decorate a function as a `Kernel`.

    Parameters
    ----------
    signature : str
        Such as ``"float32[:], out float32[:], int64 -> int64"``; see `parse_signature`.
    reorder : bool
        Whether the compiler may add up in any order, as SIMD does, and fuse products into sums.
    """
    return lambda function: Kernel(function, signature, reorder=reorder)
