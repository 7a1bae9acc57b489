"""The public names of int8calib: each exists, says what it takes, gives and raises, and is listed."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import runpy
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import int8calib
from int8calib import errors
from tests.layer_cases import named

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/reference/api.md").read_text(encoding="utf-8")
GENERATE = runpy.run_path(str(ROOT / "docs/generate.py"))
NAMES = [name for name in int8calib.__all__ if name != "__version__"]
ERRORS = {
    name: value
    for name, value in vars(errors).items()
    if inspect.isclass(value) and issubclass(value, errors.Int8CalibError)
}


def described() -> Iterator[tuple[str, Any]]:
    """Every public function and class, and the public methods of the classes, by name."""
    for name in NAMES:
        value = getattr(int8calib, name)
        if name in ERRORS:
            continue
        yield name, value
        if inspect.isclass(value):
            for member, item in GENERATE["public_members"](value):
                yield f"{name}.{member}", item


DESCRIBED = dict(described())


def sections(value: Any) -> dict[str, str]:
    """The sections of a docstring by title; what stands before the first one has none."""
    pieces = re.split(r"^([A-Z][A-Za-z ]+)\n-{3,}$", inspect.getdoc(value) or "", flags=re.M)
    return {"": pieces[0], **dict(zip(pieces[1::2], pieces[2::2], strict=True))}


def entries(section: str) -> set[str]:
    """The names that a section of parameters, attributes or errors lists."""
    heads = re.findall(r"^(\S.*?)(?: :.*)?$", section, re.MULTILINE)
    return {name.strip(" *") for head in heads for name in head.split(",")}


def raised(value: Any) -> set[str]:
    """The errors of ours that the source of a function, or of the making of a class, raises."""
    found, functions = set(), [value]
    if inspect.isclass(value):
        functions = [vars(value).get(name) for name in ("__init__", "__post_init__")]
    for function in functions:
        function = function.fget if isinstance(function, property) else function
        if not inspect.isfunction(function) or not Path(function.__code__.co_filename).exists():
            continue  # what a dataclass or a C type makes has no source
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function)))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                found.add(getattr(node.exc.func, "id", ""))
    return found & ERRORS.keys()


def test_every_name_has_one_home_and_is_exported() -> None:
    assert sorted(int8calib.__all__) == list(int8calib.__all__)
    assert set(int8calib._HOMES) == set(NAMES)
    assert {"CalibrationTable", "Histogram", "Statistics", "WeightOptions"} <= set(NAMES)
    assert {"Checkpoint", "Executor", "QuantLayer", "read_table", "write_table"} <= set(NAMES)
    assert set(NAMES) >= ERRORS.keys()
    assert set(dir(int8calib)) == set(int8calib.__all__)


def test_names_are_what_their_modules_define() -> None:
    for name in NAMES:
        value = getattr(int8calib, name)
        assert value.__name__ == name
        assert value is getattr(importlib.import_module(int8calib._HOMES[name]), name)
        # Importing a module of that name would put it in the place of the public name.
        assert not (ROOT / "int8calib" / name).exists()
        assert not (ROOT / "int8calib" / f"{name}.py").exists()


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse((ROOT / "int8calib/__init__.py").read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    homes = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert homes == int8calib._HOMES


def test_first_lines_say_what_they_are_for() -> None:
    for name, value in DESCRIBED.items():
        with named(name):
            check_first_line(value)


def check_first_line(value: Any) -> None:
    text = inspect.getdoc(value) or ""
    assert re.match(r"[`A-Z0-9][^\n]{9,98}[^\n.]\.(\n\n|$)", text), text.split("\n\n")[0]


def test_what_they_take_is_described() -> None:
    for name, value in DESCRIBED.items():
        with named(name):
            check_parameters(value)


def check_parameters(value: Any) -> None:
    if isinstance(value, property) or getattr(value, "_is_protocol", False):
        return
    takes = [p for p in inspect.signature(value).parameters if p not in ("self", "cls")]
    found = sections(value)
    title = "Attributes" if inspect.isclass(value) and "Parameters" not in found else "Parameters"
    assert not takes or title in found, f"no section {title}"
    assert entries(found.get(title, "")) >= set(takes)
    if title == "Parameters":
        assert entries(found.get(title, "")) == set(takes)
    untyped = re.findall(r"^\w[^:\n]*$", found.get(title, ""), re.MULTILINE)
    assert not untyped, f"no type: {untyped}"


def test_what_they_give_is_described() -> None:
    for name, value in DESCRIBED.items():
        with named(name):
            check_returns(value)


def check_returns(value: Any) -> None:
    if inspect.isclass(value) or isinstance(value, property):
        return
    gives = inspect.signature(value).return_annotation not in (None, "None")
    assert gives == ("Returns" in sections(value))


def test_what_they_raise_is_described() -> None:
    for name, value in DESCRIBED.items():
        with named(name):
            check_raises(value)


def check_raises(value: Any) -> None:
    listed = entries(sections(value).get("Raises", ""))
    assert listed <= ERRORS.keys() | {"IndexError", "KeyError"}
    for error in raised(value):
        family = {kind.__name__ for kind in ERRORS[error].__mro__}
        assert listed & family, f"{error} is raised and not listed"


def test_they_stand_in_the_reference() -> None:
    for name in DESCRIBED:
        heading = rf"^(\*\*`)?{name}\b" if "." in name else rf"^### {name}$"
        assert re.search(heading, PAGE, re.MULTILINE), name


def test_all_errors_are_defined_in_one_file() -> None:
    for path in (ROOT / "int8calib").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and path.name != "errors.py":
                bases = {getattr(base, "id", "") for base in node.bases}
                assert not bases & ERRORS.keys(), f"{path}: {node.name}"


def tree(text: str) -> dict[str, str]:
    """Each name of a drawn tree with the name that it hangs from."""
    above: list[tuple[int, str]] = []
    parents = {}
    for line in re.findall(r"^[ │├└─]*\w+(?:  .*)?$", text, re.MULTILINE):
        found = re.match(r"([ │├└─]*)(\w+)", line)
        assert found
        depth, name = len(found[1]), found[2]
        if not name.endswith("Error"):
            continue
        above = [(d, n) for d, n in above if d < depth]
        parents[name] = above[-1][1] if above else ""
        above.append((depth, name))
    return parents


def test_the_tree_of_errors_is_complete() -> None:
    """Every error with the one it comes from, in the docstring and in the reference."""
    real = {name: kind.__bases__[0].__name__ for name, kind in ERRORS.items()}
    real["Int8CalibError"] = ""
    assert tree(inspect.getdoc(errors) or "") == real
    drawn = PAGE[PAGE.index("## Errors") :]
    assert tree(drawn) == real
    for name in ERRORS:
        assert f"- `{name}` (" in drawn
        assert re.match(r"[A-Z][^\n]{9,98}\.(\n|$)", inspect.getdoc(ERRORS[name]) or "")
