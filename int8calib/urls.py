"""Files of places that go by URL, such as s3://bucket/photos, through fsspec."""

from __future__ import annotations

from typing import Any

from int8calib.errors import ImageError

Url = str


def is_url(place: object) -> bool:
    """Whether a place goes by URL."""
    scheme, colon, _ = str(place).partition("://")
    return bool(colon) and len(scheme) > 1 and scheme.replace("+", "").isalnum()


def list_url(place: Url, *, recursive: bool) -> list[tuple[str, Url]]:
    """Return the files below a folder, of a pattern, or the file itself.

    Parameters
    ----------
    place
        A URL of any kind that fsspec knows.
    recursive
        Whether a folder is searched with its subfolders.

    Returns
    -------
    list of (str, str)
        The name of each file from the folder, and its URL, in the order of names.

    Raises
    ------
    ImageError
        Where nothing is there, it cannot be read, or a package is missing.
    """
    system, path = _opened(place)
    try:
        if any(sign in path for sign in "*?["):
            return [(found, system.unstrip_protocol(found)) for found in sorted(system.glob(path))]
        if not system.isdir(path):
            if not system.exists(path):
                raise ImageError(f"{place}: there is no such file or folder")
            return [(place, place)]
        found = system.find(path, maxdepth=None if recursive else 1)
    except OSError as error:
        raise ImageError(f"{place}: cannot be read: {reason_of(error)}") from error
    start = len(path.rstrip("/")) + 1
    names = sorted((each[start:], each) for each in found)
    return [
        (name, system.unstrip_protocol(each))
        for name, each in names
        if not any(part.startswith(".") for part in name.split("/"))
    ]


def read_url(url: Url, most: int) -> bytes:
    """Return what a file holds; raises OSError, also for more than `most` bytes."""
    system, path = _opened(url)
    with system.open(path, "rb") as file:
        data: bytes = file.read(most + 1)
    if len(data) > most:
        raise OSError(f"it has more than {most} bytes (the limit)")
    return data


def reason_of(error: OSError) -> str:
    """What the system said, without the path."""
    return error.strerror or str(error) or type(error).__name__


def _opened(url: Url) -> tuple[Any, str]:
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise ImageError(f"{url}: needs the package fsspec; pip install fsspec") from None
    try:
        system, path = url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ImageError(f"{url}: cannot be read: {error}") from None
    return system, path
