"""Names and paths of calibration inputs: what a folder, list file, pattern or file stands for.

Nothing is opened but list files. The order depends on the names alone, not on the locale, the
file system or the machine: relative paths with forward slashes, compared by code point.
"""

from __future__ import annotations

import codecs
import glob
import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from int8calib.errors import ImageError
from int8calib.files import file_mode, read_bounded
from int8calib.limits import MAX_LIST_BYTES
from int8calib.urls import is_url, list_url

_ENDINGS = (
    "jpg jpeg jpe png apng bmp dib webp tif tiff gif pgm ppm pnm pbm pam pxm pfm jp2 j2k hdr pic "
    "sr ras exr avif"
)
IMAGE_SUFFIXES = frozenset(f".{ending}" for ending in _ENDINGS.split())
"""Suffixes of the formats that some OpenCV reads; whether this one does, decoding shows."""

ARRAY_SUFFIXES = frozenset({".npy", ".npz"})
LIST_SUFFIXES = frozenset({".txt", ".lst"})

# The numbers behind a path in Caffe's image lists, from behind: labels, mostly.
_LABELS_BACKWARDS = re.compile(r"(?:[-+.\deE]+\s+)+")


class Entry(NamedTuple):
    """One file: the name to report it by, and where it is.

    `missing` says which paths were tried where a list names a file that is not there. `named` is
    true for a file that the user named himself, and that is taken for an image whatever its suffix.
    `url` is where a file of a shared place is; `path` is then its name alone.
    """

    name: str
    path: Path
    missing: str = ""
    named: bool = False
    url: str = ""


class InputFiles(NamedTuple):
    """Files of one kind, how many others were passed over, and folders that could not be read."""

    entries: list[Entry]
    skipped: int
    arrays: bool
    problems: tuple[str, ...]


def find_inputs(where: str | Path | Sequence[str | Path], *, recursive: bool = True) -> InputFiles:
    """List the images that `where` means or, where there are none, the arrays.

    Parameters
    ----------
    where
        A folder, list file, pattern or file, or a sequence of them, taken in its order.
    recursive
        Whether folders are searched with their subfolders.

    Returns
    -------
    InputFiles
        In a folder that holds images, array files (a mean, for example) count as skipped.

    Raises
    ------
    ImageError
        Where there are neither images nor arrays.
    """
    places = [where] if isinstance(where, (str, Path)) else list(where)
    problems: list[str] = []
    files = [entry for place in places for entry in _files(place, recursive, problems)]
    kinds = [_kind(entry) for entry in files]
    # Whatever a user names is an image, unless he named arrays beside it.
    kind = next((kind for kind in ("image", "array", "named") if kind in kinds), None)
    wanted = {"image", "named"} if kind == "image" else {kind}
    chosen = [entry for entry, its in zip(files, kinds, strict=True) if its in wanted]
    skipped = len(files) - len(chosen)
    if not chosen:
        shown = ", ".join(str(place) for place in places) or "an empty list"
        others = f" ({skipped} other files)" if skipped else ""
        raise ImageError(
            f"{shown}: no images found{others}; looked for "
            f"{' '.join(sorted(IMAGE_SUFFIXES))} and arrays in .npy files"
            + "".join(f"; {problem}" for problem in problems[:1])
        )
    return InputFiles(chosen, skipped, kind == "array", tuple(problems))


def _kind(entry: Entry) -> str:
    suffix = entry.path.suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return "image"
    if suffix in ARRAY_SUFFIXES:
        return "array"
    return "named" if entry.named else "other"


def _files(place: str | Path, recursive: bool, problems: list[str]) -> list[Entry]:
    if not str(place):
        raise ImageError("an empty name stands for no images; use . for the working folder")
    if is_url(place):
        return _in_url(str(place), recursive)
    path = Path(place)
    try:
        mode = file_mode(path)
    except OSError as error:
        if glob.has_magic(str(place)):
            return _in_glob(str(place), recursive, problems)
        raise ImageError(
            f"{place}: cannot be read: {error.strerror}; images are given as a folder, a file, a "
            "list file (.txt) or a pattern such as 'images/*.jpg'"
        ) from None
    if stat.S_ISDIR(mode):
        return _in_folder(path, recursive, problems)
    if path.suffix.lower() in LIST_SUFFIXES:
        return _in_list(path)
    return [Entry(str(place), path, named=True)]


