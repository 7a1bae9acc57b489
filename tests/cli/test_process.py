"""A command as a process: streams that fail, signals, and errors that nobody foresaw."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from int8calib.caffe.layers import registry
from int8calib.cli import collect, merge, process
from int8calib.cli.main import main
from tests.caffe.engine.test_engine import NET
from tests.cli.signals import handlers_of_a_shell, send_at
from tests.generated import make_model

ROOT = Path(__file__).resolve().parents[2]
FULL = Path("/dev/full")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, images, and a table with a layer whose name no ASCII stream can hold."""
    folder = tmp_path_factory.mktemp("job")
    make_model(folder, NET)
    images = np.random.default_rng(41).normal(0, 60, (7, 3, 37, 29)).astype(np.float32)
    np.save(folder / "images.npy", images)
    (folder / "t.table").write_text("été_param_0 3 5\nété 7\n", encoding="utf-8")
    return folder


def run(words: str, folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """`int8calib` with a shell's redirections; buffered output, as users have it."""
    command = f'exec "{sys.executable}" -m int8calib {words}'
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    environment |= {"PYTHONPATH": str(ROOT), **env}
    return subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
        check=False,
    )


needs_full = pytest.mark.skipif(not FULL.exists(), reason="the system has no /dev/full")


@needs_full
@pytest.mark.parametrize(
    ("words", "unbuffered"),
    [("table show t.table", ""), ("table show t.table", "1"), ("--help", ""), ("--help", "1")],
)
def test_a_full_stdout_is_one_line_and_exit_2(folder: Path, words: str, unbuffered: str) -> None:
    done = run(f"{words} > {FULL}", folder, PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "standard output: cannot be written: No space left on device" in done.stderr


@needs_full
def test_messages_that_cannot_be_told_do_not_stop_the_work(folder: Path) -> None:
    done = run(f"table show t.table 2> {FULL}", folder)
    assert done.returncode == 0
    assert "été" in done.stdout
    assert run(f"table show gone.table 2> {FULL}", folder).returncode == 2


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGPIPE")
@pytest.mark.parametrize("words", ["table show t.table", "inspect --proto net.prototxt --json"])
def test_a_reader_that_goes_away_ends_it_quietly(folder: Path, words: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "int8calib", *words.split()],
        stdout=writer,
        stderr=subprocess.PIPE,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    os.close(writer)
    assert done.returncode == 128 + signal.SIGPIPE
    assert b"rror" not in done.stderr


def test_closed_streams_are_streams_that_nobody_reads(folder: Path, tmp_path: Path) -> None:
    words = f"thresholds {folder}/s.npz --output {tmp_path}/t.table"
    job = ["--proto", "net.prototxt", "--model", "net.caffemodel", "--images", "images.npy"]
    job[1::2] = [str(folder / name) for name in job[1::2]]
    assert main(["collect", *job, "--output", f"{folder}/s.npz", "--quiet"]) == 0
    done = run(f"{words} >&- 2>&- <&-", folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert sorted(written) == ["t.table", "t.table.json"]
    assert main([*words.split(), "--quiet"]) == 0
    assert written == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_an_ascii_stream_takes_every_name(folder: Path) -> None:
    done = run("table show t.table", folder, PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert r"\xe9t\xe9" in done.stdout


def test_json_is_json_in_every_encoding(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    proto = tmp_path / "é.prototxt"
    proto.write_text((folder / "net.prototxt").read_text())
    assert main(["inspect", "--proto", str(proto), "--json"]) == 0
    said = capsys.readouterr().out
    assert said.isascii()
    assert json.loads(said)["prototxt"] == str(proto)


def test_names_are_printed_escaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = str(tmp_path / "\x1b[31mred\nline")
    assert main(["table", "show", name]) == 2
    with pytest.raises(SystemExit) as stop:
        main(["table", "show", "--from", "\x1b[31m"])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert r"\x1b[31mred\nline" in said
    assert "\x1b" not in said
    assert said.count("\n") == 2


def test_long_errors_are_cut_in_the_middle(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["table", "show", "t", "--from", "x" * 33_000])
    assert main(["table", "show", "y" * 33_000]) == 2
    with pytest.raises(SystemExit):
        main(["z" * 33_000])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert max(map(len, lines)) <= 600
    assert lines[0].endswith("; see int8calib table show --help")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ZeroDivisionError("by zero"), "internal error in merge (cli/merge.py:"),
        (RecursionError(), "internal error in merge"),
        (MemoryError("Unable to allocate 7 TiB"), "merge: there is not enough memory"),
        (FileNotFoundError(2, "No such file or directory", "a\nb"), r"error: a\nb: No such file"),
    ],
)
def test_every_error_is_one_line_and_exit_2(
    error: Exception,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(merge, "check_outputs", fail)
    words = ["merge", "a", "--output", str(tmp_path / "m.npz")]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert main([*words, "--debug"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("Traceback")
    assert message in said.splitlines()[-1]


def test_an_internal_error_names_the_layer(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A layer of this package that fails in a way that nobody foresaw."""

    def fail(*_: object) -> None:
        raise ZeroDivisionError("by zero")

    broken = replace(registry.find_type("LRN"), run=fail, plan=None)
    monkeypatch.setitem(registry._types, "LRN", broken)
    words = [
        *("collect", "--proto", str(folder / "net.prototxt"), "--quiet"),
        *("--model", str(folder / "net.caffemodel"), "--images", str(folder / "images.npy")),
        *("--output", str(tmp_path / "s.npz")),
    ]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "internal error in collect, layer 'norm' (caffe/engine/plan.py:" in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGHUP")
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_leaves_nothing(
    name: str,
    code: int,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    images = np.random.default_rng(3).normal(0, 60, (499, 3, 37, 29)).astype(np.float32)
    np.save(tmp_path / "images.npy", images)
    words = [
        *("calibrate", "--proto", str(folder / "net.prototxt")),
        *("--model", str(folder / "net.caffemodel"), "--images", str(tmp_path / "images.npy")),
        *("--output", str(tmp_path / "t.table"), "--workers", "2"),
    ]
    number = signal.Signals[name]
    send_at(monkeypatch, "statistics", number)
    with handlers_of_a_shell():
        assert main(words) == code
        assert signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL)
    by = "Ctrl-C" if name == "SIGINT" else name
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"int8calib: stopped by {by}; no file is left half-written"
    assert [path.name for path in tmp_path.iterdir()] == ["images.npy"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM of this kind")
def test_sigterm_from_outside(folder: Path, tmp_path: Path) -> None:
    many = tmp_path / "many.npy"
    np.save(many, np.ones((2999, 3, 37, 29), np.float32))
    run_it = (
        "import sys; from int8calib.cli import console, main; "
        "console.LOG_EVERY = 0; sys.exit(main.main())"
    )
    words = ["collect", "--proto", "net.prototxt", "--model", "net.caffemodel"]
    words += ["--images", str(many), "--output", str(tmp_path / "s.npz")]
    with subprocess.Popen(
        [sys.executable, "-c", run_it, *words],
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as running:
        assert running.stderr is not None
        for line in running.stderr:
            if "statistics:" in line:
                break
        running.send_signal(signal.SIGTERM)
        error = running.stderr.read()
    assert running.returncode == 143
    assert "stopped by SIGTERM" in error.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["many.npy"]


def test_an_ignored_signal_stays_ignored() -> None:
    """As under nohup, which starts a command with SIGHUP ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with process._signals_raised():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_commands_stand_alone() -> None:
    """What commands share stands beside them: none imports another."""
    for module in (collect, merge):
        names = {getattr(value, "__module__", "") for value in vars(module).values()}
        assert not names & {f"int8calib.cli.{name}" for name in ("calibrate", "evaluate")}
