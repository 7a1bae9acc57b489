"""Arrays on a device that is not there: numpy inside, and nothing allowed that CuPy does not do.

A `StrictArray` never becomes a numpy array by itself, does not mix with one, and has the methods
of ``cupy.ndarray`` only. `STRICT` stands for the module ``cupy``: its functions, with its
parameters. Both go by the list that tests/cupy_functions.py makes from CuPy.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from int8calib.device import Device
from tests.cupy_functions import read_list

CUPY = read_list()
_UPLOADING = ("array", "asarray")
_AT = ("add", "maximum", "minimum")
"""Ufuncs whose `at` CuPy has."""


class Transfers:
    """How often arrays went to the device and came back, since `reset`."""

    uploads = 0
    downloads = 0

    @classmethod
    def reset(cls) -> None:
        cls.uploads = cls.downloads = 0


def _plain(value: Any) -> Any:
    """The numpy array in a StrictArray, and of those in a list or tuple; refuses numpy arrays."""
    if isinstance(value, StrictArray):
        return value._values
    if isinstance(value, np.ndarray):
        raise TypeError(f"a numpy array of shape {value.shape} where CuPy takes its own only")
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(part) for part in value)
    return value


def _wrapped(value: Any) -> Any:
    """Arrays and numpy's scalars as StrictArrays; CuPy gives no scalars."""
    if isinstance(value, (np.ndarray, np.generic)):
        return StrictArray(np.asarray(value))
    if isinstance(value, (list, tuple)):
        return type(value)(_wrapped(part) for part in value)
    return value


def _check_arguments(
    name: str, parameters: Sequence[str], args: Sequence[Any], kwargs: dict[str, Any]
) -> None:
    """Refuse arguments that CuPy's function does not take."""
    positional = []
    for parameter in parameters:
        if parameter.startswith("*"):
            break
        positional.append(parameter)
    many = any(p.startswith("*") and p[1:].isidentifier() for p in parameters)
    if not many and len(args) > len([p for p in positional if p != "/"]):
        raise TypeError(f"cupy's {name}({', '.join(parameters)}) was given {len(args)} arguments")
    if any(parameter.startswith("**") for parameter in parameters):
        return
    named = parameters[parameters.index("/") + 1 :] if "/" in parameters else parameters
    for keyword in kwargs:
        if keyword not in named:
            raise TypeError(f"cupy's {name}({', '.join(parameters)}) takes no {keyword}")


class _Function:
    """A function of CuPy's, done by numpy."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._function = operator.attrgetter(name)(np)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        _check_arguments(self._name, CUPY["functions"][self._name], args, kwargs)
        if self._name in _UPLOADING and not isinstance(args[0], StrictArray):
            Transfers.uploads += 1
            return StrictArray(np.array(*args, **kwargs))
        plain = {name: _plain(value) for name, value in kwargs.items()}
        return _wrapped(self._function(*_plain(args), **plain))

    def at(self, *args: Any) -> None:
        if self._name not in _AT:
            raise AttributeError(f"cupy.{self._name} has no at()")
        self._function.at(*_plain(args))


class _Namespace:
    """The module cupy, or one in it."""

    def __init__(self, prefix: str = "") -> None:
        self._prefix = prefix

    def __getattr__(self, name: str) -> Any:
        whole = self._prefix + name
        if whole in ("lib", "lib.stride_tricks"):
            return _Namespace(whole + ".")
        if whole == "asnumpy":
            return StrictArray.get
        if whole in CUPY["functions"]:
            return _Function(whole)
        if whole in CUPY["values"]:
            return getattr(np, whole)
        raise AttributeError(f"CuPy {CUPY['version']} has no cupy.{whole}")


STRICT = _Namespace()


class StrictArray:
    """An array that lets nothing through that a ``cupy.ndarray`` does not."""

    __array_ufunc__ = None
    __iter__ = None
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, values: np.ndarray) -> None:
        self._values = values

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("a device's array does not become numpy's by itself; use get()")

    def __array_function__(self, function: Any, *_: Any) -> Any:
        raise TypeError(f"numpy's {function.__name__} was given a device's array")

    def __array_namespace__(self) -> Any:
        return STRICT

    def get(self) -> np.ndarray:
        Transfers.downloads += 1
        return np.array(self._values, order="C")

    def __getattr__(self, name: str) -> Any:
        if name in CUPY["attributes"]:
            return _wrapped(getattr(self._values, name))
        if name not in CUPY["methods"]:
            raise AttributeError(f"cupy.ndarray has no {name}")

        def method(*args: Any, **kwargs: Any) -> Any:
            _check_arguments(name, CUPY["methods"][name], args, kwargs)
            plain = {key: _plain(value) for key, value in kwargs.items()}
            return _wrapped(getattr(self._values, name)(*_plain(args), **plain))

        return method

    def __len__(self) -> int:
        return len(self._values)

    def __bool__(self) -> bool:
        return bool(self._values)

    def __float__(self) -> float:
        return float(self._values)

    def __int__(self) -> int:
        return int(self._values)

    def __repr__(self) -> str:
        return f"StrictArray({self._values!r})"

    def __getitem__(self, key: Any) -> Any:
        return _wrapped(self._values[_index(key)])

    def __setitem__(self, key: Any, value: Any) -> None:
        self._values[_index(key)] = _plain(value)


def _index(key: Any) -> Any:
    """An index without lists and numpy arrays, for which CuPy would copy to the device."""
    for part in key if isinstance(key, tuple) else (key,):
        if isinstance(part, (list, np.ndarray)):
            raise TypeError("an index that is on the host")
    return _plain(key)


def _add_operators() -> None:
    """The operators of `cupy.ndarray`, also in place and with the array on the right."""

    def forward(function: Callable[..., Any]) -> Any:
        return lambda self, other: _wrapped(function(self._values, _plain(other)))

    def backward(function: Callable[..., Any]) -> Any:
        return lambda self, other: _wrapped(function(_plain(other), self._values))

    def in_place(function: Callable[..., Any]) -> Any:
        def change(self: StrictArray, other: Any) -> StrictArray:
            self._values = function(self._values, _plain(other))
            return self

        return change

    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor"):
        setattr(StrictArray, f"__{name}__", forward(getattr(operator, f"__{name}__")))
        setattr(StrictArray, f"__r{name}__", backward(getattr(operator, f"__{name}__")))
        setattr(StrictArray, f"__i{name}__", in_place(getattr(operator, f"__i{name}__")))
    for name in ("lt", "le", "eq", "ne", "gt", "ge", "matmul"):
        setattr(StrictArray, f"__{name}__", forward(getattr(operator, f"__{name}__")))
    for name in ("neg", "pos", "abs", "invert"):
        function = getattr(operator, f"__{name}__")
        setattr(StrictArray, f"__{name}__", lambda self, f=function: _wrapped(f(self._values)))


_add_operators()


def strict_device() -> Device:
    """A device of strict arrays."""
    return Device("strict:0", STRICT)
