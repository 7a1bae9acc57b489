"""A cache of its own for a test of the compiler, and a record of what is compiled."""

from __future__ import annotations

from pathlib import Path

import pytest

from int8calib.compiled import machine


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "kernels"
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(folder))
    return folder


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the functions that were compiled, one entry each time."""
    names: list[str] = []
    real = machine.compile_function

    def record(function, signature, *, reorder):
        names.append(function.__name__)
        return real(function, signature, reorder=reorder)

    monkeypatch.setattr(machine, "compile_function", record)
    return names
