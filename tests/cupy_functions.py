"""The functions, methods and parameters that CuPy has, kept in cupy_functions.json.

Where CuPy can be imported (a GPU is not needed), ``python tests/cupy_functions.py`` writes the file
anew and ``--check`` compares it. What CuPy documents counts: signatures of its Python functions,
first lines of the docstrings of the others.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from pathlib import Path
from typing import Any

LIST = Path(__file__).with_name("cupy_functions.json")


def read_list() -> dict[str, Any]:
    """What the file holds: `functions` and `methods` with their parameters, `attributes`."""
    found: dict[str, Any] = json.loads(LIST.read_text(encoding="utf-8"))
    return found


def describe(cupy: Any) -> dict[str, Any]:
    """What an imported CuPy has."""
    names = [name for name in dir(cupy) if not name.startswith("_")]
    functions = {
        name: _parameters(getattr(cupy, name)) for name in names if _is_function(cupy, name)
    }
    functions["lib.stride_tricks.as_strided"] = _parameters(cupy.lib.stride_tricks.as_strided)
    members = [name for name in dir(cupy.ndarray) if not name.startswith("_")]
    return {
        "version": cupy.__version__,
        "functions": functions,
        "methods": {
            name: _parameters(getattr(cupy.ndarray, name))
            for name in members
            if callable(getattr(cupy.ndarray, name))
        },
        "attributes": [name for name in members if not callable(getattr(cupy.ndarray, name))],
        "values": [name for name in names if _is_value(getattr(cupy, name))],
    }


def _is_function(module: Any, name: str) -> bool:
    member = getattr(module, name)
    return callable(member) and not isinstance(member, type)


def _is_value(member: Any) -> bool:
    """A number, a type of numbers, or `newaxis`."""
    number = isinstance(member, type) and member.__module__ == "numpy"
    return number or isinstance(member, float) or member is None


def _parameters(function: Any) -> list[str]:
    """The names of the parameters, with `/`, `*`, `*args` and `**kwargs` as Python writes them."""
    try:
        found = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return _documented(function.__doc__)
    names: list[str] = []
    for parameter in found:
        if parameter.kind is parameter.KEYWORD_ONLY and not any(n.startswith("*") for n in names):
            names.append("*")
        stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}
        names.append(stars.get(parameter.kind, "") + parameter.name)
    return [name for name in names if name != "self"]


def _documented(doc: str) -> list[str]:
    """The parameters in a docstring's first line, ``name(a, b=None, \\*, c=1) -> type``."""
    found = re.search(r"\((.*)\)", doc.splitlines()[0].replace("\\", ""))
    assert found is not None, doc
    # Commas within brackets belong to a default.
    parts = re.split(r",\s*(?![^(\[]*[)\]])", found[1])
    names = [part.split("=")[0].split()[-1] for part in parts if part.strip()]
    return [name for name in names if name != "self"]


def main() -> int:
    import cupy

    found = describe(cupy)
    if "--check" in sys.argv[1:]:
        if found == read_list():
            return 0
        sys.stderr.write(f"{LIST.name} is not what CuPy {cupy.__version__} has\n")
        return 1
    lines = []
    for key, value in found.items():
        if isinstance(value, dict):
            rows = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in value.items())
            lines.append(f"{json.dumps(key)}: {{\n{rows}\n}}")
        else:
            lines.append(f"{json.dumps(key)}: {json.dumps(value)}")
    LIST.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
