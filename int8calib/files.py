"""Finished results come in as text or bytes; files go out, whole or not at all."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from int8calib.errors import OutputError


def write_atomic(path: str | os.PathLike[str], data: str | bytes) -> None:
    """Write `data` (text as UTF-8) to `path`; raises OutputError and leaves the old file alone.

    Line ends are written as they are in `data`, on every system.
    """
    if isinstance(data, str):
        try:
            data = data.encode("utf-8")
        except UnicodeEncodeError as error:
            raise OutputError(f"{Path(path)}: cannot be written as UTF-8: {error}") from error
    with open_atomic(path) as file:
        file.write(data)


@contextlib.contextmanager
def open_atomic(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A binary file that becomes `path` when the block ends well, and vanishes when it does not.

    The bytes go to a temporary file in the same folder, are flushed to the disk, and take the
    name `path` in one step, so that neither an error nor Ctrl-C nor a power cut leaves half a
    file. An existing file keeps its permissions; a link keeps pointing at its file. A device
    or pipe (`/dev/stdout`) cannot be replaced and is written directly. Raises OutputError for
    everything the system refuses, inside the block too: do nothing in it but writing.
    """
    target = Path(path)
    try:
        mode = _existing_mode(target)
        if mode is not None and not stat.S_ISREG(mode):
            with target.open("wb") as device:
                yield device
            return
        with _replacing(Path(os.path.realpath(target)), mode) as file:
            yield file
    except OSError as error:
        raise OutputError(f"{target}: cannot be written: {error.strerror or error}") from error


def _existing_mode(target: Path) -> int | None:
    """The mode of the file at `target`, None when there is none; raises OutputError early."""
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        if not target.parent.is_dir():
            message = f"{target}: cannot be written: there is no folder {target.parent}"
            raise OutputError(message) from None
        return None
    if stat.S_ISDIR(mode):
        raise OutputError(f"{target}: cannot be written: it is a folder, name a file")
    # A rename would pass over a file that its owner has write-protected.
    if not os.access(target, os.W_OK):
        raise OutputError(f"{target}: cannot be written: the file is write-protected")
    return mode


@contextlib.contextmanager
def _replacing(target: Path, mode: int | None) -> Iterator[BinaryIO]:
    """A new file beside `target` that replaces it at the end, or is removed."""
    temporary = target.with_name(f".int8calib-{os.urandom(8).hex()}.tmp")
    try:
        # "x" refuses an existing file and leaves the permissions to the user's umask.
        with temporary.open("xb") as file:
            if mode is not None:
                temporary.chmod(stat.S_IMODE(mode))
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        # BaseException: a Ctrl-C must clean up too.
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
