from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from int8calib.calibration.statistics.histogram import copy_nonzero
from int8calib.calibration.statistics.ranges import Range, measure_range, range_of_values
from int8calib.errors import StatisticsError

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(hnp.arrays(np.float32, st.integers(1, 211), elements=FINITE))
@settings(max_examples=150, deadline=None)
def test_extremes_are_those_of_numpy(x):
    found = measure_range(x)
    assert found.minimum == x.min()
    assert found.maximum == x.max()
    assert found.absmax == np.abs(x).max()


@pytest.mark.parametrize("shape", [(1,), (2, 3, 5, 7), (3, 4099), (1, 1, 1, 1)])
@pytest.mark.parametrize("shift", [0.0, 9.0, -9.0])
def test_shapes_and_signs(shape, shift):
    x = (np.random.default_rng(3).standard_normal(shape) + shift).astype(np.float32)
    found = measure_range(x)
    assert found == Range(float(x.min()), float(x.max()), images=shape[0])


def test_strided_and_readonly_views_give_what_their_copy_gives():
    x = np.random.default_rng(5).standard_normal((3, 7, 11, 13)).astype(np.float32)
    x.setflags(write=False)
    view = x[:, 1:5, ::2, ::-3]
    assert measure_range(view) == measure_range(view.copy())


def test_negative_zero_is_zero():
    found = measure_range(np.array([-0.0, -0.0], np.float32))
    assert str(found) == str(Range(0.0, 0.0, images=2))


@pytest.mark.parametrize("place", [0, 6, 1000, 4096])
@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.nan, "1 NaN and 0 infinite"),
        (-np.nan, "1 NaN and 0 infinite"),
        (np.inf, "0 NaN and 1 infinite"),
        (-np.inf, "0 NaN and 1 infinite"),
    ],
)
def test_one_bad_value_anywhere_is_found_and_the_blob_named(place, value, said):
    x = np.ones((1, 4097), np.float32)
    x[0, place] = value
    with pytest.raises(StatisticsError, match=f"blob 'fc7': {said} values among 4097"):
        measure_range(x, "fc7")


def test_largest_finite_values_are_finite():
    top = np.finfo(np.float32).max
    assert measure_range(np.array([top, -top], np.float32)).absmax == top


@pytest.mark.parametrize(
    "x", [np.zeros((2, 3)), np.zeros((0, 3), np.float32), np.float32(3) * np.ones((), np.float32)]
)
def test_other_types_and_empty_arrays_are_refused(x):
    with pytest.raises(StatisticsError, match="blob 'b': an array of type"):
        measure_range(np.asarray(x), "b")


def test_merged_range_is_that_of_all_images():
    x = np.random.default_rng(7).standard_normal((5, 3, 7)).astype(np.float32)
    parts = [measure_range(x[:2]), measure_range(x[2:3]), measure_range(x[3:])]
    assert parts[0].merge(parts[1]).merge(parts[2]) == measure_range(x)
    assert parts[2].merge(parts[0]).merge(parts[1]) == measure_range(x)


@given(hnp.arrays(np.float32, st.integers(1, 211), elements=st.one_of(FINITE, st.just(0.0))))
@settings(max_examples=100, deadline=None)
def test_non_zero_values_and_the_number_of_zeros_tell_the_range(x):
    from int8calib.calibration.statistics import kernels

    room = np.full(x.size + 3, 7, np.float32)
    count = copy_nonzero(x, room)
    np.testing.assert_array_equal(room[:count], x[x != 0])
    assert (room[x.size :] == 7).all()
    again = np.empty_like(room)
    assert kernels.copy_nonzero.py_func(x, again) == count
    np.testing.assert_array_equal(again[:count], room[:count])
    found = range_of_values(room[:count], zeros=x.size - count, images=2)
    assert found == Range(float(x.min()) + 0.0, float(x.max()) + 0.0, images=2)


def test_not_a_number_counts_as_non_zero():
    x = np.array([0, np.nan, 0, 1], np.float32)
    room = np.empty(4, np.float32)
    assert copy_nonzero(x, room) == 2
    with pytest.raises(StatisticsError, match="blob 'b': 1 NaN"):
        range_of_values(room[:2], zeros=2, images=1, name="b")
