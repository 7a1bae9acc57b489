"""Files at the two ends: whole and bounded reading, and results written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from int8calib.errors import OutputError

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def file_mode(path: str | os.PathLike[str]) -> int:
    """Tell what `path` is, as `st_mode` of `os.stat`; raises OSError for whatever is not there.

    `Path.is_file` and its kin raise for a name that is too long or holds a zero byte, and give no
    reason for the others.
    """
    try:
        return Path(path).stat().st_mode
    except ValueError as error:
        raise OSError(errno.EINVAL, f"not a file name ({error})") from None


def open_regular(path: str | os.PathLike[str], *, pipes: bool = False) -> BinaryIO:
    """Open a file for reading; anything that could block or has no end is refused.

    Parameters
    ----------
    path
        The file, or a link to one.
    pipes
        Whether a pipe will do too, as for `<(command)`. One that nobody writes to reads as empty.

    Returns
    -------
    BinaryIO
        The file, at its beginning.

    Raises
    ------
    OSError
        Where it cannot be opened, or is a folder, pipe, socket or device; `strerror` says which.
    """
    kind = stat.S_IFMT(file_mode(path))
    if kind != stat.S_IFREG and not (pipes and kind == stat.S_IFIFO):
        what = _KINDS.get(kind, "no regular file")
        raise OSError(errno.EINVAL, f"it is {what}; expected a file")
    if kind == stat.S_IFREG:
        return Path(path).open("rb")
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(descriptor, True)
    return os.fdopen(descriptor, "rb")


def read_bounded(path: str | os.PathLike[str], limit: int, *, pipes: bool = False) -> bytes:
    """Read a file of at most `limit` bytes; raises OSError as `open_regular`, and for a larger one.

    Nothing is read of a regular file that is too large, and never more than the limit.
    """
    with open_regular(path, pipes=pipes) as file:
        size = os.fstat(file.fileno()).st_size
        if size > 0 and size <= limit:
            return file.read(size)
        data = bytearray()
        # A pipe does not say how much is in it.
        while size == 0 and len(data) <= limit and (block := file.read(1 << 16)):
            data += block
        if size > limit or len(data) > limit:
            raise OSError(errno.EFBIG, f"it holds more than {limit} bytes (the limit)")
        return bytes(data)


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
