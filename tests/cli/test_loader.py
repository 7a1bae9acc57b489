"""The loader of the commands: skipped images, changed images, options of preprocessing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

import int8calib
from int8calib.cli.image_options import ImageOptions
from int8calib.cli.loader import SKIPS_SHOWN, ImageLoader
from int8calib.cli.main import main
from int8calib.cli.options import parse_input_shapes
from int8calib.demo import CAFFEMODEL, PROTOTXT
from int8calib.errors import ImageError, OptionError

RNG = np.random.default_rng(53)
FAST = ("--method", "minmax")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven images, the fourth of them damaged."""
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(7):
        image = RNG.integers(0, 256, (29, 31, 3), dtype=np.uint8)
        assert cv2.imwrite(str(folder / f"{i}.png"), image)
    (folder / "3.png").write_bytes(b"damaged")
    return folder


def loader(folder: Path, **options: object) -> ImageLoader:
    net = int8calib.load_caffe(PROTOTXT, CAFFEMODEL)
    given = ImageOptions(images=(str(folder),), **options)  # type: ignore[arg-type]
    return ImageLoader(given, net, ("data",), workers=2)


def change(path: Path) -> None:
    image = cv2.imread(str(path))
    image[0, 0] ^= 255
    assert cv2.imwrite(str(path), image)


@pytest.mark.parametrize("batch", [1, 3, 7])
@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda f: change(f / "5.png"), "5.png: has changed since the first pass"),
        (lambda f: (f / "6.png").unlink(), "6.png: could be read in the first pass .* no longer"),
        (lambda f: (f / "0.png").unlink(), "0.png: could be read in the first pass .* no longer"),
        (
            lambda f: shutil.copy(f / "1.png", f / "3.png"),
            "3.png: could not be read in the first pass .* now can",
        ),
        (lambda f: (f / "2.png").write_bytes(b""), "2.png: could be read in the first pass"),
    ],
)
def test_images_that_change_between_passes(
    batch: int, act: Callable[[Path], object], message: str, folder: Path
) -> None:
    images = loader(folder, batch=batch)
    first = [blobs["data"].copy() for blobs in images()]
    assert sum(map(len, first)) == 6
    again = [blobs["data"] for blobs in images()]
    np.testing.assert_array_equal(np.concatenate(first), np.concatenate(again))
    act(folder)
    with pytest.raises(ImageError, match=message):
        for _ in images():
            pass


def test_arrays_that_change_between_passes(tmp_path: Path) -> None:
    stack = RNG.normal(size=(5, 3, 32, 32)).astype(np.float32)
    np.save(tmp_path / "x.npy", stack)
    images = loader(tmp_path / "x.npy", batch=2)
    assert sum(len(blobs["data"]) for blobs in images()) == 5
    stack[3, 1, 2, 4] += 1
    np.save(tmp_path / "x.npy", stack)
    stream = images()
    assert len(next(stream)["data"]) == 2
    with pytest.raises(ImageError, match=r"x\.npy\[3\]: has changed"):
        next(stream)


def calibrate(images: str, output: Path, *more: str) -> int:
    words = ["calibrate", "--proto", str(PROTOTXT), "--model", str(CAFFEMODEL)]
    return main([*words, "--images", images, "--output", str(output), *more])


