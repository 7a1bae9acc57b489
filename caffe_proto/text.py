"""In the flow: a prototxt comes in; a ``NetParameter`` in today's form goes out."""

from __future__ import annotations

import warnings
from pathlib import Path as _Path

from caffe_proto.caffe_pb2 import NetParameter, SolverParameter
from caffe_proto.errors import CaffeFormatError, UnknownFieldWarning
from caffe_proto.lexer import Tokens
from caffe_proto.parser import Parser
from caffe_proto.recognize import HEAD, Path, file_name, refuse_binary, refuse_foreign
from caffe_proto.upgrade import upgrade_net

__all__ = ["parse_prototxt", "read_prototxt"]

_SOLVER_FIELDS = frozenset(field.name for field in SolverParameter.DESCRIPTOR.fields)


def read_prototxt(path: Path) -> NetParameter:
    """Read a network's structure, upgraded to today's form.

    Args:
        path: A prototxt of any age: V0, V1 or today's layers, inputs as fields or as layers.

    Returns:
        The net with ``layer`` entries only, their types as strings, and an ``Input`` layer at the
        front where the file gave its inputs as fields.

    Raises:
        CaffeFormatError: The file is no prototxt; the message gives file, line and column.
        OSError: The file cannot be opened.

    Warns:
        UnknownFieldWarning: Fields that no known version of Caffe defines were skipped.

    """
    raw = _Path(path).read_bytes()
    refuse_foreign(path, raw[:HEAD], "a prototxt")
    refuse_binary(path, raw[:HEAD])
    # Comments in a local encoding are common and do no harm. Their bytes become surrogates, which
    # are refused in strings only.
    return _parse(raw.decode("utf-8", "surrogateescape"), file_name(path))


def parse_prototxt(text: str, name: str = "<string>") -> NetParameter:
    """Parse the text of a prototxt, upgraded to today's form.

    Args:
        text: The text.
        name: How messages call it.

    Returns:
        As ``read_prototxt``.

    Raises:
        CaffeFormatError: As ``read_prototxt``.

    Warns:
        UnknownFieldWarning: As ``read_prototxt``.

    """
    return _parse(text, name)


def _parse(text: str, name: str) -> NetParameter:
    net = NetParameter()
    parser = Parser(Tokens(text, name))
    parser.parse(net)
    upgrade_net(net, name)
    if not net.layer:
        hint = ""
        if not _SOLVER_FIELDS.isdisjoint(parser.unknown):
            hint = "; it looks like a solver's prototxt, give the network's"
        raise CaffeFormatError(f"{name}: not a network: no layer and no input{hint}")
    if parser.unknown:
        fields = ", ".join(f"{field} (line {line})" for field, line in parser.unknown.items())
        message = f"{name}: unknown fields skipped: {fields}"
        warnings.warn(message, UnknownFieldWarning, stacklevel=3)
    return net
