"""A network's structure read from a prototxt of any age, as a ``NetParameter`` of today's form.

Protobuf's own text parser either refuses an unknown field or drops it silently; this one keeps it
with its line (see `unread`), and its errors say what was expected where.
"""

from __future__ import annotations

import warnings
from collections import Counter
from functools import cache
from itertools import chain
from operator import attrgetter
from typing import NamedTuple

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from caffe_proto.caffe_pb2 import NetParameter, SolverParameter, UnreadField, V1LayerParameter
from caffe_proto.errors import CaffeFormatError, UnknownFieldWarning, one_line
from caffe_proto.files import HEAD, FilePath, file_name, open_regular, refuse_binary, refuse_foreign
from caffe_proto.lexer import CLOSERS, Reader, Token, Tokens, enum_number, scalar_reader
from caffe_proto.limits import MAX_LAYERS, MAX_TEXT_BYTES
from caffe_proto.unread import Entries, UnreadReader, unread_fields
from caffe_proto.upgrade import upgrade_net

__all__ = ["Parser", "parse_prototxt", "read_prototxt"]

_SOLVER_FIELDS = frozenset(field.name for field in SolverParameter.DESCRIPTOR.fields)
_NAMED = 10  # fields that a warning names


def read_prototxt(path: FilePath, *, warn: bool = True) -> NetParameter:
    """Read a network's structure, upgraded to today's form.

    Parameters
    ----------
    path
        A prototxt of any age: V0, V1 or today's layers, inputs as fields or as layers.
    warn
        Whether to warn of what is not known.

    Returns
    -------
    NetParameter
        The net with ``layer`` entries only, their types as strings, and an ``Input`` layer at the
        front where the file gave its inputs as fields. Unknown fields, unknown enum values and
        fields given twice are not in it; `unread_fields` and `unknown_fields` give them.

    Raises
    ------
    CaffeFormatError
        The file is no prototxt; the message gives file, line and column.
    OSError
        The file cannot be opened.

    Warns
    -----
    UnknownFieldWarning
        The file holds something that no known version of Caffe defines.
    """
    with open_regular(path, pipes=True) as file:
        raw = file.read(MAX_TEXT_BYTES + 1)
    refuse_foreign(path, raw[:HEAD], "a prototxt")
    refuse_binary(path, raw[:HEAD])
    if len(raw) > MAX_TEXT_BYTES:
        raise CaffeFormatError(
            f"{file_name(path)}: not a prototxt: larger than {MAX_TEXT_BYTES >> 20} MiB"
        )
    # Comments in a local encoding are common and do no harm. Their bytes become surrogates, which
    # are refused in strings only.
    net = _parse(raw.decode("utf-8", "surrogateescape"), file_name(path))
    if warn:
        _warn(net, file_name(path))
    return net


def parse_prototxt(text: str, name: str = "<string>", *, warn: bool = True) -> NetParameter:
    """Parse the text of a prototxt, upgraded to today's form.

    Parameters
    ----------
    text
        The text.
    name
        How messages call it.
    warn
        Whether to warn of what is not known.

    Returns
    -------
    NetParameter
        As `read_prototxt`.

    Raises
    ------
    CaffeFormatError
        As `read_prototxt`.

    Warns
    -----
    UnknownFieldWarning
        As `read_prototxt`.
    """
    net = _parse(text, name)
    if warn:
        _warn(net, name)
    return net


def _parse(text: str, name: str) -> NetParameter:
    net = NetParameter()
    Parser(Tokens(text, name)).parse(net)
    upgrade_net(net, name)
    if not net.layer:
        hint = ""
        if not _SOLVER_FIELDS.isdisjoint(entry.name for entry in net.unread):
            hint = "; it looks like a solver's prototxt, give the network's"
        raise CaffeFormatError(f"{name}: not a network: no layer and no input{hint}")
    return net


