"""Devices by name, and what is said where there is none. The GPU is a stand-in of the test's own."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from int8calib.arrays import namespace, to_host
from int8calib.device import Device, gpu_of, open_device
from int8calib.errors import OptionError
from tests.cupy_functions import describe, read_list
from tests.strict_arrays import STRICT


@pytest.mark.parametrize("name", ["gpu", "cuda", "cuda:", "cuda:-1", "cuda:x", "CUDA:0", "", None])
def test_other_names_are_refused(name: object) -> None:
    with pytest.raises(OptionError, match="expected cuda:0 for the first GPU"):
        open_device(name)  # type: ignore[arg-type]


@pytest.mark.skipif(importlib.util.find_spec("cupy") is not None, reason="CuPy is installed")
def test_without_cupy_the_message_says_what_to_install() -> None:
    with pytest.raises(OptionError) as caught:
        open_device("cuda:0")
    assert str(caught.value) == (
        'device cuda:0: CuPy is not installed; pip install "int8calib[gpu]" brings it'
    )


class _Current:
    def __init__(self, number: int) -> None:
        self.number = number

    def __enter__(self) -> None:
        _Current.entered.append(self.number)

    def __exit__(self, *error: object) -> None:
        pass

    entered: list[int] = []  # noqa: RUF012 - what the test reads


def _cupy(count: object, **functions: object) -> SimpleNamespace:
    """What `gpu_of` needs of CuPy, in numpy."""

    def get_count() -> object:
        if isinstance(count, Exception):
            raise count
        return count

    runtime = SimpleNamespace(
        getDeviceCount=get_count,
        memGetInfo=lambda: (700, 1000),
        getDeviceProperties=lambda number: {"name": b"GPU number %d" % number},
    )
    pool = SimpleNamespace(free_bytes=lambda: 41)
    parts = {"ones": np.ones, "matmul": np.matmul, "get_default_memory_pool": lambda: pool}
    return SimpleNamespace(
        cuda=SimpleNamespace(runtime=runtime, Device=_Current), **{**parts, **functions}
    )


def test_a_gpu_that_is_there() -> None:
    device = gpu_of(_cupy(2), 1)
    _Current.entered.clear()
    assert (device.name, device.hardware) == ("cuda:1", "GPU number 1")
    # Free for CUDA, and free within what CuPy holds.
    assert device.free_bytes == 741
    assert _Current.entered == [1]


def test_a_gpu_that_is_not_there() -> None:
    with pytest.raises(OptionError, match=r"^device cuda:2: CuPy finds cuda:0, cuda:1$"):
        gpu_of(_cupy(2), 2)
    with pytest.raises(OptionError, match=r"^device cuda:0: CuPy finds no GPU$"):
        gpu_of(_cupy(0), 0)
    error = RuntimeError("cudaErrorInsufficientDriver: too old\nmore")
    with pytest.raises(OptionError) as caught:
        gpu_of(_cupy(error), 0)
    assert str(caught.value) == (
        "device cuda:0: CuPy finds no GPU: RuntimeError: cudaErrorInsufficientDriver: too old"
    )


def test_a_cupy_that_does_not_work() -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("===\nlibcublas.so.12 is missing")

    with pytest.raises(
        OptionError, match=r"CuPy does not work: RuntimeError: libcublas\.so\.12 is"
    ):
        gpu_of(_cupy(1, matmul=fail), 0)


class _Array:
    """An array that is not numpy's."""

    def __init__(self, values: object) -> None:
        self.values = values

    def __array_namespace__(self) -> object:
        return _THERE

    def get(self) -> np.ndarray:
        return np.array(self.values)


_THERE = SimpleNamespace(asarray=_Array)


def test_arrays_that_name_no_namespace_are_cupys(monkeypatch: pytest.MonkeyPatch) -> None:
    cupy = SimpleNamespace()
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    assert namespace(SimpleNamespace(get=None)) is cupy


def test_the_list_of_functions_is_cupys() -> None:
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    if cupy.__version__ != read_list()["version"]:
        pytest.skip(f"the list is of CuPy {read_list()['version']}, this is {cupy.__version__}")
    assert describe(cupy) == read_list()


def test_arrays_go_there_and_back() -> None:
    device = Device("there:0", _THERE)
    here = np.array([2, 3, 5], np.float32)
    there = device.asarray(here)
    assert type(there) is _Array
    assert device.asarray(there) is there
    assert namespace(there) is _THERE
    assert namespace(here) is np
    assert namespace(here[0]) is np
    assert to_host(here) is here
    assert to_host(there).tolist() == [2, 3, 5]
    assert device.free_bytes == 0


_X = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.mark.parametrize(
    "use",
    [
        lambda x: np.asarray(x),
        lambda x: np.add(x, 1),
        lambda x: np.concatenate([x, x]),
        lambda x: np.float32(x.sum()),
        lambda x: x + _X,
        lambda x: _X * x,
        lambda x: list(x),
        lambda x: x[[0]],
        lambda x: x[np.array([0])],
        lambda x: x.take(np.array([0]), axis=0),
        lambda x: x.max(axis=0, initial=0),
        lambda x: x.max(0, None, False, 0),
        lambda x: x.ctypes,
        lambda x: x.__setitem__(0, _X[0]),
        lambda x: _X.__setitem__(0, x[0]),
        lambda x: f"{x.max():g}",
        lambda x: STRICT.errstate,
        lambda x: STRICT.maximum(x, _X),
        lambda x: STRICT.max(x, where=x > 0),
        lambda x: STRICT.add(x, 1, None, 2),
        lambda x: STRICT.lib.stride_tricks.as_strided(x, (2,), (4,), writeable=False),
    ],
)
def test_strict_arrays_refuse_what_cupys_refuse(use: Callable[[Any], object]) -> None:
    with pytest.raises((TypeError, AttributeError)):
        use(STRICT.asarray(_X))


def test_strict_arrays_do_what_cupys_do() -> None:
    x = STRICT.asarray(_X)
    for found, expected in (
        (np.float32(2) * x, 2 * _X),
        (x.T @ x, _X.T @ _X),
        (STRICT.maximum(x, 3), np.maximum(_X, 3)),
        (x[:, STRICT.asarray([2, 0])], _X[:, [2, 0]]),
        (x.max(axis=(0, 1)), np.float32(5)),
    ):
        assert type(found) is type(x)
        np.testing.assert_array_equal(found.get(), expected)
    x[0] = x[1]
    x += 1
    np.testing.assert_array_equal(x.get(), [[4, 5, 6]] * 2)
    assert (float(x.sum()), bool((x > 3).all()), len(x)) == (30.0, True, 2)