def test_a_table_of_images_that_changed_is_not_written(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from int8calib.calibration.statistics import collect

    count = collect._Collector.count

    def changed(self: collect._Collector, *args: object) -> None:
        change(folder / "5.png")
        count(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(collect._Collector, "count", changed)
    output = tmp_path / "out"
    output.mkdir()
    assert calibrate(str(folder), output / "net.table", "--exact", "--cache", "0") == 2
    said = capsys.readouterr().err
    assert "5.png: has changed since the first pass over the images" in said
    assert "Traceback" not in said
    assert list(output.iterdir()) == []


def test_skipped_images_are_counted(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "notes.md").write_text("x")
    output = tmp_path / "out"
    output.mkdir()
    assert calibrate(str(folder), output / "net.table", *FAST) == 0
    lines = capsys.readouterr().err.splitlines()
    said = [line for line in lines if "skipped" in line and "net.table" not in line]
    assert said == [
        "input data: 1 files are no images and were skipped",
        f"skipped: {folder / '3.png'}: not an image that OpenCV can decode, or a damaged one",
        "1 of 7 images were skipped",
    ]
    for i in range(30):
        (folder / f"bad{i}.png").write_bytes(b"damaged")
    assert calibrate(str(folder), output / "net.table", *FAST) == 0
    lines = capsys.readouterr().err.splitlines()
    assert sum(line.startswith("skipped: ") for line in lines) == SKIPS_SHOWN
    assert "31 of 37 images were skipped; --verbose names them all" in lines
    assert calibrate(str(folder), output / "net.table", *FAST, "--verbose") == 0
    lines = capsys.readouterr().err.splitlines()
    assert sum(line.startswith("skipped: ") for line in lines) == 31
    for path in folder.glob("[0-9].png"):
        path.write_bytes(b"damaged")
    assert calibrate(str(folder), output / "net.table") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("int8calib: error: not one of the 37 images could be used; the first: ")


def test_transposed_images(folder: Path, tmp_path: Path) -> None:
    for path in folder.glob("[0-24-6].png"):
        # As large as the demo's input, so that nothing is rounded on the way.
        assert cv2.imwrite(str(path), RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    output = tmp_path / "out"
    output.mkdir()
    more = ("--batch", "3", "--quiet", "--norm", "0.5")
    assert calibrate(str(folder), output / "t.table", *more, "--transpose") == 0
    turned = tmp_path / "turned"
    turned.mkdir()
    for path in folder.glob("[0-24-6].png"):
        assert cv2.imwrite(str(turned / path.name), cv2.transpose(cv2.imread(str(path))))
    assert calibrate(str(turned), output / "u.table", *more) == 0
    assert (output / "t.table").read_text() == (output / "u.table").read_text()
    assert calibrate(str(folder), output / "v.table", *more) == 0
    assert (output / "t.table").read_text() != (output / "v.table").read_text()
    assert "transpose = true" in (output / "t.table.toml").read_text()
    given = json.loads((output / "t.table.json").read_text())["meta"]["arguments"]
    assert given["transpose"] is True


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resize_to": (1, 2, 3), "resize": "crop"}, "--resize-to takes 1 or 2 numbers; found 3"),
        ({"limit": 0}, "--limit 0: expected at least 1"),
        ({"batch": 0}, "--batch 0: expected at least 1"),
    ],
)
def test_options_out_of_range(options: dict[str, object], message: str, folder: Path) -> None:
    with pytest.raises(OptionError, match=message):
        loader(folder, **options)


def test_an_empty_place(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for text in ("", "data="):
        assert calibrate(text, tmp_path / "net.table") == 2
        assert "an empty name stands for no images" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "idle"),
    [
        ([], None),
        (["--limit", "2"], None),
        (["--mean", "104", "117", "123"], "without --mean;"),
        (["--norm", "0.5", "--channel-order", "rgb"], "without --norm, --channel-order;"),
    ],
)
def test_options_of_pixels_mean_nothing_to_arrays_and_a_warning_says_so(
    more: list[str], idle: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, output = tmp_path / "a.npy", tmp_path / "t.table"
    np.save(images, RNG.normal(size=(3, 3, 64, 64)).astype(np.float32))
    model = ["--proto", str(PROTOTXT), "--model", str(CAFFEMODEL)]
    words = ["calibrate", *model, "--images", str(images), "--output", str(output)]
    assert main([*words, *more]) == 0
    told = capsys.readouterr().err
    notes = json.loads((tmp_path / "t.table.json").read_text())["meta"].get("notes", [])
    assert ("arrays are taken as they are" in told) == (idle is not None)
    assert idle is None or idle in told
    assert any(idle in note for note in notes) if idle else not notes


@pytest.mark.parametrize("where", ["images", "other"])
def test_an_input_has_one_place(where: str, folder: Path) -> None:
    net = int8calib.load_caffe(PROTOTXT, CAFFEMODEL)
    given = ImageOptions(images=(f"data={folder}", f"data={where}"))
    with pytest.raises(OptionError, match=f"--images data={where}: input 'data' has .* already"):
        ImageLoader(given, net, ("data",), workers=1)


def test_an_input_has_one_shape() -> None:
    assert parse_input_shapes(("a=1,3,5,7", "b=1,2", "a=1x3x5x7")) == {
        "a": (1, 3, 5, 7),
        "b": (1, 2),
    }
    with pytest.raises(OptionError, match="--input-shape a=1,3,7,5: input 'a' has another shape"):
        parse_input_shapes(("a=1,3,5,7", "a=1,3,7,5"))


def test_a_pattern_that_the_shell_took_is_told(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [str(path) for path in sorted(folder.iterdir())]
    with pytest.raises(SystemExit) as ended:
        main(["calibrate", "--images", *images, "--output", str(tmp_path / "t.table")])
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert "one place of images is expected: put a pattern in quotes (unrecognized" in told
    assert len(told.splitlines()) == 1
