"""Kept machine code: used for what it was made for only, and for the user's own files only."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import FunctionType, SimpleNamespace

import numpy as np
import pytest

import int8calib
from int8calib.compiled import cache, kernel, machine
from int8calib.compiled.cache import SUFFIX, compile_key, load_code, save_code
from int8calib.compiled.machine import ObjectCode

PACKAGE = Path(int8calib.__file__).parent
FACTOR = 3
BUILT = ObjectCode("f", ("a", "b"), b"\n\x00code\n")
posix = pytest.mark.skipif(os.name != "posix", reason="there are no owners of files here")


def scaled(x):
    return FACTOR * x


def double(x):
    return 2 * x


def anew(function: FunctionType, **changed: object) -> FunctionType:
    """The function in a module of its own, some of whose globals are changed."""
    return FunctionType(function.__code__, {**function.__globals__, **changed}, function.__name__)


def test_what_is_in_the_cache_is_not_compiled_again(own_cache, compiled):
    for argument in (21, 4):
        assert kernel("int64 -> int64")(double)(argument) == 2 * argument
    assert compiled == ["double"]
    assert [path.suffix for path in own_cache.iterdir()] == [SUFFIX]
    assert kernel("float64 -> float64")(double)(0.5) == 1
    assert kernel("float64 -> float64", reorder=True)(double)(0.5) == 1
    assert compiled == ["double"] * 3


def test_a_changed_constant_compiles_anew(own_cache, compiled):
    for factor in (3, 5, 3, 5):
        assert kernel("int64 -> int64")(anew(scaled, FACTOR=factor))(10) == 10 * factor
    assert compiled == ["scaled"] * 2


def test_a_changed_closure_compiles_anew(own_cache, compiled):
    def times(factor):
        return kernel("int64 -> int64")(lambda x: factor * x)

    assert [times(factor)(10) for factor in (3, 5, 3)] == [30, 50, 30]
    assert len(compiled) == 2


@pytest.mark.parametrize(
    "values",
    [
        (0.0, -0.0, 0, False, None, "", "0", b"0", (0,), (0.0,)),
        (np.float32(1), np.float64(1), np.int32(1), np.int32(0x3F800000), 1, True),
        (np.sqrt, np.exp, math.sqrt, math.exp, np.int32, np.int64, math, np, abs),
    ],
)
def test_values_that_differ_have_keys_that_differ(values):
    keys = [compile_key(anew(scaled, FACTOR=value), "") for value in values]
    assert len({*keys}) == len(values)
    assert keys == [compile_key(anew(scaled, FACTOR=value), "") for value in values]


def test_other_code_and_other_options_have_other_keys():
    functions = [double, scaled, lambda x: 2 * x, lambda x: x * 2, lambda y: 2 * y, lambda x: 3 * x]
    functions += [lambda x, k=2: k * x, lambda x, k=3: k * x]
    assert len({compile_key(function, "") for function in functions}) == len(functions)
    assert compile_key(double, "a") != compile_key(double, "b")


@pytest.mark.parametrize("value", [[3], {3}, SimpleNamespace(x=3), double, pytest, os.path.join])
def test_values_that_cannot_be_told_apart_are_refused(value):
    with pytest.raises(TypeError, match=r"a kernel reads 'FACTOR', a .*; expected a number"):
        kernel("int64 -> int64")(anew(scaled, FACTOR=value))(1)


@pytest.fixture
def fresh_compiler(monkeypatch):
    """What is known of the compiler is asked again before and after."""
    cache._compiler.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    cache._compiler.cache_clear()


def test_two_processors_share_a_folder(own_cache, compiled, monkeypatch):
    for name in ("one", "other", "one", "other"):
        monkeypatch.setattr(cache, "processor", lambda name=name: name)
        assert kernel("int64 -> int64")(double)(21) == 42
    assert compiled == ["double"] * 2
    assert len(list(own_cache.iterdir())) == 2


def test_the_processor_is_the_one_that_is_compiled_for():
    import llvmlite.binding as llvm

    assert llvm.get_host_cpu_name() in machine.processor()
    assert llvm.get_host_cpu_features().flatten() in machine.processor()


@pytest.mark.parametrize("package", ["numba", "llvmlite", "numpy"])
def test_other_versions_compile_anew(fresh_compiler, package):
    from importlib import metadata

    before, real = compile_key(double, ""), cache._installed
    assert metadata.version(package) in real(package)
    cache._compiler.cache_clear()
    fresh_compiler.setattr(cache, "_installed", lambda n: "0" if n == package else real(n))
    assert compile_key(double, "") != before


def test_other_flags_of_the_compiler_compile_anew(fresh_compiler, tmp_path):
    """Any change of this package's source may be one of them."""
    before = compile_key(double, "")
    for path in (PACKAGE / "compiled").glob("*.py"):
        shutil.copy(path, tmp_path)
    fresh_compiler.setattr(cache, "__file__", str(tmp_path / "cache.py"))
    cache._compiler.cache_clear()
    assert compile_key(double, "") == before
    source = tmp_path / "machine.py"
    source.write_text(source.read_text().replace("opt=3", "opt=2"))
    cache._compiler.cache_clear()
    assert compile_key(double, "") != before


