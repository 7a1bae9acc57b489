"""Beside the flow: what goes wrong with a Caffe file, as one exception and one warning.

Tree::

    ValueError
    └── CaffeFormatError        a file cannot be read as what it should be
    UserWarning
    └── UnknownFieldWarning     a prototxt holds fields of a fork that were skipped
"""

from __future__ import annotations

__all__ = ["CaffeFormatError", "UnknownFieldWarning"]


class CaffeFormatError(ValueError):
    """A Caffe file cannot be read.

    The message is one line. It begins with the file, and with line and column where the place is
    known: ``net.prototxt:12:5: ...``.
    """


class UnknownFieldWarning(UserWarning):
    """A prototxt holds fields that no known version of Caffe defines; they were skipped.

    One warning per file names them all, each with the line where it first stands.
    """
