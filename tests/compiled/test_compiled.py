from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import int8calib
from int8calib.compiled import Kernel, kernel
from int8calib.compiled.cache import SUFFIX, load_code, save_code
from int8calib.compiled.machine import ObjectCode
from int8calib.compiled.signature import parse_signature

PACKAGE = Path(int8calib.__file__).parent


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "kernels"))
    return tmp_path / "kernels"


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
    tested = kernel("uint16[:], int32[:, :], float32, float64[:] -> float64", reorder=reorder)(mix)
    values = np.arange(1000, dtype=np.uint16)
    table = np.array([[1, 2], [3, -4], [5, 6]], np.int32)
    found, expected = np.empty(1000), np.empty(1000)
    result = tested(values, table, 0.5, found)
    assert result == mix(values.astype(float), table, 0.5, expected)
    np.testing.assert_array_equal(found, expected)


def test_kernel_compiles_once_for_all_threads(monkeypatch):
    compiled = []
    begin = threading.Barrier(4)
    tested = kernel("int64 -> int64")(double)
    real = Kernel._code

    def slowly(self):
        compiled.append(self)
        return real(self)

    def call(i):
        begin.wait()
        return tested(i)

    monkeypatch.setattr(Kernel, "_code", slowly)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(call, range(4))) == [0, 2, 4, 6]
    assert len(compiled) == 1


def test_what_is_in_the_cache_is_not_compiled_again(monkeypatch, own_cache):
    assert kernel("int64 -> int64")(double)(21) == 42
    assert [path.suffix for path in own_cache.iterdir()] == [SUFFIX]
    monkeypatch.setattr("int8calib.compiled.build.build", None)
    assert kernel("int64 -> int64")(double)(4) == 8
    with pytest.raises(TypeError, match="not callable"):
        kernel("float64 -> float64")(double)(4.0)


def test_damaged_and_foreign_files_are_compiled_anew(monkeypatch, own_cache):
    assert kernel("int64 -> int64")(double)(21) == 42
    [path] = own_cache.iterdir()
    good = path.read_bytes()
    for bad in (b"", good[:-1], good[:-1] + b"x", b"\xff" + good[1:], b"[]\n" + good, b"1\n"):
        path.write_bytes(bad)
        assert kernel("int64 -> int64")(double)(21) == 42
        with monkeypatch.context() as patched:
            patched.setattr("int8calib.compiled.build.build", None)
            assert kernel("int64 -> int64")(double)(4) == 8


def test_what_was_saved_is_loaded_for_the_same_key_only(own_cache):
    built = ObjectCode("f", ("a", "b"), b"\n\x00code\n")
    save_code(__file__, "f", "key", built)
    assert load_code(__file__, "f", "key") == built
    assert load_code(__file__, "f", "other") is None
    assert load_code(__file__, "g", "key") is None
    assert load_code(str(PACKAGE / "elsewhere.py"), "f", "key") is None


def test_full_disk_costs_only_the_cache(monkeypatch):
    def no_space(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("int8calib.files.os.fsync", no_space)
    assert kernel("int64 -> int64")(double)(21) == 42


def test_an_error_of_the_function_itself_is_not_hidden():
    import numba

    tested = kernel("int64 -> int64")(lambda x: x.nonsense)
    with pytest.raises(numba.core.errors.TypingError, match="nonsense"):
        tested(1)


@pytest.mark.parametrize(
    ("array", "found"),
    [
        (np.zeros(3), r"found float64 of shape \(3,\)"),
        (np.zeros((3, 2), np.float32), r"found float32 of shape \(3, 2\)"),
        (np.zeros(6, np.float32)[::2], r"found float32 of shape \(3,\)"),
        ([1.0], r"found list of shape \(\)"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(array, found):
    from int8calib.calibration.statistics.kernels import copy_nonzero

    with pytest.raises(
        TypeError, match=rf"argument 0: expected a contiguous float32\[:\], {found}"
    ):
        copy_nonzero(array, np.zeros(3, np.float32))
    with pytest.raises(TypeError, match="expected 2 arguments, found 1"):
        copy_nonzero(array)


@pytest.mark.parametrize(
    "text", ["", "int64", "int8 -> int64", "uint16 ->", "int64[ ->", "int64 -> x"]
)
def test_signatures_that_mean_nothing_are_refused(text):
    with pytest.raises(ValueError, match="kernel"):
        parse_signature(text)


SCRIPT = """
import sys
import numpy as np
from int8calib.calibration.statistics.histogram import HistogramBuilder, measure_range
from int8calib.calibration.thresholds import find_threshold
x = np.linspace(-3, 5, 997, dtype=np.float32)[None]
builder = HistogramBuilder(measure_range(x).absmax)
builder.add(x)
print(builder.result().observed, find_threshold(builder.result(), "kl").bin is not None)
print("numba" in sys.modules)
"""


@pytest.mark.parametrize("writable", [True, False])
def test_runs_where_no_cache_can_be_written(tmp_path, writable):
    shutil.copytree(
        PACKAGE, tmp_path / "int8calib", ignore=shutil.ignore_patterns("__pycache__", "demo")
    )
    if not writable:
        # A file in the folder's place keeps even the superuser from writing there.
        for folder in ("calibration/statistics", "calibration/thresholds"):
            (tmp_path / "int8calib" / folder / "__pycache__").write_text("no folder")
    nowhere = str(tmp_path / "int8calib/errors.py/cache")
    env = {k: v for k, v in os.environ.items() if not k.startswith(("NUMBA_", "XDG_"))}
    env |= {"HOME": nowhere, "XDG_CACHE_HOME": nowhere, "PYTHONDONTWRITEBYTECODE": "1"}
    for again in (False, True):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", SCRIPT],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
        compiled = not (writable and again)
        assert (done.stdout, done.stderr) == (f"997 True\n{compiled}\n", "")
    assert bool(list(tmp_path.rglob(f"*{SUFFIX}"))) == writable


def test_import_of_the_stage_loads_no_numba():
    code = (
        "import sys, int8calib.calibration.thresholds\n"
        "print(sorted({'numpy', 'numba'} & sys.modules.keys()))\n"
        "import int8calib.calibration.statistics.histogram\n"
        "print(sorted({'numba', 'llvmlite'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n[]\n"
