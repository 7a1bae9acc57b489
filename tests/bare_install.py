"""What needs nothing but numpy, run where nothing else is installed.

usage: python bare_install.py FOLDER (it writes files there), in a copy away from the other tests
"""

from __future__ import annotations

import importlib.util
import io
import json
import struct
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

import numpy as np

import int8calib
from int8calib.cli.main import main as run

ABSENT = ("numba", "llvmlite", "cv2", "google", "rich", "threadpoolctl", "matplotlib", "onnx")
TABLE = "conv_param_0 63.5 31.75\nfc_param_0 12.75\nconv 42.333333\nfc 0.5\n"


def command(*words: str) -> tuple[int, str, str]:
    """The exit code, stdout and stderr of a command line."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = run(words)
        except SystemExit as stop:
            code = int(stop.code or 0)
    return code, out.getvalue(), err.getvalue()


def check_tables(folder: Path) -> None:
    """Every format is written and read, in Python and by the commands."""
    ncnn, other = str(folder / "net.table"), str(folder / "other.table")
    Path(ncnn).write_text(TABLE)
    table = int8calib.read_table(ncnn)
    assert [row.weight_scales.tolist() for row in table.layers] == [[63.5, 31.75], [12.75]]
    int8calib.write_table(other, table)
    lines = [line.split() for line in Path(other).read_text().splitlines()]
    numbers = {name: [float(value) for value in values] for name, *values in lines}
    assert np.allclose(numbers["conv_param_0"], [63.5, 31.75], rtol=1e-6)
    assert np.allclose(numbers["conv"], 42.333333, rtol=1e-6)

    code, shown, _ = command("table", "show", ncnn)
    assert code == 0
    assert "42.3333" in shown
    assert command("table", "diff", ncnn, other)[0] == 0
    assert command("table", "check", ncnn)[0] == 0
    as_json = folder / "net.json"
    assert command("table", "convert", ncnn, str(as_json), "--format", "json")[0] == 0
    content = json.loads(as_json.read_text())
    assert [row["name"] for row in content["layers"]] == ["conv", "fc"]
    # TensorRT's cache is keyed by blob and holds a float32 in hexadecimal, big-endian.
    int8calib.write_table(
        folder / "net.cache", replace(table, blob_scales={"relu": 0.5}), "tensorrt"
    )
    assert int8calib.read_table(folder / "net.cache").blob_scales == {"relu": 0.5}
    (line,) = (x for x in (folder / "net.cache").read_text().splitlines() if x.startswith("relu"))
    (scale,) = struct.unpack("!f", bytes.fromhex(line.split(": ")[1]))
    assert abs(scale - 1 / 0.5) < 1e-6


def check_observer() -> None:
    """An observer is made; the first batch says which package counts."""
    weights = np.ones((4, 3, 1, 1))
    conv = int8calib.QuantLayer("conv", "Convolution", "data", weights, reads_input=True)
    observer = int8calib.Observer([conv], method="minmax")
    assert observer.blobs == ("data",)
    told = ""
    try:
        observer.observe({"data": np.ones((1, 3, 2, 2))})
    except int8calib.OptionError as error:
        told = str(error)
    assert "pip install numba" in told


def check_messages(folder: Path) -> None:
    """Helps are printed; a command that needs more names the package."""
    for words in (["--help"], ["--version"], ["table", "--help"], ["calibrate", "--help"]):
        code, shown, _ = command(*words)
        assert code == 0
        assert shown
    (folder / "net.prototxt").write_text('name: "net"')
    model = ["--proto", str(folder / "net.prototxt"), "--model", str(folder / "net.prototxt")]
    code, _, told = command("inspect", *model)
    assert code == 2
    assert "pip install protobuf" in told
    assert told.count("\n") == 1


def main(folder: Path) -> int:
    """Run all checks; returns the exit code."""
    present = [name for name in ABSENT if importlib.util.find_spec(name) is not None]
    assert not present, f"this environment has {present}"
    check_tables(folder)
    check_observer()
    check_messages(folder)
    print(f"int8calib from {Path(int8calib.__file__).parent}: all that needs only numpy works")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
