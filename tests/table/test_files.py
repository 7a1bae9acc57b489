"""Files are written whole or not at all; formats are told apart; nothing missing is invented."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from int8calib.errors import OptionError, OutputError, TableError
from int8calib.files import check_target, open_atomic, write_atomic
from int8calib.table import (
    FORMATS,
    BottomEvidence,
    CalibrationTable,
    LayerScales,
    convert_table,
    detect_format,
    read_table,
    read_table_lenient,
    write_table,
)
from tests.table_helpers import layer, same_rows, table

MADE = table(layer("conv1", [2, 3, 5], 0.5), layer("ip1", [7, 11], 0.1))
NOT_ROOT = pytest.mark.skipif(
    hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write everything"
)


def inside(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_bytes_and_text_arrive_unchanged(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a", b"\0\r\n\xff")
    write_atomic(tmp_path / "b", "é\r\n\n")
    assert (tmp_path / "a").read_bytes() == b"\0\r\n\xff"
    assert (tmp_path / "b").read_bytes() == b"\xc3\xa9\r\n\n"
    assert inside(tmp_path) == ["a", "b"]


@pytest.mark.parametrize("problem", [KeyboardInterrupt, ValueError, MemoryError])
def test_an_interrupted_write_leaves_the_old_file(
    tmp_path: Path, problem: type[BaseException]
) -> None:
    target = tmp_path / "t.table"
    target.write_text("old")

    def interrupted() -> None:
        with open_atomic(target) as file:
            file.write(b"half")
            file.flush()
            raise problem

    with pytest.raises(problem):
        interrupted()
    assert target.read_text() == "old"
    assert inside(tmp_path) == ["t.table"]


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"t\.table: cannot be written: No space left"):
        write_atomic(tmp_path / "t.table", "text")
    assert inside(tmp_path) == []


def test_unwritable_targets(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"there is no folder .*nowhere"):
        write_atomic(tmp_path / "nowhere" / "t", "x")
    with pytest.raises(OutputError, match="it is a folder"):
        write_atomic(tmp_path, "x")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        write_atomic(tmp_path / "file" / "t", "x")
    for name in ("a\0b", "\ud800"):
        with pytest.raises(OutputError, match="no file can have such a name"):
            write_atomic(tmp_path / name, "x")
    with pytest.raises(OutputError, match="UTF-8"):
        write_atomic(tmp_path / "t", "\ud800")
    with pytest.raises(OutputError, match="cannot be written"):
        write_atomic(tmp_path / ("x" * 300), "x")
    assert inside(tmp_path) == ["file"]


def test_targets_are_checked_without_being_written(tmp_path: Path) -> None:
    check_target(tmp_path / "fresh")
    (tmp_path / "old").write_text("old")
    check_target(tmp_path / "old")
    (tmp_path / "dangling").symlink_to("nowhere/else")
    for name in ("nowhere/t", ".", "old/t", "x" * 300, "a\0b", "dangling"):
        with pytest.raises(OutputError, match="cannot be written: "):
            check_target(tmp_path / name)
    assert inside(tmp_path) == ["dangling", "old"]


@pytest.mark.skipif(not Path("/dev/stdout").exists(), reason="no /dev/stdout")
def test_the_programs_own_output_is_added_to(tmp_path: Path) -> None:
    code = (
        "from int8calib.files import write_atomic\n"
        "print('first', flush=True); write_atomic('/dev/stdout', 'second\\n'); print('third')"
    )
    with (tmp_path / "out").open("w") as out:
        subprocess.run([sys.executable, "-c", code], stdout=out, check=True)
    assert (tmp_path / "out").read_text() == "first\nsecond\nthird\n"
    assert inside(tmp_path) == ["out"]


@NOT_ROOT
def test_a_protected_file_stays(tmp_path: Path) -> None:
    target = tmp_path / "t"
    target.write_text("old")
    target.chmod(0o400)
    with pytest.raises(OutputError, match="write-protected"):
        write_atomic(target, "x")
    assert target.read_text() == "old"


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions and links")
def test_permissions_and_links_are_kept(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.write_text("old")
    real.chmod(0o640)
    link.symlink_to("real")
    write_atomic(link, "new")
    assert link.is_symlink()
    assert real.read_text() == "new"
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    (tmp_path / "plain").write_text("")
    write_atomic(tmp_path / "fresh", "x")
    assert (tmp_path / "fresh").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.skipif(not Path("/dev/stdout").exists(), reason="no /dev/stdout")
def test_a_pipe_is_written_directly() -> None:
    code = "from int8calib.files import write_atomic; write_atomic('/dev/stdout', 'to the pipe')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout == b"to the pipe"


@pytest.mark.parametrize("format", ["ncnn", "tool", "json"])
def test_write_then_read_without_naming_the_format(tmp_path: Path, format: str) -> None:
    path = tmp_path / f"t{FORMATS[format].suffix}"
    write_table(path, MADE, format)
    again = read_table(path)
    for x, y in zip(MADE.layers, again.layers, strict=True):
        assert (x.name, x.weight_scales.tolist()) == (y.name, y.weight_scales.tolist())
        assert y.bottom_scale == pytest.approx(x.bottom_scale, rel=1e-7)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a_param_0 580.254089 576.079590\na 0.845809 \n", "ncnn"),
        ("a_param_0 370944.718750\na 16771.933594\n", "ncnn"),
        ("a_param_0 0.0389711361 1.00000001e-07\na 127\n", "ncnn"),
        ("a_param_0 580.254068925081\na 0.8416760646103912\n", "tool"),
        ("a_param_0 127 0\na 1\n", "tool"),
        ("a_param_0 95.30530670082803\ndata 0.8462245473962985\na 0.5\n", "tool-v1"),
        ("a_param_0 95.30530670082803 1.0\ndata 0.8462245473962985\n", "tool"),
        ("TRT-8601-EntropyCalibration2\nx: 3c010a14\n", "tensorrt"),
        (' \n{"format": 1}', "json"),
        ("", "ncnn"),
    ],
)
def test_detection(text: str, name: str) -> None:
    assert detect_format(text).name == name


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('# Köln\n# 2\n\nname: "net"\n', "a prototxt"),
        ("\r\nlayer {\r\n", "a prototxt"),
        ("7767517\n1 1\nInput data 0 1 data\n", "an ncnn structure file"),
        ("<!DOCTYPE html>\n", "an HTML or XML page"),
        ("PK\x03\x04\x14", "a .npz or .zip file"),
    ],
)
def test_other_files_are_called_by_their_name(tmp_path: Path, text: str, what: str) -> None:
    (tmp_path / "t").write_text(text, encoding="utf-8", newline="")
    with pytest.raises(TableError, match=f"t: is {what}; expected a calibration table"):
        read_table(tmp_path / "t")


def test_layers_may_be_called_as_other_files_begin(tmp_path: Path) -> None:
    made = table(layer("name:", [2, 3], 0.5), layer("layer", [7, 11], 0.25))
    write_table(tmp_path / "t", made)
    assert same_rows(read_table(tmp_path / "t"), made)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"none\.table: no such file"):
        read_table(tmp_path / "none.table")
    with pytest.raises(TableError, match="cannot be read"):
        read_table(tmp_path)
    (tmp_path / "bad").write_bytes(b"a_param_0 1\na\xff 1\n")
    with pytest.raises(TableError, match=r"bad:2: byte 0xff is no UTF-8"):
        read_table(tmp_path / "bad")
    with pytest.raises(OptionError, match=r"'xml' is unknown, known are ncnn, tool, tool-v1"):
        write_table(tmp_path / "x", MADE, "xml")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("format", ["ncnn", "tool", "tensorrt", "json"])
def test_a_byte_order_mark_is_read_or_named(tmp_path: Path, format: str) -> None:
    """ncnn and TensorRT would misread it; nobody but this package reads the JSON."""
    path = tmp_path / "t"
    made = replace(MADE, blob_scales={"data": 0.5})
    write_table(path, made, format)
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("\n", "\r\n"), encoding="utf-8-sig", newline="")
    if format == "json":
        assert same_rows(read_table(path), MADE)
    else:
        with pytest.raises(TableError, match=r"t:1: a byte order mark, "):
            read_table(path)
    path.write_text(text, encoding="utf-16")
    with pytest.raises(TableError, match=r"t: is UTF-16 text; save it as UTF-8"):
        read_table(path)


def test_the_error_names_the_file_and_lenient_reading_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "t.table"
    path.write_text("a_param_0 2\nb_param_0 x\na 1\nb 1\n")
    with pytest.raises(TableError) as caught:
        read_table(path)
    assert str(caught.value).startswith(f"{path}:2: b: ")
    scan = read_table_lenient(path)
    assert [x.name for x in scan.table.layers] == ["a"]
    assert [f.line for f in scan.findings] == [2]


def test_conversions_between_all_formats_that_hold_enough(tmp_path: Path) -> None:
    evidence = BottomEvidence("data", "kl", 1.0, 254.0, 9, 0.5)
    scales = LayerScales("c", MADE["ip1"].weight_scales[:1], 0.5, evidence)
    full = CalibrationTable((scales,), {"data": 0.5, "c": 4.0})
    write_table(tmp_path / "full.json", full, "json")
    for name, entry in FORMATS.items():
        target = tmp_path / f"{name}{entry.suffix}"
        convert_table(tmp_path / "full.json", target, target_format=name)
        back = read_table(target, name)
        if back.layers and name != "tool-v1":
            assert [(x.name, x.bottom_scale) for x in back.layers] == [("c", 0.5)]
            assert back.layers[0].weight_scales.tolist() == [7.0]
        else:
            assert dict(back.blob_scales) == {"data": 0.5, "c": 4.0}
    convert_table(tmp_path / "ncnn.table", tmp_path / "tool2.table", target_format="tool")
    assert (tmp_path / "tool2.table").read_text() == "c_param_0 7.0\nc 0.5\n"
    assert same_rows(read_table(tmp_path / "json.json"), full)


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("ncnn", "tensorrt", "layer conv1: the name of its bottom blob is missing"),
        ("ncnn", "tool-v1", "holds no blob scales"),
        ("tensorrt", "ncnn", "holds no layers"),
        ("tensorrt", "tool", "holds no layers"),
        ("tool-v1", "ncnn", "layer c: has no bottom scale"),
        ("tool-v1", "tool", "layer c: has no bottom scale"),
    ],
)
def test_conversions_that_lack_something(
    tmp_path: Path, source: str, target: str, message: str
) -> None:
    tables = {
        "ncnn": MADE,
        "tensorrt": CalibrationTable((), {"data": 0.5}),
        "tool-v1": CalibrationTable((layer("c", [7], 1),), {"data": 0.5}),
    }
    write_table(tmp_path / "a", tables[source], source)
    with pytest.raises(TableError, match=rf"a: no {target} table: .*{message}"):
        convert_table(tmp_path / "a", tmp_path / "b", source_format=source, target_format=target)
    assert inside(tmp_path) == ["a"]
