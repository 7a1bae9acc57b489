"""Files at the two ends: bounded reading that cannot block, what a file is, and the one writer.

Most files that cannot be read are whole files of another kind: a download that saved a web page,
a Git LFS pointer, the prototxt where the caffemodel belongs. Their first bytes tell.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TypeAlias

from caffe_proto.errors import CaffeFormatError, one_line
from caffe_proto.limits import MAX_NAME

__all__ = [
    "HEAD",
    "FilePath",
    "check_target",
    "file_mode",
    "file_name",
    "holds_control_bytes",
    "open_atomic",
    "open_regular",
    "read_bounded",
    "refuse_binary",
    "refuse_foreign",
]

FilePath: TypeAlias = str | os.PathLike[str]

PIPE_WAIT = 10  # seconds that a pipe may take to give its first byte

_STREAM = re.compile(r"/dev/(?:(stdin)|(stdout)|(stderr)|fd/(\d{1,9}))|/proc/self/fd/(\d{1,9})")


_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def file_mode(path: FilePath) -> int:
    """Tell what `path` is, as `st_mode` of `os.stat`; raises OSError for whatever is not there.

    `Path.is_file` and its kin raise for a name that is too long or holds a zero byte, and give no
    reason for the others.
    """
    try:
        return Path(path).stat().st_mode
    except ValueError:  # a zero byte, or half a surrogate pair
        raise OSError(errno.EINVAL, "no file can have such a name", os.fspath(path)) from None


def open_regular(path: FilePath, *, pipes: bool = False) -> BinaryIO:
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


def read_bounded(path: FilePath, limit: int, *, pipes: bool = False) -> bytes:
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
def open_atomic(path: FilePath, *, private: bool = False) -> Iterator[BinaryIO]:
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


def check_target(path: FilePath) -> None:
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


HEAD = 4096  # bytes of a file that are enough to tell what it is

_LFS = b"version https://git-lfs.github.com/spec/"
_HDF5_ADVICE = (
    "an HDF5 file, not a caffemodel; write it again as binary: set snapshot_format: BINARYPROTO "
    "in the solver, or load it in pycaffe and call net.save()"
)
_MAGIC = (
    (b"\x89HDF\r\n\x1a\n", _HDF5_ADVICE),
    (b"\x1f\x8b", "a gzip archive; unpack it first"),
    (b"PK\x03\x04", "a zip archive; unpack it first"),
    (b"\x93NUMPY", "a NumPy .npy file"),
    (b"7767517\n", "an ncnn .param file; the Caffe prototxt is needed"),
    (b"\xff\xfe", "UTF-16 text; save it as UTF-8"),
    (b"\xfe\xff", "UTF-16 text; save it as UTF-8"),
)
_HTTP_ERROR = re.compile(rb"[45]\d\d:? [A-Z][A-Za-z ]{2,40}\s*\Z")
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
_CAFFEMODEL_STARTS = (b"\n", b"\x12", b"\xa2\x06")  # the keys of name, layers and layer


def file_name(path: FilePath) -> str:
    """Return how messages name the file: its path as given, fit for printing."""
    return one_line(os.fspath(path), MAX_NAME)


def holds_control_bytes(head: bytes) -> bool:
    """Return whether the bytes hold control characters that no text file has."""
    return _CONTROL.search(head) is not None


def refuse_foreign(path: FilePath, head: bytes, wanted: str) -> None:
    """Refuse a file that is recognizably something else.

    Parameters
    ----------
    path
        The file, for the message.
    head
        Its first bytes (``HEAD`` of them are enough).
    wanted
        What the file should be, such as ``"a caffemodel"``.

    Raises
    ------
    CaffeFormatError
        The file is empty, a Git LFS pointer, a web page, HDF5, an archive, ...
    """
    found = _foreign_kind(head)
    if found:
        raise CaffeFormatError(f"{file_name(path)}: not {wanted}: {found}")


def refuse_binary(path: FilePath, head: bytes) -> None:
    """Refuse binary data where a prototxt is wanted.

    Raises
    ------
    CaffeFormatError
        The head holds control characters.
    """
    if not holds_control_bytes(head):
        return
    found = "binary data"
    if head.startswith(_CAFFEMODEL_STARTS):
        found += ", it looks like a caffemodel; are the prototxt and the caffemodel swapped?"
    raise CaffeFormatError(f"{file_name(path)}: not a prototxt: {found}")


def _foreign_kind(head: bytes) -> str:
    """What a file that begins so is, if no Caffe file begins so; otherwise an empty string."""
    if not head:
        return "the file is empty"
    if head.startswith(_LFS):
        return _lfs_pointer(head)
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    # No field name begins so, and as a protobuf key it would close a group that none opened.
    if start.startswith(b"<"):
        return "an HTML or XML page; the download probably saved an error or login page"
    if _HTTP_ERROR.match(start):
        return f"an HTTP error page, {start.decode('ascii').strip()}; download the file again"
    if start.startswith((b'{"', b"[{", b'["')):
        return "JSON text"
    return ""


def _lfs_pointer(head: bytes) -> str:
    oid = re.search(rb"^oid (\S+)", head, re.MULTILINE)
    size = re.search(rb"^size (\d+)", head, re.MULTILINE)
    named = f"oid {oid[1].decode('ascii', 'replace')}" if oid else "no oid"
    sized = f"{int(size[1]):,} bytes" if size else "unknown size"
    return f"a Git LFS pointer ({named}, {sized}), not the file itself; run `git lfs pull`"
