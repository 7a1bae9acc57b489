"""What works where few packages are installed: tables with numpy alone, counting with numba."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = Path(numba.__file__).parents[1]


def run(folder: Path, program: Path, packages: list[str]) -> str:
    """What a program prints that has no packages but those, from a folder of links to them."""
    for name in packages:
        for found in PACKAGES.glob(name):
            (folder / found.name).symlink_to(found)
    done = subprocess.run(
        [sys.executable, "-S", str(program), str(folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_tables_need_numpy_alone(tmp_path: Path) -> None:
    program = shutil.copy(ROOT / "tests" / "bare_install.py", tmp_path)  # away from other tests
    printed = run(tmp_path, Path(program), ["numpy", "numpy.libs"])
    assert "all that needs only numpy works" in printed


COUNTING = """
import sys
import numpy as np
import int8calib

rng = np.random.default_rng(7)
images = rng.normal(size=(53, 5, 7, 3))
layer = int8calib.QuantLayer("conv", "Convolution", "x", rng.normal(size=(11, 5, 3, 3)))

class Mine:
    inputs, layers = ["x"], [layer]

    def run(self, inputs, blobs):
        return {blob: inputs["x"] for blob in blobs}

minmax = int8calib.Options(method="minmax")
observer = int8calib.Observer([layer], minmax)
observer.observe({"x": images})
tables = [
    observer.calibrate().table,
    int8calib.calibrate(Mine(), lambda: [{"x": images}], minmax).table,
]
print(*(127 / table.layers[0].bottom_scale for table in tables))
observer.save(sys.argv[1] + "/observed.npz")
for method in ("mse", "kl", "aciq"):
    other = int8calib.Observer([layer], method=method)
    other.observe({"x": images})
    other.calibrate()
"""


def test_observers_and_executors_need_numpy_and_numba(tmp_path: Path) -> None:
    program = tmp_path / "counting.py"
    program.write_text(COUNTING)
    packages = ["numpy", "numpy.libs", "numpy-*.dist-info"]
    for name in ("numba", "llvmlite"):
        packages += [name, f"{name}.libs", f"{name}-*.dist-info"]
    printed = [float(word) for word in run(tmp_path, program, packages).split()]
    rng = np.random.default_rng(7)
    largest = np.abs(rng.normal(size=(53, 5, 7, 3))).max()
    np.testing.assert_allclose(printed, [largest, largest], rtol=1e-6)
