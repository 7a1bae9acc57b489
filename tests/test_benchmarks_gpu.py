"""The benchmark of a GPU on a stand-in for one: sums, the table, and what is said without one."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from benchmarks import gpu  # noqa: E402
from int8calib import device as devices  # noqa: E402
from int8calib.errors import OptionError  # noqa: E402
from tests.strict_arrays import strict_device  # noqa: E402

DEVICE = replace(strict_device(), hardware="A stand-in", free_memory=lambda: 1 << 30)


def test_a_run_from_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("INT8CALIB_SHARED", str(tmp_path / "nowhere"))
    monkeypatch.setattr(devices, "open_device", lambda name: DEVICE)
    page, results = tmp_path / "measured.md", tmp_path / "gpu.json"
    page.write_text(f"before\n{gpu.BEGIN}\nold\n{gpu.END}\nafter\n")
    monkeypatch.setattr(gpu, "PAGE", page)
    monkeypatch.setattr(gpu, "RESULTS", results)
    words = ["demo", "--images", "7", "--rounds", "1"]
    assert gpu.main(["demo", "--images", "2", "--rounds", "1", "--dry-run"]) == 0
    assert not results.exists()
    assert gpu.main([*words, "--batch", "3"]) == 0
    found = json.loads(results.read_text())
    row = found["networks"]["demo"]
    assert (row["images"], row["batch"]) == (7, 3)
    assert found["machine"]["gpu"] == "A stand-in"
    assert row["cpu_images_per_second"] > 0
    assert row["gpu_images_per_second"] > 0
    assert row["milliseconds"].keys() == {"upload", "forward", "counting"}
    # numpy computes both, on one side by other loops.
    assert row["bins_apart"]["worst"] <= 1
    assert row["bins_apart"]["within_1"] == 1
    text = page.read_text()
    assert text.startswith(f"before\n{gpu.BEGIN}\n7 images, ")
    assert text.endswith(f"{gpu.END}\nafter\n")
    assert "old" not in text
    (line,) = [line for line in text.splitlines() if line.startswith("| demo ")]
    assert len(line.split(" | ")) == len(gpu.HEAD)
    assert gpu.table(found) in text
    assert "A stand-in" in text


def test_without_a_gpu_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(name: str) -> devices.Device:
        raise OptionError(f"device {name}: no such thing")

    monkeypatch.setattr(devices, "open_device", refuse)
    assert gpu.main(["--gpu", "3"]) == 2
    said = capsys.readouterr()
    assert said.err == "device cuda:3: no such thing\n"
    assert said.out == ""


def test_the_page_has_its_place() -> None:
    text = gpu.PAGE.read_text(encoding="utf-8")
    assert text.index(gpu.BEGIN) < text.index(gpu.END)
    if gpu.RESULTS.exists():
        assert gpu.table(json.loads(gpu.RESULTS.read_text(encoding="utf-8"))) in text
