"""What a prototxt holds and the schema does not know: kept as it was written, with its line.

The parser puts it into the field `unread` of the layer that holds it, or of the net where it
stands outside of all layers. There it stays while a net of an older form becomes one of today's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from caffe_proto.caffe_pb2 import LayerParameter, NetParameter, UnreadField
from caffe_proto.lexer import CLOSERS, Token, Tokens, string_bytes
from caffe_proto.limits import MAX_DEPTH, MAX_UNREAD

if TYPE_CHECKING:
    from google.protobuf.internal.containers import RepeatedCompositeFieldContainer

__all__ = [
    "Fields",
    "Kind",
    "Unread",
    "UnreadReader",
    "name_parts",
    "unknown_fields",
    "unread_fields",
]

Kind: TypeAlias = Literal["field", "enum", "repeated"]
Fields: TypeAlias = "dict[str, list[str | Fields]]"
Entries: TypeAlias = "RepeatedCompositeFieldContainer[UnreadField]"


@dataclass(frozen=True)
class Unread:
    """One thing in a prototxt that the reader did not understand.

    Parameters
    ----------
    field
        The field's name; inside of a layer with dots, such as ``convolution_param.foo``.
    line
        Its line in the file, counted from 1.
    kind
        ``field``: the schema has no such field. ``enum``: the field's enum has no such value, or
        its type no such value.
        ``repeated``: the field is given once more, though it may be given once only (the first
        value stands in the message).
    value
        The value as it was written, text without its quotes; empty for a message.
    """

    field: str
    line: int
    kind: Kind
    value: str


def unread_fields(message: NetParameter | LayerParameter) -> tuple[Unread, ...]:
    """List what was not understood in a layer, or in a net outside of its layers.

    Parameters
    ----------
    message
        A layer of a net that `read_prototxt` or `parse_prototxt` gave, or that net.

    Returns
    -------
    tuple of Unread
        In the order of the file.
    """
    return tuple(
        Unread(entry.name, entry.line, _KINDS[entry.kind], entry.value) for entry in message.unread
    )


def unknown_fields(layer: LayerParameter) -> Fields:
    """Give what a layer holds and the schema lacks as plain Python values.

    With it a function of a layer type that only its author knows reads its options.

    Parameters
    ----------
    layer
        A layer of a net that `read_prototxt` or `parse_prototxt` gave.

    Returns
    -------
    dict
        Name -> the values given under it, in order: text for a scalar as it was written (without
        the quotes), a dict of the same form for a message. ``foo_param { size: 3 size: 4 }``
        gives ``{"foo_param": [{"size": ["3", "4"]}]}``. Values inside of a known message that the
        schema lacks stand under that message's name.
    """
    found: Fields = {}
    for entry in layer.unread:
        *parents, name = name_parts(entry.name)
        place = found
        for parent in parents:
            inner = place.setdefault(parent, [{}])[0]
            if isinstance(inner, str):  # a scalar of the same name came first
                break
            place = inner
        else:
            place.setdefault(name, []).append(_plain(entry))
    return found


def name_parts(name: str) -> list[str]:
    """Split a dotted name; the dots inside of an extension's brackets belong to its own name."""
    head, bracket, extension = name.partition("[")
    if not bracket:
        return name.split(".")
    return [*head.split(".")[:-1], f"[{extension}"]


def _plain(entry: UnreadField) -> str | Fields:
    if entry.HasField("value"):
        return entry.value
    found: Fields = {}
    for child in entry.children:
        found.setdefault(child.name, []).append(_plain(child))
    return found


_KINDS: dict[int, Kind] = {
    UnreadField.FIELD: "field",
    UnreadField.ENUM: "enum",
    UnreadField.REPEATED: "repeated",
}


class UnreadReader:
    """Reads fields without a schema, and counts them."""

    def __init__(self, tokens: Tokens) -> None:
        """Read from the tokens of one text."""
        self._tokens = tokens
        self._count = 0

    def name(self) -> str:
        """Read the name of a field: a word, or that of an extension in brackets.

        Raises
        ------
        CaffeFormatError
            Something else comes next.
        """
        first = self._tokens.advance()
        name = first.text
        if name == "[" and first.kind == "mark":
            while not name.endswith("]"):
                if self._tokens.peek.kind not in ("word", "mark") or len(name) > 1000:
                    raise self._tokens.expected("']'")
                name += self._tokens.advance().text
        elif first.kind != "word":
            message = f"expected the name of a field, found {name[:40]!r}"
            raise self._tokens.error(first.at, message)
        return name

    def add(self, into: Entries, name: str, at: int, kind: UnreadField.Kind, value: str) -> None:
        """Note a scalar value that has been read.

        Raises
        ------
        CaffeFormatError
            There are too many.
        """
        self._entry(into, name, at, kind).value = value

    def read(self, into: Entries, name: str, at: int, kind: UnreadField.Kind) -> None:
        """Read what follows a field's name, and note it.

        Raises
        ------
        CaffeFormatError
            No value follows, it breaks the format, or there are too many.
        """
        self._field(into, name, at, kind, 0)

    def _field(self, into: Entries, name: str, at: int, kind: UnreadField.Kind, depth: int) -> None:
        tokens = self._tokens
        if not tokens.accept(":") and tokens.peek.text not in ("{", "<"):
            raise tokens.expected(f"':' or '{{' after {name}")
        self.values(into, name, at, kind, depth)

    def values(
        self, into: Entries, name: str, at: int, kind: UnreadField.Kind, depth: int = 0
    ) -> None:
        """Read a value or a list of them, the colon being read, and note each.

        Raises
        ------
        CaffeFormatError
            As for `read`.
        """
        tokens = self._tokens
        if not tokens.accept("["):
            self._value(into, name, at, kind, depth)
            return
        more = not tokens.accept("]")
        while more:
            self._value(into, name, at, kind, depth)
            more = tokens.accept(",")
            if not more and not tokens.accept("]"):
                raise tokens.expected(f"',' or ']' in the list of {name}")

    def _value(self, into: Entries, name: str, at: int, kind: UnreadField.Kind, depth: int) -> None:
        tokens = self._tokens
        opener = tokens.peek
        entry = self._entry(into, name, at, kind)
        if tokens.accept("{") or tokens.accept("<"):
            if depth >= MAX_DEPTH:
                raise tokens.error(opener.at, f"{name}: more than {MAX_DEPTH} messages deep")
            self._message(entry, opener, depth + 1)
        elif opener.kind == "string":
            entry.value = string_bytes(tokens, name).decode("utf-8", "backslashreplace")
            entry.quoted = True
        else:
            sign = "-" if tokens.accept("-") else ""
            if tokens.peek.kind not in ("word", "number"):
                raise tokens.expected(f"a value for {name}")
            entry.value = sign + tokens.advance().text

    def _message(self, entry: UnreadField, opener: Token, depth: int) -> None:
        tokens = self._tokens
        while not tokens.accept(CLOSERS[opener.text]):
            if tokens.peek.kind == "end":
                raise tokens.unclosed(opener)
            at = tokens.peek.at
            self._field(entry.children, self.name(), at, UnreadField.FIELD, depth)
            if not tokens.accept(","):
                tokens.accept(";")

    def _entry(self, into: Entries, name: str, at: int, kind: UnreadField.Kind) -> UnreadField:
        self._count += 1
        if self._count > MAX_UNREAD:
            raise self._tokens.error(at, f"more than {MAX_UNREAD} fields that are not known")
        return into.add(name=name, kind=kind, line=self._tokens.line(at))
