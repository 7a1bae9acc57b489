"""Loops in Python that run as machine code: compiled once by numba, kept on disk, free of the GIL.

numba's own cache (`cache=True`) spares the compiling but not the import of numba and of its type
system, which every run would pay. Measured with all kernels compiled, `int8calib calibrate` over
one image with the demo network takes 0.61 s as it is and 1.26 s with numba's cache (medians of 10
runs in turn, two cores). So the finished object code is kept here, and llvmlite, numba's own
linker, loads it in a few milliseconds.

To add a kernel: write a function of arrays and numbers in a module named ``kernels``, and decorate
it with `kernel` and its signature.
"""

from __future__ import annotations

from int8calib.compiled.kernel import Kernel, kernel

__all__ = ["Kernel", "kernel"]
