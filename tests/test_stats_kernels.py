from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numba
import numpy as np
import pytest

import int8calib
from int8calib.jit import Kernel, kernel, readonly

PACKAGE = Path(int8calib.__file__).parent


def double(x):
    return 2 * x


def test_kernel_compiles_once_for_all_threads(monkeypatch):
    compiled = []
    begin = threading.Barrier(4)
    tested = kernel(numba.int64(numba.int64))(double)
    real = Kernel._compile

    def slowly(self, cache):
        compiled.append(cache)
        return real(self, cache)

    def call(i):
        begin.wait()
        return tested(i)

    monkeypatch.setattr(Kernel, "_compile", slowly)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(call, range(4))) == [0, 2, 4, 6]
    assert compiled == [True]


def test_full_disk_costs_only_the_cache(monkeypatch):
    def no_space(self, key, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("numba.core.caching.IndexDataCacheFile.save", no_space)
    monkeypatch.setattr("numba.core.caching.IndexDataCacheFile.load", lambda self, key: None)
    tested = kernel(numba.int64(numba.int64))(double)
    assert tested(21) == 42


def test_an_error_of_the_function_itself_is_not_hidden():
    tested = kernel(numba.int64(numba.int64))(lambda x: x.nonsense)
    with pytest.raises(numba.core.errors.TypingError, match="nonsense"):
        tested(1)


def test_readonly_arrays_need_no_second_compilation():
    from int8calib.stats.kernels import extreme_keys

    x = np.array([3, 5], np.int32)
    before = extreme_keys(x)
    x.setflags(write=False)
    assert extreme_keys(x) == before == (3, 5)
    assert len(extreme_keys._compiled.signatures) == 1
    assert not readonly(numba.int32).mutable


SCRIPT = """
import sys
import numpy as np
from int8calib.stats.activation import HistogramBuilder, measure_range
from int8calib.thresholds import find_threshold
assert "numba" not in sys.modules
x = np.linspace(-3, 5, 997, dtype=np.float32)[None]
builder = HistogramBuilder(measure_range(x).absmax)
builder.add(x)
print(builder.result().observed, find_threshold(builder.result(), "kl").bin is not None)
"""


@pytest.mark.parametrize("writable", [True, False])
def test_runs_where_no_cache_can_be_written(tmp_path, writable):
    shutil.copytree(
        PACKAGE, tmp_path / "int8calib", ignore=shutil.ignore_patterns("__pycache__", "demo")
    )
    if not writable:
        # A file in the folder's place keeps even the superuser from writing there.
        for folder in ("stats", "thresholds"):
            (tmp_path / "int8calib" / folder / "__pycache__").write_text("no folder")
    nowhere = str(tmp_path / "int8calib/errors.py/cache")
    env = {k: v for k, v in os.environ.items() if not k.startswith(("NUMBA_", "XDG_"))}
    env |= {"HOME": nowhere, "XDG_CACHE_HOME": nowhere, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("997 True\n", "")
    assert bool(list(tmp_path.rglob("*.nbc"))) == writable


def test_import_of_the_stage_loads_no_numba():
    code = (
        "import sys, int8calib.thresholds\n"
        "print(sorted({'numpy', 'numba'} & sys.modules.keys()))\n"
        "import int8calib.stats.activation\n"
        "print('numba' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\nFalse\n"