def _in_url(place: str, recursive: bool) -> list[Entry]:
    """The images of a shared place; arrays are read from files alone."""
    found = list_url(place, recursive=recursive)
    entries = [Entry(name, Path(name), named=url == place, url=url) for name, url in found]
    arrays = [entry.name for entry in entries if entry.path.suffix.lower() in ARRAY_SUFFIXES]
    if arrays and len(arrays) == len(entries):
        raise ImageError(f"{place}: holds arrays, which are read from files alone; copy them here")
    return [entry for entry in entries if entry.path.suffix.lower() not in ARRAY_SUFFIXES]


def _in_folder(folder: Path, recursive: bool, problems: list[str]) -> list[Entry]:
    paths = _walk(folder, recursive, problems)
    return sorted(Entry(path.relative_to(folder).as_posix(), path) for path in paths)


def _walk(folder: Path, recursive: bool, problems: list[str]) -> Iterator[Path]:
    """All files below `folder` but hidden ones; links are followed, each folder is read once."""

    def refused(error: OSError) -> None:
        problems.append(f"{error.filename}: the folder cannot be read: {error.strerror}")

    seen = {os.path.realpath(folder)}
    for parent, folders, names in os.walk(folder, onerror=refused, followlinks=True):
        enter = []
        for name in sorted(folders) if recursive else ():
            real = os.path.realpath(Path(parent, name))
            if not name.startswith(".") and real not in seen:
                seen.add(real)
                enter.append(name)
        folders[:] = enter
        # Systems leave hidden files behind: macOS's `._photo.jpg` is no photo.
        yield from (Path(parent, name) for name in names if not name.startswith("."))


def _in_glob(pattern: str, recursive: bool, problems: list[str]) -> list[Entry]:
    entries = []
    # pathlib's own glob takes no absolute pattern.
    for match in sorted(map(Path, glob.glob(pattern, recursive=True))):  # noqa: PTH207
        paths = _walk(match, recursive, problems) if match.is_dir() else (match,)
        entries += [Entry(path.as_posix(), path) for path in paths]
    return sorted(set(entries))


def _in_list(listing: Path) -> list[Entry]:
    """The files that a list names, in its order.

    A relative path starts at the list's folder or, where no such file is there, at the working
    folder; backslashes separate folders where no file has such a name.
    """
    try:
        data = read_bounded(listing, MAX_LIST_BYTES)
    except OSError as error:
        raise ImageError(f"{listing}: cannot be read: {error.strerror}") from error
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    # Names on disk may be any bytes: surrogates carry them through to the opening call.
    encoding, errors = ("utf-16", "replace") if utf16 else ("utf-8-sig", "surrogateescape")
    entries = []
    for number, line in enumerate(data.decode(encoding, errors).split("\n"), start=1):
        line = line.strip()
        if line and not line.startswith("#"):
            entries.append(_listed(line, listing, number))
    return entries


def _listed(line: str, listing: Path, number: int) -> Entry:
    """The file that one line of a list names."""
    tried: dict[Path, str] = {}
    names = _names(line)
    variants = dict.fromkeys((*names, *(name.replace("\\", "/") for name in names)))
    for name in variants:
        for folder in (listing.parent, Path()):
            path = folder / name
            if path in tried:
                continue
            try:
                mode = file_mode(path)
            except OSError as error:
                tried[path] = error.strerror or type(error).__name__
                continue
            if not stat.S_ISDIR(mode):
                return Entry(name, path, named=True)
            tried[path] = "it is a folder"
    missing = f"{listing}:{number}: cannot be read: {' or '.join(variants)}"
    if not Path(names[0]).is_absolute():
        missing += (
            f", tried in the list's folder {listing.parent.absolute()} and in the working folder "
            f"{Path.cwd()}"
        )
    missing += f": {', '.join(dict.fromkeys(tried.values()))}"
    return Entry(names[0], listing.parent / names[0], missing, named=True)


def _names(line: str) -> list[str]:
    """What the path in a line may be: without the labels behind it, or with them."""
    labels = _LABELS_BACKWARDS.match(line[::-1])
    bare = line[: len(line) - labels.end()].rstrip() if labels else line
    if not bare or bare == line:
        return [line]
    known = Path(bare).suffix.lower() in IMAGE_SUFFIXES | ARRAY_SUFFIXES
    return [bare] if known else [line, bare]
