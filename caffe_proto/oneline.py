"""Text from anywhere (file names, layer names, values) as one printable line of limited length."""

from __future__ import annotations

from caffe_proto.limits import MAX_MESSAGE

__all__ = ["one_line"]


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
