"""README.md against the program: every command and option is in it, and what it shows works."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from int8calib.calibration.thresholds import method_names
from int8calib.cli import convert_tool
from int8calib.cli.main import build_parser

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")


def subcommands(
    parser: argparse.ArgumentParser, name: str
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Every command that can be called, with its full name."""
    found = False
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found = True
            for word, command in action.choices.items():
                yield from subcommands(command, f"{name} {word}")
    if not found:
        yield name, parser


COMMANDS = dict(subcommands(build_parser(), "int8calib"))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_and_option_is_in_the_readme(command: str) -> None:
    assert command in README
    options = {
        option
        for action in COMMANDS[command]._actions
        for option in action.option_strings
        if option.startswith("--") and option != "--help"
    }
    missing = {option for option in options if not re.search(rf"{option}\b(?!-)", README)}
    assert not missing, f"{command}: README.md does not mention {sorted(missing)}"


@pytest.mark.parametrize("method", method_names())
def test_every_method_is_in_the_readme(method: str) -> None:
    assert f"`{method}`" in README


def command_lines() -> list[str]:
    """Every example of the README that calls one of our programs, lines joined."""
    joined = README.replace("\\\n", " ")
    lines = re.findall(r"^    ((?:int8calib|caffe-int8-convert-tool) .*)$", joined, re.MULTILINE)
    return [" ".join(line.split()) for line in lines]


@pytest.mark.parametrize("line", command_lines())
def test_every_example_is_understood(line: str) -> None:
    program, *words = line.replace("'", "").split()
    parser = build_parser() if program == "int8calib" else convert_tool.build_parser()
    parser.parse_args(words)
