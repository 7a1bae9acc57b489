"""What many tests share: the optional folder of real models, and a cache of compiled kernels."""

from __future__ import annotations

import os
import stat
from importlib.util import find_spec
from pathlib import Path

# Before numpy and ncnn load: their idle threads, which wait in loops, would take the time of the
# tests beside. Commands set the second for their users too. It reaches pytest's workers and the
# processes that tests start.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
from hypothesis import settings

from int8calib.device import Device, open_device
from int8calib.errors import OptionError
from tests.strict_arrays import strict_device

# A busy machine is no reason to fail, and a failure should come again.
settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")

# Commands in processes of their own start as they do for users, who have compiled modules: where
# these may not be written, each start compiles all of them again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

_write_out = os.fsync


def _fsync(file: int) -> None:
    """Write out what is no file; no test asks what outlives a power cut, and disks are slow."""
    if not stat.S_ISREG(os.fstat(file).st_mode):
        _write_out(file)


os.fsync = _fsync

SHARED = Path(os.environ.get("INT8CALIB_SHARED") or Path(__file__).resolve().parents[2] / "shared")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put long tests first, and leave out those of a GPU where there is none.

    A long test at the end would keep one process busy while the others have nothing left. Without
    CuPy one test alone says that those of a GPU cannot run, unless they are asked for.
    """
    items.sort(key=lambda item: item.get_closest_marker("long") is None)
    if config.option.markexpr or find_spec("cupy") is not None:
        return
    on_gpu = [item for item in items if item.get_closest_marker("gpu")][1:]
    config.hook.pytest_deselected(items=on_gpu)
    left_out = set(on_gpu)
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real models, images and golden values; skips where it is missing."""
    if not (SHARED / "golden").is_dir():
        pytest.skip(f"no folder of real models at {SHARED} (set INT8CALIB_SHARED)")
    return SHARED


@pytest.fixture
def few_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """`tune` compares thresholds by a quarter of the columns: faster, and a little less good."""
    monkeypatch.setattr("int8calib.tuning.layer_solver.WORK", 5e7)
    monkeypatch.setattr("int8calib.tuning.layer_solver.THRESHOLD_COLUMNS", (768, 4096))


@pytest.fixture(params=["strict", pytest.param("cuda:0", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Device:
    """A device that is not there and allows what CuPy has; with a GPU, that too."""
    if request.param == "strict":
        return strict_device()
    try:
        return open_device(request.param)
    except OptionError as error:
        pytest.skip(str(error))
