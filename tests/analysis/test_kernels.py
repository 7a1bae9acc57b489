"""The compiled loop of the analysis against the same sums in numpy."""

from __future__ import annotations

import numpy as np
import pytest


def test_bottom_errors_are_the_formulas() -> None:
    from int8calib.analysis import kernels

    values = np.random.default_rng(5).normal(0, 60, 997).astype(np.float32)
    scale = np.float32(2.1)
    steps = np.clip(np.floor(np.abs(values * scale) + 0.5), None, 127).astype(float)
    error = np.square(np.abs(values.astype(float)) - steps / float(scale))
    beyond = np.abs(values * scale) >= 127.5
    assert 0 < beyond.sum() < 997
    expected = [beyond.sum(), error[beyond].sum(), error[~beyond].sum()]
    for bottom_errors in (kernels.bottom_errors, kernels.bottom_errors.py_func):
        sums = np.zeros(3)
        bottom_errors(values, scale, sums)
        assert sums == pytest.approx(expected, rel=1e-10)
