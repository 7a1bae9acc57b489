"""GPUs: what a name such as ``cuda:0`` stands for, and the arrays on it. The one home of CuPy."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

from int8calib.arrays import namespace
from int8calib.errors import OptionError

INSTALL = 'pip install "int8calib[gpu]"'
"""What brings CuPy."""


@dataclass(frozen=True, eq=False)
class Device:
    """Where arrays are that are not numpy's.

    Attributes
    ----------
    name : str
        Such as ``cuda:0``.
    xp : module
        numpy's functions for the arrays on it.
    current : callable
        ``with device.current():`` makes it the one that this thread's functions run on.
    free_memory : callable or None
        Tells how many bytes are free; None where nobody knows.
    hardware : str
        What CUDA calls it, such as ``NVIDIA H100 80GB HBM3``; "" where nobody knows.
    """

    name: str
    xp: Any
    current: Callable[[], AbstractContextManager[Any]] = nullcontext
    free_memory: Callable[[], int] | None = None
    hardware: str = ""

    @property
    def free_bytes(self) -> int:
        """How many bytes of memory new arrays can have; 0 where nobody knows."""
        if self.free_memory is None:
            return 0
        with self.current():
            return self.free_memory()

    def asarray(self, x: Any) -> Any:
        """Return an array as one of the device's: itself if it is there, else a copy."""
        if namespace(x) is self.xp:
            return x
        with self.current():
            return self.xp.asarray(x)


def open_device(name: str) -> Device:
    """Find a GPU that CuPy can run on.

    Parameters
    ----------
    name : str
        ``cuda:0`` for the first GPU, ``cuda:1`` for the second, and so on.

    Returns
    -------
    Device

    Raises
    ------
    OptionError
        For another name, where CuPy is not installed (says how to install it) or does not work,
        and where there is no such GPU (says what was found).
    """
    found = re.fullmatch(r"cuda:(\d{1,3})", name) if isinstance(name, str) else None
    if found is None:
        raise OptionError(f"device {name!r}: expected cuda:0 for the first GPU, cuda:1, ...")
    return _open_gpu(int(found[1]))


@cache
def _open_gpu(number: int) -> Device:
    """The GPU of a number, the same object each time, so that nets share what is on it."""
    name = f"cuda:{number}"
    try:
        import cupy
    except ModuleNotFoundError as error:
        if error.name != "cupy":
            raise OptionError(_broken(name, error)) from error
        raise OptionError(f"device {name}: CuPy is not installed; {INSTALL} brings it") from None
    except Exception as error:
        raise OptionError(_broken(name, error)) from error
    return gpu_of(cupy, number)


def find_device(device: str | Device | None) -> Device | None:
    """Return the device of a name; a Device itself, and None, which is the CPU.

    Raises
    ------
    OptionError
        As `open_device`.
    """
    return device if device is None or isinstance(device, Device) else open_device(device)


def device_of(network: object) -> Device | None:
    """Return the GPU that runs a network or an executor; None where the CPU does."""
    device: Device | None = getattr(network, "device", None)
    return device


def gpu_of(cupy: Any, number: int) -> Device:
    """Return a GPU of a CuPy that is there, after one computation on it.

    Parameters
    ----------
    cupy : module
        CuPy.
    number : int
        Which GPU.

    Returns
    -------
    Device

    Raises
    ------
    OptionError
        As `open_device`.
    """
    name = f"cuda:{number}"
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:
        raise OptionError(f"device {name}: CuPy finds no GPU: {_first_line(error)}") from error
    if number >= count:
        there = ", ".join(f"cuda:{i}" for i in range(count)) or "no GPU"
        raise OptionError(f"device {name}: CuPy finds {there}")

    def current() -> AbstractContextManager[Any]:
        device: AbstractContextManager[Any] = cupy.cuda.Device(number)
        return device

    def free_memory() -> int:
        unused = cupy.get_default_memory_pool().free_bytes()
        return int(cupy.cuda.runtime.memGetInfo()[0]) + int(unused)

    try:
        hardware = cupy.cuda.runtime.getDeviceProperties(number)["name"].decode()
        device = Device(name, cupy, current, free_memory, hardware)
        # Compiles a kernel and loads the library of matrix products, which may both be missing.
        with device.current():
            ones = cupy.ones((2, 2), "float32")
            float((cupy.matmul(ones, ones) + ones).sum())
    except Exception as error:
        raise OptionError(_broken(name, error)) from error
    return device


def _broken(name: str, error: Exception) -> str:
    """What to say of a CuPy that is there and does not work."""
    return f"device {name}: CuPy does not work: {_first_line(error)}; {INSTALL} for CUDA 12"


def _first_line(error: Exception) -> str:
    """The kind of an error and the first line of what it says that holds a word."""
    lines = [line.strip() for line in str(error).splitlines() if re.search(r"\w", line)]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
