"""A network's structure read from a prototxt of any age, as a ``NetParameter`` of today's form."""

from __future__ import annotations

import warnings
from collections import Counter
from itertools import chain

from caffe_proto.caffe_pb2 import NetParameter, SolverParameter
from caffe_proto.errors import CaffeFormatError, UnknownFieldWarning
from caffe_proto.files import open_regular
from caffe_proto.lexer import Tokens
from caffe_proto.limits import MAX_TEXT_BYTES
from caffe_proto.oneline import one_line
from caffe_proto.parser import Parser
from caffe_proto.recognize import HEAD, Path, file_name, refuse_binary, refuse_foreign
from caffe_proto.unread import unread_fields
from caffe_proto.upgrade import upgrade_net

__all__ = ["parse_prototxt", "read_prototxt"]

_SOLVER_FIELDS = frozenset(field.name for field in SolverParameter.DESCRIPTOR.fields)
_NAMED = 10  # fields that a warning names


def read_prototxt(path: Path, *, warn: bool = True) -> NetParameter:
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
