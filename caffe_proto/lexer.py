"""In the flow: the text of a prototxt comes in; a stream of tokens that know their places goes out.

The lexical rules are those of protobuf's text format (protobuf.dev, "Text Format Language
Specification").
"""

from __future__ import annotations

import re
from typing import NamedTuple

from caffe_proto.errors import CaffeFormatError

__all__ = ["Token", "Tokens"]

_TOKEN = re.compile(
    r"""
      (?P<blank>  (?: \s | \#[^\n]* )+ )
    | (?P<word>   [A-Za-z_]\w* )
    | (?P<number> (?: 0[xX][0-9a-fA-F]+
                  | (?: \d+\.?\d* | \.\d+ ) (?:[eE][+-]?\d+)? [fF]? ) (?![\w.]) )
    | (?P<string> "(?:[^"\\\n]|\\.)*" | '(?:[^'\\\n]|\\.)*' )
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

    ``peek`` is the token that comes next; the last one has the kind ``end``.
    """

    def __init__(self, text: str, name: str) -> None:
        """Split the text; messages call it ``name``.

        Raises:
            CaffeFormatError: A character or number that the format does not know, or a string
                that does not end on its line.

        """
        self._text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
        self._name = name
        self._tokens = self._split()
        self._next = 0
        self.peek = self._tokens[0]

    def _split(self) -> list[Token]:
        tokens = []
        for match in _TOKEN.finditer(self._text):
            kind = match.lastgroup
            if kind == "bad":
                what = match[0]
                if what in "\"'":
                    raise self.error(match.start(), "this string does not end on its line")
                raise self.error(match.start(), f"{what!r} is not understood here")
            if kind and kind != "blank":
                tokens.append(Token(kind, match[0], match.start()))
        tokens.append(Token("end", "the end of the file", len(self._text)))
        return tokens

    def advance(self) -> Token:
        """Return the next token and step over it."""
        token = self.peek
        if token.kind != "end":
            self._next += 1
            self.peek = self._tokens[self._next]
        return token

    def accept(self, mark: str) -> bool:
        """Step over the next token if it is this mark, and say so."""
        if self.peek.text != mark or self.peek.kind != "mark":
            return False
        self.advance()
        return True

    def line(self, at: int) -> int:
        """Return the line of an offset, counted from 1."""
        return self._text.count("\n", 0, at) + 1

    def error(self, at: int, message: str) -> CaffeFormatError:
        """Make the error ``name:line:column: message``, line and column counted from 1."""
        column = at - self._text.rfind("\n", 0, at)
        return CaffeFormatError(f"{self._name}:{self.line(at)}:{column}: {message}")

    def expected(self, what: str) -> CaffeFormatError:
        """Make the error that something else should come next."""
        token = self.peek
        found = token.text if token.kind == "end" else repr(token.text[:40])
        return self.error(token.at, f"expected {what}, found {found}")
