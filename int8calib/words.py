"""Small parts of messages that several stages use."""

from __future__ import annotations

from collections.abc import Iterable

SHOWN = 5
"""How many names a message gives before it only counts."""


def listed(names: Iterable[object], shown: int = SHOWN) -> str:
    """List the first names, and say how many more there are."""
    every = [str(name) for name in names]
    more = f" and {len(every) - shown} more" if len(every) > shown else ""
    return ", ".join(every[:shown]) + more
