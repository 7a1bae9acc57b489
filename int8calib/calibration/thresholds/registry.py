"""The registry of threshold methods, and the way to call them.

A method is one function `(histogram, options) -> Threshold`, registered under its name. This
module and the methods load neither numpy nor numba, so that names and summaries cost nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from int8calib.errors import OptionError

if TYPE_CHECKING:
    from int8calib.calibration.statistics.histogram import Histogram

DEFAULT_METHOD = "mse"
"""What `calibrate`, `find_threshold` and the command line use: it loses least over the real
models measured."""


@dataclass(frozen=True)
class Threshold:
    """Where a blob is clipped before it is quantized.

    Attributes
    ----------
    value : float
        |x| that the largest level stands for, in units of the blob; 0 for a dead blob, whose
        layer must stay in float.
    bin : int or None
        Histogram bins kept; None where the method searches no bins.
    """

    value: float
    bin: int | None


@dataclass(frozen=True)
class MethodOptions:
    """What any method may need; each reads what it uses.

    Attributes
    ----------
    percentile : float
        The share of the values that the method `percentile` keeps, in percent.
    bits : int
        Of the quantized values, sign included; read by `aciq` and `mse`.

    Raises
    ------
    OptionError
        For values out of range.
    """

    percentile: float = 99.99
    bits: int = 8

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        if not 0 < self.percentile <= 100:
            raise OptionError(f"percentile {self.percentile}, expected more than 0, at most 100")
        if self.bits not in range(2, 9):
            raise OptionError(f"bits {self.bits}, expected a whole number from 2 to 8")


def whole_range(histogram: Histogram) -> Threshold:
    """Return the threshold that clips nothing: the absmax, all bins kept."""
    return Threshold(histogram.absmax, histogram.positive.size)


Method = Callable[["Histogram", MethodOptions], Threshold]


@dataclass(frozen=True)
class _Entry:
    function: Method
    summary: str


_METHODS: dict[str, _Entry] = {}


def register_method(name: str, *, summary: str) -> Callable[[Method], Method]:
    """Decorate a function as the method `name`; `summary` is one line for help texts.

    It is never called for a dead blob. Raises OptionError if the name is taken.
    """
    if name in _METHODS:
        raise OptionError(f"method '{name}' is registered already, choose another name")

    def add(function: Method) -> Method:
        _METHODS[name] = _Entry(function, summary)
        return function

    return add


def method_names() -> tuple[str, ...]:
    """Return the names of all methods, in the order in which they were registered."""
    return tuple(_METHODS)


def summary(name: str) -> str:
    """Return the one line that describes a method; OptionError for an unknown name."""
    return _entry(name).summary


def find_threshold(histogram: Histogram, method: str = DEFAULT_METHOD, **options: Any) -> Threshold:
    """Return the threshold of one blob.

    Parameters
    ----------
    histogram : Histogram
        Its values.
    method : str
        A name that `method_names` lists.
    **options
        The fields of `MethodOptions`.

    Returns
    -------
    Threshold
        0 with any method for a dead blob (absmax 0, or only zeros counted).

    Raises
    ------
    OptionError
        For an unknown method or option.
    """
    function = _entry(method).function
    known = [field.name for field in fields(MethodOptions)]
    for option in options:
        if option not in known:
            raise OptionError(f"unknown option '{option}', expected one of {', '.join(known)}")
    checked = MethodOptions(**options)
    if histogram.absmax == 0 or histogram.nonzero == 0:
        return Threshold(0.0, None)
    return function(histogram, checked)


def find_thresholds(
    histograms: Mapping[str, Histogram],
    method: str | Mapping[str, str] = DEFAULT_METHOD,
    *,
    workers: int | None = None,
    **options: Any,
) -> dict[str, Threshold]:
    """Return the threshold of every blob.

    Parameters
    ----------
    histograms : mapping of str to Histogram
        By blob.
    method : str or mapping of str to str
        One for all, or one for each blob.
    workers : int, optional
        Threads, by default as many as there are processors; the result does not depend on it.
    **options
        The fields of `MethodOptions`.

    Returns
    -------
    dict of str to Threshold
        By blob, in the order of `histograms`.

    Raises
    ------
    OptionError
        As `find_threshold`, and for a blob without a method.
    """
    chosen = dict.fromkeys(histograms, method) if isinstance(method, str) else dict(method)
    missing = [name for name in histograms if name not in chosen]
    if missing:
        raise OptionError(f"no method given for blob '{missing[0]}' and {len(missing) - 1} others")
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        found = pool.map(
            lambda name: find_threshold(histograms[name], chosen[name], **options), histograms
        )
        return dict(zip(histograms, found, strict=True))


def _entry(name: str) -> _Entry:
    if name not in _METHODS:
        raise OptionError(f"unknown method '{name}', expected one of {', '.join(_METHODS)}")
    return _METHODS[name]
