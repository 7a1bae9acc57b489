"""Commands with `--param --bin`: bad input ends in one line and exit code 2."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from int8calib.cli.main import main
from tests.ncnn.execution.models import real_files, write_two

pytest.importorskip("ncnn")


@pytest.fixture
def two(tmp_path: Path) -> list[str]:
    """The options of a small model with the inputs a and b, and of arrays for both."""
    return write_two(tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--param", "two.param"], "--param is given without --bin"),
        (["--bin", "two.bin"], "--bin is given without --param"),
        ([], "no model is given; give --proto and --model of Caffe, or --param and --bin"),
        (["--param", "two.param", "--proto", "p"], "give the files of one model"),
        (["--param", "no.param", "--bin", "two.bin"], "no.param: cannot be read"),
        (["--param", "two.bin", "--bin", "two.bin"], "two.bin: no text"),
        (["--param", "two.param", "--bin", "two.param"], "ends within"),
        (
            ["--param", "two.param", "--bin", "two.bin", "--input-shape", "c=1,3,2,2"],
            "'c' is no input; the inputs are a, b",
        ),
        (["--param", "two.param", "--bin", "two.bin", "--ignore-field", "x"], "--ignore-field"),
        (["--param", "two.param", "--bin", "two.bin", "--equalize"], "--equalize is for"),
        (["--param", "two.param", "--bin", "two.bin", "--images", "a=a.npy"], "input 'b'"),
        (
            [
                "--param",
                "two.param",
                "--bin",
                "two.bin",
                "--images",
                "b=b.npy",
                "--images",
                "a=small.npy",
            ],
            "small.npy[0]: has the shape (2, 11, 13), input a takes (3, -1, -1)",
        ),
    ],
)
def test_bad_input_is_told_in_one_line(
    two: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("small.npy", np.ones((12, 2, 11, 13), np.float32))
    if "--images" not in words:
        words = [*words, *two[4:]]
    assert main(["calibrate", *words, "--output", "t", "--quiet"]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert message in error
    assert not Path("t").exists()


def test_the_extra_is_named_where_the_package_is_missing(
    two: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ncnn", None)
    assert main(["calibrate", *two, "--output", "t", "--engine", "runtime"]) == 2
    assert "pip install 'int8calib[ncnn]'" in capsys.readouterr().err


def test_sizes_that_the_file_leaves_out_are_asked_for(
    shared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    param, weights = real_files(shared, "pnnx_small")
    words = ["--param", str(param), "--bin", str(weights), "--output", "t", "--images"]
    assert main(["calibrate", *words, str(shared / "golden" / "png227")]) == 2
    assert "give --input-shape in0=1,3,H,W with its sizes" in capsys.readouterr().err


def test_a_network_is_shown_without_the_package_too(
    two: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ncnn", None)
    assert main(["inspect", *two[:4]]) == 0
    shown = capsys.readouterr()
    assert "shapes are not known: the package ncnn is not installed" in shown.err
    assert "INT8: 4 of them" in shown.out


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("ReLU ", "Nosuch ", "layer 'relu' is of type Nosuch, which ncnn"),
        ("0=5 1=3 4=1", "0=5 1=3 3=0 4=1", "ncnn refuses the parameters of layer 'first'"),
        ("0=7 1=1 5=0", "0=7 1=1 5=0 9=77", "ncnn refuses the parameters of layer 'left'"),
    ],
)
def test_what_ncnn_prints_becomes_a_line_that_names_the_layer(
    two: list[str], tmp_path: Path, old: str, new: str, message: str
) -> None:
    param = tmp_path / "two.param"
    text = param.read_text()
    assert old in text
    param.write_text(text.replace(old, new))
    words = ["-m", "int8calib", "calibrate", *two, "--output", "t", "--engine", "runtime"]
    done = subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        check=False,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert message in line


def test_a_pooling_of_too_small_a_bottom_is_named(
    two: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    param = tmp_path / "two.param"
    text = param.read_text().replace("ReLU ", "Pooling ").replace(" x y\n", " x y 0=0 1=77\n")
    param.write_text(text)
    assert main(["calibrate", *two, "--output", "t", "--engine", "runtime"]) == 2
    error = capsys.readouterr().err
    assert "layer 'relu' (Pooling) cannot be computed from a bottom of 5x11x13; is the" in error


@pytest.mark.parametrize(("more", "unknown"), [("27=8", "27="), ("7=5", "7="), ("7=1", "")])
def test_a_parameter_that_a_type_does_not_have_is_told(
    two: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: str,
    unknown: str,
) -> None:
    """Not the one group that pnnx writes of a Convolution."""
    param = tmp_path / "two.param"
    param.write_text(param.read_text().replace("0=5 1=3 4=1", f"0=5 1=3 4=1 {more}"))
    assert main(["calibrate", *two, "--output", str(tmp_path / "t"), "--engine", "numpy"]) == 0
    told = capsys.readouterr().err
    warning = f"two.param:5: layer 'first' (Convolution): {unknown} is no parameter of this type"
    assert (warning in told) == bool(unknown)
    assert ("no parameter" in told) == bool(unknown)


def test_weights_of_an_unknown_type_are_named_where_those_behind_do_not_fit(
    two: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    param = tmp_path / "two.param"
    param.write_text(param.read_text().replace("Convolution ", "MyConv ", 1))
    assert main(["inspect", *two[:4]]) == 2
    told = capsys.readouterr().err
    assert "(layer 'first' is of type MyConv, whose weights are not known)" in told
