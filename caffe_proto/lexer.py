"""Tokens of a prototxt, each with its place in the text, and the values that they stand for.

The lexical rules, and what each type of field accepts, are those of protobuf's text format
(protobuf.dev, "Text Format Language Specification"), as in Caffe's own reader. Every pattern reads
a text of n characters in a time proportional to n.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeAlias, cast

from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor

from caffe_proto.errors import CaffeFormatError, one_line

__all__ = [
    "CLOSERS",
    "Reader",
    "Scalar",
    "Token",
    "Tokens",
    "enum_number",
    "scalar_reader",
    "string_bytes",
]

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


Scalar: TypeAlias = bool | int | float | str | bytes
Reader: TypeAlias = Callable[[Tokens, FieldDescriptor], Scalar]

_BOOLS = {"true": True, "True": True, "t": True, "1": True}
_BOOLS |= {"false": False, "False": False, "f": False, "0": False}
_ESCAPE = re.compile(
    rb"\\(?:(?P<octal>[0-7]{1,3})|[xX](?P<hex>[0-9a-fA-F]{1,2})|u(?P<u>[0-9a-fA-F]{4})"
    rb"|U(?P<U>[0-9a-fA-F]{8})|(?P<plain>.))"
)
_PLAIN_ESCAPES = dict(zip(b"nrtabfv\\'\"?", b"\n\r\t\a\b\f\v\\'\"?", strict=True))


_MAX_DIGITS = 24  # of a whole number: more than any 64-bit number has, in octal too


def scalar_reader(field: FieldDescriptor) -> Reader:
    """Return the function that reads one value of the field's type, which is no enum."""
    return _READERS[field.type]


def _integer(tokens: Tokens, field: FieldDescriptor) -> int:
    sign = -1 if tokens.accept("-") else 1
    text = tokens.peek.text
    if tokens.peek.kind != "number" or not re.fullmatch(r"\d+|0[xX][0-9a-fA-F]+", text):
        raise tokens.expected(f"a whole number for {field.name}")
    if len(text) > _MAX_DIGITS:
        raise tokens.error(tokens.peek.at, f"{field.name}: {text[:40]} is out of range")
    octal = text.startswith("0") and text.isdigit()
    try:
        value = int(text, 8 if octal else 0)
    except ValueError:  # 8 or 9 in an octal number
        raise tokens.expected(f"a whole number for {field.name}") from None
    tokens.advance()
    return sign * value


def _floating(tokens: Tokens, field: FieldDescriptor) -> float:
    sign = -1.0 if tokens.accept("-") else 1.0
    token = tokens.peek
    text = token.text.lower()
    # 010 could mean eight or ten; Caffe's reader refuses it as well.
    number = token.kind == "number" and not re.match(r"0[x\d]", text)
    if not number and text not in ("inf", "infinity", "nan"):
        raise tokens.expected(f"a number for {field.name}")
    tokens.advance()
    return sign * float(text.removesuffix("f") if number else text)


def _boolean(tokens: Tokens, field: FieldDescriptor) -> bool:
    value = _BOOLS.get(tokens.peek.text)
    if value is None:
        raise tokens.expected(f"true or false for {field.name}")
    tokens.advance()
    return value


def enum_number(tokens: Tokens, field: FieldDescriptor) -> tuple[int | None, str]:
    """Read one value of an enum, given by name or by number.

    Returns
    -------
    tuple
        Its number, None where the enum has no such value, and the value as it was written.

    Raises
    ------
    CaffeFormatError
        What comes next is neither a name nor a whole number.
    """
    known = cast("EnumDescriptor", field.enum_type)
    if tokens.peek.kind == "word":
        text = tokens.advance().text
        named = known.values_by_name.get(text)
        return (named.number if named is not None else None), text
    if tokens.peek.kind != "number" and tokens.peek.text != "-":
        if known.name == "LayerType":
            raise tokens.expected(
                f"a name without quotes for {field.name}, such as CONVOLUTION, in 'layers' (with "
                "'layer' types are in quotes)"
            )
        choices = ", ".join(value.name for value in known.values)
        raise tokens.expected(f"one of {choices} for {field.name}")
    number = _integer(tokens, field)
    return (number if number in known.values_by_number else None), str(number)


def _string(tokens: Tokens, field: FieldDescriptor) -> str:
    begin = tokens.peek
    raw = string_bytes(tokens, field.name)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise tokens.error(begin.at, f"{field.name} is not valid UTF-8") from None


def _bytes(tokens: Tokens, field: FieldDescriptor) -> bytes:
    return string_bytes(tokens, field.name)


def string_bytes(tokens: Tokens, name: str) -> bytes:
    """Read one or more quoted strings side by side; they count as one.

    Raises
    ------
    CaffeFormatError
        Something else comes next, or an escape is not known.
    """
    if tokens.peek.kind != "string":
        raise tokens.expected(f"text in quotes for {name}")
    parts = []
    while tokens.peek.kind == "string":
        token = tokens.advance()
        part = token.text[1:-1].encode("utf-8", "surrogateescape")
        try:
            parts.append(_ESCAPE.sub(_unescape, part) if b"\\" in part else part)
        except ValueError as error:
            raise tokens.error(token.at, f"{name}: {error}") from None
    return b"".join(parts)


def _unescape(match: re.Match[bytes]) -> bytes:
    """Return the bytes that one escape sequence stands for."""
    code = match["u"] or match["U"]
    if code:
        try:
            return chr(int(code, 16)).encode("utf-8")
        except (ValueError, OverflowError):  # half a surrogate pair, or beyond Unicode
            raise ValueError(f"the escape \\u{code.decode()} is no character") from None
    if match["hex"] or match["octal"]:
        value = int(match["hex"], 16) if match["hex"] else int(match["octal"], 8)
        if value > 255:
            raise ValueError(f"the escape \\{match['octal'].decode()} is no byte")
        return bytes([value])
    plain = match["plain"]
    if plain[0] not in _PLAIN_ESCAPES:
        raise ValueError(f"the escape \\{plain.decode('ascii', 'replace')} is not known")
    return bytes([_PLAIN_ESCAPES[plain[0]]])


_READERS: dict[int, Reader] = {
    FieldDescriptor.TYPE_FLOAT: _floating,
    FieldDescriptor.TYPE_DOUBLE: _floating,
    FieldDescriptor.TYPE_INT32: _integer,
    FieldDescriptor.TYPE_INT64: _integer,
    FieldDescriptor.TYPE_UINT32: _integer,
    FieldDescriptor.TYPE_BOOL: _boolean,
    FieldDescriptor.TYPE_STRING: _string,
    FieldDescriptor.TYPE_BYTES: _bytes,
}
