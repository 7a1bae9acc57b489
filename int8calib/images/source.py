"""A place on disk or an array comes in; a lazy, ordered sequence of calibration inputs goes out."""

from __future__ import annotations

import random
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from int8calib.errors import ImageError, OptionError
from int8calib.images.decode import Reduction, UnreadableImageError, read_image
from int8calib.images.find import Entry, find_inputs


class ImageSource(ABC):
    """Calibration inputs by number; nothing is read before `load`.

    names
        What each one is called in messages.
    skipped
        How many files were passed over because they are neither images nor arrays.
    preprocessed
        True where `load` gives blobs ready for the network, False where it gives images.
    """

    preprocessed: bool

    def __init__(self, names: Sequence[str], skipped: int = 0) -> None:
        """Hold what every source knows."""
        self.names = tuple(names)
        self.skipped = skipped

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


class _ImageFiles(ImageSource):
    """One image file per input."""

    preprocessed = False

    def __init__(self, entries: Sequence[Entry], skipped: int) -> None:
        super().__init__([entry.name for entry in entries], skipped)
        self._paths = [entry.path for entry in entries]

    def load(
        self, index: int, *, gray: bool = False, reduction: Reduction | None = None
    ) -> NDArray[np.uint8]:
        return read_image(self._paths[index], gray=gray, reduction=reduction)


class _Item(NamedTuple):
    """One blob: a whole array or one row of it; from a .npy file where `array` is a path."""

    name: str
    array: NDArray[Any] | Path
    row: int | None


class _Arrays(ImageSource):
    """Blobs that are preprocessed already."""

    preprocessed = True

    def __init__(self, items: Sequence[_Item], skipped: int) -> None:
        super().__init__([item.name for item in items], skipped)
        self._items = items

    def load(
        self, index: int, *, gray: bool = False, reduction: Reduction | None = None
    ) -> NDArray[np.float32]:
        name, array, row = self._items[index]
        if isinstance(array, Path):
            try:
                array = _open_npy(array)
            except ImageError as error:
                raise UnreadableImageError(str(error)) from error
        if array.dtype.kind not in "fiu":
            raise UnreadableImageError(f"{name}: holds {array.dtype}, not numbers")
        return np.array(array if row is None else array[row], np.float32)


def open_source(
    where: str | Path | Sequence[str | Path] | NDArray[Any],
    *,
    limit: int | None = None,
    shuffle: bool = False,
    seed: int = 0,
    recursive: bool = True,
    blob: str | None = None,
) -> ImageSource:
    """Open the calibration inputs that `where` means.

    - a folder (with its subfolders if `recursive`), sorted by relative path
    - a list file (.txt, .lst): a path per line, from the list's folder or absolute; blank lines,
      lines that begin with # and labels after the path are ignored
    - a pattern (`images/**/*.jpg`), an image file, or a sequence of any of these
    - arrays that are preprocessed already: a .npy file (mapped, not loaded), an .npz file (held
      in memory; of several arrays the one named `blob`), a folder of .npy files, or an array

    An array of 4 axes is a stack (N, C, H, W), one of 3 a single (C, H, W); an array of 2 axes a
    stack of vectors (for inputs such as im_info), one of 1 a single vector.
    `shuffle` puts all into an order that `seed` alone decides; then `limit` keeps the first ones.
    Raises ImageError where nothing usable is found, OptionError for a limit below 1.
    """
    if limit is not None and limit < 1:
        raise OptionError(f"the limit on the number of images is {limit}; it must be at least 1")
    if isinstance(where, np.ndarray):
        return _Arrays(_pick(_rows("array", where, where), limit, shuffle, seed), 0)
    found = find_inputs(where, recursive=recursive)
    if not found.arrays:
        return _ImageFiles(_pick(found.entries, limit, shuffle, seed), found.skipped)
    items = [item for entry in found.entries for item in _stored_rows(entry, blob)]
    return _Arrays(_pick(items, limit, shuffle, seed), found.skipped)


def _pick(items: list[Any], limit: int | None, shuffle: bool, seed: int) -> list[Any]:
    """The order and number asked for; the same for every list of one length and seed."""
    if shuffle:
        items = list(items)
        random.Random(seed).shuffle(items)
    return items[:limit]


def _stored_rows(entry: Entry, blob: str | None) -> list[_Item]:
    """The blobs of one .npy or .npz file."""
    if entry.path.suffix.lower() == ".npz":
        array = _open_npz(entry.path, blob)
        return _rows(entry.name, array, array)
    try:
        return _rows(entry.name, _open_npy(entry.path), entry.path)
    except UnreadableImageError:
        # Reported and skipped in its turn, as a damaged image is.
        return [_Item(entry.name, entry.path, None)]


def _rows(name: str, array: NDArray[Any], held: NDArray[Any] | Path) -> list[_Item]:
    if array.ndim in (2, 4):
        return [_Item(f"{name}[{row}]", held, row) for row in range(array.shape[0])]
    if array.ndim in (1, 3):
        return [_Item(name, held, None)]
    raise ImageError(
        f"{name}: has the shape {array.shape}; expected (N, C, H, W), (C, H, W), (N, K) or (K,)"
    )


def _open_npy(path: Path) -> NDArray[Any]:
    """The array of a .npy file, mapped into memory."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UnreadableImageError(f"{path}: cannot be read as an array: {error}") from error
    if not isinstance(array, np.ndarray):
        raise UnreadableImageError(f"{path}: is an .npz archive that is named .npy")
    return array


def _open_npz(path: Path, blob: str | None) -> NDArray[Any]:
    """The array named `blob` of an .npz file, or its only one."""
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ImageError(f"{path}: holds a single array; name it .npy")
            names = archive.files
            name = blob if blob in names else names[0] if len(names) == 1 else None
            if name is None:
                raise ImageError(
                    f"{path}: holds the arrays {', '.join(names) or 'none'}; "
                    + (f"none is named {blob}" if blob else "say which input blob is meant")
                )
            array: NDArray[Any] = archive[name]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ImageError(f"{path}: cannot be read as arrays: {error}") from error
    return array
