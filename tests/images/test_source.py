"""Which files a source finds, in which order, and what it loads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from int8calib.errors import ImageError, OptionError
from int8calib.images import UnreadableImageError, open_source

RNG = np.random.default_rng(3)


def save_image(path: Path, value: int = 0) -> None:
    """Write a small lossless image whose every pixel is `value`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    encoded = cv2.imencode(".png", np.full((5, 7, 3), value, np.uint8))[1]
    path.write_bytes(encoded.tobytes())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images 0..7 in an order of names that differs between locales, and other files."""
    root = tmp_path / "pictures"
    names = [
        "B.png",
        "a b.jpg",
        "a-b/x.PNG",
        "a/b/y.JPeG",
        "a/z.webp",
        "b.bmp",
        "z/1.tif",
        "ä.tiff",
    ]
    for value, name in enumerate(names):
        save_image(root / name, value)
    for other in ("readme.md", "labels.txt", "a/b/Thumbs.db", "mean.npy"):
        (root / other).write_text("no image")
    save_image(root / "._a b.jpg")
    save_image(root / ".cache" / "x.png")
    return root


NAMES = ("B.png", "a b.jpg", "a-b/x.PNG", "a/b/y.JPeG", "a/z.webp", "b.bmp", "z/1.tif", "ä.tiff")


def values(source: Any) -> list[int]:
    """The value of each image of a source, by loading it."""
    return [int(source.load(index)[0, 0, 0]) for index in range(len(source))]


def test_folder_is_sorted_by_relative_path(folder: Path) -> None:
    for where in (folder, str(folder), [folder]):
        source = open_source(where)
        assert source.names == NAMES
        assert len(source) == 8
        assert source.skipped == 4
        assert not source.preprocessed
        assert values(source) == list(range(8))


def test_folder_order_is_not_the_file_systems(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    walk = os.walk

    def backwards(*args: Any, **options: Any) -> Any:
        for parent, folders, names in walk(*args, **options):
            folders.sort(reverse=True)
            yield parent, folders, sorted(names, reverse=True)

    monkeypatch.setattr(os, "walk", backwards)
    assert open_source(folder).names == NAMES


def test_folder_without_its_subfolders(folder: Path) -> None:
    source = open_source(folder, recursive=False)
    assert source.names == ("B.png", "a b.jpg", "b.bmp", "ä.tiff")
    assert source.skipped == 3


def test_links_are_followed_but_not_in_circles(folder: Path, tmp_path: Path) -> None:
    save_image(tmp_path / "elsewhere" / "far.png", 99)
    (tmp_path / "elsewhere" / "back").symlink_to(folder)
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "a" / "up").symlink_to(folder)
    assert set(open_source(folder).names) == {*NAMES, "link/far.png"}


def test_list_file(folder: Path, tmp_path: Path) -> None:
    listing = tmp_path / "some.txt"
    lines = [
        "\ufeffpictures/a/z.webp 3",
        "",
        "  # a comment",
        "pictures/a b.jpg",
        "pictures/a b.jpg\t17 0.5 -1e3  ",
        str(folder / "B.png"),
        "pictures/ä.tiff 7\r",
        "pictures/readme.md 5",
        "pictures/gone.png",
    ]
    listing.write_text("\n".join(lines), encoding="utf-8", newline="")
    source = open_source(listing)
    assert source.names == (
        "pictures/a/z.webp",
        "pictures/a b.jpg",
        "pictures/a b.jpg",
        str(folder / "B.png"),
        "pictures/ä.tiff",
        "pictures/readme.md",
        "pictures/gone.png",
    )
    assert source.skipped == 0
    assert [int(source.load(index)[0, 0, 0]) for index in range(5)] == [4, 1, 1, 0, 7]
    with pytest.raises(UnreadableImageError, match=r"readme\.md: not an image that OpenCV can"):
        source.load(5)
    with pytest.raises(
        UnreadableImageError, match=r"some\.txt:9: cannot be read: pictures/gone\.png"
    ):
        source.load(6)


def test_list_file_with_names_that_are_not_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    try:
        save_image(tmp_path / name, 42)
    except OSError:
        pytest.skip("the file system takes UTF-8 names only")
    (tmp_path / "list.txt").write_bytes(b"caf\xe9.png 1\n")
    assert values(open_source(tmp_path / "list.txt")) == [42]


def test_glob(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def names(pattern: str) -> list[str]:
        found = open_source(pattern).names
        return [Path(name).relative_to(folder).as_posix() for name in found]

    assert names(f"{folder}/*.*") == ["B.png", "a b.jpg", "b.bmp", "ä.tiff"]
    assert names(f"{folder}/**/[x-z]*") == ["a-b/x.PNG", "a/b/y.JPeG", "a/z.webp", "z/1.tif"]
    assert names(f"{folder}/a*") == ["a b.jpg", "a-b/x.PNG", "a/b/y.JPeG", "a/z.webp"]
    assert open_source(f"{folder}/**/*").names == open_source(f"{folder}/**").names
    monkeypatch.chdir(folder)
    assert open_source("a/*.webp").names == ("a/z.webp",)
    (folder / "[x].png").write_bytes((folder / "B.png").read_bytes())
    assert open_source("[x].png").names == ("[x].png",)


def test_single_file_and_several_places(folder: Path) -> None:
    assert values(open_source(folder / "b.bmp")) == [5]
    several = open_source([folder / "z", folder / "B.png", f"{folder}/a/*.webp"])
    assert values(several) == [6, 0, 4]


def test_limit_and_shuffle(folder: Path) -> None:
    assert open_source(folder, limit=3).names == NAMES[:3]
    assert open_source(folder, limit=100).names == NAMES
    shuffled = open_source(folder, shuffle=True, seed=1)
    assert sorted(shuffled.names) == sorted(NAMES)
    assert shuffled.names != NAMES
    assert [NAMES[value] for value in values(shuffled)] == list(shuffled.names)
    assert open_source(folder, shuffle=True, seed=1).names == shuffled.names
    assert open_source(folder, shuffle=True, seed=2).names != shuffled.names
    assert open_source(folder, shuffle=True, seed=1, limit=5).names == shuffled.names[:5]


def test_shuffle_moves_arrays_and_images_alike(folder: Path) -> None:
    array = np.arange(8, dtype=np.float32).reshape(8, 1)
    info = open_source(array, shuffle=True, seed=4, limit=6)
    pictures = open_source(folder, shuffle=True, seed=4, limit=6)
    assert [int(info.load(index)[0]) for index in range(6)] == values(pictures)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8, np.int16])
def test_npy_stack(tmp_path: Path, dtype: Any) -> None:
    array = (RNG.random((5, 3, 7, 11)) * 250).astype(dtype)
    np.save(tmp_path / "x.npy", array)
    source = open_source(tmp_path / "x.npy", limit=4)
    assert source.preprocessed
    assert source.names == tuple(f"{tmp_path / 'x.npy'}[{row}]" for row in range(4))
    for row in range(4):
        blob = source.load(row)
        assert blob.dtype == np.float32
        np.testing.assert_array_equal(blob, array[row].astype(np.float32))


def test_npy_folder_of_single_and_stacked_blobs(tmp_path: Path) -> None:
    one, stack = RNG.random((3, 7, 11)), RNG.random((2, 3, 7, 11))
    (tmp_path / "sub").mkdir()
    np.save(tmp_path / "sub" / "one.npy", one)
    np.save(tmp_path / "stack.npy", stack)
    (tmp_path / "notes.md").write_text("x")
    source = open_source(tmp_path)
    assert source.names == ("stack.npy[0]", "stack.npy[1]", "sub/one.npy")
    assert source.skipped == 1
    np.testing.assert_array_equal(source.load(1), stack[1].astype(np.float32))
    np.testing.assert_array_equal(source.load(2), one.astype(np.float32))


def test_npz_by_input_name(tmp_path: Path) -> None:
    data, info = RNG.random((2, 3, 7, 11)), RNG.random((2, 3))
    np.savez_compressed(tmp_path / "x.npz", data=data, im_info=info)
    for name, array in (("data", data), ("im_info", info)):
        source = open_source(tmp_path / "x.npz", blob=name)
        assert len(source) == 2
        np.testing.assert_array_equal(source.load(1), array[1].astype(np.float32))
    with pytest.raises(ImageError, match=r"x\.npz: holds the arrays data, im_info; say which"):
        open_source(tmp_path / "x.npz")
    with pytest.raises(ImageError, match=r"data, im_info; none is named image"):
        open_source(tmp_path / "x.npz", blob="image")
    np.savez(tmp_path / "one.npz", anything=data)
    assert len(open_source(tmp_path / "one.npz", blob="data")) == 2


def test_damaged_arrays(tmp_path: Path) -> None:
    whole = RNG.random((2, 3, 7, 11))
    np.save(tmp_path / "b.npy", whole)
    content = (tmp_path / "b.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(content[:300])
    (tmp_path / "c.npy").write_text("no array")
    np.save(tmp_path / "d.npy", np.array([[None, "x"]]), allow_pickle=True)
    np.save(tmp_path / "e.npy", np.array(["x"]))
    source = open_source(tmp_path)
    assert source.names == ("a.npy", "b.npy[0]", "b.npy[1]", "c.npy", "d.npy", "e.npy")
    for index in (0, 3, 4, 5):
        with pytest.raises(UnreadableImageError, match=rf"{source.names[index]}"):
            source.load(index)
    (tmp_path / "x.npz").write_bytes(b"PK\x03\x04 broken")
    with pytest.raises(ImageError, match=r"x\.npz: cannot be read as arrays"):
        open_source(tmp_path / "x.npz")
    (tmp_path / "y.npz").write_bytes(content)
    with pytest.raises(ImageError, match=r"y\.npz: holds a single array"):
        open_source(tmp_path / "y.npz")
    with pytest.raises(ImageError, match=r"array: has the shape \(1, 2, 3, 4, 5\)"):
        open_source(np.zeros((1, 2, 3, 4, 5)))


def test_nothing_found(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"gone: cannot be read: No such file.*list file"):
        open_source(tmp_path / "gone")
    (tmp_path / "readme.md").write_text("x")
    with pytest.raises(ImageError, match=r"no images found \(1 other files\); looked for \.apng"):
        open_source(tmp_path)
    with pytest.raises(ImageError, match="no images found"):
        open_source(f"{tmp_path}/*.jpg")
    with pytest.raises(ImageError, match="an empty list: no images found"):
        open_source([])
    (tmp_path / "list.txt").write_text("# nothing\n\n")
    with pytest.raises(ImageError, match=r"list\.txt: no images found"):
        open_source(tmp_path / "list.txt")
    with pytest.raises(OptionError, match="limit on the number of images is 0"):
        open_source(tmp_path, limit=0)


def test_real_folder(shared: Path) -> None:
    source = open_source(shared / "images" / "imagenet_300")
    assert len(source) == 300
    assert source.names == tuple(sorted(p.name for p in (shared / "images/imagenet_300").iterdir()))
    assert source.names[0] == "n01440764_tench.jpg"
    expected = cv2.imread(str(shared / "images" / "imagenet_300" / source.names[7]))
    np.testing.assert_array_equal(source.load(7), expected)
    assert len(open_source(shared / "images", limit=11)) == 11


def test_the_axes_of_one_input_can_be_told(tmp_path: Path) -> None:
    array = np.arange(2 * 5 * 3, dtype=np.float32).reshape(2, 5, 3)
    np.save(tmp_path / "stack.npy", array)
    np.save(tmp_path / "single.npy", array[0])
    stack, single = (open_source(tmp_path / f"{name}.npy", axes=2) for name in ("stack", "single"))
    assert (len(stack), len(single)) == (2, 1)
    np.testing.assert_array_equal(stack.load(1), array[1])
    np.testing.assert_array_equal(single.load(0), array[0])
    assert len(open_source(tmp_path / "single.npy")) == 5
    with pytest.raises(ImageError, match=r"has the shape \(2, 5, 3\); expected 1 axes, or 2"):
        open_source(tmp_path / "stack.npy", axes=1)
