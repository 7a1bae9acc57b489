"""What can go wrong with a Caffe file, as one exception and one warning, each one printable line.

Tree::

    ValueError
    └── CaffeFormatError        a file cannot be read as what it should be
    UserWarning
    └── UnknownFieldWarning     a prototxt holds something that the reader does not know
"""

from __future__ import annotations

from caffe_proto.limits import MAX_MESSAGE

__all__ = [
    "CaffeFormatError",
    "UnknownFieldWarning",
    "one_line",
]


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


def one_line(text: str, limit: int = MAX_MESSAGE) -> str:
    r"""Make a text safe to print as one line.

    Parameters
    ----------
    text
        Any text, control characters and lone surrogates included.
    limit
        How many characters the result may have, at least 20.

    Returns
    -------
    str
        The text with everything that is not printable written as an escape such as ``\n`` or
        ``\x1b``. Where that is longer than `limit`, the middle is replaced by ``...``: messages
        begin with the place and end with the way out.
    """
    if len(text) > 2 * limit:  # no character becomes shorter
        text = f"{text[:limit]}{text[-limit:]}"
    shown = text if text.isprintable() else "".join(map(_printable, text))
    if len(shown) <= limit:
        return shown
    tail = (limit - 3) // 3
    return f"{shown[: limit - 3 - tail]}...{shown[-tail:]}"


def _printable(character: str) -> str:
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode("ascii")
