"""How much is measured: sizes of the full run, of a quick one, and of the guard."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Sizes of every part.

    images, rounds
        images of a whole calibration, and how often each measurement is repeated.
    forwards, seconds
        the least forward passes of one measurement, and the least time it takes: a passing
        disturbance shall not be all that it sees.
    many_images
        the longer run that must not need more memory.
    growth_images, growth_sizes, size_images, growth_rounds
        image counts, input sizes in pixels, the images at each size, and repetitions.
    slow_images, slow_blobs
        images and blobs of the slow Python contenders, whose times are then extrapolated.
    starts
        repetitions of each start-up time.
    tool_images
        beside ncnn2table: the number of images, and of rounds with it.
    """

    images: int = 100
    rounds: int = 5
    forwards: int = 10
    seconds: float = 0.7
    many_images: int = 1000
    growth_images: tuple[int, ...] = (50, 100, 200, 300)
    growth_sizes: tuple[int, ...] = (128, 192, 256, 320, 384, 448, 512)
    size_images: int = 30
    growth_rounds: int = 2
    slow_images: int = 10
    slow_blobs: int = 4
    starts: int = 5
    tool_images: tuple[tuple[int, int], ...] = ((100, 3), (300, 2), (1000, 1))


FULL = Settings()
QUICK = Settings(
    images=8,
    rounds=1,
    forwards=2,
    seconds=0.0,
    many_images=16,
    growth_images=(4, 8),
    growth_sizes=(128, 192),
    size_images=4,
    growth_rounds=1,
    slow_images=2,
    slow_blobs=1,
    starts=1,
    tool_images=((4, 1),),
)
