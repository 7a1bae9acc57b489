"""Pairs of arrays or counts come in; shares with their uncertainty, SQNR and cosine go out."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from int8calib.arrays import Array

Z95 = 1.959963984540054
"""Standard deviations of a normal distribution that 95 % lie within."""


@dataclass(frozen=True)
class Share:
    """`hits` out of `total`, with the 95 % confidence interval that so many images allow."""

    hits: int
    total: int

    @property
    def value(self) -> float:
        """hits / total; NaN for none."""
        return self.hits / self.total if self.total else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """The lower and upper end of Wilson's score interval, 95 %.

        Source: E. B. Wilson, JASA 22 (1927) 209.
        """
        if not self.total:
            return 0.0, 1.0
        n, p, z2 = self.total, self.value, Z95 * Z95
        center = (p + z2 / (2 * n)) / (1 + z2 / n)
        half = Z95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
        # At the ends the formula is exact but for rounding.
        low = 0.0 if self.hits == 0 else max(0.0, center - half)
        return low, 1.0 if self.hits == n else min(1.0, center + half)


class Energy(NamedTuple):
    """Sums of squares over one image or many: of the values, of their error, and the cosine.

    `cosines` is the sum over images of the cosine between values and what they became.
    """

    signal: float
    error: float
    cosines: float
    images: int

    @property
    def sqnr(self) -> float:
        """10 log10(signal / error) in dB; infinite where nothing differs."""
        if self.error == 0:
            return math.inf
        return 10 * math.log10(self.signal / self.error) if self.signal else -math.inf

    @property
    def cosine(self) -> float:
        """The mean cosine of an image; NaN for none."""
        return self.cosines / self.images if self.images else math.nan


def energy(values: Array, became: Array) -> Energy:
    """The energies of `values` (N, ...) against `became`, of the same shape, over its N images."""
    from int8calib.evaluation import kernels

    sums = np.zeros((len(values), 4))
    pairs = (np.ascontiguousarray(x).reshape(len(x), -1) for x in (values, became))
    for a, b, out in zip(*pairs, sums, strict=True):
        kernels.products(a, b, out)
    signal, other, dot, error = sums.T
    length = np.sqrt(signal * other)
    # A blob of zeros points nowhere: it agrees with zeros, and with nothing else.
    alike = np.where(signal == other, 1.0, 0.0)
    cosines = np.divide(dot, length, out=alike, where=length > 0)
    return Energy(float(signal.sum()), float(error.sum()), float(cosines.sum()), len(values))


def total_energy(parts: Iterable[Energy]) -> Energy:
    """The energies of all `parts` together."""
    found = list(parts)
    return Energy(
        math.fsum(part.signal for part in found),
        math.fsum(part.error for part in found),
        math.fsum(part.cosines for part in found),
        sum(part.images for part in found),
    )


def format_decibels(value: float | None, digits: int = 2) -> str:
    """Return an SQNR in dB as text: infinite where nothing differs, empty where not measured."""
    if value is None or math.isnan(value):
        return ""
    if math.isinf(value):
        return "no error" if value > 0 else "no signal"
    return f"{value:.{digits}f}"
