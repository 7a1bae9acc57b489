"""Calibration inputs as an ordered sequence that is loaded one by one, from files or an array."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from int8calib.errors import ImageError, OptionError, UnreadableImageError
from int8calib.files import read_bounded
from int8calib.images.arrays import NpyFile, check_dtype, numbers, open_npy, read_npz
from int8calib.images.decode import Reduction, decode_image, read_image
from int8calib.images.find import Entry, find_inputs
from int8calib.limits import MAX_IMAGE_BYTES, MAX_INPUTS
from int8calib.urls import read_url, reason_of


class ImageSource(ABC):
    """Calibration inputs by number; nothing is read before `load`.

    Attributes
    ----------
    names
        What each one is called in messages.
    skipped
        How many files were passed over because they are neither images nor arrays.
    problems
        One line for each folder that could not be looked into.
    damage
        What is wrong with files that were decoded in part only, by name; known once they are read.
    no_access
        Makes the error for a URL that cannot be read, from it and the reason.
    preprocessed
        True where `load` gives blobs ready for the network, False where it gives images.
    """

    preprocessed: bool

    def __init__(
        self, names: Sequence[str], skipped: int = 0, problems: Sequence[str] = ()
    ) -> None:
        """Hold what every source knows."""
        self.names = tuple(names)
        self.skipped = skipped
        self.problems = tuple(problems)
        self.damage: dict[str, str] = {}
        self.no_access: Callable[[str, str], ImageError] = _no_access

    def __len__(self) -> int:
        """The number of inputs, readable or not."""
        return len(self.names)

    @abstractmethod
    def load(
        self, index: int, *, gray: bool = False, reduction: Reduction | None = None
    ) -> NDArray[Any]:
        """Read input `index`: an image, uint8 (H, W, 3) BGR or (H, W), or a float32 blob.

        `gray` and `reduction` say how an image is decoded (see `read_image`); arrays ignore
        them. Safe to call from several threads. Raises UnreadableImageError where this one
        cannot be read, ImageError where none can.
        """

    def part(self, start: int, stop: int, *, send: bool = False) -> ImageSource:
        """Return the inputs from `start` to before `stop`, for another process or machine.

        Files go by absolute path or, with `send`, with what they hold; arrays in memory travel.
        A source that cannot be parted raises ImageError.
        """
        raise ImageError(f"{type(self).__name__}: cannot be parted, so it stays on one machine")

    def files(self) -> Sequence[Path]:
        """Return the files that `load` opens; those that were missing from the first left out."""
        return ()


def _no_access(url: str, reason: str) -> ImageError:
    return ImageError(f"{url}: cannot be read: {reason}")


class _ImageFiles(ImageSource):
    """One image file per input."""

    preprocessed = False

    def __init__(self, entries: Sequence[Entry], skipped: int, problems: Sequence[str]) -> None:
        super().__init__([entry.name for entry in entries], skipped, problems)
        self._entries = entries

    def load(
        self, index: int, *, gray: bool = False, reduction: Reduction | None = None
    ) -> NDArray[np.uint8]:
        entry = self._entries[index]
        if entry.missing:
            raise UnreadableImageError(entry.missing)
        told = partial(self.damage.__setitem__, entry.name)
        if entry.url:
            return _decoded(entry.url, _fetched(entry.url, self.no_access), gray, reduction, told)
        return read_image(entry.path, gray=gray, reduction=reduction, damage=told)

    def part(self, start: int, stop: int, *, send: bool = False) -> ImageSource:
        if send:
            return _SentFiles([_sent(entry) for entry in self._entries[start:stop]])
        entries = [
            entry if entry.url else entry._replace(path=entry.path.absolute())
            for entry in self._entries[start:stop]
        ]
        return _ImageFiles(entries, 0, ())

    def files(self) -> Sequence[Path]:
        return [entry.path for entry in self._entries if not entry.missing and not entry.url]


class _SentFiles(ImageSource):
    """What image files hold, read elsewhere."""

    preprocessed = False

    def __init__(self, files: Sequence[_Sent]) -> None:
        super().__init__([file.name for file in files])
        self._files = files

    def load(
        self, index: int, *, gray: bool = False, reduction: Reduction | None = None
    ) -> NDArray[np.uint8]:
        name, where, data = self._files[index]
        if isinstance(data, str):
            raise UnreadableImageError(data)
        told = partial(self.damage.__setitem__, name)
        return _decoded(where, data, gray, reduction, told)

    def part(self, start: int, stop: int, *, send: bool = False) -> _SentFiles:
        return _SentFiles(self._files[start:stop])


class _Sent(NamedTuple):
    """What one image file holds, or the message that says why it cannot be read."""

    name: str
    path: str
    data: bytes | str


def _decoded(
    where: str,
    data: bytes,
    gray: bool,
    reduction: Reduction | None,
    told: Callable[[str], None],
) -> NDArray[np.uint8]:
    try:
        return decode_image(data, gray=gray, reduction=reduction, damage=told)
    except UnreadableImageError as error:
        raise UnreadableImageError(f"{where}: {error}") from error


def _fetched(url: str, no_access: Callable[[str, str], ImageError] = _no_access) -> bytes:
    try:
        return read_url(url, MAX_IMAGE_BYTES)
    except OSError as error:
        raise no_access(url, reason_of(error)) from error


def _sent(entry: Entry) -> _Sent:
    if entry.url:
        return _Sent(entry.name, entry.url, _fetched(entry.url))
    if entry.missing:
        return _Sent(entry.name, str(entry.path), entry.missing)
    try:
        data: bytes | str = read_bounded(entry.path, MAX_IMAGE_BYTES)
    except OSError as error:
        data = f"{entry.path}: cannot be read: {error.strerror or type(error).__name__}"
    return _Sent(entry.name, str(entry.path), data)


class _Item(NamedTuple):
    """One blob: a whole array or one row of it, or the message that says why there is none."""

    name: str
    array: NDArray[Any] | NpyFile | str
    row: int | None


class _Arrays(ImageSource):
    """Blobs that are preprocessed already."""

    preprocessed = True

    def __init__(
        self, items: Sequence[_Item], skipped: int = 0, problems: Sequence[str] = ()
    ) -> None:
        super().__init__([item.name for item in items], skipped, problems)
        self._items = items

    def load(
        self, index: int, *, gray: bool = False, reduction: Reduction | None = None
    ) -> NDArray[np.float32]:
        name, array, row = self._items[index]
        if isinstance(array, str):
            raise UnreadableImageError(array)
        if isinstance(array, NpyFile):
            return numbers(name, array.read(row))
        return numbers(name, array if row is None else array[row])

    def part(self, start: int, stop: int, *, send: bool = False) -> _Arrays:
        items = self._items[start:stop]
        return _Arrays([self._loaded(item) if send else _apart(item) for item in items])

    @staticmethod
    def _loaded(item: _Item) -> _Item:
        try:
            array = item.array.read(item.row) if isinstance(item.array, NpyFile) else None
        except UnreadableImageError as error:
            return item._replace(array=str(error))
        return _apart(item) if array is None else _Item(item.name, array, None)

    def files(self) -> Sequence[Path]:
        arrays = (item.array for item in self._items)
        return list(dict.fromkeys(each.path for each in arrays if isinstance(each, NpyFile)))


def _apart(item: _Item) -> _Item:
    """An item that holds nothing of others."""
    if isinstance(item.array, NpyFile):
        return item._replace(array=replace(item.array, path=item.array.path.absolute()))
    if isinstance(item.array, str) or item.row is None:
        return item
    return item._replace(array=item.array[item.row].copy(), row=None)


def open_source(
    where: str | Path | Sequence[str | Path] | NDArray[Any],
    *,
    limit: int | None = None,
    shuffle: bool = False,
    seed: int = 0,
    recursive: bool = True,
    blob: str | None = None,
    axes: int | None = None,
) -> ImageSource:
    """Open the calibration inputs that `where` means.

    Parameters
    ----------
    where
        - a folder (with its subfolders if `recursive`), sorted by relative path
        - a list file (.txt, .lst): a path per line, absolute, or from the list's folder, or else
          from the working folder; blank lines, lines that begin with # and labels after the path
          are ignored
        - a pattern (`images/**/*.jpg`), an image file, or a sequence of any of these
        - a URL of a folder, pattern or image file that fsspec reads (s3://bucket/photos)
        - arrays that are preprocessed already: a .npy file (read row by row), an .npz file (held
          in memory; of several arrays the one named `blob`), a folder of .npy files, or an array.
          One of 4 axes is a stack (N, C, H, W), one of 3 a single (C, H, W); one of 2 axes is a
          stack of vectors (for inputs such as im_info), one of 1 a single vector; `axes` says it
          otherwise
    limit
        Keep the first so many.
    shuffle, seed
        Put all into an order that `seed` alone decides, before `limit` counts.
    recursive
        Whether folders are searched with their subfolders.
    blob
        The input blob's name, for .npz files.
    axes
        How many axes one input has, where arrays are of another kind, such as 2 for sequences.

    Raises
    ------
    ImageError
        Where nothing usable is files.
    OptionError
        For a limit below 1.
    """
    if limit is not None and limit < 1:
        raise OptionError(f"the limit on the number of images is {limit}; it must be at least 1")
    if isinstance(where, np.ndarray):
        check_dtype("array", where.dtype)
        return _Arrays(_pick(_rows("array", where, where.shape, axes), limit, shuffle, seed))
    files = find_inputs(where, recursive=recursive)
    if not files.arrays:
        entries = _pick(files.entries, limit, shuffle, seed)
        return _ImageFiles(entries, files.skipped, files.problems)
    items = [item for entry in files.entries for item in _stored_rows(entry, blob, axes)]
    return _Arrays(_pick(items, limit, shuffle, seed), files.skipped, files.problems)


def _pick(items: list[Any], limit: int | None, shuffle: bool, seed: int) -> list[Any]:
    """The order and number asked for; the same for every list of one length and seed."""
    if shuffle:
        items = list(items)
        random.Random(seed).shuffle(items)
    return items[:limit]


def _stored_rows(entry: Entry, blob: str | None, axes: int | None) -> list[_Item]:
    """The blobs of one .npy or .npz file."""
    if entry.path.suffix.lower() == ".npz":
        array = read_npz(entry.path, blob)
        return _rows(entry.name, array, array.shape, axes)
    if entry.missing:
        return [_Item(entry.name, entry.missing, None)]
    try:
        stored = open_npy(entry.path)
    except UnreadableImageError as error:
        # Reported and skipped in its turn, as a damaged image is.
        return [_Item(entry.name, str(error), None)]
    return _rows(entry.name, stored, stored.header.shape, axes)


def _rows(
    name: str, array: NDArray[Any] | NpyFile, shape: tuple[int, ...], axes: int | None
) -> list[_Item]:
    single, stack = ((1, 3), (2, 4)) if axes is None else ((axes,), (axes + 1,))
    if len(shape) in single:
        return [_Item(name, array, None)]
    if len(shape) not in stack:
        expected = "(N, C, H, W), (C, H, W), (N, K) or (K,)"
        if axes is not None:
            expected = f"{axes} axes, or {axes + 1} for a stack"
        raise ImageError(f"{name}: has the shape {shape}; expected {expected}")
    if shape[0] > MAX_INPUTS:
        raise ImageError(f"{name}: holds {shape[0]} inputs; at most {MAX_INPUTS} are taken")
    return [_Item(f"{name}[{row}]", array, row) for row in range(shape[0])]
