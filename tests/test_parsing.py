"""JSON and TOML that other readers treat differently, or that would stop Python itself."""

from __future__ import annotations

import json
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from int8calib.parsing import decode_text, parse_json, parse_toml

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=7,
)  # fmt: skip


@given(VALUES, st.booleans())
def test_what_the_standard_library_writes_is_read(value: object, ascii_only: bool) -> None:
    try:
        text = json.dumps(value, ensure_ascii=ascii_only).encode("utf-8")
    except UnicodeEncodeError:  # a key with half of a surrogate pair
        return
    if ascii_only and not _encodable(value):
        with pytest.raises(ValueError, match="half of a surrogate pair"):
            parse_json(text)
        return
    assert parse_json(text) == value


def _encodable(value: object) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "b": {"a": 1, "a": 2}}', "the key 'a' stands twice"),
        ('{"a": NaN}', "NaN is no JSON number"),
        ("[-Infinity]", "is no JSON number"),
        ("[1e999]", "the number 1e999 is too large"),
        ("[-1e999]", "too large"),
        ("9" * 5000, "digits"),
        (r'["\ud83d"]', "half of a surrogate pair"),
        (r'{"\udc80": 1}', "half of a surrogate pair"),
        ("[" * 200_000, "nested too deep"),
        ('{"a":' * 200_000, "nested too deep"),
        (b'["\xff"]', "decode"),
        ("[1", "delimiter"),
    ],
)
def test_what_is_refused(text: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_json(text)


def test_a_key_that_stands_twice_is_named_in_a_time_that_grows_with_the_text() -> None:
    keys = ", ".join(f'"{i}": 1' for i in range(100_000))
    started = time.process_time()
    with pytest.raises(ValueError, match="the key '99999' stands twice"):
        parse_json(f'{{{keys}, "99999": 1}}')
    assert time.process_time() - started < 5


def test_a_whole_pair_is_a_character() -> None:
    assert parse_json(r'["\ud83d\ude00"]') == ["\U0001f600"]


@pytest.mark.parametrize(
    "text",
    [
        f"a = {'[' * 3000}{']' * 3000}",
        f"a = {'{a=' * 3000}",
        "a = ",
        f"{'a.' * 200_000}b = 1",
        f"[{'a.' * 200_000}b]",
    ],
)
def test_toml_that_is_refused(text: str) -> None:
    limit = sys.getrecursionlimit()
    with pytest.raises(ValueError, match=r"."):
        parse_toml(text)
    assert sys.getrecursionlimit() == limit
    assert parse_toml("a = [1, 'x']") == {"a": [1, "x"]}


def test_a_byte_order_mark_is_passed_over() -> None:
    assert decode_text("\ufeffä".encode()) == "ä"
    assert parse_json('\ufeff{"a": 1}') == parse_json('\ufeff{"a": 1}'.encode()) == {"a": 1}
    for encoding in ("utf-16-le", "utf-16-be"):
        with pytest.raises(ValueError, match="it is UTF-16 text; save it as UTF-8"):
            parse_json('\ufeff{"a": 1}'.encode(encoding))
