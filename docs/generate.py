"""Write the pages of docs/reference from the program: `python docs/generate.py [--check]`."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import int8calib
from int8calib import errors
from int8calib.caffe.layers.listing import host_layers, layers_markdown
from int8calib.caffe.layers.registry import type_names
from int8calib.cli import convert_tool
from int8calib.cli.main import build_parser
from int8calib.ncnn.translate.network import translated_types

REFERENCE = Path(__file__).resolve().parent / "reference"
NOTE = "<!-- Written by docs/generate.py; do not edit. -->"
_SECTION = re.compile(r"^([A-Z][A-Za-z ]+)\n-{3,}$", re.MULTILINE)


def main() -> int:
    """Write the pages, or with --check say which are out of date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if outdated")
    check = parser.parse_args().check
    outdated = []
    for name, make in PAGES.items():
        path, text = REFERENCE / name, make()
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        outdated.append(name)
        if not check:
            path.write_text(text, encoding="utf-8")
    for name in outdated:
        print(f"{name}: {'out of date' if check else 'written'}")
    return 1 if check and outdated else 0


def cli_page() -> str:
    """Every command with its description and options, from the parsers."""
    parts = [NOTE, "", "# Command line", ""]
    programs = [
        ("int8calib", build_parser()),
        ("caffe-int8-convert-tool", convert_tool.build_parser()),
    ]
    for program, parser in programs:
        for name, command in subcommands(parser, program):
            parts += [f"## {name}", "", _description(command), ""]
            rows = list(_option_rows(command))
            if rows:
                parts += ["| option | meaning |", "|---|---|", *rows, ""]
    return "\n".join(parts).rstrip("\n") + "\n"


def subcommands(
    parser: argparse.ArgumentParser, name: str
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Every command that can be called, with its full name."""
    nested = [a.choices for a in parser._actions if isinstance(a.choices, Mapping)]
    for commands in nested:
        for word, command in commands.items():
            yield from subcommands(command, f"{name} {word}")
    if not nested:
        yield name, parser


def _description(parser: argparse.ArgumentParser) -> str:
    """The description with its indented lines as a code block."""
    lines: list[str] = []
    for line in (parser.description or "").strip().split("\n"):
        code = line.startswith("  ")
        if lines and lines[-1] and code != lines[-1].startswith("    "):
            lines.append("")
        lines.append(f"    {line[2:]}" if code else line)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines))


def _option_rows(parser: argparse.ArgumentParser) -> Iterator[str]:
    """A row for each option and argument that help shows."""
    for action in parser._actions:
        if action.help == argparse.SUPPRESS or action.dest == "help":
            continue
        names, values = ", ".join(action.option_strings), _values(action)
        shown = " ".join(f"`{part}`" for part in (names, values) if part)
        text = (action.help or "") % {**vars(action), "prog": parser.prog}
        text += " (required)" if action.option_strings and action.required else ""
        yield f"| {_cell(shown)} | {_cell(text)} |"


def _values(action: argparse.Action) -> str:
    """The values of an option as usage lines show them, such as `K [K ...]`."""
    if action.nargs == 0:
        return ""
    name = action.metavar or (action.dest.upper() if action.option_strings else action.dest)
    if action.choices is not None and action.metavar is None:
        name = "{" + ",".join(map(str, action.choices)) + "}"
    if isinstance(action.nargs, int):
        return " ".join([name] * action.nargs if isinstance(name, str) else name)
    name = name if isinstance(name, str) else name[0]
    forms = {None: "{}", "?": "[{}]", "*": "[{} ...]", "+": "{0} [{0} ...]"}
    return forms[action.nargs].format(name)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def api_page() -> str:
    """Every public name of `int8calib` with its signature and docstring."""
    values = {n: getattr(int8calib, n) for n in int8calib.__all__ if n != "__version__"}
    parts = [NOTE, "# Python reference", "All of this is imported from `int8calib`."]
    parts.append("## Functions")
    for name, value in values.items():
        if inspect.isfunction(value):
            parts += _described(name, value)
    parts.append("## Classes")
    for name, value in values.items():
        if inspect.isclass(value) and not issubclass(value, BaseException):
            parts += _described(name, value)
            for member, item in public_members(value):
                called = "" if isinstance(item, property) else signature(item)
                lines = "\n" in called
                head = f"{name}.{member}{called}"
                parts += [f"```python\n{head}\n```" if lines else f"**`{head}`**"]
                parts.append(markdown(item))
    parts += ["## Errors", *_error_tree()]
    rows = []
    for name, value in values.items():
        if inspect.isclass(value) and issubclass(value, BaseException):
            text = " ".join((inspect.getdoc(value) or "").split("\n\n")[0].split())
            rows.append(f"- `{name}` ({value.__bases__[0].__name__}): {text}")
    parts.append("\n".join(rows))
    return "\n\n".join(parts) + "\n"


def _described(name: str, value: Any) -> list[str]:
    """A name's heading, signature and text."""
    called = "" if getattr(value, "_is_protocol", False) else signature(value)
    return [f"### {name}", f"```python\n{name}{called}\n```", markdown(value)]


def public_members(kind: type) -> Iterator[tuple[str, Any]]:
    """The methods and properties that a class defines for its users."""
    for name, member in vars(kind).items():
        function = inspect.unwrap(getattr(member, "__func__", member))
        if not name.startswith("_") and (
            inspect.isfunction(function) or isinstance(function, property)
        ):
            yield name, function


def _error_tree() -> list[str]:
    """The text and the picture in the docstring of `int8calib.errors`."""
    text = inspect.getdoc(errors) or ""
    return [
        f"```text\n{textwrap.dedent(part)}\n```" if part.startswith("    ") else part
        for part in text.split("\n\n")
    ]


def signature(value: Any) -> str:
    """The parameters of a function or class as its source states them; long ones a line each."""
    given = inspect.signature(value)
    parts, star = [], False
    for parameter in given.parameters.values():
        if parameter.name == "self":
            continue
        if parameter.kind is parameter.VAR_POSITIONAL:
            star = True
        if parameter.kind is parameter.KEYWORD_ONLY and not star:
            star = True
            parts.append("*")
        prefix = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind)
        text = f"{prefix or ''}{parameter.name}"
        if parameter.annotation is not parameter.empty:
            text += f": {_annotation(parameter.annotation)}"
        if parameter.default is not parameter.empty:
            text += f" = {_default(value, parameter)}"
        parts.append(text)
    result = ""
    if not inspect.isclass(value) and given.return_annotation is not given.empty:
        result = f" -> {_annotation(given.return_annotation)}"
    line = f"({', '.join(parts)}){result}"
    return line if len(line) <= 90 else "(\n    " + ",\n    ".join(parts) + f",\n){result}"


