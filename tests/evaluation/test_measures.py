"""Shares, energies and boxes against known values and the formulas written out."""

from __future__ import annotations

import math

import numpy as np
import pytest

from int8calib.evaluation.measures import (
    Share,
    box_overlaps,
    energy,
    format_decibels,
    match_boxes,
    total_boxes,
    total_energy,
)


@pytest.mark.parametrize(
    ("hits", "total", "low", "high"),
    [
        # Newcombe, Statistics in Medicine 17 (1998) 857, table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_intervals_are_the_published_ones(
    hits: int, total: int, low: float, high: float
) -> None:
    found = Share(hits, total).interval
    assert found == pytest.approx((low, high), abs=6e-5)
    mirrored = Share(total - hits, total).interval
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=6e-5)


def test_a_share_of_nothing_says_nothing() -> None:
    assert math.isnan(Share(0, 0).value)
    assert Share(0, 0).interval == (0.0, 1.0)


def test_energies_are_the_formulas() -> None:
    rng = np.random.default_rng(3)
    a = rng.normal(0, 2, (3, 5, 7)).astype(np.float32)
    b = (a + rng.normal(0, 0.1, a.shape)).astype(np.float32)
    found = energy(a, b)
    x, y = a.astype(float), b.astype(float)
    assert found.sqnr == pytest.approx(10 * math.log10((x**2).sum() / ((x - y) ** 2).sum()))
    cosines = [
        np.vdot(p, q) / np.linalg.norm(p) / np.linalg.norm(q) for p, q in zip(x, y, strict=True)
    ]
    assert found.cosine == pytest.approx(np.mean(cosines))
    parts = total_energy([energy(a[:1], b[:1]), energy(a[1:], b[1:])])
    assert parts.sqnr == pytest.approx(found.sqnr)
    assert parts.cosine == pytest.approx(found.cosine)


def test_energies_at_the_ends() -> None:
    zeros, ones = np.zeros((1, 5), np.float32), np.ones((1, 5), np.float32)
    assert energy(ones, ones).sqnr == math.inf
    assert energy(zeros, zeros).cosine == 1.0
    assert energy(zeros, ones).sqnr == -math.inf
    assert energy(zeros, ones).cosine == 0.0


def test_the_kernel_is_the_formulas() -> None:
    from int8calib.evaluation import kernels

    rng = np.random.default_rng(5)
    values, other = (rng.normal(0, 60, 997).astype(np.float32) for _ in range(2))
    x, y = values.astype(float), other.astype(float)
    squares = [x @ x, y @ y, x @ y, (x - y) @ (x - y)]
    for products in (kernels.products, kernels.products.py_func):
        sums = np.zeros(4)
        products(values, other, sums)
        assert sums == pytest.approx(squares, rel=1e-10)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, ""),
        (math.nan, ""),
        (math.inf, "no error"),
        (-math.inf, "no signal"),
        (9.96, "10.0"),
        (-3.04, "-3.0"),
    ],
)
def test_decibels_in_words(value: float | None, shown: str) -> None:
    assert format_decibels(value, 1) == shown


def row(image: int, label: int, score: float, *box: float) -> list[float]:
    return [image, label, score, *box]


EXPECTED = np.array(
    [
        row(0, 1, 0.9, 0.1, 0.1, 0.5, 0.5),
        row(0, 1, 0.8, 0.6, 0.6, 0.9, 0.9),
        row(0, 2, 0.7, 0.1, 0.1, 0.5, 0.5),
        row(1, 1, 0.6, 0.1, 0.1, 0.5, 0.5),
        row(0, 1, 0.1, 0.0, 0.0, 1.0, 1.0),
    ],
    np.float32,
).reshape(1, 1, 5, 7)


@pytest.mark.parametrize(
    ("rows", "matched"),
    [
        (EXPECTED[0, 0], 4),
        ([row(0, 1, 0.9, 0.1, 0.1, 0.5, 0.3)], 1),  # half of it: IoU 0.5
        ([row(0, 1, 0.9, 0.1, 0.1, 0.5, 0.29)], 0),
        ([row(0, 3, 0.9, 0.1, 0.1, 0.5, 0.5)], 0),  # another label
        ([row(2, 1, 0.9, 0.1, 0.1, 0.5, 0.5)], 0),  # another image
        ([row(0, 1, 0.9, 0.1, 0.1, 0.5, 0.5), row(0, 1, 0.8, 0.1, 0.1, 0.5, 0.5)], 1),
        ([row(0, 1, 0.2, 0.1, 0.1, 0.5, 0.5)], 0),  # too low a score
        ([row(-1, 0, 0, 0, 0, 0, 0)], 0),  # nothing found
    ],
)
def test_boxes_match_one_to_one(rows: list[list[float]], matched: int) -> None:
    found = match_boxes(EXPECTED, np.array(rows, np.float32))
    assert found.matched == matched
    assert found.float_boxes == 4


def test_the_limits_of_overlap_and_score_count_themselves() -> None:
    """Binary fractions, so that the overlap is exactly a half: `>` in place of `>=` fails here."""
    whole = np.array([row(0, 1, 0.5, 0.0, 0.0, 1.0, 1.0)], np.float32)
    half = np.array([row(0, 1, 0.5, 0.0, 0.0, 1.0, 0.5)], np.float32)
    assert box_overlaps(whole[:, 3:].astype(float), half[0, 3:].astype(float)) == [0.5]
    assert match_boxes(whole, half, min_iou=0.5).matched == 1
    above = float(np.nextafter(0.5, 1))
    assert match_boxes(whole, half, min_iou=above).matched == 0
    assert match_boxes(whole, half, min_score=0.5) == match_boxes(whole, half)
    nothing = match_boxes(whole, half, min_score=above)
    assert (nothing.float_boxes, nothing.int8_boxes) == (0, 0)


def test_overlaps_are_counted_pixels() -> None:
    """Boxes of whole numbers on a grid: intersection and union are counts of cells."""
    rng = np.random.default_rng(7)
    corners = np.sort(rng.integers(0, 13, (31, 2, 2)), axis=1).reshape(31, 4).astype(float)
    cells = np.zeros((31, 13, 13), bool)
    for box, grid in zip(corners.astype(int), cells, strict=True):
        grid[box[0] : box[2], box[1] : box[3]] = True
    for i, box in enumerate(corners):
        common, union = (cells & cells[i]).sum(axis=(1, 2)), (cells | cells[i]).sum(axis=(1, 2))
        expected = np.divide(common, union, out=np.zeros(31), where=union > 0)
        np.testing.assert_allclose(box_overlaps(corners, box), expected)


def test_box_agreement_counts_both_sides() -> None:
    one = match_boxes(EXPECTED, EXPECTED[:, :, :2])
    assert (one.matched, one.float_boxes, one.int8_boxes) == (2, 4, 2)
    assert one.value == pytest.approx(2 * 2 / 6)
    both = total_boxes([one, match_boxes(EXPECTED, EXPECTED)])
    assert (both.matched, both.float_boxes, both.int8_boxes) == (6, 8, 6)
    nothing = np.array([row(-1, 0, 0, 0, 0, 0, 0)], np.float32)
    assert math.isnan(match_boxes(nothing, nothing).value)
    assert match_boxes(nothing, EXPECTED).value == 0
