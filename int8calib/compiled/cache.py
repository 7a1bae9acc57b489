"""Object code to files and back: beside the module, or in the user's cache folder.

The environment's NUMBA_CACHE_DIR names another folder in place of both, as it does for numba's
own cache.

A file holds what it was made for, so that a changed source, another processor or another version
of numba never runs it; what cannot be read or written costs the time of compiling, no more.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from int8calib.compiled.machine import ObjectCode
from int8calib.errors import OutputError
from int8calib.files import write_atomic

SUFFIX = ".kernel"


def load_code(source: str, name: str, key: str) -> ObjectCode | None:
    """The code kept for function `name` of the file `source`, if it was made for `key`."""
    for folder in _folders(source):
        with suppress(OSError, ValueError, KeyError, TypeError):
            head, _, code = _path(folder, source, name).read_bytes().partition(b"\n")
            found = json.loads(head)
            if found["key"] == key and found["sha256"] == hashlib.sha256(code).hexdigest():
                return ObjectCode(found["symbol"], tuple(found["outside"]), code)
    return None


def save_code(source: str, name: str, key: str, built: ObjectCode) -> None:
    """Keep `built` in the first folder that can be written to."""
    digest = hashlib.sha256(built.code).hexdigest()
    head = {"key": key, "sha256": digest, "symbol": built.symbol, "outside": built.outside}
    content = json.dumps(head).encode("ascii") + b"\n" + built.code
    for folder in _folders(source):
        with suppress(OSError, OutputError):
            folder.mkdir(parents=True, exist_ok=True)
            write_atomic(_path(folder, source, name), content)
            return


def _folders(source: str) -> Iterator[Path]:
    if chosen := os.environ.get("NUMBA_CACHE_DIR"):
        yield Path(chosen)
        return
    yield Path(source).parent / "__pycache__"
    with suppress(RuntimeError):
        base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
        yield (Path(base) if base else Path.home() / ".cache") / "int8calib"


def _path(folder: Path, source: str, name: str) -> Path:
    # Two installations may share the user's folder.
    place = hashlib.sha256(os.fsencode(source)).hexdigest()[:8]
    return folder / f"{Path(source).parent.name}.{name}.{place}{SUFFIX}"
