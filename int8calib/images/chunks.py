"""Chunks of images, which the workers of a cluster read in place of one machine."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from int8calib.arrays import Shape
from int8calib.cluster.connect import this_worker, unreadable
from int8calib.errors import ImageError
from int8calib.files import file_mode
from int8calib.images.batches import Batch, Report, ShapeCheck, batches_of_inputs
from int8calib.images.decode import quiet_opencv
from int8calib.images.preprocess import Preprocess
from int8calib.images.source import ImageSource

Inputs = Mapping[str, tuple[ImageSource, Preprocess | Shape]]

MAX_SENT_FILES = 16
"""Images of a chunk that holds their files."""


@dataclass(frozen=True, eq=False)
class ImageChunk:
    """Consecutive images by path, or arrays, and how they become batches.

    Attributes
    ----------
    inputs
        As for `batches_of_inputs`.
    batch
        Images per batch.
    """

    inputs: Inputs
    batch: int

    def batches(self, check_shapes: ShapeCheck, report: Report) -> Iterator[Batch]:
        """Read the images; as `batches_of_inputs`, but a chunk may have none that can be used.

        Raises `ImageError` for a file to which this machine has no access.
        """
        quiet_opencv()
        sources = [source for source, _ in self.inputs.values()]
        for source in sources:
            # Asked here, as threads that decode do not know whose they are.
            source.no_access = partial(unreadable, this_worker())
            _check_access(source)
        skipped = 0

        def count(line: str) -> None:
            nonlocal skipped
            skipped += 1
            report(line)

        try:
            yield from batches_of_inputs(
                self.inputs, self.batch, threads=1, report=count, check_shapes=check_shapes
            )
        except ImageError:
            if skipped < len(sources[0]):
                raise  # else other chunks may have images that can be used


def divided(inputs: Inputs, batch: int, images: int, *, send: bool = False) -> Iterator[ImageChunk]:
    """Yield chunks of at least so many images, in the same batches as without chunks.

    `send`: with the files themselves, of at most `MAX_SENT_FILES` images at a time.
    """
    images = min(images, MAX_SENT_FILES) if send else images
    size = -(-images // batch) * batch
    count = min(len(source) for source, _ in inputs.values())
    for start in range(0, count, size):
        stop = min(start + size, count)
        parts = {
            name: (source.part(start, stop, send=send), how)
            for name, (source, how) in inputs.items()
        }
        yield ImageChunk(parts, batch)


def _check_access(source: ImageSource) -> None:
    for path in source.files():
        try:
            file_mode(path)
        except OSError as error:
            raise source.no_access(str(path), error.strerror or str(error)) from None
        if not os.access(path, os.R_OK):
            raise source.no_access(str(path), "no permission")
