"""What can go wrong with a Caffe file, as one exception and one warning.

Tree::

    ValueError
    └── CaffeFormatError        a file cannot be read as what it should be
    UserWarning
    └── UnknownFieldWarning     a prototxt holds something that the reader does not know
"""

from __future__ import annotations

from caffe_proto.oneline import one_line

__all__ = ["CaffeFormatError", "UnknownFieldWarning"]


class CaffeFormatError(ValueError):
    """A Caffe file cannot be read.

    The message is one printable line of at most 500 characters. It begins with the file, and with
    line and column where the place is known: ``net.prototxt:12:5: ...``.
    """

    def __init__(self, message: str) -> None:
        """Keep the message, made fit for printing."""
        super().__init__(one_line(message))


class UnknownFieldWarning(UserWarning):
    """A prototxt holds fields or values that no known version of Caffe defines.

    One warning per file names them all, each with the line where it first stands. They are not
    in the messages; `unread_fields` and `unknown_fields` give them.
    """
