"""A kernel's declared types, as text, come in; what numba and ctypes need to know goes out."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_CTYPES: dict[str, Any] = {
    "float32": ctypes.c_float,
    "float64": ctypes.c_double,
    "int32": ctypes.c_int32,
    "int64": ctypes.c_int64,
}
_ITEMS = (*_CTYPES, "uint16")


@dataclass(frozen=True)
class Parameter:
    """One parameter: a scalar (`axes` 0) or a contiguous array of `axes` axes."""

    item: str
    axes: int

    @property
    def text(self) -> str:
        """As it was declared."""
        return f"{self.item}[{', '.join(':' * self.axes)}]" if self.axes else self.item

    @property
    def ctypes(self) -> tuple[Any, ...]:
        """The C types: the scalar's, or those of the pointer and of the sizes of the axes."""
        if not self.axes:
            return (_CTYPES[self.item],)
        return (ctypes.c_void_p, *[ctypes.c_int64] * self.axes)

    def values(self, argument: Any) -> Iterator[Any]:
        """What stands for `argument` in the call; raises TypeError where it is none of these."""
        if not self.axes:
            yield argument
            return
        fits = isinstance(argument, np.ndarray) and argument.dtype == self.item
        if not fits or argument.ndim != self.axes or not argument.flags.c_contiguous:
            found = getattr(argument, "dtype", type(argument).__name__)
            raise TypeError(
                f"expected a contiguous {self.text}, found {found} "
                f"of shape {getattr(argument, 'shape', ())}"
            )
        yield argument.ctypes.data
        yield from argument.shape


@dataclass(frozen=True)
class Signature:
    """The parameters of a kernel, and the item type of its result (None for none)."""

    parameters: tuple[Parameter, ...]
    result: str | None

    @property
    def prototype(self) -> Any:
        """The ctypes function type; a call through it does not hold the GIL."""
        types = [ctype for parameter in self.parameters for ctype in parameter.ctypes]
        return ctypes.CFUNCTYPE(_CTYPES[self.result] if self.result else None, *types)

    def values(self, arguments: Sequence[Any]) -> list[Any]:
        """The arguments in C terms; TypeError, which names the first that does not fit."""
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
    """The signature in `"float32[:], int64 -> int64"`: items, `[:]` or `[:, :]` for arrays."""
    before, arrow, after = text.partition("->")
    result = after.strip() or None
    parameters = tuple(_parameter(part.strip()) for part in re.split(r",(?![^\[]*\])", before))
    if not arrow or not (result is None or result in _CTYPES):
        raise ValueError(f"kernel signature {text!r}: expected PARAMETERS -> RESULT")
    return Signature(parameters, result)


def _parameter(text: str) -> Parameter:
    found = re.fullmatch(r"(\w+)(|\[:\]|\[:, :\])", text)
    item, axes = (found[1], found[2].count(":")) if found else ("", 0)
    if item not in (_ITEMS if axes else _CTYPES):
        raise ValueError(f"kernel parameter {text!r}: expected one of {', '.join(_ITEMS)}")
    return Parameter(item, axes)