def _annotation(annotation: Any) -> str:
    """The annotation as written: modules here keep theirs as text, NamedTuple as references."""
    return str(getattr(annotation, "__forward_arg__", annotation))


def _default(owner: Any, parameter: inspect.Parameter) -> str:
    """A default as one would write it; what a dataclass makes anew each time is made once."""
    default = parameter.default
    if dataclasses.is_dataclass(owner):
        field = {each.name: each for each in dataclasses.fields(owner)}[parameter.name]
        made = field.default_factory
        if inspect.isfunction(made) and made.__name__.isidentifier():
            return f"{made.__name__}()"
        if made is not dataclasses.MISSING:
            default = made()
    if isinstance(default, Mapping):
        return repr(dict(default))
    if dataclasses.is_dataclass(default):
        return f"{type(default).__name__}()"
    return "()" if isinstance(default, np.ndarray) else repr(default).replace("'", '"')


def markdown(value: Any) -> str:
    """A docstring with its numpydoc sections as Markdown: entries are items of a list."""
    first, *sections = _SECTION.split(inspect.getdoc(value) or "")
    parts = [first.strip()]
    for title, body in zip(sections[::2], sections[1::2], strict=True):
        body = body.strip("\n")
        if title == "Examples":
            body = f"```python\n{body}\n```"
        elif title not in ("Notes", "References"):
            body = "\n".join(_items(body))
        parts += [f"*{title}*", body]
    return "\n\n".join(parts)


def _items(body: str) -> Iterator[str]:
    """A line for each entry of a numpydoc section: its name and type, then its text."""
    for entry in re.split(r"\n(?=\S)", body):
        head, _, text = entry.partition("\n")
        name, _, kind = head.partition(" : ")
        shown = ", ".join(f"`{each}`" for each in name.split(", ")) if kind else f"`{name}`"
        shown += f" ({kind})" if kind else ""
        meaning = " ".join(text.split())
        yield f"- {shown}: {meaning}" if meaning else f"- {shown}"


def layers_page() -> str:
    """The layer types that run in numpy, Caffe's and ncnn's."""
    return "\n".join(
        [
            *(NOTE, "", "# Supported Caffe layers", ""),
            "Only layers on the way to a quantized layer's input have to run.",
            *("", layers_markdown(), ""),
            "On a GPU, these run on the CPU between two transfers, as do types of",
            f"`register_layer`: {_host_types()}.",
            "",
            *("# ncnn layers that run in numpy", ""),
            f"{', '.join(f'`{name}`' for name in translated_types())}.",
            *("", "A model with others, or with options of them that are not supported, runs in"),
            *("ncnn's own runtime.", ""),
        ]
    )


def _host_types() -> str:
    """The types that a GPU leaves to the CPU."""
    return ", ".join(f"`{name}`" for name in host_layers((name, name) for name in type_names()))


PAGES: Mapping[str, Callable[[], str]] = {
    "cli.md": cli_page,
    "api.md": api_page,
    "layers.md": layers_page,
}

if __name__ == "__main__":
    sys.exit(main())
