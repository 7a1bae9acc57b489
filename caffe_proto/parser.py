"""In the flow: tokens come in; a filled protobuf message goes out, with the unknown fields named.

Protobuf's own text parser either refuses an unknown field or drops it silently; this one names
them, and its errors say what was expected where.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import NamedTuple, cast

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from caffe_proto.errors import CaffeFormatError
from caffe_proto.lexer import Token, Tokens
from caffe_proto.scalars import Reader, scalar_reader, string_bytes

__all__ = ["Parser"]

_CLOSERS = {"{": "}", "<": ">", "[": "]"}


class _Field(NamedTuple):
    """What the parser needs of a field, looked up once per message type."""

    descriptor: FieldDescriptor
    repeated: bool
    read: Reader | None  # none for a message

    @property
    def name(self) -> str:
        return self.descriptor.name


class _Form(NamedTuple):
    """A message type: its fields by name, and those that must be given."""

    fields: dict[str, _Field]
    required: tuple[str, ...]


class Parser:
    """Recursive descent over the tokens of one text.

    ``unknown`` maps the dotted name of each field that the schema lacks to the line on which it
    first stands.
    """

    def __init__(self, tokens: Tokens) -> None:
        """Start at the front of the tokens."""
        self._tokens = tokens
        self._path: list[str] = []
        self._forms: dict[str, _Form] = {}
        self.unknown: dict[str, int] = {}

    def parse(self, target: Message) -> None:
        """Fill the message from the whole text.

        Raises:
            CaffeFormatError: The text breaks the format or the schema.

        """
        self._fields(target, Token("end", "", 0))

    def _fields(self, target: Message, opener: Token) -> None:
        """Read fields until the opener's closing bracket or, at the top, until the end."""
        tokens = self._tokens
        form = self._form(target)
        closer = _CLOSERS.get(opener.text)  # none at the top
        seen: dict[str, Token] = {}
        while not (tokens.accept(closer) if closer else tokens.peek.kind == "end"):
            name = tokens.peek
            field = form.fields.get(name.text)
            if name.kind == "end":
                raise self._unclosed(opener)
            if name.kind != "word" or field is None:
                self._skip_field()
            else:
                tokens.advance()
                if seen.setdefault(name.text, name) is not name and not field.repeated:
                    first = tokens.line(seen[name.text].at)
                    message = f"{name.text} is given twice, first on line {first}"
                    raise tokens.error(name.at, message)
                self._field(target, field)
            if not tokens.accept(","):
                tokens.accept(";")
        for missing in form.required:
            if missing not in seen:
                raise tokens.error(opener.at, f"{self._dotted(missing)} must be given")

    def _field(self, target: Message, field: _Field) -> None:
        """Read what follows a field's name: one value, or a list of them."""
        tokens = self._tokens
        if not tokens.accept(":") and field.read:
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
        if not field.read:
            self._message(target, field)
            return
        at = self._tokens.peek.at
        value = field.read(self._tokens, field.descriptor)
        try:
            if field.repeated:
                getattr(target, field.name).append(value)
            else:
                setattr(target, field.name, value)
        except ValueError:
            raise self._tokens.error(at, f"{field.name}: {value!r} is out of range") from None

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
        self._path.append(field.name)
        self._fields(nested, opener)
        self._path.pop()

    def _skip_field(self) -> None:
        """Step over a field that the schema lacks, and note its name."""
        tokens = self._tokens
        first = tokens.advance()
        name = first.text
        if name == "[" and first.kind == "mark":  # an extension: [package.name]
            while not name.endswith("]"):
                if tokens.peek.kind == "end":
                    raise tokens.expected("']'")
                name += tokens.advance().text
        elif first.kind != "word":
            raise tokens.error(first.at, f"expected the name of a field, found {name!r}")
        self.unknown.setdefault(self._dotted(name), tokens.line(first.at))
        if not tokens.accept(":") and tokens.peek.text not in ("{", "<"):
            raise tokens.expected(f"':' or '{{' after {name}")
        self._skip_value(name)

    def _skip_value(self, name: str) -> None:
        tokens = self._tokens
        if tokens.peek.text in _CLOSERS and tokens.peek.kind == "mark":
            self._skip_brackets()
        elif tokens.peek.kind == "string":
            string_bytes(tokens, name)
        else:
            tokens.accept("-")
            if tokens.peek.kind not in ("word", "number"):
                raise tokens.expected(f"a value for {name}")
            tokens.advance()

    def _skip_brackets(self) -> None:
        """Step over a bracketed value; only its brackets are looked at."""
        open_ones: list[Token] = []
        while True:
            token = self._tokens.advance()
            if token.kind == "end":
                raise self._unclosed(open_ones[-1])
            if token.kind != "mark":
                continue
            if token.text in _CLOSERS:
                open_ones.append(token)
            elif token.text in _CLOSERS.values():
                closer = _CLOSERS[open_ones.pop().text]
                if token.text != closer:
                    raise self._tokens.error(token.at, f"expected {closer!r}, found {token.text!r}")
                if not open_ones:
                    return

    def _dotted(self, name: str) -> str:
        return ".".join([*self._path, name])

    def _unclosed(self, opener: Token) -> CaffeFormatError:
        closer = _CLOSERS[opener.text]
        line = self._tokens.line(opener.at)
        return self._tokens.expected(f"{closer!r} for the {opener.text!r} of line {line}")

    def _form(self, target: Message) -> _Form:
        name = target.DESCRIPTOR.full_name
        if name not in self._forms:
            descriptors = cast("Sequence[FieldDescriptor]", target.DESCRIPTOR.fields)
            required = tuple(d.name for d in descriptors if _label(d) == "required")
            self._forms[name] = _Form({d.name: _field(d) for d in descriptors}, required)
        return self._forms[name]


def _field(descriptor: FieldDescriptor) -> _Field:
    nested = descriptor.type == FieldDescriptor.TYPE_MESSAGE
    reader = None if nested else scalar_reader(descriptor)
    return _Field(descriptor, _label(descriptor) == "repeated", reader)


def _label(field: FieldDescriptor) -> str:
    """``optional``, ``required`` or ``repeated``; newer runtimes deprecate ``field.label``."""
    if hasattr(field, "is_repeated"):
        return "repeated" if field.is_repeated else "required" if field.is_required else "optional"
    return {1: "optional", 2: "required", 3: "repeated"}[attrgetter("label")(field)]
