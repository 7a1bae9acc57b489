"""Files at the two ends: bounded reading, and results written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from typing import BinaryIO, TypeAlias

from caffe_proto import files
from caffe_proto.files import file_mode, open_regular, read_bounded
from int8calib.errors import OutputError

__all__ = [
    "Contents",
    "check_target",
    "file_mode",
    "open_atomic",
    "open_regular",
    "read_bounded",
    "write_all",
    "write_atomic",
    "write_private",
]


def write_atomic(path: str | os.PathLike[str], data: str | bytes) -> None:
    """Write a whole file; an older one stays as it is where that fails.

    Parameters
    ----------
    path
        The file; see `open_atomic`.
    data
        Bytes, or text, which is written as UTF-8 with its line ends as they are.

    Raises
    ------
    OutputError
        The file cannot be written, or the text is no UTF-8.
    """
    content = _encoded(path, data)
    with open_atomic(path) as file:
        file.write(content)


Contents: TypeAlias = Mapping[str, str | bytes | Iterable[bytes | memoryview]]
"""What to write to which file: text, bytes, or parts of bytes."""


def write_all(contents: Contents) -> None:
    """Write several files, all of them or none.

    Parameters
    ----------
    contents
        The files. They take their names one after the other, the first one last, when all have
        been written to the disk.

    Raises
    ------
    OutputError
        A file cannot be written; older files stay as they are.
    """
    with contextlib.ExitStack() as stack:
        for path, content in contents.items():
            parts = [_encoded(path, content)] if isinstance(content, str | bytes) else content
            file = stack.enter_context(open_atomic(path))
            with _told(path):
                file.writelines(parts)
                file.flush()
                if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    os.fsync(file.fileno())


def write_private(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a whole file that only the user may read and change; raises as `write_atomic`."""
    with _told(path), files.open_atomic(path, private=True) as file:
        file.write(data)


@contextlib.contextmanager
def open_atomic(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a binary file that takes its name only when the block ends well.

    Parameters
    ----------
    path
        The file. Links, devices and pipes are as for `caffe_proto.files.open_atomic`.

    Yields
    ------
    BinaryIO
        The file to write to; do nothing else in the block.

    Raises
    ------
    OutputError
        For everything that the system refuses, inside of the block too.
    """
    with _told(path), files.open_atomic(path) as file:
        yield file


def check_target(path: str | os.PathLike[str]) -> None:
    """Check that a file could be written, without writing it.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    OutputError
        There is no such folder, the folder or the file is write-protected, `path` is a folder,
        or a name is too long or empty; and for ``-``, which many programs take for standard output.
    """
    if not os.fspath(path):
        raise OutputError("the name of a file to write is empty; name one")
    if os.fspath(path) == "-":
        raise OutputError(
            "-: would be a file of that name; give /dev/stdout for standard output, or ./-"
        )
    with _told(path):
        files.check_target(path)


def _encoded(path: str | os.PathLike[str], data: str | bytes) -> bytes:
    if isinstance(data, bytes):
        return data
    try:
        return data.encode("utf-8")
    except UnicodeEncodeError as error:
        raise OutputError(f"{os.fspath(path)}: cannot be written as UTF-8: {error}") from error


@contextlib.contextmanager
def _told(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn what the system refuses into an `OutputError`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(f"{os.fspath(path)}: cannot be written: {reason}") from error
