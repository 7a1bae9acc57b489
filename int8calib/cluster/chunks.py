"""Chunks of the images of a loader, one for each task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from int8calib.workers import float_batch, start_pass

Tell = Callable[[str], None]
"""Hears a line on an image that was skipped."""
Read = Callable[[Any, Any, Tell], Iterable[Any]]
"""Called on a worker as `read(chunk, network, tell)`: the batches of a chunk."""

MIN_CHUNK_IMAGES, MAX_CHUNK_IMAGES = 64, 512
"""A chunk costs what some images cost; an eighth of a thread's share lies between, or a share."""
MAX_SENT_BYTES = 4 << 20
"""Images of a chunk whose values are sent."""


class DivisibleLoader(Protocol):
    """A loader whose images the workers read, in chunks.

    Other loaders are read here, and their batches are sent.
    """

    def divide(self, images: int) -> Iterator[Any]:
        """Yield chunks of about so many images, which travel."""

    def reader(self) -> Read:
        """Return what reads a chunk; it travels once to each worker."""

    def hear(self, lines: Iterable[str]) -> None:
        """Take the lines on images that were skipped, in their order."""

    def __len__(self) -> int:
        """How many images there are."""


def reader_of(loader: Any) -> Read:
    """Return what reads a chunk of a loader on a worker."""
    return loader.reader() if hasattr(loader, "divide") else read_sent


def chunks_of(loader: Any, threads: int) -> Iterator[Any]:
    """Return the chunks of a loader for so many threads.

    Their size changes no result: large ones move fewer bytes, many small ones share out the work.
    """
    if not hasattr(loader, "divide"):
        return _sent(loader)
    share = -(-len(loader) // threads)
    images = max(min(share, MIN_CHUNK_IMAGES), min(-(-share // 8), MAX_CHUNK_IMAGES), 1)
    chunks: Iterator[Any] = loader.divide(images)
    return chunks


def _sent(loader: Any) -> Iterator[list[Any]]:
    """Batches of a loader, as many together as are sent at a time."""
    group: list[Any] = []
    size = 0
    for given in start_pass(loader):
        batch = given if isinstance(given, tuple) else float_batch(given)
        arrays = batch[0] if isinstance(batch, tuple) else batch
        nbytes = sum(getattr(array, "nbytes", 0) for array in arrays.values())
        if group and size + nbytes > MAX_SENT_BYTES:
            yield group
            group, size = [], 0
        group.append(batch)
        size += nbytes
    if group:
        yield group


def read_sent(chunk: list[Any], network: Any, tell: Tell) -> Iterable[Any]:
    """Return the batches of a chunk that was sent whole."""
    return chunk


def hear(loader: Any, lines: Iterable[str]) -> None:
    """Tell a loader that takes it what was skipped."""
    if hasattr(loader, "hear"):
        loader.hear(lines)
