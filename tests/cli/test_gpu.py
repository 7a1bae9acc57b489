"""`--gpu` from end to end: the same table, the GPU in the report, what is refused.

The GPU is a stand-in whose arrays refuse what CuPy's refuse, with numpy inside; where there is a
real one, the same runs on that.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import int8calib
from int8calib import device as devices
from int8calib.calibration.collected import load_collected
from int8calib.calibration.statistics.histogram import BINS
from int8calib.cli import convert_tool
from int8calib.cli.main import main
from int8calib.ncnn.convert.network import convert_network
from int8calib.ncnn.model import load_model, save_model
from tests.caffe.engine.test_engine import NET
from tests.generated import make_model
from tests.strict_arrays import STRICT, Transfers

IMAGES = np.random.default_rng(43).normal(0, 60, (13, 3, 37, 29)).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("job")
    make_model(folder, NET)
    np.save(folder / "images.npy", IMAGES)
    return folder


@pytest.fixture
def named(device: devices.Device) -> devices.Device:
    """The stand-in, or the GPU, by a name."""
    return replace(device, name="cuda:1", hardware="A stand-in", free_memory=lambda: 1 << 30)


@pytest.fixture
def gpu(named: devices.Device, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The one seam: which device a name stands for. The names asked for."""
    asked: list[str] = []

    def open_device(name: str) -> devices.Device:
        asked.append(name)
        return named

    monkeypatch.setattr(devices, "open_device", open_device)
    return asked


def words(folder: Path, output: Path, command: str = "calibrate") -> list[str]:
    return [
        *(command, "--proto", str(folder / "net.prototxt")),
        *("--model", str(folder / "net.caffemodel"), "--images", str(folder / "images.npy")),
        *("--output", str(output)),
    ]


def report_of(table: Path) -> dict:
    return json.loads(Path(f"{table}.json").read_text())


def thresholds(table: Path) -> dict[str, float]:
    """By layer, in bins of 2048."""
    layers = int8calib.read_table(f"{table}.json").layers
    return {
        row.name: row.evidence.threshold / row.evidence.absmax * BINS
        for row in layers
        if row.evidence is not None
    }


