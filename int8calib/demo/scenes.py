"""Scenes for the demo's detector: pictures with a few shapes, and the box around each.

All randomness is `Generator(PCG64(seed)).random()`, as in `draw`, so scenes are the same with
every version of numpy.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from int8calib.demo.draw import Image, encode_png
from int8calib.demo.shapes import SHAPES, Doubles

CLASSES: tuple[str, ...] = ("background", "circle", "cross", "ring", "star", "triangle")
"""Names by label; Caffe's detectors keep 0 for the background."""
SIZE = 128
"""Height and width of a scene and of the network's input, in pixels."""
MOST_SHAPES = 4
RADII = (11.0, 26.0)
_TRIES = 40
_LEAST_CONTRAST = 80.0
_ROWS, _COLUMNS = np.meshgrid(np.arange(SIZE) + 0.0, np.arange(SIZE) + 0.0, indexing="ij")


class Truth(NamedTuple):
    """One shape of a scene: its label and its box, corners as parts of the picture."""

    label: int
    box: tuple[float, float, float, float]


def draw_scenes(count: int, seed: int) -> Iterator[tuple[Image, list[Truth]]]:
    """Yield `count` scenes, uint8 (SIZE, SIZE, 3) BGR, each with its shapes.

    The first scenes of a longer run are those of a shorter one. Boxes do not overlap.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    for _ in range(count):
        yield _scene(rng)


def write_scenes(folder: Path, count: int, seed: int) -> list[tuple[Path, list[Truth]]]:
    """Draw scenes into `folder` as `<number>.png`; return paths and shapes, as OSError allows."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for number, (image, truths) in enumerate(draw_scenes(count, seed)):
        path = folder / f"{number:05d}.png"
        path.write_bytes(encode_png(image))
        written.append((path, truths))
    return written


def _scene(rng: np.random.Generator) -> tuple[Image, list[Truth]]:
    first, second = rng.random(3) * 255, rng.random(3) * 255
    second = first + 0.4 * (second - first)
    angle = rng.random() * 2 * np.pi
    along = (_COLUMNS * np.cos(angle) + _ROWS * np.sin(angle)) / SIZE
    canvas: Doubles = first + along[..., None] * (second - first)
    canvas += 14 * np.sin(along * (4 + 36 * rng.random()))[..., None]
    truths: list[Truth] = []
    for _ in range(1 + int(rng.random() * MOST_SHAPES)):
        truth = _shape(canvas, rng, truths)
        if truth is not None:
            truths.append(truth)
    noise = rng.random((3, SIZE, SIZE, 3)).sum(axis=0) - 1.5
    canvas += noise * (4.0 + 36.0 * rng.random())
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8), truths


def _shape(canvas: Doubles, rng: np.random.Generator, others: list[Truth]) -> Truth | None:
    """Paint one shape where it touches no other; None where there is no room."""
    label = 1 + int(rng.random() * (len(CLASSES) - 1))
    style, turn = rng.random(), rng.random() * 2 * np.pi
    for _ in range(_TRIES):
        radius = RADII[0] + (RADII[1] - RADII[0]) * rng.random()
        center = radius + rng.random(2) * (SIZE - 2 * radius)
        x, y = (_COLUMNS - center[0]) / radius, (_ROWS - center[1]) / radius
        cos, sin = np.cos(turn), np.sin(turn)
        turned = SHAPES[CLASSES[label]](x * cos + y * sin, y * cos - x * sin, float(style))
        distance = turned * radius
        box = _box(distance < 0)
        if box is None or any(_touch(box, other.box) for other in others):
            continue
        behind = canvas.mean(axis=(0, 1))
        color = rng.random(3) * 255
        while np.linalg.norm(color - behind) < _LEAST_CONTRAST:
            color = rng.random(3) * 255
        canvas += np.clip(0.5 - distance, 0, 1)[..., None] * (color - canvas)
        return Truth(label, box)
    return None


def _box(inside: npt.NDArray[np.bool_]) -> tuple[float, float, float, float] | None:
    """Left, top, right and bottom of what is inside, as parts of the picture."""
    rows, columns = (np.flatnonzero(inside.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return None
    left, top = int(columns[0]) / SIZE, int(rows[0]) / SIZE
    return left, top, (int(columns[-1]) + 1) / SIZE, (int(rows[-1]) + 1) / SIZE


def _touch(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return min(a[2], b[2]) > max(a[0], b[0]) and min(a[3], b[3]) > max(a[1], b[1])