def test_without_its_own_source_nothing_is_kept(fresh_compiler, own_cache, compiled):
    def unreadable(path):
        raise OSError(5, "Input/output error")

    fresh_compiler.setattr(Path, "read_bytes", unreadable)
    assert compile_key(double, "") is None
    assert [kernel("int64 -> int64")(double)(x) for x in (1, 2)] == [2, 4]
    assert compiled == ["double"] * 2
    assert not own_cache.exists()


def test_settings_of_numba_compile_anew(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    keys = [compile_key(double, "")]
    monkeypatch.setenv("NUMBA_BOUNDSCHECK", "1")
    keys.append(compile_key(double, ""))
    Path(".numba_config.yaml").write_text("opt: 1")
    keys.append(compile_key(double, ""))
    assert len({*keys}) == 3
    monkeypatch.setenv("NUMBA_CACHE_DIR", "elsewhere")
    assert compile_key(double, "") == keys[-1]


def test_damaged_and_foreign_files_are_compiled_anew(own_cache, compiled):
    assert kernel("int64 -> int64")(double)(21) == 42
    [path] = own_cache.iterdir()
    good = path.read_bytes()
    bad = (b"", good[:-1], good[:-1] + b"x", b"\xff" + good[1:], b"[]\n" + good, b"1\n")
    for i, content in enumerate(bad, 2):
        path.write_bytes(content)
        assert kernel("int64 -> int64")(double)(21) == 42
        assert len(compiled) == i
        assert kernel("int64 -> int64")(double)(4) == 8
        assert len(compiled) == i


def test_what_was_saved_is_loaded_for_the_same_key_only(own_cache):
    save_code(double, "key", BUILT)
    assert load_code(double, "key") == BUILT
    assert load_code(double, "other") is None
    assert load_code(scaled, "key") is None
    # A file under a name that is not its own.
    [path] = own_cache.iterdir()
    path.rename(str(path).replace("key", "other"))
    assert load_code(double, "other") is None


def saved(own_cache: Path) -> Path:
    save_code(double, "key", BUILT)
    [path] = own_cache.iterdir()
    return path


@posix
def test_files_are_the_users_alone(own_cache):
    before = os.umask(0)
    try:
        path = saved(own_cache)
        assert path.stat().st_mode & 0o777 == 0o600
        # An older file that others can write to is no example.
        path.chmod(0o666)
        saved(own_cache)
        assert path.stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(before)


@posix
@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_files_that_others_can_write_are_not_loaded(own_cache, compiled, mode):
    path = saved(own_cache)
    path.chmod(mode)
    assert load_code(double, "key") is None
    path.chmod(0o644)
    assert load_code(double, "key") == BUILT


@posix
def test_files_of_another_user_are_not_loaded(own_cache, monkeypatch):
    saved(own_cache)
    other = os.geteuid() + 1
    with monkeypatch.context() as patched:
        patched.setattr(os, "geteuid", lambda: other)
        assert load_code(double, "key") is None
    assert load_code(double, "key") == BUILT


@posix
def test_links_lead_to_files_of_the_same_rule(own_cache, tmp_path):
    path = saved(own_cache)
    target = tmp_path / "elsewhere"
    path.rename(target)
    path.symlink_to(target)
    assert load_code(double, "key") == BUILT
    target.chmod(0o666)
    assert load_code(double, "key") is None
    path.unlink()
    os.mkfifo(path)
    assert load_code(double, "key") is None


def test_full_disk_costs_only_the_cache(monkeypatch, own_cache):
    def no_space(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("caffe_proto.files.os.fsync", no_space)
    assert kernel("int64 -> int64")(double)(21) == 42
    assert not list(own_cache.iterdir())


def folders(monkeypatch, **variables: str) -> list[Path]:
    for name in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return [path.parent for path in cache._paths(double, "key")]


def test_folders_are_those_of_the_environment(monkeypatch, tmp_path):
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    beside, home = Path(__file__).parent / "__pycache__", tmp_path / "home/.cache/int8calib"
    base = str(tmp_path / "base")
    assert folders(monkeypatch) == [beside, home]
    assert folders(monkeypatch, XDG_CACHE_HOME=base) == [beside, Path(base) / "int8calib"]
    assert folders(monkeypatch, LOCALAPPDATA=base) == [beside, Path(base) / "int8calib"]
    assert folders(monkeypatch, NUMBA_CACHE_DIR="some") == [Path("some")]


@pytest.mark.parametrize("relative", ["cache", "./cache", "../cache", ""])
def test_relative_folders_of_the_user_are_ignored(monkeypatch, tmp_path, relative):
    """So says the XDG Base Directory Specification."""
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert folders(monkeypatch, XDG_CACHE_HOME=relative)[1] == tmp_path / ".cache/int8calib"
    assert folders(monkeypatch, LOCALAPPDATA=relative)[1] == tmp_path / ".cache/int8calib"


def test_names_of_files_are_plain(own_cache):
    save_code(eval("lambda x: x"), "key", BUILT)
    [path] = own_cache.iterdir()
    assert "<" not in path.name


SCRIPT = """
import sys
import numpy as np
from int8calib.calibration.statistics.histogram import BINS, Histogram
from int8calib.calibration.statistics.ranges import measure_range
from int8calib.calibration.thresholds import find_threshold
x = np.linspace(-3, 5, 997, dtype=np.float32)[None]
counts = np.arange(1, BINS + 1)
histogram = Histogram(counts, counts, measure_range(x).absmax, zeros=0, images=1)
print(histogram.absmax, find_threshold(histogram, "kl-tensorrt").bin is not None)
print("numba" in sys.modules)
"""


@pytest.mark.parametrize("writable", [True, False])
def test_runs_where_no_cache_can_be_written(tmp_path, writable):
    ignored = shutil.ignore_patterns("__pycache__", "demo")
    shutil.copytree(PACKAGE, tmp_path / "int8calib", ignore=ignored)
    if not writable:
        # A file in the folder's place keeps even the superuser from writing there.
        for folder in ("calibration/statistics", "calibration/thresholds"):
            (tmp_path / "int8calib" / folder / "__pycache__").write_text("no folder")
    nowhere = str(tmp_path / "int8calib/errors.py/cache")
    env = {k: v for k, v in os.environ.items() if not k.startswith(("NUMBA_", "XDG_"))}
    env |= {"HOME": nowhere, "XDG_CACHE_HOME": nowhere, "PYTHONDONTWRITEBYTECODE": "1"}
    for again in (False, True) if writable else (False,):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", SCRIPT],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.stdout, done.stderr) == (f"5.0 True\n{not again}\n", "")
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
