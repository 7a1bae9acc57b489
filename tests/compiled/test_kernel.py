"""Kernels: arguments arrive as declared or are refused, and errors inside are Python's."""

from __future__ import annotations

import math
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from int8calib.analysis import kernels as analysis_kernels
from int8calib.calibration.statistics import kernels as statistics_kernels
from int8calib.calibration.thresholds import error_kernels
from int8calib.calibration.thresholds import kernels as threshold_kernels
from int8calib.compiled import Kernel, kernel
from int8calib.compiled.signature import parse_signature
from int8calib.evaluation import kernels as evaluation_kernels
from tests.compiled.functions import fail_below_zero

MODULES = (
    analysis_kernels,
    evaluation_kernels,
    statistics_kernels,
    error_kernels,
    threshold_kernels,
)
KERNELS = sorted(
    {v for module in MODULES for v in vars(module).values() if isinstance(v, Kernel)},
    key=lambda kernel: kernel.py_func.__name__,
)


def double(x):
    return 2 * x


def mix(values, table, factor, out):
    total = 0.0
    for i in range(values.shape[0]):
        out[i] = values[i] * table[i % table.shape[0], 1] + factor
        total += out[i]
    return total


@pytest.mark.parametrize("reorder", [False, True])
def test_arrays_and_scalars_arrive_as_declared(reorder):
    signature = "uint16[:], int32[:, :], float32, out float64[:] -> float64"
    tested = kernel(signature, reorder=reorder)(mix)
    values = np.arange(1000, dtype=np.uint16)
    table = np.array([[1, 2], [3, -4], [5, 6]], np.int32)
    found, expected = np.empty(1000), np.empty(1000)
    result = tested(values, table, 0.5, found)
    assert result == mix(values.astype(float), table, 0.5, expected)
    np.testing.assert_array_equal(found, expected)


def test_kernel_compiles_once_for_all_threads(own_cache, compiled):
    begin = threading.Barrier(4)
    tested = kernel("int64 -> int64")(double)

    def call(i):
        begin.wait()
        return tested(i)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(call, range(4))) == [0, 2, 4, 6]
    assert compiled == ["double"]


def test_an_error_of_the_function_itself_is_not_hidden():
    import numba

    tested = kernel("int64 -> int64")(lambda x: x.nonsense)
    with pytest.raises(numba.core.errors.TypingError, match="nonsense"):
        tested(1)


