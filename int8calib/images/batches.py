"""Batches of preprocessed inputs, in the order of their sources, decoded ahead by threads."""

from __future__ import annotations

import warnings
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np

from int8calib.arrays import Array, Shape
from int8calib.errors import ImageError, OptionError, ShapeError, UnreadableImageError
from int8calib.images.preprocess import Preprocess
from int8calib.images.source import ImageSource
from int8calib.limits import MAX_AHEAD_BYTES

Report: TypeAlias = Callable[[str], None]
ShapeCheck: TypeAlias = Callable[[Mapping[str, Shape]], None]


@dataclass(frozen=True, eq=False)
class Batch:
    """Consecutive inputs of a source that have one size, the unreadable ones left out.

    Attributes
    ----------
    names
        What each of the N inputs is called.
    indices
        Their places in the source.
    next_start
        Where a run that is resumed after this batch starts.
    blobs
        Each input blob's array by name, float32 (N, C, H, W), ready for `net.forward`; it belongs
        to the receiver.
    checksums
        A CRC-32 of each input over the values of all its blobs, in the order of the blobs' names.
    """

    names: tuple[str, ...]
    indices: tuple[int, ...]
    next_start: int
    blobs: Mapping[str, Array]
    checksums: tuple[int, ...] = ()

    @property
    def data(self) -> Array:
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
    """Start a pass over the batches of one input blob; see `batches_of_inputs`."""
    inputs = {blob: (source, preprocess)}
    return batches_of_inputs(inputs, batch_size, threads=threads, start=start, report=report)


def batches_of_inputs(
    inputs: Mapping[str, tuple[ImageSource, Preprocess | Sequence[int]]],
    batch_size: int = 1,
    *,
    threads: int = 2,
    start: int = 0,
    report: Report | None = None,
    check_shapes: ShapeCheck | None = None,
) -> Iterator[Batch]:
    """Start a pass over the batches of a net with several inputs: item i of each goes in together.

    Parameters
    ----------
    inputs
        Per input blob its source, and its `Preprocess` or, for arrays that are preprocessed
        already, just the shape of one item, such as (C, H, W), with -1 for a size that may differ
        from item to item.
    batch_size
        Items per batch. A batch has fewer at the end, where an item is unreadable, and where the
        next item has another size.
    threads
        How many threads decode ahead of the receiver. What waits is bounded: two batches, or
        as many as keep all threads busy, of at most `MAX_AHEAD_BYTES` of `int8calib.limits`.
    start
        The first item to read; the ones before it were dealt with earlier.
    report
        Called with one line, in the receiver's thread and in order, for every item that is
        skipped because it cannot be used. Without it the line becomes a UserWarning.
    check_shapes
        Called once for each new combination of item shapes, by input blob; items for which it
        raises ShapeError are skipped.

    Returns
    -------
    Iterator[Batch]
        In the order of the sources, whatever the number of threads.

    Raises
    ------
    OptionError
        For numbers out of range.
    ImageError
        Where sources differ in length, where a source does not give what the blob takes, where
        OpenCV is missing, and at the end where not a single item could be used.
    """
    if not inputs:
        raise OptionError("no input blob is given any images")
    if batch_size < 1 or threads < 1:
        raise OptionError(f"batch size {batch_size} and threads {threads}: both must be positive")
    opened = [_input(name, *given) for name, given in inputs.items()]
    first = opened[0]
    for other in opened[1:]:
        if len(other.source) != len(first.source):
            raise ImageError(
                f"input {first.blob} has {len(first.source)} items, input {other.blob} has "
                f"{len(other.source)}; a net with several inputs needs as many of each"
            )
    if not 0 <= start <= len(first.source):
        raise OptionError(f"cannot start at {start}: there are {len(first.source)} items")
    items = _Items(opened, batch_size, threads, start, report or _warn, check_shapes)
    return _grouped(items, first.source, batch_size, start)


class _Input(NamedTuple):
    """One input blob and where its values come from."""

    blob: str
    source: ImageSource
    shape: Shape
    preprocess: Preprocess | None

    def load(self, index: int) -> Array:
        """The values of item `index`; raises UnreadableImageError."""
        name = self.source.names[index]
        if self.preprocess is None or self.source.preprocessed:
            array: Array = self.source.load(index)
            if not _fits(array.shape, self.shape):
                raise ImageError(
                    f"{name}: has the shape {array.shape}, input {self.blob} takes {self.shape}"
                    + (" (-1: any size)" if -1 in self.shape else "")
                )
            return array
        reduction = self.preprocess.reduction if self.preprocess.reduced_jpeg else None
        image = self.source.load(index, gray=self.preprocess.gray, reduction=reduction)
        try:
            return self.preprocess(image)
        except UnreadableImageError as error:
            raise UnreadableImageError(f"{name}: {error}") from error


def _fits(shape: Shape, wanted: Shape) -> bool:
    """Whether an array has the wanted shape, where -1 allows any size."""
    return len(shape) == len(wanted) and all(
        size == want or (want < 0 and size > 0) for size, want in zip(shape, wanted, strict=True)
    )


