"""The command `tune`: what it writes, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from int8calib.caffe.engine.run import load_caffe
from int8calib.caffe.requirements import requirements_from_graph
from int8calib.cli.main import main
from int8calib.demo import CAFFEMODEL, MEAN, NORM, PROTOTXT, draw
from int8calib.simulation.build import simulate
from int8calib.table import check_table, read_table
from tests.opencv import deviation, opencv_tops
from tests.tuning_nets import demo_loader, demo_net


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    draw.write_images(folder, 20, 3)
    return folder


def words(pictures: Path, output: Path, *more: str) -> list[str]:
    return [
        *("tune", "--proto", str(PROTOTXT), "--model", str(CAFFEMODEL), "--images", str(pictures)),
        *("--mean", *map(str, MEAN), "--norm", str(NORM), "--output", str(output), *more),
    ]


def test_everything_is_written_and_fits(pictures, tmp_path, capsys) -> None:
    output = tmp_path / "t.table"
    model, proto = tmp_path / "t.caffemodel", tmp_path / "t.prototxt"
    assert main(words(pictures, output, "--write-model", str(model), str(proto))) == 0
    shown = capsys.readouterr()
    assert "tuned" in shown.out
    assert "Validation over 5 images" in shown.out
    table = read_table(output)
    tuned = load_caffe(proto, model)
    found = check_table(table, requirements=requirements_from_graph(tuned.graph, fold_bn=False))
    assert [each.message for each in found if each.severity == "error"] == []
    batch = demo_loader(1, seed=90)[0].batch
    out = tuned.graph.outputs[0].name
    assert deviation(opencv_tops(proto, model, batch)[out], tuned.forward(batch)[out]) < 1e-3
    assert (
        abs(simulate(tuned, table).forward(batch)[out] - demo_net().forward(batch)[out]).max() < 0.2
    )
    report = json.loads(Path(f"{output}.json").read_text())
    assert report["meta"]["tuning"]["model changed"] is True
    text = Path(f"{output}.txt").read_text()
    assert all(f"\n{layer.name}: " in text for layer in table.layers)


def test_the_config_repeats_the_run(pictures, tmp_path) -> None:
    first, second = tmp_path / "a.table", tmp_path / "b.table"
    assert main([*words(pictures, first, "--exclude", "conv1"), "--quiet"]) == 0
    config = f"{first}.toml"
    assert main(["tune", "--config", config, "--output", str(second), "--quiet"]) == 0
    assert first.read_bytes() == second.read_bytes()
    assert "conv1" not in read_table(first)


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
    ],
)
def test_what_is_refused(pictures, tmp_path, capsys, more, message) -> None:
    more = [word.format(tmp=tmp_path) for word in more]
    assert main(words(pictures, tmp_path / "t.table", *more)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("int8calib: error:")
    assert message in error
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_writes_the_best_so_far(pictures, tmp_path) -> None:
    output = tmp_path / "t.table"
    command = [sys.executable, "-m", "int8calib.cli.main", *words(pictures, output)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
                          env={**os.environ, "PYTHONUNBUFFERED": "1"}) as process:  # fmt: skip
        lines = []
        for line in process.stderr:
            lines.append(line)
            if line.startswith("validation"):
                time.sleep(0.05)
                process.send_signal(signal.SIGINT)
                lines += process.stderr.readlines()
                break
        process.wait(60)
    text = "".join(lines)
    assert process.returncode == 0, text
    assert "stopped (interrupted)" in text
    assert len(read_table(output).layers) == 18
