"""Every option that takes a file, of every command, with names that no file has."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from int8calib.cli.main import build_parser, main
from tests.caffe.engine.test_engine import NET
from tests.generated import make_model

FILES = {"FILE", "DIR", "WHERE", "PREFIX"}
NO_NAMES = {
    "too long": "x" * 256,
    "a folder that is missing": "y/" * 700,
    "a device": "/dev/null/x",
    "control characters": "\x1b[31m/\n",
}


FOLDERS = {("demo", "--output"), ("report", "--png"), ("predict", "--output")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files that every command can be run with."""
    folder = tmp_path_factory.mktemp("job")
    make_model(folder, NET)
    images = np.random.default_rng(41).normal(0, 60, (2, 3, 37, 29)).astype(np.float32)
    np.save(folder / "images.npy", images)
    job = words("collect", folder)
    assert main([*job[:-1], str(folder / "s.npz"), "--quiet"]) == 0
    job = words("calibrate", folder)
    assert main([*job[:-1], str(folder / "t.table"), "--ncnn", str(folder / "m"), "--quiet"]) == 0
    return folder


def words(command: str, folder: Path) -> list[str]:
    """A command line that works, with its output last."""
    network = [f"--proto={folder}/net.prototxt", f"--model={folder}/net.caffemodel"]
    images = [f"--images={folder}/images.npy"]
    table = [f"--table={folder}/t.table"]
    ncnn = [f"--param={folder}/m.param", f"--bin={folder}/m.bin"]
    output = ["--output", str(folder / "out")]
    two = ["--output", str(folder / "out.param"), str(folder / "out.bin")]
    more = {
        "convert": [*network, *two],
        "quantize": [*ncnn, *table, *two],
        "predict": [*ncnn, *images, *output],
        "merge": [str(folder / "s.npz"), *output],
        "thresholds": [str(folder / "s.npz"), *output],
        "inspect": network,
        "table show": [str(folder / "t.table")],
        "table check": [str(folder / "t.table")],
        "table diff": [str(folder / "t.table"), str(folder / "t.table")],
        "table convert": [str(folder / "t.table"), str(folder / "out")],
        "evaluate": [*network, *images, *table],
        "analyze": [*network, *images, *table],
        "report": [*network, *images, *table, *output],
        "demo": [],
    }
    return [*command.split(), *more.get(command, [*network, *images, *output])]


def commands(
    parser: argparse.ArgumentParser, name: str = ""
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    actions = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if not actions:
        yield name, parser
    for action in actions:
        for word, command in action.choices.items():
            yield from commands(command, f"{name} {word}".strip())


OPTIONS = [
    (command, action.option_strings[-1])
    for command, parser in commands(build_parser())
    for action in parser._actions
    if action.option_strings and action.metavar in FILES and action.nargs is None
]


@pytest.mark.parametrize(("command", "option"), OPTIONS)
def test_a_name_that_no_file_has_is_one_line(
    command: str,
    option: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(path.name for path in folder.iterdir())
    for kind, name in NO_NAMES.items():
        if kind == "control characters" and (command, option) in FOLDERS:
            continue  # a folder may have such a name, and is made
        job = [word for word in words(command, folder) if not word.startswith(f"{option}=")]
        if option == "--output" and option in job:
            del job[job.index(option) :]
        if command == "table check" and option in ("--proto", "--model"):
            other = {"--proto": "model=net.caffemodel", "--model": "proto=net.prototxt"}[option]
            job.append(f"--{other.replace('=', f'={folder}/')}")
        try:
            code = main([*job, f"{option}={name}"])
        except SystemExit as stop:
            code = stop.code
        lines = capsys.readouterr().err.splitlines()
        assert code == 2, (kind, lines)
        errors = [line for line in lines if "error: " in line]
        assert len(errors) == 1, (kind, lines)
        assert "internal error" not in errors[0]
        assert len(errors[0]) <= 600
        assert errors[0].isprintable()
    assert sorted(path.name for path in folder.iterdir()) == before
    assert not list(tmp_path.iterdir())
