"""Layers with several bottoms or tops against OpenCV and numpy's own functions."""

from __future__ import annotations

import numpy as np
import pytest

from int8calib.errors import ShapeError
from tests.layer_cases import Case, check

X = (2, 5, 7, 11)


def weighted_sum(params, weights, bottoms):
    coeff = params.eltwise_param.coeff
    return [sum(np.float64(c) * b for c, b in zip(coeff, bottoms, strict=True))]


def sliced(*points, axis=1):
    return lambda params, weights, bottoms: np.split(bottoms[0], points, axis=axis)


def added(params, weights, bottoms):
    """Entry by entry, an axis of size 1 and a missing first axis repeated."""
    shape = bottoms[0].shape
    top = np.zeros(shape)
    for place in np.ndindex(*shape):
        for bottom in bottoms:
            own = place[len(place) - bottom.ndim :]
            fitting = (i if size > 1 else 0 for i, size in zip(own, bottom.shape, strict=True))
            top[place] += bottom[tuple(fitting)]
    return [top]


CASES = (
    Case("Add", bottoms=((2, 3, 5, 7), (2, 3, 5, 7)), oracle=added),
    Case("Add", bottoms=((2, 3, 5, 7),) * 3, oracle=added),
    Case("Add", bottoms=((2, 3, 5, 7), (1, 3, 1, 7), (5, 1)), oracle=added),
    Case("Add", bottoms=((2, 3, 5), (1,)), oracle=added),
    *(Case("Eltwise", f"eltwise_param {{ operation: {operation} }}", (X,) * count)
      for operation in ("PROD", "SUM", "MAX") for count in (2, 3)),
    Case("Eltwise", "eltwise_param { coeff: 0.7 coeff: -1.3 }", (X, X)),
    Case("Eltwise", "eltwise_param { coeff: 1 coeff: -1 coeff: 0.25 }", (X,) * 3,
         oracle=weighted_sum),
    Case("Eltwise", "eltwise_param { operation: MAX coeff: 2 coeff: 3 }", (X, X),
         oracle=lambda p, w, b: [np.maximum(*b)]),
    Case("Eltwise", bottoms=((3, 13), (3, 13))),
    Case("Concat", bottoms=((2, 5, 7, 11), (2, 3, 7, 11), (2, 1, 7, 11))),
    Case("Concat", "concat_param { axis: 2 }", ((2, 5, 7, 11), (2, 5, 3, 11))),
    Case("Concat", "concat_param { axis: -1 }", ((2, 5, 7, 11), (2, 5, 7, 13))),
    Case("Concat", "concat_param { axis: 0 }", ((2, 5, 7), (3, 5, 7))),
    Case("Concat", "concat_param { concat_dim: 2 }", ((2, 5, 7, 11), (2, 5, 3, 11)),
         oracle=lambda p, w, b: [np.concatenate(b, axis=2)]),
    Case("Concat", bottoms=(X,)),
    Case("Slice", bottoms=((2, 6, 7, 11),), tops=3, oracle=sliced(2, 4)),
    Case("Slice", bottoms=((1, 6, 7, 11),), tops=3, oracle=sliced(2, 4)),
    Case("Slice", "slice_param { slice_point: 2 slice_point: 3 }", tops=3, oracle=sliced(2, 3)),
    Case("Slice", "slice_param { axis: -2 slice_point: 3 }", tops=2, oracle=sliced(3, axis=2)),
    Case("Slice", "slice_param { slice_dim: 3 slice_point: 3 }", tops=2,
         oracle=sliced(3, axis=3)),
    Case("Slice", "slice_param { axis: 0 }", ((2, 5, 7),), tops=2, oracle=sliced(1, axis=0)),
    Case("Split", tops=3, oracle=lambda p, w, b: b * 3),
    Case("Silence", bottoms=(X, (2, 3)), tops=0, oracle=lambda p, w, b: []),
    Case("BatchReindex", bottoms=(X, (7,)), makers=(
        lambda rng, shape: rng.normal(size=shape), lambda rng, shape: rng.integers(0, 2, shape)),
        oracle=lambda p, w, b: [np.stack([b[0][int(i)] for i in b[1]])]),
)  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_layer(case: Case) -> None:
    check(case)


@pytest.mark.parametrize(
    ("case", "found"),
    [
        (Case("Eltwise", bottoms=(X, (2, 5, 7, 1))), "different shapes"),
        (Case("Eltwise", "eltwise_param { coeff: 1 }", (X, X)), "1 coefficients for 2"),
        (Case("Eltwise", "eltwise_param { operation: PROD coeff: 1 coeff: 1 }", (X, X)), "SUM"),
        (Case("Concat", bottoms=(X, (2, 5, 3, 11))), "beside axis 1"),
        (Case("Slice", tops=2), "do not divide"),
        (Case("Slice", "slice_param { slice_point: 5 }", tops=2), "do not cut"),
        (Case("Slice", "slice_param { slice_point: 2 }", tops=3), "do not cut"),
        (Case("Concat", "concat_param { axis: 1 concat_dim: 2 }", (X, X)), "give one of them"),
        (Case("Slice", "slice_param { axis: 2 slice_dim: 1 }", tops=5), "give one of them"),
        (Case("Add", bottoms=(X, (5, 1))), "do not broadcast"),
        (Case("BatchReindex", bottoms=(X, (7, 1))), "1 axes"),
    ],
    ids=str,
)
def test_impossible_shapes(case: Case, found: str) -> None:
    with pytest.raises(ShapeError, match=found):
        case.kind.shape(case.message(), case.bottoms)
