"""Files that commands write: refused before the first image, written all or none."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import int8calib
from int8calib.cli.main import main
from int8calib.errors import OutputError
from int8calib.files import write_all
from tests.caffe.engine.test_engine import NET
from tests.generated import make_model

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("job")
    make_model(folder, NET)
    images = np.random.default_rng(41).normal(0, 60, (3, 3, 37, 29)).astype(np.float32)
    np.save(folder / "images.npy", images)
    return folder


def words(folder: Path, command: str, output: str | Path, *more: str) -> list[str]:
    return [
        *(command, "--proto", str(folder / "net.prototxt")),
        *("--model", str(folder / "net.caffemodel"), "--images", str(folder / "images.npy")),
        *("--output", str(output), *more),
    ]


@pytest.fixture
def no_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """The work must not begin: loading the network is an error."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("the work began")

    monkeypatch.setattr(int8calib, "load_caffe", fail, raising=False)


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


@pytest.mark.usefixtures("no_images")
@pytest.mark.parametrize(
    ("command", "ending"),
    [
        *(("calibrate", end) for end in ("", ".json", ".toml")),
        *(("tune", end) for end in ("", ".json", ".toml", ".txt")),
        ("collect", ""),
    ],
)
def test_what_cannot_be_written_is_refused_before_the_work(
    command: str, ending: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "t.table"
    (tmp_path / f"t.table{ending}").mkdir()
    refused(capsys, words(folder, command, output), f"t.table{ending}: cannot be written: it is a")
    assert len(list(tmp_path.iterdir())) == 1
    refused(capsys, words(folder, command, "x" * 256), "cannot be written: File name too long")
    refused(capsys, words(folder, command, tmp_path / "no/t"), "there is no folder")


def test_a_dash_is_no_name_for_stdout(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Many programs take it for one; here a file of that name would stand there."""
    monkeypatch.chdir(tmp_path)
    table = tmp_path / "net.table"
    assert main(words(folder, "calibrate", table, "--quiet")) == 0
    before = sorted(tmp_path.iterdir())
    message = "-: would be a file of that name; give /dev/stdout for standard output, or ./-"
    refused(capsys, words(folder, "calibrate", "-"), message)
    refused(capsys, words(folder, "collect", "-"), message)
    refused(capsys, words(folder, "collect", ""), "--output: is empty; give a value")
    refused(capsys, ["table", "convert", str(table), "-", "--format", "json"], message)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.usefixtures("no_images")
@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_protected_folder_is_refused_before_the_work(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tmp_path.chmod(0o500)
    refused(capsys, words(folder, "calibrate", tmp_path / "t.table"), "is write-protected")


@pytest.mark.usefixtures("no_images")
@pytest.mark.skipif(os.name == "nt", reason="needs devices")
@pytest.mark.parametrize("command", ["calibrate", "tune"])
def test_a_prefix_of_names_is_no_device(
    command: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`/dev/null.param` would be a file in /dev."""
    arguments = [*words(folder, command, tmp_path / "t"), "--ncnn", "/dev/null"]
    refused(capsys, arguments, "--ncnn /dev/null: is a device or a pipe")


@pytest.mark.usefixtures("no_images")
@pytest.mark.parametrize(
    ("command", "output", "more"),
    [
        ("calibrate", "net.caffemodel", []),
        ("calibrate", "./net.prototxt", []),
        ("calibrate", "t.table", ["--checkpoint", "t.table.json"]),
        ("calibrate", "t.param", ["--ncnn", "t"]),
        ("collect", "s.npz", ["--checkpoint", "s.npz"]),
        ("tune", "t.table", ["--write-model", "t.caffemodel", "t.caffemodel"]),
        ("tune", "t.table", ["--write-model", "net.caffemodel", "t.prototxt"]),
    ],
)
def test_a_file_that_is_named_twice_is_refused(
    command: str,
    output: str,
    more: list[str],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    refused(capsys, words(folder, command, output, *more), "it is named twice")
    assert before == {path: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("command", ["calibrate", "collect", "tune"])
def test_an_image_is_not_overwritten(
    command: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "photo.JPG"
    image.write_bytes(b"a picture")
    refused(capsys, words(folder, command, image), "photo.JPG: an image would be overwritten")
    assert image.read_bytes() == b"a picture"


def test_merged_statistics_do_not_replace_their_parts(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    part = tmp_path / "s.npz"
    assert main([*words(folder, "collect", part), "--quiet"]) == 0
    before = part.read_bytes()
    link = tmp_path / "link.npz"
    link.symlink_to(part)
    refused(capsys, ["merge", str(part), "--output", str(link)], "it is named twice")
    assert part.read_bytes() == before


def test_all_files_are_written_or_none(tmp_path: Path) -> None:
    """An error while the last file is written leaves the older ones as they were."""

    def parts():
        yield b"half"
        raise OSError(28, "No space left on device")

    old = tmp_path / "a"
    old.write_text("old")
    with pytest.raises(OutputError, match="b: cannot be written: No space left on device"):
        write_all({str(old): "new", str(tmp_path / "b"): parts()})
    assert old.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    write_all({str(old): "new", str(tmp_path / "b"): [b"1", memoryview(b"2")]})
    assert (old.read_text(), (tmp_path / "b").read_bytes()) == ("new", b"12")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no /dev/stdout")
@pytest.mark.parametrize("redirected", [False, True])
def test_stdout_takes_the_table_alone(redirected: bool, folder: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain.table"
    assert main([*words(folder, "calibrate", plain), "--quiet"]) == 0
    target = tmp_path / "stdout"
    with target.open("wb") as file:
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "int8calib",
                *words(folder, "calibrate", "/dev/stdout"),
            ],
            stdout=file if redirected else subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            check=True,
        )
    written = target.read_bytes() if redirected else done.stdout
    assert written == plain.read_bytes()
    assert b"Bottom scales" in done.stderr
    assert not list(Path("/dev").glob("stdout.*"))


@pytest.mark.skipif(os.name == "nt", reason="Windows has no named pipes of this kind")
def test_a_pipe_takes_the_table_alone(folder: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert main([*words(folder, "calibrate", pipe), "--quiet"]) == 0
        written = os.read(reader, 1 << 16)
    finally:
        os.close(reader)
    plain = tmp_path / "plain.table"
    assert main([*words(folder, "calibrate", plain), "--quiet"]) == 0
    assert written == plain.read_bytes()
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["pipe", "plain.table", "plain.table.json", "plain.table.toml"]