@pytest.mark.parametrize(
    ("array", "found"),
    [
        (np.zeros(3), r"found float64 of shape \(3,\)"),
        (np.zeros(3, ">f4"), r"found >f4 of shape \(3,\)"),
        (np.zeros((3, 2), np.float32), r"found float32 of shape \(3, 2\)"),
        (np.zeros(6, np.float32)[::2], r"found float32 of shape \(3,\)"),
        ([1.0], r"found list of shape \(\)"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(array, found):
    tested = statistics_kernels.copy_nonzero
    with pytest.raises(
        TypeError, match=rf"argument 0: expected a contiguous float32\[:\], {found}"
    ):
        tested(array, np.zeros(3, np.float32))
    with pytest.raises(TypeError, match="expected 2 arguments, found 1"):
        tested(array)


def test_an_array_between_two_values_is_refused():
    crooked = np.zeros(13, np.uint8)[1:].view(np.float32)
    with pytest.raises(TypeError, match="argument 1: the array is misaligned; make a copy"):
        statistics_kernels.copy_nonzero(np.ones(3, np.float32), crooked)


def test_what_is_read_only_is_not_written_to():
    content = bytes(12)
    room = np.frombuffer(content, np.float32)
    values = np.ones(3, np.float32)
    values.flags.writeable = False
    with pytest.raises(TypeError, match="argument 1: the array is read-only; make a copy"):
        statistics_kernels.copy_nonzero(values, room)
    assert content == bytes(12)
    assert statistics_kernels.copy_nonzero(values, room.copy()) == 3


def ramp(size, dtype=np.float64):
    return np.linspace(1, 2, size, dtype=dtype)


SUMS = [ramp(141)] * 3
ARGUMENTS = {
    "bottom_errors": [ramp(7, np.float32), 83.0, np.zeros(3)],
    "copy_nonzero": [ramp(7, np.float32), np.zeros(7, np.float32)],
    "count_fine": [
        *(ramp(7, np.float32), 3.0),
        *(np.zeros(5, np.uint32), np.zeros(2 * 131072 + 16, np.uint32)),
    ],
    "count_slots": [
        *(ramp(7, np.float32), 2.0),
        *(np.zeros(5, np.uint16), np.zeros((4, 4112), np.int32), np.zeros(4112, np.int64)),
    ],
    "extremes": [ramp(7, np.float32).view(np.int32), np.zeros(2, np.int32)],
    "kl_costs": [*SUMS, np.zeros(129), np.zeros(256), np.zeros(256), np.zeros(12)],
    "kl_tensorrt_costs": [*SUMS, np.zeros(12)],
    "kl_tool_costs": [*SUMS, np.zeros(12)],
    "kl_tool_v1_costs": [*SUMS, np.zeros(12)],
    "mse_costs": [ramp(17), ramp(17), ramp(17), 83.0, 7, np.zeros(17)],
    "products": [ramp(7, np.float32), ramp(7, np.float32)[::-1].copy(), np.zeros(4)],
    "row_clips": [ramp(12, np.float32), 7, ramp(3, np.float32), np.zeros(4, np.float32)],
}


@pytest.mark.parametrize("tested", KERNELS, ids=lambda kernel: kernel.py_func.__name__)
def test_kernels_write_to_what_they_declare_and_to_nothing_else(tested):
    """In plain Python numpy refuses to write to the inputs, which are read-only here."""
    arguments = ARGUMENTS[tested.py_func.__name__]
    plain, compiled = [], []
    for parameter, argument in zip(tested._signature.parameters, arguments, strict=True):
        for copies in (plain, compiled):
            copies.append(
                argument.copy() if parameter.axes else np.dtype(parameter.item).type(argument)
            )
            if parameter.axes and not parameter.out:
                copies[-1].flags.writeable = False
    with np.errstate(all="ignore"):
        expected = tested.py_func(*plain)
    found = tested(*compiled)
    assert found == expected
    for parameter, before, now, other in zip(
        tested._signature.parameters, arguments, compiled, plain, strict=True
    ):
        np.testing.assert_allclose(now, other, rtol=1e-12)
        assert np.array_equal(now, before) != parameter.out


@pytest.mark.parametrize(
    ("signature", "argument", "message"),
    [
        ("int32 -> int32", 2**31, "argument 0: 2147483648 does not fit into int32"),
        ("int32 -> int32", -(2**31) - 1, "does not fit into int32"),
        ("int64 -> int64", 2**63, "does not fit into int64"),
        ("int64 -> int64", np.uint64(2**63), "does not fit into int64"),
        ("int64 -> int64", 1.0, "argument 0: 'float' object cannot be interpreted as an integer"),
        ("int64 -> int64", "1", "cannot be interpreted as an integer"),
        ("float32 -> float32", 1e39, r"1e\+39 does not fit into float32"),
        ("float32 -> float32", 10**400, "does not fit into float32"),
        ("float64 -> float64", 10**400, "does not fit into float64"),
        ("float64 -> float64", "1", "expected a float64, found str"),
        ("float64 -> float64", 1j, "expected a float64, found complex"),
        ("float64 -> float64", None, "expected a float64, found NoneType"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(signature, argument, message):
    with pytest.raises(TypeError, match=message):
        kernel(signature)(double)(argument)


@pytest.mark.parametrize(
    ("signature", "arguments"),
    [
        ("int32 -> int32", [2**30 - 1, -(2**30), np.int8(5), True]),
        ("int64 -> int64", [2**62 - 1, -(2**62)]),
        ("float32 -> float32", [np.float32(1.5), 3, np.int16(4), math.inf, -math.inf, -0.0]),
        ("float64 -> float64", [8e307, 1e-320, math.nan, np.float32(0.1), 2**70]),
    ],
)
def test_numbers_that_fit_arrive(signature, arguments):
    tested = kernel(signature)(double)
    for argument in arguments:
        assert repr(float(tested(argument))) == repr(float(2 * float(argument)))


def test_an_error_inside_is_raised(own_cache, compiled):
    out = np.zeros(1)
    for _ in range(2):
        # Once newly compiled, once from the cache.
        tested = kernel("float64, out float64[:] -> float64")(fail_below_zero)
        assert tested(21, out) == 42
        with pytest.raises(RuntimeError, match="fail_below_zero raised an error; its py_func"):
            tested(-21, out)
        assert out[0] == -21
        with pytest.raises(ValueError, match="below zero"):
            tested.py_func(-21, out)
    assert compiled == ["fail_below_zero"]


SCRIPT = """
import sys
import numpy as np
from int8calib.compiled import kernel
from tests.compiled.functions import allocate, fail_below_zero
tested = kernel("float64, out float64[:] -> float64")(fail_below_zero)
try:
    tested(-1, np.zeros(1))
except RuntimeError as error:
    print(error, "numba" in sys.modules)
print(kernel("int64 -> int64")(allocate)(7), "numba" in sys.modules)
"""


def test_neither_errors_nor_memory_need_more_than_the_cache_has(own_cache):
    # What needs numba's own functions is compiled anew where they are not loaded.
    for numba in (True, False):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False
        )
        expected = f"tests.compiled.functions.fail_below_zero raised an error; its py_func tells which {numba}"
        assert (done.stdout, done.stderr, done.returncode) == (f"{expected}\n7 True\n", "", 0)


@pytest.mark.parametrize(
    "text",
    [
        *("", "int64", "int8 -> int64", "uint16 ->", "int64[ ->", "int64 -> x"),
        *("out int64 ->", "outint64[:] ->", "int64[:] -> out int64[:]"),
    ],
)
def test_signatures_that_mean_nothing_are_refused(text):
    with pytest.raises(ValueError, match="kernel"):
        parse_signature(text)


def test_only_functions_are_kernels():
    with pytest.raises(TypeError, match="a kernel is a function; found <class 'int'>"):
        kernel("int64 -> int64")(int)
