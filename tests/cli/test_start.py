"""A command from its first moment on: signals while it loads, and what libraries print."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.caffe.engine.test_engine import NET
from tests.generated import make_model

ROOT = Path(__file__).resolve().parents[2]
# Handles signals as a shell starts programs, though a runner of tests may ignore some; sends one to
# its own process when a module is about to be imported.
SIGNALED = """
import importlib.abc, os, signal, sys
module, ending = sys.argv[1], int(sys.argv[2])
for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
    signal.signal(number, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
class Sender(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == module:
            os.kill(os.getpid(), ending)
sys.meta_path.insert(0, Sender())
from int8calib.cli.start import {program}
sys.argv = ["program", *sys.argv[3:]]
sys.exit({program}())
"""


def run(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
        check=False,
    )


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGHUP")
@pytest.mark.parametrize(
    ("name", "code", "module", "program"),
    [
        ("SIGINT", 130, "int8calib.cli.main", "main"),
        ("SIGTERM", 143, "int8calib.cli.options", "main"),
        ("SIGHUP", 129, "int8calib.cli.inspect", "main"),
        ("SIGINT", 130, "numpy", "main"),
        ("SIGTERM", 143, "int8calib.caffe.inspection", "main"),
        ("SIGINT", 130, "int8calib.cli.process", "convert_tool"),
    ],
)
def test_a_signal_while_a_command_loads_is_one_line(
    name: str, code: int, module: str, program: str, tmp_path: Path
) -> None:
    make_model(tmp_path, NET)
    number = int(signal.Signals[name])
    words = ["inspect", "--proto", "net.prototxt"]
    code_of_program = SIGNALED.format(program=program)
    done = run(["-c", code_of_program, module, str(number), *words], tmp_path)
    by = "Ctrl-C" if name == "SIGINT" else name
    assert done.stderr == f"int8calib: stopped by {by}; no file is left half-written\n"
    assert done.returncode == code


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGHUP")
def test_an_ignored_signal_is_ignored_from_the_start(tmp_path: Path) -> None:
    make_model(tmp_path, NET)
    code = SIGNALED.format(program="main")
    code = code.replace("sys.meta", "signal.signal(signal.SIGHUP, signal.SIG_IGN)\nsys.meta", 1)
    words = ["int8calib.cli.options", str(int(signal.SIGHUP)), "inspect", "--proto", "net.prototxt"]
    done = run(["-c", code, *words], tmp_path)
    assert done.returncode == 0
    assert "stopped by" not in done.stderr


def damaged_jpeg(path: Path) -> None:
    """A JPEG with wrong bytes in its middle and a proper end."""
    image = np.random.default_rng(3).integers(0, 256, (61, 67, 3), dtype=np.uint8)
    data = bytearray(cv2.imencode(".jpg", image)[1].tobytes())
    middle = len(data) // 2
    data[middle : middle + 40] = b"\xff\xd3" * 20
    path.write_bytes(data)


def test_what_libjpeg_prints_becomes_a_line_that_names_the_file(tmp_path: Path) -> None:
    make_model(tmp_path, NET)
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(3):
        damaged_jpeg(photos / f"bad{number}.jpg")
        image = np.full((53, 59, 3), 40 * number, np.uint8)
        assert cv2.imwrite(str(photos / f"good{number}.jpg"), image)
    plain = run(["-c", "import cv2; cv2.imread('photos/bad0.jpg')"], tmp_path)
    assert plain.stderr.startswith("Corrupt JPEG data")
    words = ["--proto", "net.prototxt", "--model", "net.caffemodel", "--images", "photos"]
    done = run(["-m", "int8calib", "collect", *words, "--output", "s.npz"], tmp_path)
    assert done.returncode == 0
    lines = done.stderr.splitlines()
    assert not [line for line in lines if line.startswith("Corrupt")]
    told = [line for line in lines if "Corrupt JPEG data" in line]
    assert len(told) == 3
    assert all(f"bad{i}.jpg: damaged" in line for i, line in enumerate(told))
    assert plain.stderr.strip() in told[0]
    assert any(line.endswith("3 of 6 images are damaged and were used as they are")
               for line in lines)  # fmt: skip


def test_a_harmless_note_of_libpng_is_not_told(tmp_path: Path) -> None:
    make_model(tmp_path, NET)
    data = cv2.imencode(".png", np.full((53, 59, 3), 77, np.uint8))[1].tobytes()
    profile = b"iCCPx\0\0damaged"
    chunk = (len(profile) - 4).to_bytes(4, "big") + profile
    chunk += _crc(profile)
    (tmp_path / "a.png").write_bytes(data[:33] + chunk + data[33:])
    plain = run(["-c", "import cv2; cv2.imread('a.png')"], tmp_path)
    words = ["--proto", "net.prototxt", "--model", "net.caffemodel", "--images", "a.png"]
    done = run(["-m", "int8calib", "collect", *words, "--output", "s.npz"], tmp_path)
    assert done.returncode == 0
    assert "libpng" in plain.stderr
    assert "libpng" not in done.stderr


def _crc(data: bytes) -> bytes:
    import zlib

    return zlib.crc32(data).to_bytes(4, "big")
