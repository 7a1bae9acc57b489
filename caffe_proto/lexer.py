"""Tokens of a prototxt, each with its place in the text.

The lexical rules are those of protobuf's text format (protobuf.dev, "Text Format Language
Specification"). Every pattern reads a text of n characters in a time proportional to n.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator
from typing import NamedTuple

from caffe_proto.errors import CaffeFormatError
from caffe_proto.oneline import one_line

__all__ = ["CLOSERS", "Token", "Tokens"]

CLOSERS = {"{": "}", "<": ">"}

# No two parts of a pattern that follow each other may match the same characters: going back over
# such a pair takes a time that grows with the square of the text.
_TOKEN = re.compile(
    r"""
      (?P<blank>  \s+ | \#[^\n]* )
    | (?P<word>   [A-Za-z_]\w* )
    | (?P<number> (?: 0[xX][0-9a-fA-F]+
                  | (?: \d+(?:\.\d*)? | \.\d+ ) (?:[eE][+-]?\d+)? [fF]? ) (?![\w.]) )
    | (?P<string> "[^"\\\n]*(?:\\.[^"\\\n]*)*" | '[^'\\\n]*(?:\\.[^'\\\n]*)*' )
    | (?P<mark>   [{}<>:;,\[\]./-] )
    | (?P<bad>    \d[\w.]* | . )
    """,
    re.VERBOSE | re.ASCII,
)


class Token(NamedTuple):
    """A ``word``, ``number``, ``string`` or ``mark``, or the ``end`` of the text."""

    kind: str
    text: str
    at: int  # offset of its first character


class Tokens:
    """The tokens of one text, read from front to back.

    `peek` is the token that comes next; the last one has the kind ``end``.
    """

    def __init__(self, text: str, name: str) -> None:
        """Stand before the first token.

        Parameters
        ----------
        text
            The text; line ends of any system.
        name
            How messages call it, such as its file.

        Raises
        ------
        CaffeFormatError
            Here and in `advance`: a character or number that the format does not know, or a
            string that does not end on its line.
        """
        self._text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
        self._name = name
        self._line_ends = [match.start() for match in re.finditer("\n", self._text)]
        self._rest = self._split()
        self.peek = next(self._rest)

    def _split(self) -> Iterator[Token]:
        for match in _TOKEN.finditer(self._text):
            kind = match.lastgroup
            if kind == "bad":
                self.peek = Token(kind, match[0], match.start())  # no one reads on from before it
                if match[0] in "\"'":
                    raise self.error(match.start(), "this string does not end on its line")
                raise self.error(match.start(), f"{_shown(match[0])} is not understood here")
            if kind and kind != "blank":
                yield Token(kind, match[0], match.start())
        yield Token("end", "the end of the file", len(self._text))

    def advance(self) -> Token:
        """Return the next token and step over it."""
        token = self.peek
        if token.kind != "end":
            self.peek = next(self._rest)
        return token

    def accept(self, mark: str) -> bool:
        """Step over the next token if it is this mark, and return whether it was."""
        if self.peek.text != mark or self.peek.kind != "mark":
            return False
        self.advance()
        return True

    def line(self, at: int) -> int:
        """Return the line of an offset, counted from 1."""
        return bisect.bisect_left(self._line_ends, at) + 1

    def error(self, at: int, message: str) -> CaffeFormatError:
        """Make the error ``name:line:column: message``, line and column counted from 1."""
        column = at - self._text.rfind("\n", 0, at)
        return CaffeFormatError(f"{self._name}:{self.line(at)}:{column}: {message}")

    def expected(self, what: str) -> CaffeFormatError:
        """Make the error that something else should come next."""
        token = self.peek
        found = token.text if token.kind == "end" else _shown(token.text)
        return self.error(token.at, f"expected {what}, found {found}")

    def unclosed(self, opener: Token) -> CaffeFormatError:
        """Make the error that a message does not end."""
        line = self.line(opener.at)
        return self.expected(f"{CLOSERS[opener.text]!r} for the {opener.text!r} of line {line}")


def _shown(text: str) -> str:
    """A token in quotes; only its ends where it is long."""
    return one_line(repr(text[:100]), 60)
