"""Image lists: where paths start, backslashes, labels, and what a missing file is told as."""

from __future__ import annotations

import codecs
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from int8calib.errors import ImageError
from int8calib.images import ImageSource, UnreadableImageError, open_source


def save(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((5, 7, 3), value, np.uint8))


def first_values(source: ImageSource) -> list[int]:
    return [int(source.load(index)[0, 0, 0]) for index in range(len(source))]


@pytest.fixture
def lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for lists beside the working folder; both hold images."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    save(Path("both/a.png"), 11)
    save(Path("only/b.png"), 13)
    folder = tmp_path / "lists"
    save(folder / "both" / "a.png", 17)
    save(folder / "my pics" / "c 3.png", 19)
    return folder


def test_paths_start_at_the_list_then_at_the_working_folder(lists: Path) -> None:
    (lists / "l.txt").write_text("both/a.png 3\nonly/b.png\n./both/../both/a.png 1 2 3\n")
    source = open_source(lists / "l.txt")
    assert source.names == ("both/a.png", "only/b.png", "./both/../both/a.png")
    assert first_values(source) == [17, 13, 17]


def test_backslashes_part_folders_unless_a_file_has_that_name(lists: Path) -> None:
    (lists / "l.txt").write_text("my pics\\c 3.png 5\r\n.\\both\\a.png\r\nonly\\b.png\r\n")
    source = open_source(lists / "l.txt")
    assert source.names == ("my pics/c 3.png", "./both/a.png", "only/b.png")
    assert first_values(source) == [19, 17, 13]
    save(lists / "x.png", 23)
    (lists / "x.png").rename(lists / "my pics\\c 3.png")
    assert first_values(open_source(lists / "l.txt")) == [23, 17, 13]


def test_names_without_an_ending_and_numbers_in_names(lists: Path) -> None:
    for name, value in (("frame 1", 29), ("frame", 31), ("plain", 37)):
        save(lists / "x.png", value)
        (lists / "x.png").rename(lists / name)
    (lists / "l.txt").write_text("frame 1\nframe 2\nplain 7 -0.5 1e3\nplain\n")
    source = open_source(lists / "l.txt")
    # "frame 1" is there as it stands; "frame 2" is not, so 2 is a label.
    assert source.names == ("frame 1", "frame", "plain", "plain")
    assert first_values(source) == [29, 31, 37, 37]


@pytest.mark.parametrize(
    ("encoding", "mark"),
    [
        ("utf-16-le", codecs.BOM_UTF16_LE),
        ("utf-16-be", codecs.BOM_UTF16_BE),
        ("utf-8", codecs.BOM_UTF8),
    ],
)
def test_lists_as_windows_writes_them(lists: Path, encoding: str, mark: bytes) -> None:
    save(lists / "bild ä.png", 41)
    (lists / "l.txt").write_bytes(mark + "bild ä.png\r\nboth\\a.png 1\r\n".encode(encoding))
    assert first_values(open_source(lists / "l.txt")) == [41, 17]


def test_a_missing_file_is_told_with_every_place_that_was_tried(lists: Path) -> None:
    (lists / "l.txt").write_text("both/a.png\n\n# x\nboth\\gone.png 4\n/nowhere/d.png\nboth\n")
    source = open_source(lists / "l.txt")
    assert source.names == ("both/a.png", "both\\gone.png", "/nowhere/d.png", "both")
    with pytest.raises(UnreadableImageError) as caught:
        source.load(1)
    assert str(caught.value) == (
        f"{lists / 'l.txt'}:4: cannot be read: both\\gone.png or both/gone.png, tried in the list's "
        f"folder {lists} and in the working folder {Path.cwd()}: No such file or directory"
    )
    with pytest.raises(
        UnreadableImageError, match=r"l\.txt:5: cannot be read: /nowhere/d\.png: No"
    ):
        source.load(2)
    with pytest.raises(UnreadableImageError, match=r"l\.txt:6: .*: it is a folder$"):
        source.load(3)


@pytest.mark.parametrize(
    "line", ["a" * 300 + ".png", "x\0y.png", "/" * 5000 + "z.png", "b" * 70_000]
)
def test_names_that_no_file_can_have(lists: Path, line: str) -> None:
    (lists / "l.txt").write_text(f"{line} 1\nboth/a.png\n")
    source = open_source(lists / "l.txt")
    with pytest.raises(UnreadableImageError, match=r"l\.txt:1: cannot be read: ") as caught:
        source.load(0)
    assert len(str(caught.value)) <= 500
    assert str(caught.value).isprintable()
    assert int(source.load(1)[0, 0, 0]) == 17


def test_long_lines_of_labels_take_no_time(lists: Path) -> None:
    (lists / "l.txt").write_text(
        "both/a.png" + " 1" * 500_000 + "\n" + "x" + " 1" * 500_000 + "y\n"
    )
    source = open_source(lists / "l.txt")
    assert source.names[0] == "both/a.png"
    assert int(source.load(0)[0, 0, 0]) == 17


def test_a_list_of_arrays(lists: Path) -> None:
    np.save(lists / "x.npy", np.full((3, 5, 7), 2.0, np.float32))
    (lists / "l.txt").write_text("x.npy\ngone.npy\n")
    source = open_source(lists / "l.txt")
    assert source.preprocessed
    assert float(source.load(0)[0, 0, 0]) == 2.0
    with pytest.raises(UnreadableImageError, match=r"l\.txt:2: cannot be read: gone\.npy"):
        source.load(1)


def test_the_public_lists_that_went_wrong(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shared / "cases" / "c1_list"
    monkeypatch.chdir(tmp_path)
    # Meant from the working folder of the one who reported it.
    (tmp_path / "repro" / "c1_list").mkdir(parents=True)
    shutil.copy(folder / "im00.png", tmp_path / "repro" / "c1_list" / "im00.png")
    expected = cv2.imread(str(folder / "im00.png"))
    np.testing.assert_array_equal(open_source(folder / "cwd.txt").load(0), expected)
    source = open_source(folder / "backslash.txt")
    np.testing.assert_array_equal(source.load(1), expected)
    with pytest.raises(UnreadableImageError, match=r"backslash\.txt:1: cannot be read: my pics"):
        source.load(0)
    with pytest.raises(
        UnreadableImageError, match=r"bad\.txt:1: cannot be read: x/im00\.png"
    ) as caught:
        open_source(folder / "bad.txt").load(0)
    for place in (folder, tmp_path):
        assert f" folder {place}" in str(caught.value)
    assert str(caught.value).endswith(": No such file or directory")


def test_lists_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "folder.txt").mkdir()
    (tmp_path / "folder.txt" / "a.png").write_bytes(b"x")
    assert open_source(tmp_path / "folder.txt").names == ("a.png",)
    with pytest.raises(ImageError, match=r"gone\.txt: cannot be read: No such file"):
        open_source(tmp_path / "gone.txt")
