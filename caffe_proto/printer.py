"""The text of a net, with what its own prototxt held and the schema lacks."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

from google.protobuf import text_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from caffe_proto.caffe_pb2 import NetParameter, UnreadField
from caffe_proto.unread import name_parts

__all__ = ["net_text"]

# What has no place in the schema: the names of the messages around it, and the field itself.
_Kept: TypeAlias = "tuple[tuple[str, ...], UnreadField]"
_ESCAPED = re.compile(r'["\\\x00-\x1f\x7f]')
_STEP = 2  # columns that each message is indented


def net_text(net: NetParameter) -> str:
    """Return a net in protobuf's text format.

    Parameters
    ----------
    net
        The net, as `read_prototxt` gives it or made by a program.

    Returns
    -------
    str
        The same text as protobuf's own printer gives. What stands in `unread` is written where it
        stood: inside of its message, behind the fields that are known. Where such a message is
        repeated, it goes into the first.
    """
    return "".join(_lines(net, [], 0))


def _lines(message: Message, kept: Sequence[_Kept], indent: int) -> Iterator[str]:
    """The fields of a message, one a line, then what is kept of it."""
    kept = [*kept, *_own(message)]
    for field, value in message.ListFields():
        if field.name == "unread":
            continue
        if field.type != FieldDescriptor.TYPE_MESSAGE:
            out = io.StringIO()
            for one in value if _is_list(value) else [value]:
                text_format.PrintField(field, one, out, indent, as_utf8=True)
            yield out.getvalue()
            continue
        inner = [(parents[1:], entry) for parents, entry in kept if parents[:1] == (field.name,)]
        for one in value if _is_list(value) else [value]:
            yield f"{' ' * indent}{field.name} {{\n"
            yield from _lines(one, inner, indent + _STEP)
            yield f"{' ' * indent}}}\n"
            inner = []
    yield from _entries((entry for parents, entry in kept if not parents), indent)


def _is_list(value: object) -> bool:
    return not isinstance(value, (Message, bool, int, float, str, bytes))


def _own(message: Message) -> Iterator[_Kept]:
    for entry in getattr(message, "unread", ()):
        *parents, _ = name_parts(entry.name)
        yield tuple(parents), entry


def _escape(match: re.Match[str]) -> str:
    character = match[0]
    return f"\\{character}" if character in '"\\' else f"\\{ord(character):03o}"


def _entries(entries: Iterable[UnreadField], indent: int) -> Iterator[str]:
    for entry in entries:
        start = f"{' ' * indent}{name_parts(entry.name)[-1]}"
        if entry.HasField("value"):
            value = entry.value
            if entry.quoted:
                value = f'"{_ESCAPED.sub(_escape, value)}"'
            yield f"{start}: {value}\n"
            continue
        yield f"{start} {{\n"
        yield from _entries(entry.children, indent + _STEP)
        yield f"{' ' * indent}}}\n"