@pytest.mark.parametrize("how", [(), ("--exact",), ("--method", "kl", "--batch", "3")])
def test_the_table_is_that_of_the_cpu(
    how: tuple[str, ...],
    folder: Path,
    tmp_path: Path,
    named: devices.Device,
    gpu: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    here, there = tmp_path / "cpu.table", tmp_path / "gpu.table"
    assert main([*words(folder, here), *how, "--quiet"]) == 0
    assert gpu == []
    assert "device" not in report_of(here)["meta"]
    Transfers.reset()
    assert main([*words(folder, there), *how, "--gpu", "1"]) == 0
    assert gpu == ["cuda:1"]
    assert Transfers.uploads > 0 or named.xp is not STRICT
    a, b = thresholds(here), thresholds(there)
    assert a.keys() == b.keys()
    assert len(a) == 5
    for name in a:
        assert abs(a[name] - b[name]) <= 1, name
    meta = report_of(there)["meta"]
    assert meta["device"] == {"name": "cuda:1", "hardware": "A stand-in"}
    # What the memory holds is far more than there are.
    assert meta["batch"] == 3 if "--batch" in how else meta["batch"] > len(IMAGES)
    images = 3 if "--batch" in how else len(IMAGES)
    said = capsys.readouterr().err
    assert f"on cuda:1 (A stand-in), {images} images at a time\n" in said
    assert meta["arguments"]["gpu"] == 1
    assert "gpu = 1\n" in Path(f"{there}.toml").read_text()
    assert "gpu" not in Path(f"{here}.toml").read_text()


def test_statistics_are_collected_there(folder: Path, tmp_path: Path, gpu: list[str]) -> None:
    files = tmp_path / "cpu.npz", tmp_path / "gpu.npz"
    assert main([*words(folder, files[0], "collect"), "--quiet"]) == 0
    assert main([*words(folder, files[1], "collect"), "--quiet", "--gpu", "0"]) == 0
    assert gpu == ["cuda:0"]
    here, there = (load_collected(path).statistics for path in files)
    assert here.histograms.keys() == there.histograms.keys()
    np.testing.assert_array_equal(here.checksums, there.checksums)
    for blob, histogram in here.histograms.items():
        assert histogram.observed == there.histograms[blob].observed
        assert histogram.absmax == pytest.approx(there.histograms[blob].absmax, rel=1e-6)
    # Both may be merged.
    merged = str(tmp_path / "both.npz")
    assert main(["merge", *map(str, files), "--output", merged, "--quiet"]) in (0, 2)


def test_int8_weights_are_rounded_by_what_ran_there(
    folder: Path, tmp_path: Path, gpu: list[str]
) -> None:
    for name, more in (("cpu", ()), ("gpu", ("--gpu", "0"))):
        prefix = ("--ncnn", str(tmp_path / name))
        assert main([*words(folder, tmp_path / f"{name}.table"), *prefix, *more, "--quiet"]) == 0
    for end in ("", "-int8"):
        here, there = (
            load_model(tmp_path / f"{name}{end}.param", tmp_path / f"{name}{end}.bin")
            for name in ("cpu", "gpu")
        )
        for a, b in zip(here.layers, there.layers, strict=True):
            assert (a.type, a.name) == (b.type, b.name)
            for x, y in zip(a.weights, b.weights, strict=True):
                x, y = np.asarray(x, float), np.asarray(y, float)
                same = np.abs(x - y) <= 1e-3 * np.abs(x).max()
                assert same.mean() > 0.98, a.name


def test_an_ncnn_model_runs_there_too(folder: Path, tmp_path: Path, gpu: list[str]) -> None:
    files = tmp_path / "net.param", tmp_path / "net.bin"
    caffe = int8calib.load_caffe(folder / "net.prototxt", folder / "net.caffemodel")
    save_model(convert_network(caffe).layers, *files)
    tables = []
    for more in ((), ("--gpu", "0")):
        table = tmp_path / f"{len(more)}.table"
        given = ["calibrate", "--param", str(files[0]), "--bin", str(files[1]), "--quiet"]
        given += ["--images", str(folder / "images.npy"), "--output", str(table), *more]
        assert main([*given, "--engine", "numpy", "--ncnn", str(tmp_path / "int8")]) == 0
        tables.append(thresholds(table))
    assert gpu == ["cuda:0"]
    assert tables[0].keys() == tables[1].keys()
    assert all(abs(a - b) <= 1 for a, b in zip(*map(dict.values, tables), strict=True))


@pytest.mark.parametrize("first", [(), ("--gpu", "0")])
@pytest.mark.parametrize("command", ["calibrate", "collect"])
def test_a_run_goes_on_where_it_began(
    first: tuple[str, ...],
    command: str,
    folder: Path,
    tmp_path: Path,
    gpu: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from int8calib import Checkpoint

    monkeypatch.setattr(Checkpoint, "remove", lambda self: None)
    checkpoint = tmp_path / "run.npz"
    kept = ("--checkpoint", str(checkpoint), "--batch", "4", "--quiet")
    assert main([*words(folder, tmp_path / "a", command), *kept, *first]) == 0
    done = checkpoint.read_bytes()
    assert main([*words(folder, tmp_path / "b", command), *kept, *first]) == 0
    other = ("--gpu", "0") if not first else ()
    assert main([*words(folder, tmp_path / "c", command), *kept, *other]) == 2
    assert "is the checkpoint of another job (its device differs)" in capsys.readouterr().err
    assert checkpoint.read_bytes() == done


def test_a_checkpoint_of_the_library_too(
    folder: Path, tmp_path: Path, named: devices.Device
) -> None:
    files = folder / "net.prototxt", folder / "net.caffemodel"
    batches = [{"data": IMAGES[:2]}, {"data": IMAGES[2:5]}]
    checkpoint = int8calib.Checkpoint(tmp_path / "run.npz")
    here = int8calib.calibrate(int8calib.load_caffe(*files), lambda: batches, checkpoint=checkpoint)
    assert "device" not in here.table.meta
    net = int8calib.load_caffe(*files, device=named)
    with pytest.raises(int8calib.OptionError, match="its device differs"):
        int8calib.calibrate(
            net, lambda: batches, checkpoint=int8calib.Checkpoint(tmp_path / "run.npz")
        )
    there = int8calib.calibrate(net, lambda: batches)
    assert there.table.meta["device"] == {"name": "cuda:1", "hardware": "A stand-in"}
    for a, b in zip(here.table.layers, there.table.layers, strict=True):
        assert a.bottom_scale == pytest.approx(b.bottom_scale, rel=1e-3)
    with pytest.raises(int8calib.OptionError, match="cluster: it runs on its CPUs"):
        int8calib.calibrate(net, lambda: batches, cluster=object())


BAD: dict[str, tuple[Callable[[Path], list[str]], str]] = {
    "a number below 0": (
        lambda folder: [*words(folder, folder / "t"), "--gpu", "-1"],
        "-1: expected a whole number, 0 or more",
    ),
    "no number": (
        lambda folder: [*words(folder, folder / "t"), "--gpu", "cuda"],
        "cuda: expected a whole number, 0 or more",
    ),
    "a number beyond all": (
        lambda folder: [*words(folder, folder / "t"), "--gpu", "12345"],
        "expected cuda:0 for the first GPU",
    ),
    "a cluster": (
        lambda folder: [*words(folder, folder / "t"), "--gpu", "0", "--cluster", "local:1"],
        "--gpu: a cluster runs on its CPUs; leave --gpu or --cluster out",
    ),
    "a cluster, collecting": (
        lambda folder: [
            *words(folder, folder / "t", "collect"),
            *("--gpu", "0", "--cluster", "local:1"),
        ],
        "--gpu: a cluster runs on its CPUs; leave --gpu or --cluster out",
    ),
    "ncnn's runtime": (
        lambda folder: [
            *("calibrate", "--param", "p", "--bin", "b", "--images", "i"),
            *("--output", str(folder / "t"), "--gpu", "0", "--engine", "runtime"),
        ],
        "--gpu: --engine runtime runs on the CPU; leave one of both out",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_go_together_is_said_in_a_line(
    case: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, message = BAD[case]
    try:
        code = main(make(folder))
    except SystemExit as stop:  # of the parser
        code = int(str(stop.code))
    assert code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert message in lines[-1]
    assert not (folder / "t").exists()


@pytest.mark.skipif(importlib.util.find_spec("cupy") is not None, reason="CuPy is installed")
@pytest.mark.parametrize("command", ["calibrate", "collect"])
def test_without_cupy_one_line_says_what_to_install(
    command: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words(folder, tmp_path / "t", command), "--gpu", "0"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line == (
        'int8calib: error: device cuda:0: CuPy is not installed; pip install "int8calib[gpu]" '
        "brings it"
    )
    assert not list(tmp_path.iterdir())


def test_the_drop_in_script_goes_on_with_the_cpu(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], gpu: list[str]
) -> None:
    output = tmp_path / "tool.table"
    given = words(folder, output)[1:]
    assert convert_tool.main([*given, "--gpu", "1"]) == 0
    assert "--gpu: this command runs on the CPU" in capsys.readouterr().err
    assert gpu == []
    first = output.read_bytes()
    assert convert_tool.main(given) == 0
    assert "--gpu" not in capsys.readouterr().err
    assert output.read_bytes() == first
