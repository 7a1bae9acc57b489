"""A folder, list file, glob or file comes in; names and paths of calibration inputs go out.

Nothing is opened but list files. The order depends on the names alone, not on the locale, the
file system or the machine: relative paths with forward slashes, compared by code point.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from int8calib.errors import ImageError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
ARRAY_SUFFIXES = frozenset({".npy", ".npz"})
LIST_SUFFIXES = frozenset({".txt", ".lst"})

_ENDINGS = "|".join(suffix[1:] for suffix in sorted(IMAGE_SUFFIXES | ARRAY_SUFFIXES))
# Caffe's image lists hold labels after the path; a path may hold spaces.
_LABELLED = re.compile(rf"(.*\.(?:{_ENDINGS}))(?:\s+[-+.\deE]+)*", re.IGNORECASE | re.DOTALL)


class Entry(NamedTuple):
    """One file: the name to report it by, and where it is."""

    name: str
    path: Path


class Found(NamedTuple):
    """What a search gave: files of one kind, and how many others it passed over."""

    entries: list[Entry]
    skipped: int
    arrays: bool


def find_inputs(where: str | Path | Sequence[str | Path], *, recursive: bool = True) -> Found:
    """Find the images that `where` means or, where there are none, the arrays.

    A sequence of places is searched in its order. In a folder that holds images, array files
    (a mean, for example) count as skipped. Raises ImageError where nothing is found.
    """
    places = [where] if isinstance(where, (str, Path)) else list(where)
    files = [entry for place in places for entry in _files(Path(place), recursive)]
    images = [entry for entry in files if entry.path.suffix.lower() in IMAGE_SUFFIXES]
    chosen = images or [entry for entry in files if entry.path.suffix.lower() in ARRAY_SUFFIXES]
    skipped = len(files) - len(chosen)
    if not chosen:
        shown = ", ".join(str(place) for place in places) or "an empty list"
        others = f" ({skipped} other files)" if skipped else ""
        raise ImageError(
            f"{shown}: no images found{others}; looked for "
            f"{' '.join(sorted(IMAGE_SUFFIXES))} and arrays in .npy files"
        )
    return Found(chosen, skipped, arrays=not images)


def _files(place: Path, recursive: bool) -> list[Entry]:
    if place.is_dir():
        return _in_folder(place, recursive)
    if place.is_file():
        if place.suffix.lower() in LIST_SUFFIXES:
            return _in_list(place)
        return [Entry(str(place), place)]
    if glob.has_magic(str(place)):
        return _in_glob(str(place), recursive)
    raise ImageError(
        f"{place}: no such file or folder; images are given as a folder, a file, a list file "
        "(.txt) or a pattern such as 'images/*.jpg'"
    )


def _in_folder(folder: Path, recursive: bool) -> list[Entry]:
    entries = [
        Entry(path.relative_to(folder).as_posix(), path) for path in _walk(folder, recursive)
    ]
    return sorted(entries)


def _walk(folder: Path, recursive: bool) -> Iterator[Path]:
    """All files below `folder` but hidden ones; links are followed, each folder is read once."""
    seen = {os.path.realpath(folder)}
    for parent, folders, names in os.walk(folder, followlinks=True):
        enter = []
        for name in sorted(folders) if recursive else ():
            real = os.path.realpath(Path(parent, name))
            if not name.startswith(".") and real not in seen:
                seen.add(real)
                enter.append(name)
        folders[:] = enter
        # Systems leave hidden files behind: macOS's `._photo.jpg` is no photo.
        yield from (Path(parent, name) for name in names if not name.startswith("."))


def _in_glob(pattern: str, recursive: bool) -> list[Entry]:
    entries = []
    # pathlib's own glob takes no absolute pattern.
    for match in sorted(Path(found) for found in glob.glob(pattern, recursive=True)):  # noqa: PTH207
        paths = _walk(match, recursive) if match.is_dir() else (match,)
        entries += [Entry(path.as_posix(), path) for path in paths]
    return sorted(set(entries))


def _in_list(listing: Path) -> list[Entry]:
    """The files that a list names, in its order; relative paths start at the list's folder."""
    try:
        # Names on disk may be any bytes: surrogates carry them through to the opening call.
        text = listing.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise ImageError(f"{listing}: cannot be read: {error.strerror}") from error
    entries = []
    for line in text.splitlines():
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        labelled = _LABELLED.fullmatch(line)
        name = labelled.group(1) if labelled else line
        entries.append(Entry(name, listing.parent / name))
    return entries
