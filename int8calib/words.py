"""Names and lists of them, in arguments and in messages."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from int8calib.errors import OptionError

SHOWN = 5
"""How many names a message gives before it only counts."""


def listed(names: Iterable[object], shown: int = SHOWN) -> str:
    """List the first names, and say how many more there are."""
    every = [str(name) for name in names]
    more = f" and {len(every) - shown} more" if len(every) > shown else ""
    return ", ".join(every[:shown]) + more


def name_list(names: Any, what: str, of: str = "names of blobs") -> tuple[str, ...]:
    """Return names as a tuple.

    Parameters
    ----------
    names
        What was given for a list of names.
    what
        What it was given as, for the message.
    of
        What the list should hold.

    Raises
    ------
    OptionError
        For anything else than a list of texts: a text alone would be taken letter by letter.
    """
    found = None if isinstance(names, str) or not isinstance(names, Iterable) else tuple(names)
    if found is None or not all(isinstance(name, str) for name in found):
        raise OptionError(f"{what} {names!r}; expected a list of {of}")
    return found
