"""The pictures of the demo, drawn from a count and a seed: labeled arrays, or PNG files.

One picture shows one of ten shapes at a random place, size and angle, in random colors, on an
uneven background, with smaller marks around or on it, and with noise. Some are hard on purpose:
a network that is right every time would not show what INT8 costs.

All randomness is `Generator(PCG64(seed)).random()`. The other methods of a numpy generator may
change their stream between numpy versions; so this module draws from this one only.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from int8calib.demo.shapes import SHAPES, Doubles, box, disc

__all__ = ["LABELS", "SIZE", "Image", "draw_images", "encode_png", "write_images"]

Image = npt.NDArray[np.uint8]

LABELS: tuple[str, ...] = tuple(SHAPES)
"""Names of the classes; a label index is a position in here and in the network's output."""

SIZE = 64
"""Height and width of a picture and of the network's input, in pixels."""

# Pixel centers, shared by all pictures.
_ROWS, _COLUMNS = np.meshgrid(
    np.arange(SIZE, dtype=np.float64), np.arange(SIZE, dtype=np.float64), indexing="ij"
)


def draw_images(count: int, seed: int) -> Iterator[tuple[Image, int]]:
    """Yield `count` pictures, each with its label index.

    A picture is uint8, (SIZE, SIZE, 3), BGR. Labels go round in the order of `LABELS`, so classes
    are balanced. The first pictures of a longer run are those of a shorter one.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    for number in range(count):
        label = number % len(LABELS)
        yield _picture(rng, LABELS[label]), label


def write_images(folder: Path, count: int, seed: int) -> list[tuple[Path, int]]:
    """Draw `count` pictures into `folder` as `<label>/<number>.png`; return paths and labels.

    Folders are made as needed; files of the same name are replaced. Raises OSError as usual.
    """
    written: list[tuple[Path, int]] = []
    for number, (image, label) in enumerate(draw_images(count, seed)):
        path = folder / LABELS[label] / f"{number:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(image))
        written.append((path, label))
    return written


def encode_png(image: Image) -> bytes:
    """The bytes of an 8-bit RGB PNG file that shows `image`, a uint8 (H, W, 3) BGR array.

    Format: PNG specification (W3C, third edition), sections 5 and 9; every row has filter 0.
    Raises ValueError for another dtype or shape.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(
            f"a PNG is made from a uint8 array (H, W, 3), not {image.dtype} {image.shape}"
        )
    height, width, _ = image.shape
    rows = np.zeros((height, 1 + 3 * width), np.uint8)
    rows[:, 1:] = image[:, :, ::-1].reshape(height, 3 * width)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes())), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def _picture(rng: np.random.Generator, label: str) -> Image:
    canvas = _background(rng)
    for _ in range(_pick(rng, 4)):
        _mark(canvas, rng)

    radius = _between(rng, 9.0, 25.0)
    center = SIZE / 2 + (rng.random(2) - 0.5) * (SIZE - 2 * radius)
    x, y = _local(rng, center, radius, squeeze=_between(rng, 0.72, 1.0))
    distance = SHAPES[label](x, y, float(rng.random())) * radius
    behind = canvas.mean(axis=(0, 1))
    _paint(canvas, distance, _color_away_from(rng, behind))

    for _ in range(_pick(rng, 3)):
        _mark(canvas, rng)
    if rng.random() < 0.4:
        canvas = _blurred(canvas)
    # Three uniform numbers added up are near enough to a normal one, of deviation 0.5.
    noise: Doubles = rng.random((3, SIZE, SIZE, 3)).sum(axis=0) - 1.5
    canvas += noise * 2.0 * _between(rng, 2.0, 28.0)
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)


def _background(rng: np.random.Generator) -> Doubles:
    """A (SIZE, SIZE, 3) ramp between two colors, with a wave or a grid of patches on it."""
    first, second = _color(rng), _color(rng)
    second = first + (second - first) * 0.45
    angle = _between(rng, 0.0, 2 * np.pi)
    along: Doubles = (_COLUMNS * np.cos(angle) + _ROWS * np.sin(angle)) / SIZE
    texture: Doubles = np.zeros((SIZE, SIZE))
    kind = _pick(rng, 3)
    if kind == 1:
        waves = _between(rng, 4.0, 40.0)
        texture = np.sin(along * waves + _between(rng, 0.0, 2 * np.pi))
    elif kind == 2:
        cell = 4 * 2 ** _pick(rng, 3)
        patches = rng.random((SIZE // cell, SIZE // cell)) * 2.0 - 1.0
        texture = patches.repeat(cell, axis=0).repeat(cell, axis=1)
    strength = _between(rng, 4.0, 28.0)
    ramp: Doubles = first + along[..., None] * (second - first)
    return ramp + strength * texture[..., None]


def _mark(canvas: Doubles, rng: np.random.Generator) -> None:
    """Paint a dot, a speck or a line of any color somewhere: smaller than every shape."""
    center = rng.random(2) * SIZE
    x, y = _local(rng, center, 1.0, squeeze=1.0)
    kind, size = _pick(rng, 3), _between(rng, 1.0, 4.0)
    if kind == 0:
        distance = disc(x, y, size)
    elif kind == 1:
        distance = box(x, y, size, size * 0.6)
    else:
        distance = box(x, y, size * 6.0, size * 0.35)
    _paint(canvas, distance, _color(rng))


def _local(
    rng: np.random.Generator, center: Doubles, radius: float, squeeze: float
) -> tuple[Doubles, Doubles]:
    """Pixel centers in the turned frame of a shape at `center`, where `radius` pixels are 1."""
    angle = _between(rng, 0.0, 2 * np.pi)
    x, y = (_COLUMNS - center[0]) / radius, (_ROWS - center[1]) / radius
    cos, sin = np.cos(angle), np.sin(angle)
    return x * cos + y * sin, (y * cos - x * sin) / squeeze


def _paint(canvas: Doubles, distance: Doubles, color: Doubles) -> None:
    """Put `color` where `distance` (pixels) is negative; the edge is one pixel soft."""
    cover = np.clip(0.5 - distance, 0.0, 1.0)[..., None]
    canvas += cover * (color - canvas)


def _blurred(canvas: Doubles) -> Doubles:
    """Mean of each pixel and its right and lower neighbors; the last row and column repeat."""
    padded = np.pad(canvas, ((0, 1), (0, 1), (0, 0)), mode="edge")
    return (padded[:-1, :-1] + padded[1:, :-1] + padded[:-1, 1:] + padded[1:, 1:]) / 4.0


def _color_away_from(rng: np.random.Generator, other: Doubles) -> Doubles:
    """A random color whose Euclidean distance to `other` is at least 60 levels."""
    while True:
        color = _color(rng)
        if float(np.linalg.norm(color - other)) >= 60.0:
            return color


def _color(rng: np.random.Generator) -> Doubles:
    return rng.random(3) * 255.0


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(rng.random())


def _pick(rng: np.random.Generator, count: int) -> int:
    """A whole number from 0 to count - 1."""
    return int(rng.random() * count)
