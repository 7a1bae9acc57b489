"""The demo's pictures: shapes against OpenCV's rasterizer, PNG files against OpenCV's decoder."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from int8calib.demo.draw import LABELS, SIZE, draw_images, encode_png, write_images
from int8calib.demo.shapes import SHAPES

GRID = 801
STYLES = [0.0, 0.31, 0.77, 0.999]


def unit_grid() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """x and y from -1.25 to 1.25, y down, as in a picture."""
    axis = np.linspace(-1.25, 1.25, GRID)
    return tuple(np.meshgrid(axis, axis))  # type: ignore[return-value]


def inside(label: str, style: float) -> npt.NDArray[np.uint8]:
    return (SHAPES[label](*unit_grid(), style) < 0).astype(np.uint8)


def to_pixels(points: npt.ArrayLike) -> npt.NDArray[np.int32]:
    fraction = (np.asarray(points, np.float64) + 1.25) / 2.5
    return np.rint(fraction * (GRID - 1)).astype(np.int32)


def polygon(points: npt.ArrayLike) -> npt.NDArray[np.uint8]:
    canvas = np.zeros((GRID, GRID), np.uint8)
    cv2.fillPoly(canvas, [to_pixels(points)], 1)
    return canvas


def round_area(radius: float, x: float = 0.0) -> npt.NDArray[np.uint8]:
    turn = np.linspace(0, 2 * np.pi, 400)
    return polygon(np.stack([x + radius * np.cos(turn), radius * np.sin(turn)], axis=1))


def overlap(first: npt.NDArray[np.uint8], second: npt.NDArray[np.uint8]) -> float:
    return float((first & second).sum() / (first | second).sum())


def parts(mask: npt.NDArray[np.uint8]) -> int:
    """Number of 4-connected areas that are more than a speck."""
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
    return int((stats[1:, cv2.CC_STAT_AREA] > 50).sum())


def cross_corners(w: float, a: float) -> list[tuple[float, float]]:
    quarter = [(w, -w), (a, -w), (a, w)]
    return [
        (x * c - y * s, x * s + y * c)
        for c, s in [(1, 0), (0, 1), (-1, 0), (0, -1)]
        for x, y in quarter
    ]


def star_corners(inner: float) -> npt.NDArray[np.float64]:
    turn = np.arange(10) * np.pi / 5
    radius = np.where(np.arange(10) % 2 == 0, 1.0, inner)
    return np.stack([radius * np.cos(turn), radius * np.sin(turn)], axis=1)


def triangle_corners(size: float) -> list[tuple[float, float]]:
    return [(-np.sqrt(3) * size, -size), (np.sqrt(3) * size, -size), (0, 2 * size)]


def square_corners(half: float) -> list[tuple[float, float]]:
    return [(-half, -half), (half, -half), (half, half), (-half, half)]


@pytest.mark.parametrize("style", STYLES)
def test_outlines_are_those_that_opencv_fills(style: float) -> None:
    expected = {
        "circle": round_area(0.8 + 0.1 * style),
        "crescent": round_area(0.9) & ~round_area(0.75, 0.3 + 0.25 * style),
        "cross": polygon(cross_corners(0.17 + 0.15 * style, 0.95)),
        "ring": round_area(0.82 + 0.18 * style) & ~round_area(0.54 - 0.18 * style),
        "square": polygon(square_corners(0.7 + 0.1 * style)),
        "star": polygon(star_corners(0.4 + 0.12 * style)),
        "triangle": polygon(triangle_corners(0.5 + 0.06 * style)),
    }
    for label, mask in expected.items():
        assert overlap(inside(label, style), mask) > 0.97, label


@pytest.mark.parametrize(("style", "fields", "squares"), [(0.2, 4, 9), (0.8, 8, 16)])
def test_a_checker_has_every_second_field_of_its_board(
    style: float, fields: int, squares: int
) -> None:
    mask = inside("checker", style)
    assert parts(mask) == fields
    board = polygon(square_corners(0.75))
    assert (mask & ~board).sum() == 0
    assert mask.sum() / board.sum() == pytest.approx(fields / squares, abs=0.03)


@pytest.mark.parametrize("style", STYLES)
def test_stripes_are_several_and_an_arrow_is_one_part_with_its_tip_ahead(style: float) -> None:
    assert 3 <= parts(inside("stripes", style)) <= 5
    arrow = inside("arrow", style)
    assert parts(arrow) == 1
    columns = np.flatnonzero(arrow.any(axis=0))
    widths = arrow.sum(axis=0)
    head, tail = columns[int(len(columns) * 0.6)], columns[int(len(columns) * 0.1)]
    assert widths[head] > 1.3 * widths[tail]
    assert widths[columns[-1]] < 0.2 * widths[head]


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("style", STYLES)
def test_near_the_edge_the_value_is_a_distance(label: str, style: float) -> None:
    """A distance grows by one per unit of length: antialiasing counts on it."""
    step = 2.5 / (GRID - 1)
    distance = SHAPES[label](*unit_grid(), style)
    slope = np.hypot(*np.gradient(distance, step))
    near = np.abs(distance) < 2 * step
    assert near.sum() > 200
    assert np.median(slope[near]) == pytest.approx(1.0, abs=0.02)


def test_pictures_are_bgr_bytes_of_balanced_classes() -> None:
    drawn = list(draw_images(53, 11))
    assert len(drawn) == 53
    assert all(image.shape == (SIZE, SIZE, 3) and image.dtype == np.uint8 for image, _ in drawn)
    counts = np.bincount([label for _, label in drawn], minlength=len(LABELS))
    assert len(LABELS) == 10
    assert counts.tolist() == [6, 6, 6, 5, 5, 5, 5, 5, 5, 5]
    assert list(LABELS) == sorted(LABELS)


def test_one_seed_gives_one_sequence_whatever_its_length() -> None:
    first = list(draw_images(23, 7))
    again = list(islice(draw_images(1009, 7), 23))
    for (image, label), (same_image, same_label) in zip(first, again, strict=True):
        np.testing.assert_array_equal(image, same_image)
        assert label == same_label
    other = [image for image, _ in draw_images(23, 8)]
    assert not any(np.array_equal(a, b) for (a, _), b in zip(first, other, strict=True))
    images = {image.tobytes() for image, _ in first}
    assert len(images) == 23


def test_pictures_use_the_range_of_values_and_differ_in_channels() -> None:
    stack = np.stack([image for image, _ in draw_images(101, 13)]).astype(np.float64)
    means = stack.mean(axis=(0, 1, 2))
    assert np.all((means > 90) & (means < 165))
    assert stack.min() == 0
    assert stack.max() == 255
    assert np.abs(stack[..., 0] - stack[..., 2]).mean() > 30


@pytest.mark.parametrize("size", [(1, 1), (7, 13), (61, 2)])
def test_opencv_decodes_the_png_to_the_same_array(size: tuple[int, int]) -> None:
    image = np.random.default_rng(5).integers(0, 256, (*size, 3), dtype=np.uint8)
    data = np.frombuffer(encode_png(image), np.uint8)
    np.testing.assert_array_equal(cv2.imdecode(data, cv2.IMREAD_UNCHANGED), image)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((7, 5, 3), np.float32),
        np.zeros((7, 5), np.uint8),
        np.zeros((7, 5, 4), np.uint8),
        np.zeros((0, 5, 3), np.uint8),
    ],
)
def test_what_is_no_bgr_picture_makes_no_png(image: npt.NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match="uint8 array"):
        encode_png(image)


def test_written_files_hold_the_drawn_pictures_under_their_label(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "pictures"
    written = write_images(folder, 17, 3)
    assert sorted(folder.rglob("*.*")) == sorted(path for path, _ in written)
    for (path, label), (image, drawn_label) in zip(written, draw_images(17, 3), strict=True):
        assert label == drawn_label
        assert path.parent == folder / LABELS[label]
        assert path.suffix == ".png"
        np.testing.assert_array_equal(cv2.imread(str(path), cv2.IMREAD_COLOR), image)