def _input(blob: str, source: ImageSource, preprocess: Preprocess | Sequence[int]) -> _Input:
    if isinstance(preprocess, Preprocess):
        return _Input(blob, source, preprocess.shape, preprocess)
    shape = tuple(int(size) for size in preprocess)
    if not source.preprocessed:
        raise ImageError(
            f"input {blob} of shape {shape} is given images without saying how they are "
            "preprocessed; supply that, or .npy arrays"
        )
    return _Input(blob, source, shape, None)


class _Item(NamedTuple):
    """One item of all inputs, and the checksum of its values."""

    arrays: Mapping[str, Array]
    checksum: int

    @property
    def shapes(self) -> dict[str, Shape]:
        return {name: array.shape for name, array in self.arrays.items()}


def _load(inputs: Sequence[_Input], index: int) -> _Item | UnreadableImageError:
    """Item `index` of every input, or the reason where it cannot be used."""
    try:
        arrays = {each.blob: np.ascontiguousarray(each.load(index)) for each in inputs}
    except UnreadableImageError as error:
        return error
    checksum = 0
    for name in sorted(arrays):
        checksum = zlib.crc32(arrays[name].data, checksum)
    return _Item(arrays, checksum)


class _Items:
    """The items of all inputs, in order, while threads work ahead."""

    def __init__(
        self,
        inputs: Sequence[_Input],
        batch_size: int,
        threads: int,
        start: int,
        report: Report,
        check_shapes: ShapeCheck | None,
    ) -> None:
        self._inputs = inputs
        self._names = inputs[0].source.names
        self._threads = threads
        self._ahead = max(2 * batch_size, threads)
        self._start = start
        self._report = report
        self._check_shapes = check_shapes
        self._checked: dict[tuple[tuple[str, Shape], ...], str] = {}

    def run(self) -> Generator[tuple[int, _Item | None], None, None]:
        """Every index with its item, None where that cannot be used."""
        to_do = iter(range(self._start, len(self._names)))
        waiting: deque[tuple[int, Future[_Item | UnreadableImageError]]] = deque()
        largest, given, skipped, reason = 0, 0, 0, ""
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="int8calib-images")
        try:
            while True:
                # Before the first one is there, nobody knows how large they are.
                fitting = MAX_AHEAD_BYTES // largest if largest else self._threads
                room = max(1, min(self._ahead, fitting))
                while len(waiting) < room and (index := next(to_do, None)) is not None:
                    waiting.append((index, pool.submit(_load, self._inputs, index)))
                if not waiting:
                    break
                index, future = waiting.popleft()
                item = self._usable(index, future.result())
                if isinstance(item, _Item):
                    given += 1
                    largest = max(largest, sum(array.nbytes for array in item.arrays.values()))
                    yield index, item
                else:
                    skipped += 1
                    reason = reason or str(item)
                    self._report(f"skipped: {item}")
                    yield index, None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        if skipped and not given and self._start == 0:
            raise ImageError(f"not one of the {skipped} images could be used; the first: {reason}")

    def _usable(
        self, index: int, item: _Item | UnreadableImageError
    ) -> _Item | UnreadableImageError:
        """The item, if the network takes its size."""
        if self._check_shapes is None or not isinstance(item, _Item):
            return item
        key = tuple(item.shapes.items())
        if key not in self._checked:
            try:
                self._check_shapes(item.shapes)
                self._checked[key] = ""
            except ShapeError as error:
                self._checked[key] = str(error)
        if not self._checked[key]:
            return item
        sizes = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in key)
        return UnreadableImageError(
            f"{self._names[index]}: the network does not take its size ({sizes}): "
            f"{self._checked[key]}"
        )


def _grouped(items: _Items, source: ImageSource, batch_size: int, start: int) -> Iterator[Batch]:
    """Batches of consecutive items of one size.

    Batch boundaries lie at multiples of `batch_size` from `start`, so that an item that becomes
    unreadable moves no other into another batch.
    """
    group: list[tuple[int, _Item]] = []
    with closing(items.run()) as stream:
        for index, item in stream:
            if item is not None:
                if group and item.shapes != group[0][1].shapes:
                    yield _stacked(group, source, index)
                    group = []
                group.append((index, item))
            done = index + 1
            if group and ((done - start) % batch_size == 0 or done == len(source)):
                yield _stacked(group, source, done)
                group = []


def _stacked(group: Sequence[tuple[int, _Item]], source: ImageSource, next_start: int) -> Batch:
    blobs = {
        name: array[None] if len(group) == 1 else np.stack([item.arrays[name] for _, item in group])
        for name, array in group[0][1].arrays.items()
    }
    indices = tuple(index for index, _ in group)
    names = tuple(source.names[index] for index in indices)
    return Batch(names, indices, next_start, blobs, tuple(item.checksum for _, item in group))


def _warn(line: str) -> None:
    warnings.warn(line, UserWarning, stacklevel=3)
