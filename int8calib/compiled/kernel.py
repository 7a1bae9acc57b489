"""The decorator `kernel`: a function is compiled, or read from the cache, when first called."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from int8calib.compiled.cache import load_code, save_code
from int8calib.compiled.machine import ObjectCode, link, processor
from int8calib.compiled.signature import parse_signature


class Kernel:
    """A Python function that runs as machine code, without the GIL.

    It takes contiguous arrays and scalars of its signature (TypeError for others), writes its
    results into arrays that it is given or returns a scalar, raises nothing and allocates nothing.
    `py_func` is the plain Python function, which the compiled one must agree with.
    """

    def __init__(self, py_func: Callable[..., Any], signature: str, *, reorder: bool) -> None:
        """Keep the function; nothing is compiled yet."""
        self.py_func = py_func
        self._text = f"{signature} reorder={reorder}"
        self._signature = parse_signature(signature)
        self._reorder = reorder
        self._call: Callable[..., Any] | None = None
        self._engine: object = None
        self._lock = threading.Lock()

    def __call__(self, *arguments: Any) -> Any:
        """Run the compiled function; the first call compiles it or reads it from the cache."""
        call = self._call or self._load()
        return call(*self._signature.values(arguments))

    def _load(self) -> Callable[..., Any]:
        with self._lock:
            if self._call is None:
                address, self._engine = link(self._code())
                self._call = self._signature.prototype(address)
        return self._call

    def _code(self) -> ObjectCode:
        source, name = self.py_func.__code__.co_filename, self.py_func.__name__
        digest = _digest(source)
        key = f"{self._text} {digest} {_makers()}"
        found = load_code(source, name, key) if digest else None
        if found is None:
            from int8calib.compiled.build import build

            found = build(self.py_func, self._signature, reorder=self._reorder)
            if digest:
                save_code(source, name, key, found)
        return found


def kernel(signature: str, *, reorder: bool = False) -> Callable[[Callable[..., Any]], Kernel]:
    """Decorate a function as a `Kernel`: `@kernel("float32[:], int64 -> int64")`.

    `reorder`: the compiler may add up in any order, as SIMD does, and fuse products into sums.
    """
    return lambda function: Kernel(function, signature, reorder=reorder)


@cache
def _digest(source: str) -> str | None:
    """A checksum of a source file, None where there is none to read."""
    try:
        return hashlib.sha256(Path(source).read_bytes()).hexdigest()
    except OSError:
        return None


@cache
def _makers() -> str:
    """What else decides on the code: the compiler's versions and the processor."""
    from importlib.metadata import version

    return f"numba {version('numba')} llvmlite {version('llvmlite')} {processor()}"