def _warn(net: NetParameter, name: str) -> None:
    """Warn of what is not known, each field once; the caller's caller is who reads."""
    lines: dict[str, int] = {}
    times: Counter[str] = Counter()
    for unread in chain(unread_fields(net), *map(unread_fields, net.layer)):
        what = unread.field if unread.kind == "field" else f"{unread.field}: {unread.value[:40]}"
        lines[what] = min(unread.line, lines.get(what, unread.line))
        times[what] += 1
    if not lines:
        return
    ordered = sorted(lines, key=lambda what: lines[what])
    shown = [
        f"{what} (line {lines[what]}{f', {times[what]} times' if times[what] > 1 else ''})"
        for what in ordered[:_NAMED]
    ]
    more = [f"{len(ordered) - _NAMED} more"] if len(ordered) > _NAMED else []
    message = f"{name}: not understood and left out: {', '.join([*shown, *more])}"
    warnings.warn(one_line(message), UnknownFieldWarning, stacklevel=3)


_LAYERS = ("layer", "layers")
_NEEDED = frozenset(("name", "type", "bottom", "top", "include", "exclude", "dim", *_LAYERS))


class _Field(NamedTuple):
    """What the parser needs of a field, looked up once."""

    descriptor: FieldDescriptor
    repeated: bool
    message: bool
    read: Reader | None  # none for a message or an enum

    @property
    def name(self) -> str:
        return self.descriptor.name


class _Form(NamedTuple):
    """A message type: its fields by name, and those that must be given."""

    fields: dict[str, _Field]
    required: tuple[str, ...]


