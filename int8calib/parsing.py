"""Text, JSON and TOML from files that others may have written, read without surprises."""

from __future__ import annotations

import codecs
import json
import math
import re
import sys
from collections import Counter
from typing import Any

__all__ = ["decode_text", "parse_json", "parse_toml"]

BOM = "\ufeff"
"""The byte order mark, which editors on Windows write at the beginning of UTF-8 text."""

MOST_DOTS = 100
"""Dots in a key of a TOML document."""
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def decode_text(data: bytes) -> str:
    """Return UTF-8 text without a byte order mark; raises ValueError for anything else."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError("it is UTF-16 text; save it as UTF-8")
    return data.decode("utf-8-sig")


def parse_json(text: str | bytes) -> Any:
    """Read a JSON document.

    Parameters
    ----------
    text
        The document; bytes are UTF-8. A byte order mark is passed over.

    Returns
    -------
    object
        Its value.

    Raises
    ------
    ValueError
        The text is no JSON (`json.JSONDecodeError` where a place is known), or holds what JSON
        readers treat differently: a key twice in an object, NaN and infinity, numbers too large
        for a float64, half of a surrogate pair, more nesting than Python can follow.
    """
    if isinstance(text, bytes):
        text = decode_text(text)
    try:
        value = json.loads(
            text.removeprefix(BOM),
            object_pairs_hook=_unique,
            parse_constant=_refused,
            parse_float=_finite,
        )
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("a text holds half of a surrogate pair") from None
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    return value


def parse_toml(text: str) -> dict[str, Any]:
    """Read a TOML document; raises ValueError for anything else, and for too much nesting."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    # Its reader takes a time that grows with the square of the parts of a dotted key.
    if any(line.partition("=")[0].count(".") > MOST_DOTS for line in text.splitlines()):
        raise ValueError("it is nested too deep")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys are all different."""
    result = dict(pairs)
    if len(result) != len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {twice[:60]!r} stands twice in one object")
    return result


def _refused(constant: str) -> object:
    raise ValueError(f'{constant} is no JSON number, the text "{constant.lower()}" is right')


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:30]} is too large")
    return value
