"""Write the pages of docs/reference from the program: `python docs/generate.py [--check]`."""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import int8calib
from int8calib.caffe.layers.listing import layers_markdown
from int8calib.cli import convert_tool
from int8calib.cli.main import build_parser

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
    nested = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    for action in nested:
        for word, command in action.choices.items():
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
    return "\n".join(lines)


def _option_rows(parser: argparse.ArgumentParser) -> Iterator[str]:
    """A row for each option and argument that help shows."""
    formatter = argparse.HelpFormatter("")
    for action in parser._actions:
        if action.help == argparse.SUPPRESS or isinstance(action, argparse._HelpAction):
            continue
        values = formatter._format_args(action, _metavar(action)) if action.nargs != 0 else ""
        names = ", ".join(action.option_strings)
        shown = f"`{names}`" + (f" `{values}`" if values else "") if names else f"`{values}`"
        text = formatter._expand_help(action) if action.help else ""
        yield f"| {_cell(shown)} | {_cell(text)} |"


def _metavar(action: argparse.Action) -> str:
    if action.choices is not None and action.metavar is None:
        return "{" + ",".join(map(str, action.choices)) + "}"
    return (action.dest if not action.option_strings else action.dest.upper()).strip()


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def api_page() -> str:
    """Every public name of `int8calib` with its signature and docstring."""
    names = [name for name in int8calib.__all__ if name != "__version__"]
    parts = [NOTE, "", "# Python reference", "", "All of this is imported from `int8calib`.", ""]
    kinds: Mapping[str, Callable[[Any], bool]] = {
        "Functions": inspect.isfunction,
        "Classes": lambda x: inspect.isclass(x) and not issubclass(x, BaseException),
        "Errors": lambda x: inspect.isclass(x) and issubclass(x, BaseException),
    }
    for title, belongs in kinds.items():
        parts += [f"## {title}", ""]
        for name in names:
            value = getattr(int8calib, name)
            if belongs(value):
                parts += _described(name, value)
    return "\n".join(parts).rstrip("\n") + "\n"


def _described(name: str, value: Any) -> list[str]:
    """A name's heading, signature and text; the public methods of a class."""
    if inspect.isclass(value) and issubclass(value, BaseException):
        return [f"- `{name}` ({value.__bases__[0].__name__}): {_one_line(value)}", ""]
    parts = [
        f"### {name}",
        "",
        "```python",
        f"{name}{_signature(value)}",
        "```",
        "",
        markdown(value),
        "",
    ]
    if inspect.isclass(value):
        for method, member in vars(value).items():
            function = inspect.unwrap(getattr(member, "__func__", member))
            if method.startswith("_") or not (
                inspect.isfunction(function) or isinstance(member, property)
            ):
                continue
            called = "" if isinstance(member, property) else _signature(function)
            parts += [f"**`{name}.{method}{called}`**", "", markdown(member), ""]
    return parts


def _signature(value: Any) -> str:
    text = re.sub(r" at 0x[0-9a-f]+", "", str(inspect.signature(value)))
    return text.replace("'", "") if len(text) <= 90 else _broken(text.replace("'", ""))


def _broken(text: str) -> str:
    """A long signature, one parameter a line."""
    depth, lines, line = 0, [], ""
    inside, _, result = text[1:].rpartition(")")
    for character in inside:
        depth += character in "([{"
        depth -= character in ")]}"
        if character == "," and depth == 0:
            lines.append(line.strip())
            line = ""
        else:
            line += character
    lines.append(line.strip())
    return "(\n" + "".join(f"    {each},\n" for each in lines if each) + f"){result}"


def _one_line(value: Any) -> str:
    return " ".join((inspect.getdoc(value) or "").split("\n\n")[0].split())


def markdown(value: Any) -> str:
    """A docstring with its numpydoc sections as Markdown lists."""
    text = inspect.getdoc(value) or ""
    pieces = _SECTION.split(text)
    parts = [pieces[0].strip()]
    for title, body in zip(pieces[1::2], pieces[2::2], strict=True):
        parts += [f"*{title}*", "", *_items(body.strip("\n"))]
    return "\n\n".join(part for part in "\n".join(parts).split("\n\n") if part.strip())


def _items(body: str) -> Iterator[str]:
    """A line for each entry of a numpydoc section: its name, then its text."""
    entry, text = "", list[str]()
    for line in [*body.split("\n"), ""]:
        if line.startswith(" ") or (not line.strip() and text):
            text.append(line.strip())
            continue
        if entry:
            yield _item(entry, text)
        entry, text = line.strip(), []
    if entry:
        yield _item(entry, text)


def _item(entry: str, text: list[str]) -> str:
    meaning = " ".join(part for part in text if part)
    name, _, kind = entry.partition(" : ")
    shown = f"`{name}`" + (f" ({kind})" if kind else "")
    return f"- {shown}: {meaning}" if meaning else f"- {entry}"


def layers_page() -> str:
    """The supported Caffe layer types, from the registry."""
    return "\n".join(
        [
            *(NOTE, "", "# Supported Caffe layers", ""),
            "Only layers on the way to a quantized layer's input have to run.",
            *("", layers_markdown(), ""),
        ]
    )


PAGES: Mapping[str, Callable[[], str]] = {
    "cli.md": cli_page,
    "api.md": api_page,
    "layers.md": layers_page,
}

if __name__ == "__main__":
    sys.exit(main())
