"""The extremes of one blob, and checks of the activations that are counted."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from int8calib.arrays import Array, namespace, to_host
from int8calib.errors import StatisticsError

_FEW = 1 << 14
"""Values that numpy looks through twice in less time than it takes to call a compiled loop."""


@dataclass(frozen=True)
class Range:
    """The extremes of one blob: float32 values, kept exactly, in units of the blob.

    Attributes
    ----------
    minimum, maximum : float
        With their signs: a blob of positive values has a positive minimum.
    images : int
        The images looked at.

    Raises
    ------
    StatisticsError
        For values that are not finite, or in the wrong order.
    """

    minimum: float
    maximum: float
    images: int

    def __post_init__(self) -> None:
        """Refuse values that are no range."""
        if not -np.inf < self.minimum <= self.maximum < np.inf or self.images < 0:
            raise StatisticsError(
                f"a range of {self.minimum}..{self.maximum} over {self.images} images; expected"
                " finite values in order"
            )

    @property
    def absmax(self) -> float:
        """The largest |x|."""
        return max(abs(self.minimum), abs(self.maximum))

    def merge(self, other: Range) -> Range:
        """Return the range over the images of both."""
        return Range(
            minimum=min(self.minimum, other.minimum),
            maximum=max(self.maximum, other.maximum),
            images=self.images + other.images,
        )


def measure_range(x: Array, name: str = "") -> Range:
    """Return the range of `x`: float32, first axis over images; `name` of the blob for errors.

    Raises StatisticsError where `x` holds NaN or infinity, has another type or no values.
    """
    return range_of_values(checked_values(x, name), zeros=0, images=len(x), name=name)


def range_of_values(values: Array, *, zeros: int, images: int, name: str = "") -> Range:
    """`measure_range` for the values of some images in any order, `zeros` of them left out."""
    smallest, largest = _extremes(values) if values.size else (0.0, 0.0)
    if not (math.isfinite(smallest) and math.isfinite(largest)):
        raise not_finite(values, name)
    if zeros:
        smallest, largest = min(smallest, 0.0), max(largest, 0.0)
    # Adding 0.0 turns -0.0, which ReLU can leave behind, into 0.0.
    return Range(smallest + 0.0, largest + 0.0, images)


def _extremes(values: Array) -> tuple[float, float]:
    """The smallest and the largest value; one of them NaN where there is any."""
    xp = namespace(values)
    if xp is not np:
        # One transfer for both.
        smallest, largest = to_host(xp.stack([values.min(), values.max()])).tolist()
        return smallest, largest
    if values.size < _FEW:
        return float(values.min()), float(values.max())
    from int8calib.calibration.statistics import kernels

    result = np.empty(2, np.int32)
    kernels.extremes(values.view(np.int32), result)
    smallest, largest = result.view(np.float32).tolist()
    return smallest, largest


def checked_values(x: Array, name: str) -> Array:
    """Return the values of `x` as a vector; StatisticsError for another type or no values."""
    if x.dtype != np.float32 or x.ndim == 0 or x.size == 0:
        raise StatisticsError(
            f"{blob_label(name)}: an array of type {x.dtype} and shape {x.shape},"
            " expected float32 with at least one value and images along the first axis"
        )
    contiguous: Array = namespace(x).ascontiguousarray(x)
    return contiguous.reshape(-1)


def not_finite(values: Array, name: str) -> StatisticsError:
    """Return the error for values of a blob that are NaN or infinite."""
    values = to_host(values)
    nan = int(np.isnan(values).sum())
    infinite = int(np.isinf(values).sum())
    return StatisticsError(
        f"{blob_label(name)}: {nan} NaN and {infinite} infinite values among {values.size},"
        " expected finite activations; check the model and the preprocessing"
    )


def blob_label(name: str) -> str:
    """Return what messages call the blob."""
    return f"blob '{name}'" if name else "blob"
