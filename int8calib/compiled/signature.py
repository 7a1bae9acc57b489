"""What a kernel takes and returns: its signature as text, and arguments held to it."""

from __future__ import annotations

import ctypes
import math
import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_CTYPES: dict[str, Any] = {
    "float32": ctypes.c_float,
    "float64": ctypes.c_double,
    "int32": ctypes.c_int32,
    "int64": ctypes.c_int64,
}
_DTYPES = {item: np.dtype(item) for item in (*_CTYPES, "uint16", "uint32")}
_LIMITS: dict[str, tuple[float, float]] = {
    "float32": (float(np.finfo(np.float32).min), float(np.finfo(np.float32).max)),
    "float64": (float(np.finfo(np.float64).min), float(np.finfo(np.float64).max)),
    "int32": (-(2**31), 2**31 - 1),
    "int64": (-(2**63), 2**63 - 1),
}


@dataclass(frozen=True)
class Parameter:
    """One parameter.

    Attributes
    ----------
    item : str
        The dtype.
    axes : int
        Of a C-contiguous array; 0 for a number.
    out : bool
        Whether the kernel writes to the array.
    """

    item: str
    axes: int
    out: bool = False

    @property
    def ctypes(self) -> tuple[Any, ...]:
        """The C types: the number's, or those of the pointer and of the sizes of the axes."""
        if not self.axes:
            return (_CTYPES[self.item],)
        return (ctypes.c_void_p, *[ctypes.c_int64] * self.axes)

    def values(self, argument: Any) -> tuple[Any, ...]:
        """Return what stands for `argument` in the call; TypeError where it does not fit."""
        if not self.axes:
            return (self._number(argument),)
        fits = isinstance(argument, np.ndarray) and argument.dtype == _DTYPES[self.item]
        # Of an array that may be written all three flags are usual, so one look is enough.
        if not (fits and argument.ndim == self.axes and argument.flags.carray):
            self._check_array(argument)
        return (argument.ctypes.data, *argument.shape)

    def _check_array(self, argument: Any) -> None:
        """Raise TypeError, which says why, for what is not an array of this parameter."""
        fits = isinstance(argument, np.ndarray) and argument.dtype == _DTYPES[self.item]
        if not fits or argument.ndim != self.axes or not argument.flags.c_contiguous:
            found = getattr(argument, "dtype", type(argument).__name__)
            raise TypeError(
                f"expected a contiguous {self.item}[{', '.join(':' * self.axes)}], found {found} "
                f"of shape {getattr(argument, 'shape', ())}"
            )
        if not argument.flags.aligned or (self.out and not argument.flags.writeable):
            kind = "read-only" if argument.flags.aligned else "misaligned"
            raise TypeError(f"the array is {kind}; make a copy")

    def _number(self, argument: Any) -> int | float:
        least, most = _LIMITS[self.item]
        number: int | float
        if self.item.startswith("int"):
            number = operator.index(argument)
        elif isinstance(argument, (int, float, np.integer, np.floating)):
            number = argument if isinstance(argument, int) else float(argument)
        else:
            raise TypeError(f"expected a {self.item}, found {type(argument).__name__}")
        if not least <= number <= most and (isinstance(number, int) or math.isfinite(number)):
            raise TypeError(f"{argument} does not fit into {self.item}")
        return number


@dataclass(frozen=True)
class Signature:
    """The parameters of a kernel, and the dtype of its result (None for none)."""

    parameters: tuple[Parameter, ...]
    result: str | None

    @property
    def prototype(self) -> Any:
        """The ctypes function type; a call through it does not hold the GIL."""
        types = [ctype for parameter in self.parameters for ctype in parameter.ctypes]
        return ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, *types)

    def new_result(self) -> Any:
        """Return memory for the result of a call."""
        return _CTYPES[self.result]() if self.result else ctypes.c_void_p()

    def values(self, arguments: Sequence[Any]) -> list[Any]:
        """Return the arguments in C terms; TypeError, which names the first that does not fit."""
        if len(arguments) != len(self.parameters):
            raise TypeError(f"expected {len(self.parameters)} arguments, found {len(arguments)}")
        values: list[Any] = []
        for place, (parameter, argument) in enumerate(zip(self.parameters, arguments, strict=True)):
            try:
                values.extend(parameter.values(argument))
            except TypeError as error:
                raise TypeError(f"argument {place}: {error}") from None
        return values


def parse_signature(text: str) -> Signature:
    """Parse the signature of a kernel.

    Parameters
    ----------
    text : str
        Such as ``"float32[:], out float32[:, :], int64 -> int64"``: dtypes, ``[:]`` or ``[:, :]``
        for arrays, ``out`` before those that the kernel writes to; after the arrow the dtype of
        the result, or nothing.

    Raises
    ------
    ValueError
        For anything else.
    """
    before, arrow, after = text.partition("->")
    result = after.strip() or None
    parameters = tuple(_parameter(part.strip()) for part in re.split(r",(?![^\[]*\])", before))
    if not arrow or not (result is None or result in _CTYPES):
        raise ValueError(f"kernel signature {text!r}: expected PARAMETERS -> RESULT")
    return Signature(parameters, result)


def _parameter(text: str) -> Parameter:
    match = re.fullmatch(r"(out )?(\w+)(|\[:\]|\[:, :\])", text)
    out, item, axes = (bool(match[1]), match[2], match[3].count(":")) if match else (False, "", 0)
    if item not in (_DTYPES if axes else _CTYPES) or (out and not axes):
        raise ValueError(
            f"kernel parameter {text!r}: expected one of {', '.join(_DTYPES)}, with [:] or [:, :] "
            "for an array, and out before one that is written"
        )
    return Parameter(item, axes, out)
