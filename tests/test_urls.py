"""Images of shared places by URL, through fsspec's own file systems."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from int8calib.errors import ImageError
from int8calib.images import open_source
from int8calib.urls import is_url, read_url

fsspec = pytest.importorskip("fsspec", reason="needs the package fsspec")


@pytest.fixture
def bucket() -> str:
    """A place in memory, with images that a file system of the machine could not hold."""
    system = fsspec.filesystem("memory")
    image = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    for name in ("b.png", "a/c.png", ".hidden.png", "notes.md"):
        system.pipe(f"/bucket/{name}", cv2.imencode(".png", image)[1].tobytes())
    return "memory://bucket"


def test_a_folder_by_url_is_read_as_one_by_path(bucket: str) -> None:
    source = open_source(bucket)
    assert (source.names, source.skipped) == (("a/c.png", "b.png"), 1)
    expected = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    np.testing.assert_array_equal(source.load(0), expected)
    assert open_source(bucket, recursive=False).names == ("b.png",)
    assert len(open_source(f"{bucket}/a/*.png")) == 1
    np.testing.assert_array_equal(open_source(f"{bucket}/b.png").load(0), expected)


def test_what_cannot_be_read_is_told(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(bucket)
    fsspec.filesystem("memory").rm("/bucket/b.png")
    with pytest.raises(ImageError, match=r"memory://.*b\.png: cannot be read"):
        source.load(1)
    with pytest.raises(ImageError, match=r"memory://none: there is no such"):
        open_source("memory://none")
    with pytest.raises(ImageError, match=r"nosuch://x: cannot be read"):
        open_source("nosuch://x")
    with pytest.raises(OSError, match="more than 7 bytes"):
        read_url(f"{bucket}/a/c.png", 7)
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(ImageError, match="pip install fsspec"):
        open_source(bucket)


def test_paths_are_no_urls(tmp_path: Path) -> None:
    assert not any(map(is_url, (tmp_path, "C://photos", "a b://c", "photos", "://x")))
    assert is_url("s3://bucket/photos")
