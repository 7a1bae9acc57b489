"""The command `tune`: what it writes, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from int8calib.caffe.engine.run import load_caffe
from int8calib.caffe.requirements import requirements_from_graph
from int8calib.cli.main import main
from int8calib.errors import OptionError
from int8calib.ncnn.model import load_model
from int8calib.simulation.build import simulate
from int8calib.table import check_table, read_table
from tests.cli.signals import handlers_of_a_shell, send_at
from tests.generated import make_model
from tests.ncnn.runtime import run_blobs
from tests.opencv import deviation, opencv_tops
from tests.tuning_nets import CHAIN, SHAPE

IMAGES = np.random.default_rng(41).normal(0, 60, (25, *SHAPE)).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("job")
    make_model(folder, CHAIN)
    np.save(folder / "images.npy", IMAGES[:24])
    return folder


def words(folder: Path, output: Path, *more: str) -> list[str]:
    return [
        *("tune", "--proto", str(folder / "net.prototxt")),
        *("--model", str(folder / "net.caffemodel"), "--images", str(folder / "images.npy")),
        *("--output", str(output), *more),
    ]


def test_everything_is_written_and_fits(folder, tmp_path, capsys) -> None:
    output = tmp_path / "t.table"
    model, proto = tmp_path / "t.caffemodel", tmp_path / "t.prototxt"
    assert main(words(folder, output, "--write-model", str(model), str(proto))) == 0
    shown = capsys.readouterr()
    assert "tuned" in shown.out
    assert "Validation over 6 images" in shown.out
    table = read_table(output)
    tuned = load_caffe(proto, model)
    found = check_table(table, requirements=requirements_from_graph(tuned.graph, fold_bn=False))
    assert [each.message for each in found if each.severity == "error"] == []
    batch = {"data": IMAGES[24:]}
    out = tuned.graph.outputs[0].name
    assert deviation(opencv_tops(proto, model, batch)[out], tuned.forward(batch)[out]) < 1e-3
    given = load_caffe(folder / "net.prototxt", folder / "net.caffemodel").forward(batch)[out]
    in_int8 = simulate(tuned, table).forward(batch)[out]
    assert abs(in_int8 - given).max() < 0.1 * abs(given).max()
    report = json.loads(Path(f"{output}.json").read_text())
    assert report["meta"]["tuning"]["model changed"] is True
    text = Path(f"{output}.txt").read_text()
    assert all(f"\n{layer.name}: " in text for layer in table.layers)


def test_ncnn_models_have_the_corrected_weights(folder, tmp_path) -> None:
    pytest.importorskip("ncnn")
    made = {}
    for command in ("calibrate", "tune"):
        given = words(folder, tmp_path / command, "--ncnn", str(tmp_path / command))[1:]
        more = ["--more-work", "0"] if command == "tune" else []
        assert main([command, *given, "--no-offsets", "--quiet", *more]) == 0
        for name in (command, f"{command}-int8"):
            files = (tmp_path / f"{name}.param", tmp_path / f"{name}.bin")
            made[name] = load_model(*files).layers
    # The written float weights lie on these levels: ncnn2int8 would find the same ones.
    files = ["--param", str(tmp_path / "tune.param"), "--bin", str(tmp_path / "tune.bin")]
    again = [str(tmp_path / "again.param"), str(tmp_path / "again.bin")]
    files += ["--table", str(tmp_path / "tune"), "--output", *again, "--quiet"]
    assert main(["quantize", *files]) == 0
    assert (tmp_path / "again.bin").read_bytes() == (tmp_path / "tune-int8.bin").read_bytes()
    names = [[layer.name for layer in made[f"{command}-int8"]] for command in ("calibrate", "tune")]
    assert names[0] == names[1]
    expected, plain, tuned = (
        run_blobs(made[name], {"data": IMAGES[24]}, ["fc"], packing=False, folder=tmp_path)[0]
        for name in ("calibrate", "calibrate-int8", "tune-int8")
    )
    assert np.abs(tuned - expected).max() < 0.1 * np.abs(expected).max()
    assert not np.array_equal(tuned, plain)


def test_the_config_repeats_the_run(folder, tmp_path) -> None:
    first, second = tmp_path / "a.table", tmp_path / "b.table"
    assert main([*words(folder, first, "--exclude", "c1"), "--quiet"]) == 0
    config = f"{first}.toml"
    assert main(["tune", "--config", config, "--output", str(second), "--quiet"]) == 0
    assert first.read_bytes() == second.read_bytes()
    assert "c1" not in read_table(first)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--skip", "rounding"], "--write-model"),
        (["--max-drop", "1"], "labels"),
        (["--write-model", "{tmp}/x/a.caffemodel", "{tmp}/a.prototxt"], "no folder"),
        (["--min-agreement", "95"], "0 to 1"),
        (["--exclude", "nosuch*"], "nosuch"),
        (["--tune-images", "1"], "at least 2"),
        (
            ["--write-model", "{tmp}/a.caffemodel", "{tmp}/a.prototxt", "--more-work", "200"],
            "0 to 100",
        ),
        (["--more-work", "5"], "--write-model"),
        (
            ["--write-model", "{tmp}/a.caffemodel", "{tmp}/a.prototxt", "--skip", "equal"],
            "--skip equal: expected one of equalize, copies",
        ),
    ],
)
def test_what_is_refused(folder, tmp_path, capsys, more, message) -> None:
    more = [word.format(tmp=tmp_path) for word in more]
    assert main(words(folder, tmp_path / "t.table", *more)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("int8calib: error:")
    assert message in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("spelling", ["equalize", "equalise"])
def test_techniques_that_are_skipped(folder, tmp_path, monkeypatch, spelling) -> None:
    asked = []

    def stand_in(net, batches, options, tuning, **more):
        asked.append(tuning.techniques)
        raise OptionError("that is all")

    monkeypatch.setattr("int8calib.tuning.search.tune", stand_in)
    models = ("--write-model", str(tmp_path / "a.caffemodel"), str(tmp_path / "a.prototxt"))
    assert main(words(folder, tmp_path / "t.table", *models, "--skip", spelling, "copies")) == 2
    assert asked == [("rounding", "refit", "bias")]


def test_ctrl_c_writes_the_best_so_far(folder, tmp_path, monkeypatch, capsys) -> None:
    output = tmp_path / "t.table"
    send_at(monkeypatch, "validation", signal.SIGINT)
    with handlers_of_a_shell():
        assert main(words(folder, output)) == 0
    assert "stopped (interrupted)" in capsys.readouterr().err
    assert len(read_table(output).layers) == 7


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM of this kind")
def test_sigterm_ends_it_at_once(folder, tmp_path, monkeypatch, capsys) -> None:
    send_at(monkeypatch, "validation", signal.SIGTERM)
    with handlers_of_a_shell():
        assert main(words(folder, tmp_path / "t.table")) == 143
    assert "stopped by SIGTERM" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
