"""Plain Python loops come in; machine code, kept on disk, that runs without the GIL comes out.

numba compiles, once. Its own cache would spare the compiling but not the import of numba and of
its type system, a third of a second that every run would pay; so the finished object code is kept
here, and llvmlite, numba's own linker, loads it in a few milliseconds.
"""

from __future__ import annotations

from int8calib.compiled.kernel import Kernel, kernel

__all__ = ["Kernel", "kernel"]
