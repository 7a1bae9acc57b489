"""Label files and class folders: what counts, and what is wrong with a line."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from caffe_proto import files
from int8calib.cli.labels import read_labels
from int8calib.errors import ImageError


def label_file(tmp_path: Path, content: str | bytes) -> str:
    path = tmp_path / "labels.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def test_names_from_anywhere(tmp_path: Path) -> None:
    lines = "\ufeff# name index\n\na b.jpg 3\r\nval/dog/1.png\t17\nval\\cat\\2.png   5 \n"
    label_of = read_labels(label_file(tmp_path, lines))
    for name, label in {
        "a b.jpg": 3,
        "/photos/a b.jpg": 3,
        "val/dog/1.png": 17,
        "dog/1.png": 17,
        "1.png": 17,
        "other\\1.png": 17,
        "val/cat/2.png": 5,
        "val\\cat\\2.png": 5,
    }.items():
        assert label_of(name) == label
    with pytest.raises(ImageError, match=r"labels\.txt: has no label for the image b\.jpg"):
        label_of("b.jpg")


def test_text_of_windows(tmp_path: Path) -> None:
    where = label_file(tmp_path, "a.jpg 7\r\n".encode("utf-16"))
    with pytest.raises(ImageError, match=r"labels cannot be read: it is UTF-16 text; save it as"):
        read_labels(where)


def test_one_name_in_several_folders(tmp_path: Path) -> None:
    lines = "cat/1.jpg 0\ndog/1.jpg 1\ncat/2.jpg 0\nfox/2.jpg 0\ncat/1.jpg 0\n"
    label_of = read_labels(label_file(tmp_path, lines))
    assert (label_of("dog/1.jpg"), label_of("cat/1.jpg")) == (1, 0)
    # Which of the two is meant cannot be told; of the next it does not matter.
    with pytest.raises(ImageError, match=r"several images named 1\.jpg different labels"):
        label_of("1.jpg")
    assert label_of("2.jpg") == 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("c.jpg", "expected an image's name and index"),
        ("7", "expected an image's name and index"),
        ("c.jpg -1", "expected an image's name and index"),
        ("c.jpg 1.5", "expected an image's name and index"),
        ("c.jpg,1", "expected an image's name and index"),
        ("c.jpg \u0663", "expected an image's name and index"),  # a digit that is not ASCII
        ("c.jpg \u00b2", "expected an image's name and index"),
        ("c.jpg " + "1" * 5000, "the index has 5000 digits, expected at most 9"),
        ("c.jpg 1\x1b[2J", "expected an image's name and index"),
        ("x" * 100_000, "expected an image's name and index"),
        ("b.jpg 3", "the image has the label 2 further above"),
    ],
)
def test_damaged_lines(tmp_path: Path, line: str, message: str) -> None:
    where = label_file(tmp_path, f"a.jpg 1\nb.jpg 2\n{line}\nd.jpg 4\n")
    with pytest.raises(ImageError, match=rf"labels\.txt:3: .*{message}") as caught:
        read_labels(where)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) <= 500


@pytest.mark.parametrize("content", [b"", b"\n\n# a\n", b"\xff\xfea\0.\0", b"a.jpg \xe4\n"])
def test_files_without_labels(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ImageError, match=r"labels\.txt: (holds no labels|labels cannot be read)"):
        read_labels(label_file(tmp_path, content))


@pytest.mark.parametrize("name", ["n" * 300, "n\0.txt", "gone.txt"])
def test_names_that_are_no_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(ImageError, match="labels cannot be read: ") as caught:
        read_labels(str(tmp_path / name))
    assert str(caught.value).isprintable()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_pipes_do_as_far_as_somebody_writes_to_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "PIPE_WAIT", 1)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(ImageError, match="pipe: holds no labels"):
        read_labels(str(pipe))
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(pipe, os.O_WRONLY)

    def write() -> None:
        os.write(writer, b"a.jpg 1\n" * 1000)
        os.close(writer)

    thread = threading.Timer(0.2, write)
    thread.start()
    assert read_labels(str(pipe))("a.jpg") == 1
    thread.join()
    os.close(reader)
    with pytest.raises(ImageError, match="it is a device; expected a file"):
        read_labels("/dev/zero")


def test_class_folders(tmp_path: Path) -> None:
    for name in ("cat", "dog", ".cache", "emu"):
        (tmp_path / name).mkdir()
    (tmp_path / "readme").write_text("x")
    label_of = read_labels(str(tmp_path))
    assert [label_of(name) for name in ("cat/1.png", "dog/emu/2.png", "a\\dog\\1.png")] == [0, 2, 1]
    with pytest.raises(ImageError, match=r"the image 1\.png lies in none of its class folders cat"):
        label_of("1.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match="has no class folders"):
        read_labels(str(tmp_path / "empty"))
