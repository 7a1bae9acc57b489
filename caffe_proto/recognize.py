"""What a file is, told by its first bytes, for the error about a file of another kind.

Most files that cannot be read are whole files of another kind: a download that saved a web page,
a Git LFS pointer, the prototxt where the caffemodel belongs.
"""

from __future__ import annotations

import re
from os import PathLike, fspath
from typing import TypeAlias

from caffe_proto.errors import CaffeFormatError
from caffe_proto.limits import MAX_NAME
from caffe_proto.oneline import one_line

__all__ = ["HEAD", "Path", "file_name", "holds_control_bytes", "refuse_binary", "refuse_foreign"]

Path: TypeAlias = str | PathLike[str]

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


def file_name(path: Path) -> str:
    """Return how messages name the file: its path as given, fit for printing."""
    return one_line(fspath(path), MAX_NAME)


def holds_control_bytes(head: bytes) -> bool:
    """Return whether the bytes hold control characters that no text file has."""
    return _CONTROL.search(head) is not None


def refuse_foreign(path: Path, head: bytes, wanted: str) -> None:
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


def refuse_binary(path: Path, head: bytes) -> None:
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
