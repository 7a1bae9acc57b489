"""The stored results of the benchmarks: the docs and their page say what they hold."""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from benchmarks import report  # noqa: E402

STORED = ROOT / "benchmarks" / "results.json"


def test_docs_hold_the_stored_table() -> None:
    table = report.docs_table((ROOT / "docs" / "measured.md").read_text(encoding="utf-8"))
    stored = json.loads(STORED.read_text(encoding="utf-8"))
    assert table == report.docs_text(stored)


def test_stored_page_is_that_of_the_stored_results() -> None:
    stored = json.loads(STORED.read_text(encoding="utf-8"))
    assert STORED.with_suffix(".md").read_text(encoding="utf-8") == report.page(stored)
