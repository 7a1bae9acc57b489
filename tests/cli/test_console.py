"""Tables on the console: long ones are laid out as rich lays out short ones."""

from __future__ import annotations

import pytest

from int8calib.cli import console
from int8calib.cli.options import MessageOptions

COLUMNS = ("layer", "top", "multiply-adds", "note")
ROWS = [
    ("conv1", "1x16x113x113", "88200000", ""),
    ("a much longer name\x1b[0m", "1x3", "7", "why not"),
    ("fc", "", "-", "stays in float"),
]


def test_a_long_table_looks_as_a_short_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = []
    for most in (len(ROWS), len(ROWS) - 1):
        monkeypatch.setattr(console, "MOST_LAID_OUT", most)
        console.Console(MessageOptions()).table("The net", COLUMNS, ROWS)
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]
    assert "stays in float" in shown[0]
