"""Sources and preprocessing come in; NCHW float32 batches go out, in order, decoded ahead."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from int8calib.errors import ImageError, OptionError
from int8calib.images.decode import UnreadableImageError
from int8calib.images.preprocess import Preprocess
from int8calib.images.source import ImageSource

Blob = NDArray[np.float32]
Report = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Batch:
    """Consecutive inputs of a source, the unreadable ones left out.

    `indices` are places in the source, so a run that is resumed after this batch starts at
    `next_start`. `blobs` maps each input blob's name to float32 (N, C, H, W), ready for
    `net.forward`; it belongs to the receiver.
    """

    names: tuple[str, ...]
    indices: tuple[int, ...]
    next_start: int
    blobs: Mapping[str, Blob]

    @property
    def data(self) -> Blob:
        """The array of the first (mostly the only) input blob."""
        return next(iter(self.blobs.values()))

    def __len__(self) -> int:
        """N."""
        return len(self.indices)


def batches(
    source: ImageSource,
    preprocess: Preprocess | Sequence[int],
    batch_size: int = 1,
    *,
    blob: str = "data",
    threads: int = 2,
    start: int = 0,
    report: Report | None = None,
) -> Iterator[Batch]:
    """Batches of one input blob; `batches_of_inputs` tells the rest."""
    inputs = {blob: (source, preprocess)}
    return batches_of_inputs(inputs, batch_size, threads=threads, start=start, report=report)


def batches_of_inputs(
    inputs: Mapping[str, tuple[ImageSource, Preprocess | Sequence[int]]],
    batch_size: int = 1,
    *,
    threads: int = 2,
    start: int = 0,
    report: Report | None = None,
) -> Iterator[Batch]:
    """Batches of a net with several inputs: item i of every source goes in together.

    inputs
        Per input blob its source, and its `Preprocess` or, for arrays that are preprocessed
        already, just the shape of one item, such as (C, H, W).
    batch_size
        Items per batch; fewer at the end, and where an item is unreadable.
    threads
        How many threads decode ahead of the receiver. What waits is bounded: two batches, or
        as many as keep all threads busy.
    start
        The first item to read; the ones before it were dealt with earlier.
    report
        Called with one line, in the receiver's thread and in order, for every item that is
        skipped because it cannot be read. Without it the line becomes a UserWarning.

    The order is that of the sources, whatever the number of threads.
    Raises OptionError for numbers out of range; ImageError where sources differ in length, where
    a source does not give what the blob takes, where OpenCV is missing, and at the end where
    not a single item could be read.
    """
    if not inputs:
        raise OptionError("no input blob is given any images")
    if batch_size < 1 or threads < 1:
        raise OptionError(f"batch size {batch_size} and threads {threads}: both must be positive")
    batches = [_batch(name, *given) for name, given in inputs.items()]
    first = batches[0]
    for batch in batches[1:]:
        if len(batch.source) != len(first.source):
            raise ImageError(
                f"input {first.blob} has {len(first.source)} items, input {batch.blob} has "
                f"{len(batch.source)}; a net with several inputs needs as many of each"
            )
    if not 0 <= start <= len(first.source):
        raise OptionError(f"cannot start at {start}: there are {len(first.source)} items")
    return _run(batches, batch_size, threads, start, report or _warn)


class _Batch(NamedTuple):
    """One input blob and where its values come from."""

    blob: str
    source: ImageSource
    shape: tuple[int, ...]
    preprocess: Preprocess | None

    def fill(self, index: int, out: Blob) -> None:
        """Write item `index` into `out`, of shape `self.shape`."""
        if self.preprocess is None or self.source.preprocessed:
            array = self.source.load(index)
            if array.shape != self.shape:
                raise ImageError(
                    f"{self.source.names[index]}: has the shape {array.shape}, input "
                    f"{self.blob} takes {self.shape}"
                )
            out[...] = array
            return
        reduction = self.preprocess.reduction if self.preprocess.reduced_jpeg else None
        image = self.source.load(index, gray=self.preprocess.gray, reduction=reduction)
        try:
            self.preprocess(image, out)
        except UnreadableImageError as error:
            raise UnreadableImageError(f"{self.source.names[index]}: {error}") from error


def _batch(blob: str, source: ImageSource, preprocess: Preprocess | Sequence[int]) -> _Batch:
    if isinstance(preprocess, Preprocess):
        return _Batch(blob, source, preprocess.shape, preprocess)
    shape = tuple(int(size) for size in preprocess)
    if not source.preprocessed:
        raise ImageError(
            f"input {blob} of shape {shape} is given images without saying how they are "
            "preprocessed; supply that, or .npy arrays"
        )
    return _Batch(blob, source, shape, None)


class _Pending(NamedTuple):
    """A batch that threads are filling."""

    indices: range
    blobs: dict[str, Blob]
    filled: list[Future[UnreadableImageError | None]]


def _run(
    batches: list[_Batch], batch_size: int, threads: int, start: int, report: Report
) -> Iterator[Batch]:
    source = batches[0].source
    total = len(source)
    given, failures = 0, 0
    pool = ThreadPoolExecutor(threads, thread_name_prefix="int8calib-images")
    try:
        submitted = (
            _submit(pool, batches, range(begin, min(begin + batch_size, total)))
            for begin in range(start, total, batch_size)
        )
        # Taking one from the generator sets the threads to work on it.
        waiting = deque(islice(submitted, max(2, -(-threads // batch_size))))
        while waiting:
            batch, unreadable = _finish(source, waiting.popleft(), report)
            waiting.extend(islice(submitted, 1))
            given += len(batch)
            failures += unreadable
            if len(batch):
                yield batch
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    if failures and not given and start == 0:
        raise ImageError(f"not one of the {failures} images could be read")


def _submit(pool: ThreadPoolExecutor, batches: list[_Batch], indices: range) -> _Pending:
    blobs = {batch.blob: np.empty((len(indices), *batch.shape), np.float32) for batch in batches}
    filled = [
        pool.submit(_fill, batches, index, {name: blob[slot] for name, blob in blobs.items()})
        for slot, index in enumerate(indices)
    ]
    return _Pending(indices, blobs, filled)


def _fill(
    batches: list[_Batch], index: int, slots: Mapping[str, Any]
) -> UnreadableImageError | None:
    """Fill one slot of every input's batch; the reason where the item cannot be read."""
    try:
        for batch in batches:
            batch.fill(index, slots[batch.blob])
    except UnreadableImageError as error:
        return error
    return None


def _finish(source: ImageSource, pending: _Pending, report: Report) -> tuple[Batch, int]:
    """Wait until a batch is full, close the gaps; the batch, and how many items were skipped."""
    readable = []
    for slot, future in enumerate(pending.filled):
        error = future.result()
        if error is None:
            readable.append(slot)
        else:
            report(f"skipped: {error}")
    blobs = pending.blobs
    if len(readable) < len(pending.filled):
        blobs = {name: blob[readable] for name, blob in blobs.items()}
    indices = tuple(pending.indices[slot] for slot in readable)
    names = tuple(source.names[index] for index in indices)
    batch = Batch(names, indices, pending.indices.stop, blobs)
    return batch, len(pending.filled) - len(readable)


def _warn(line: str) -> None:
    warnings.warn(line, UserWarning, stacklevel=3)