class Parser:
    """Recursive descent over the tokens of one text."""

    def __init__(self, tokens: Tokens) -> None:
        """Stand at the front of the tokens."""
        self._tokens = tokens
        self._path: list[str] = []  # from the layer, or from the net outside of all layers
        self._unread: Entries  # of that layer or net
        self._reader = UnreadReader(tokens)
        self._in_layer = False
        self._layers = 0

    def parse(self, target: Message) -> None:
        """Fill an empty message, such as a net, from the whole text.

        What is not known is kept in a net and its layers, and dropped from other messages.

        Raises
        ------
        CaffeFormatError
            The text breaks the format or the schema, or exceeds a limit.
        """
        net = target if isinstance(target, NetParameter) else NetParameter()
        self._unread = net.unread
        self._fields(target, Token("end", "", 0))

    def _fields(self, target: Message, opener: Token) -> None:
        """Read fields until the opener's closing bracket or, at the top, until the end."""
        tokens = self._tokens
        form = _form(target.DESCRIPTOR)
        closer = CLOSERS.get(opener.text)  # none at the top
        seen: set[str] = set()
        while not (tokens.accept(closer) if closer else tokens.peek.kind == "end"):
            name = tokens.peek
            field = form.fields.get(name.text)
            if name.kind == "end":
                raise tokens.unclosed(opener)
            if name.kind != "word" or field is None:
                self._keep(self._reader.name(), name.at, UnreadField.FIELD)
            elif name.text in seen and not field.repeated:
                tokens.advance()
                self._keep(name.text, name.at, UnreadField.REPEATED)
            else:
                tokens.advance()
                seen.add(name.text)
                self._field(target, field)
            if not tokens.accept(","):
                tokens.accept(";")
        for missing in form.required:
            if missing not in seen:
                raise tokens.error(opener.at, f"{self._dotted(missing)} must be given")

    def _keep(self, name: str, at: int, kind: UnreadField.Kind) -> None:
        self._reader.read(self._unread, self._dotted(name), at, kind)

    def _field(self, target: Message, field: _Field) -> None:
        """Read what follows a field's name: one value, or a list of them."""
        tokens = self._tokens
        colon = tokens.accept(":")
        mark = tokens.peek.text if tokens.peek.kind == "mark" else ""
        fits = field.repeated if mark == "[" else (mark in CLOSERS) == field.message
        if not fits and (colon or mark in CLOSERS) and self._spares(field):
            self._keep_value(field)
            return
        if not colon and not field.message:
            raise tokens.expected(f"':' after {field.name}")
        if not (field.repeated and tokens.accept("[")):
            self._value(target, field)
            return
        more = not tokens.accept("]")
        while more:
            self._value(target, field)
            more = tokens.accept(",")
            if not more and not tokens.accept("]"):
                raise tokens.expected(f"',' or ']' in the list of {field.name}")

    def _value(self, target: Message, field: _Field) -> None:
        if field.message:
            self._message(target, field)
            return
        at = self._tokens.peek.at
        try:
            read = field.read or enum_number
            value = read(self._tokens, field.descriptor)
        except CaffeFormatError:
            if self._tokens.peek.at != at or not self._spares(field):
                raise
            self._keep_value(field)
            return
        if isinstance(value, tuple):
            number, text = value
            if number is None:
                of_type = field.name == "type" and isinstance(target, V1LayerParameter)
                kind = UnreadField.LAYER_TYPE if of_type else UnreadField.ENUM
                self._reader.add(self._unread, self._dotted(field.name), at, kind, text)
                return
            value = number
        try:
            if field.repeated:
                getattr(target, field.name).append(value)
            else:
                setattr(target, field.name, value)
        except ValueError:
            if not self._spares(field):
                raise self._tokens.error(at, f"{field.name}: {value!r} is out of range") from None
            name = self._dotted(field.name)
            self._reader.add(self._unread, name, at, UnreadField.ENUM, str(value))

    def _spares(self, field: _Field) -> bool:
        """Whether a value of another type is kept as not known, as it is for options of layers.

        What says what a layer is, when it runs and what it reads, and sizes, have to be read.
        """
        return self._in_layer and _NEEDED.isdisjoint((*self._path[:1], field.name))

    def _keep_value(self, field: _Field) -> None:
        at = self._tokens.peek.at
        self._reader.values(self._unread, self._dotted(field.name), at, UnreadField.ENUM)

    def _message(self, target: Message, field: _Field) -> None:
        tokens = self._tokens
        opener = tokens.peek
        if not (tokens.accept("{") or tokens.accept("<")):
            raise tokens.expected(f"'{{' after {field.name}")
        nested = getattr(target, field.name)
        if field.repeated:
            nested = nested.add()
        else:
            nested.SetInParent()  # an empty message counts as given
        outside = self._path, self._unread, self._in_layer
        if field.name in _LAYERS:
            self._path = []
            if isinstance(target, NetParameter):  # not the V0 layer inside of a V1 layer
                self._unread, self._in_layer = nested.unread, True
                self._count_layer(opener)
        else:
            self._path = [*self._path, field.name]
        self._fields(nested, opener)
        self._path, self._unread, self._in_layer = outside

    def _count_layer(self, opener: Token) -> None:
        self._layers += 1
        if self._layers > MAX_LAYERS:
            raise self._tokens.error(opener.at, f"more than {MAX_LAYERS} layers")

    def _dotted(self, name: str) -> str:
        return ".".join([*self._path, name])


@cache
def _form(kind: Descriptor) -> _Form:
    descriptors = kind.fields
    required = tuple(d.name for d in descriptors if _label(d) == "required")
    fields = {d.name: _field(d) for d in descriptors if d.name != "unread"}
    return _Form(fields, required)


def _field(descriptor: FieldDescriptor) -> _Field:
    message = descriptor.type == FieldDescriptor.TYPE_MESSAGE
    enum = descriptor.type == FieldDescriptor.TYPE_ENUM
    reader = None if message or enum else scalar_reader(descriptor)
    return _Field(descriptor, _label(descriptor) == "repeated", message, reader)


def _label(field: FieldDescriptor) -> str:
    """``optional``, ``required`` or ``repeated``; newer runtimes deprecate ``field.label``."""
    if hasattr(field, "is_repeated"):
        return "repeated" if field.is_repeated else "required" if field.is_required else "optional"
    return {1: "optional", 2: "required", 3: "repeated"}[attrgetter("label")(field)]
