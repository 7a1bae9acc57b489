"""Object code to files and back: beside the module, or in the user's cache folder.

The environment's NUMBA_CACHE_DIR names another folder in place of both, as it does for numba's
own cache. A file's name holds a key of all that the code depends on, so that processors, versions
and installations that share a folder do not get in each other's way. Files that are not the user's
own, or that others can write, are not read: they hold machine code. What cannot be read or written
costs the time of compiling, no more.
"""

from __future__ import annotations

import dis
import hashlib
import json
import os
import re
import stat
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np

from int8calib.compiled.machine import ObjectCode, processor
from int8calib.errors import OptionError, OutputError
from int8calib.files import open_regular, write_private

SUFFIX = ".kernel"
_LIBRARIES = ("builtins", "math", "numpy")
LIMIT = 1 << 24
"""Bytes of a file; a kernel has about 10,000."""


def load_code(function: FunctionType, key: str | None) -> ObjectCode | None:
    """Return the code that is kept for `function` under a key of `compile_key`, if there is any."""
    for path in _paths(function, key):
        with suppress(OSError, ValueError, KeyError, TypeError):
            head, _, code = _read(path).partition(b"\n")
            entry = json.loads(head)
            if entry["key"] == key and entry["sha256"] == hashlib.sha256(code).hexdigest():
                return ObjectCode(entry["symbol"], tuple(entry["outside"]), code)
    return None


def save_code(function: FunctionType, key: str | None, built: ObjectCode) -> None:
    """Keep `built` in the first folder that can be written to."""
    digest = hashlib.sha256(built.code).hexdigest()
    head = {"key": key, "sha256": digest, "symbol": built.symbol, "outside": built.outside}
    content = json.dumps(head).encode("ascii") + b"\n" + built.code
    for path in _paths(function, key):
        with suppress(OSError, OutputError):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_private(path, content)
            return


def _read(path: Path) -> bytes:
    """The content of a file that nobody but the user can have written; OSError for others."""
    with open_regular(path) as file:
        found = os.fstat(file.fileno())
        others = stat.S_IWGRP | stat.S_IWOTH
        if os.name == "posix" and (found.st_uid != os.geteuid() or found.st_mode & others):
            raise PermissionError(f"{path} is not the user's alone")
        return file.read(LIMIT)


def _paths(function: FunctionType, key: str | None) -> Iterator[Path]:
    if key is None:
        return
    source = Path(function.__code__.co_filename)
    name = f"{source.parent.name}.{function.__name__}.{key[:32]}{SUFFIX}"
    for folder in _folders(source):
        yield folder / re.sub(r"[^\w.]", "_", name)


def _folders(source: Path) -> Iterator[Path]:
    if chosen := os.environ.get("NUMBA_CACHE_DIR"):
        yield Path(chosen)
        return
    yield source.parent / "__pycache__"
    with suppress(RuntimeError):
        # The XDG standard has relative paths ignored.
        bases = [os.environ.get("XDG_CACHE_HOME"), os.environ.get("LOCALAPPDATA")]
        absolute = [Path(base) for base in bases if base and Path(base).is_absolute()]
        yield (absolute[0] if absolute else Path.home() / ".cache") / "int8calib"


def compile_key(function: FunctionType, options: str) -> str | None:
    """Return a checksum of all that the machine code of a function depends on.

    Parameters
    ----------
    function : function
        Its bytecode and the values of the globals that it reads count, wherever they come from.
    options : str
        What it is compiled with.

    Returns
    -------
    str or None
        64 hexadecimal digits; None where the compiler's own source cannot be read.

    Raises
    ------
    TypeError
        For a function that reads a global whose value cannot be told from another's.
    """
    try:
        compiler = _compiler()
    except OSError:
        return None
    parts = (options, _described(function), compiler, processor(), _settings())
    return hashlib.sha256(repr(parts).encode()).hexdigest()


@cache
def _compiler() -> str:
    """Versions of what compiles, and the source of this package, which holds the flags."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    versions = [_installed(name) for name in ("numba", "llvmlite", "numpy")]
    return f"{sys.version} {versions} {digest.hexdigest()}"


def _installed(name: str) -> str:
    """A package with its version, from the name of the folder beside it that describes it.

    importlib.metadata says the same, and takes 20 times as long to load.
    """
    spec = find_spec(name)
    if spec is None:
        raise OptionError(
            f"the package {name} is not installed, which compiles the loops that count activations "
            "and weights; pip install numba"
        )
    if spec.origin is not None:
        folders = Path(spec.origin).parents[1].glob(f"{name}-*.dist-info")
        if found := sorted(folder.name for folder in folders):
            return " ".join(found)
    from importlib.metadata import version

    return f"{name} {version(name)}"


def _settings() -> list[tuple[str, str]]:
    """numba's own settings, which come from the environment and from a file."""
    settings = [item for item in os.environ.items() if item[0].startswith("NUMBA_")]
    with suppress(OSError):
        settings.append(("file", Path(".numba_config.yaml").read_text(encoding="utf-8")))
    return sorted(item for item in settings if item[0] != "NUMBA_CACHE_DIR")


def _described(function: FunctionType) -> tuple[Any, ...]:
    """A function's code and all values that it reads, in a form whose text tells it from others."""
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    values = dict(zip(function.__code__.co_freevars, cells, strict=True))
    for name in sorted(_globals_in(function.__code__) & function.__globals__.keys()):
        values[name] = function.__globals__[name]
    values["defaults"] = (function.__defaults__, tuple((function.__kwdefaults__ or {}).items()))
    return (_code(function.__code__), [(name, _value(v, name)) for name, v in values.items()])


def _value(value: Any, name: str) -> Any:
    if isinstance(value, np.generic):
        return (type(value).__name__, value.tobytes())
    if isinstance(value, tuple):
        return tuple(_value(part, name) for part in value)
    if type(value) in (int, float, bool, str, bytes, type(None)):
        return value
    if isinstance(value, ModuleType) and value.__name__ in _LIBRARIES:
        return value.__name__
    if isinstance(value, np.ufunc):
        return f"ufunc {value.__name__}"
    if getattr(value, "__module__", None) in _LIBRARIES and hasattr(value, "__name__"):
        return f"{value.__module__}.{value.__name__}"
    raise TypeError(
        f"a kernel reads {name!r}, a {type(value).__name__}; expected a number, or something of "
        "math or numpy"
    )


def _code(code: CodeType) -> tuple[Any, ...]:
    """All of a code object that decides what it does: not its file, name or lines."""
    constants = [_code(each) if isinstance(each, CodeType) else each for each in code.co_consts]
    ordered = [sorted(map(repr, c)) if isinstance(c, frozenset) else c for c in constants]
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    errors = getattr(code, "co_exceptiontable", b"")
    return (code.co_code, ordered, names, code.co_argcount, code.co_flags, errors)


def _globals_in(code: CodeType) -> set[str]:
    """The names of the globals that a code object reads, nested ones included."""
    names = {str(each.argval) for each in dis.get_instructions(code) if "GLOBAL" in each.opname}
    nested = [each for each in code.co_consts if isinstance(each, CodeType)]
    return names.union(*map(_globals_in, nested))
