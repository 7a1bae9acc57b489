"""Files at the two ends: bounded reading that cannot block, and the one writer of all output."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

__all__ = ["check_target", "file_mode", "open_atomic", "open_regular", "read_bounded"]

PIPE_WAIT = 10  # seconds that a pipe may take to give its first byte

_STREAM = re.compile(r"/dev/(?:(stdin)|(stdout)|(stderr)|fd/(\d{1,9}))|/proc/self/fd/(\d{1,9})")


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
    except ValueError:  # a zero byte, or half a surrogate pair
        raise OSError(errno.EINVAL, "no file can have such a name", os.fspath(path)) from None


def open_regular(path: str | os.PathLike[str], *, pipes: bool = False) -> BinaryIO:
    """Open a file for reading; anything that could block or has no end is refused.

    Parameters
    ----------
    path
        The file, or a link to one.
    pipes
        Whether a pipe will do too, as for `<(command)`. One to which nobody writes within
        `PIPE_WAIT` seconds reads as empty.

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
        raise OSError(errno.EINVAL, f"it is {what}; expected a file", os.fspath(path))
    if kind == stat.S_IFREG:
        return Path(path).open("rb")
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    waiting = select.poll()
    waiting.register(descriptor, select.POLLIN)
    waiting.poll(1000 * PIPE_WAIT)
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
            message = f"it holds more than {limit} bytes (the limit)"
            raise OSError(errno.EFBIG, message, os.fspath(path))
        return bytes(data)


@contextlib.contextmanager
def open_atomic(path: str | os.PathLike[str], *, private: bool = False) -> Iterator[BinaryIO]:
    """Open a binary file that takes its name only when the block ends well.

    The bytes go to a new file of a random name in the same folder, are flushed to the disk, and
    take the name in one step, so that neither an error nor Ctrl-C nor a power cut leaves half a
    file. An existing file keeps its permissions. Where `path` is a symbolic link, the file that it
    points to is replaced and the link stays. What cannot be replaced, a device or a pipe, and the
    program's own streams (`/dev/stdout`) are written directly.

    Parameters
    ----------
    path
        The file.
    private
        Whether only the user may read and change it, whatever the umask and an older file say.

    Yields
    ------
    BinaryIO
        The file to write to.

    Raises
    ------
    OSError
        For everything that the system refuses, inside of the block too.
    """
    target = Path(path)
    stream = _own_stream(target)
    if stream is not None:
        with os.fdopen(os.dup(stream), "wb") as file:
            yield file
        return
    mode = _existing_mode(target)
    if mode is not None and not stat.S_ISREG(mode):
        with target.open("wb") as file:
            yield file
        return
    with _replacing(Path(os.path.realpath(target)), None if private else mode, private) as file:
        yield file


def check_target(path: str | os.PathLike[str]) -> None:
    """Check that a file could be written, without writing it.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    OSError
        There is no such folder, the folder or the file is write-protected, `path` is a folder,
        or a name is too long.
    """
    target = Path(path)
    if _own_stream(target) is None and _existing_mode(target) is None:
        folder = Path(os.path.realpath(target)).parent
        if not os.access(folder, os.W_OK | os.X_OK):
            _refuse(errno.EACCES, f"the folder {folder} is write-protected", target)


def _own_stream(target: Path) -> int | None:
    """The number of the program's own open file that `target` stands for, if it is one.

    Opened by its name it would be written from the beginning, over what is in it.
    """
    match = _STREAM.fullmatch(os.fspath(target))
    if match is None:
        return None
    *named, descriptor, process = match.groups()
    given = descriptor or process
    return int(given) if given else next(i for i, name in enumerate(named) if name)


def _existing_mode(target: Path) -> int | None:
    """The mode of the file at `target`, None where there is none; raises what is plain early."""
    try:
        mode = file_mode(target)
    except FileNotFoundError:
        folder = Path(os.path.realpath(target)).parent
        if not folder.is_dir():
            _refuse(errno.ENOENT, f"there is no folder {folder}", target)
        return None
    if stat.S_ISDIR(mode):
        _refuse(errno.EISDIR, "it is a folder, name a file", target)
    # A rename would pass over a file that its owner has write-protected.
    if not os.access(target, os.W_OK):
        _refuse(errno.EACCES, "the file is write-protected", target)
    return mode


def _refuse(code: int, reason: str, target: Path) -> None:
    raise OSError(code, reason, str(target))


@contextlib.contextmanager
def _replacing(target: Path, mode: int | None, private: bool) -> Iterator[BinaryIO]:
    """A new file beside `target` that replaces it at the end, or is removed."""
    temporary = target.with_name(f".{os.urandom(12).hex()}.tmp")
    try:
        # O_EXCL refuses an existing file, a link too; the umask takes from the permissions.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        with os.fdopen(os.open(temporary, flags, 0o600 if private else 0o666), "wb") as file:
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
