"""TOML files of options, read as arguments and written after a run.

Keys are the long options without their dashes: `mean = [104, 117, 123]`, `winograd = "off"`.
What stands on the command line goes before the file.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from int8calib.cli.console import as_utf8
from int8calib.cli.idle_options import refuse_idle
from int8calib.cli.process import Parser
from int8calib.cli.table_options import ALL_PRESETS, PRESETS
from int8calib.errors import OptionError
from int8calib.files import read_bounded
from int8calib.limits import MAX_CONFIG_BYTES
from int8calib.parsing import decode_text, parse_toml

OPTION = "--config"
PRESET = "--like"
_NOT_KEPT = frozenset(("help", "config", "quiet", "verbose", "debug"))


def add_config_argument(parser: argparse.ArgumentParser) -> None:
    """`--config FILE`."""
    parser.add_argument(
        OPTION,
        metavar="FILE",
        help="a TOML file with options by their long names; the command line goes before it",
    )


class ConfigParser(Parser):
    """A parser that puts the options of `--config` and `--like` in front of the given ones."""

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """As the plain parser's, with the words of the configuration and the preset added.

        Raises `OptionError` for an option that is empty, or was given and has no effect.
        """
        words = given_words = list(sys.argv[1:] if args is None else args)
        config: list[str] = []
        if OPTION in self._option_string_actions:
            try:
                config = self._config_words(words)
            except OptionError as error:
                self.error(str(error))
            words = [*config, *words]
        if PRESET in self._option_string_actions:
            words = [*self._preset_words(words), *words]
        found, rest = super().parse_known_args(words, namespace)
        self._refuse_empty(vars(found))
        # The configuration of a run holds defaults too, which nobody gave.
        of_config = {
            name: option
            for name, option in self._given(config).items()
            if getattr(found, name) != self.get_default(name)
        }
        refuse_idle({**of_config, **self._given(given_words)}, vars(found))
        return found, rest

    def _config_words(self, words: Sequence[str]) -> list[str]:
        path = _value_of(OPTION, words)
        if path is None:
            return []
        given = self._given(words)
        found = []
        for key, value in read_config(path).items():
            action = self._option_string_actions.get(f"--{key}")
            if action is None or action.dest in _NOT_KEPT or key.startswith("no-"):
                raise OptionError(f"{path}: {_unknown(key, self.keys())}")
            if action.dest not in given:
                found += _words(action, key, value, path, self._option_string_actions)
        return found

    def _preset_words(self, words: Sequence[str]) -> list[str]:
        """What `--like` means, but for what is given otherwise or this command does not have."""
        preset = PRESETS.get(_value_of(PRESET, words) or "", ())
        given = self._given(words)
        actions = self._option_string_actions
        return [
            word
            for word in (*preset, *(ALL_PRESETS if preset else ()))
            if (name := word.partition("=")[0]) in actions and actions[name].dest not in given
        ]

    def _refuse_empty(self, found: Mapping[str, Any]) -> None:
        """Raise `OptionError` for an empty text, such as an unset variable of a shell leaves."""
        for action in self._actions:
            value = found.get(action.dest)
            # Of images the error names the folder that may be meant.
            if "" in (value if isinstance(value, list) else [value]) and action.dest != "images":
                name = "/".join(action.option_strings) or action.metavar or action.dest
                raise OptionError(f"{name}: is empty; give a value, or leave it out")

    def _given(self, words: Sequence[str]) -> dict[str, str]:
        """The arguments that the words set, each with the option that does."""
        return {
            self._option_string_actions[name].dest: name
            for word in words
            if (name := word.partition("=")[0]) in self._option_string_actions
        }

    def keys(self) -> list[str]:
        """The keys that a configuration may have, in the order of the help text."""
        return [key for key, _ in _kept(self)]


def read_config(path: str) -> dict[str, Any]:
    """Read a TOML file of options.

    Parameters
    ----------
    path
        The file, of at most `MAX_CONFIG_BYTES`; a pipe will do.

    Returns
    -------
    dict
        Its keys and values.

    Raises
    ------
    OptionError
        The file cannot be read, or is no TOML.
    """
    try:
        return parse_toml(decode_text(read_bounded(path, MAX_CONFIG_BYTES, pipes=True)))
    except OSError as error:
        raise OptionError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise OptionError(f"{path}: no TOML file: {error}") from None


def config_text(
    command: str,
    values: Mapping[str, Any],
    add_arguments: Callable[[argparse.ArgumentParser], None],
) -> str:
    """Write the options of a run as TOML, from which `--config` repeats it.

    Parameters
    ----------
    command
        The command.
    values
        Its arguments by their names in the parser.
    add_arguments
        What declares its options, whose order the text follows.

    Returns
    -------
    str
        The text, with every option that has a value.
    """
    parser = ConfigParser()
    add_arguments(parser)
    rows = [f"# Options of `int8calib {command}`; to repeat the run: --config with this file."]
    for key, action in _kept(parser):
        value = values[action.dest]
        if value is not None and value != []:
            written = as_utf8(value)
            if written != value:
                rows.append("# The next value is no UTF-8 and stands here with escapes.")
            rows.append(f"{key} = {_toml(written)}")
    return "\n".join([*rows, ""])


def _kept(parser: ConfigParser) -> list[tuple[str, argparse.Action]]:
    """Key and action of each option that a configuration may hold; one for on and off."""
    kept: dict[str, tuple[str, argparse.Action]] = {}
    for action in parser._actions:
        name = next((name for name in action.option_strings if name.startswith("--")), None)
        if name is not None and action.dest not in _NOT_KEPT:
            kept.setdefault(action.dest, (name.removeprefix("--"), action))
    return list(kept.values())


def _value_of(option: str, words: Sequence[str]) -> str | None:
    """The last value given to `option`; None where it is not given."""
    value = None
    for i, word in enumerate(words):
        if word == option and i + 1 < len(words):
            value = words[i + 1]
        elif word.startswith(f"{option}="):
            value = word.partition("=")[2]
    return value


def _unknown(key: str, known: Sequence[str]) -> str:
    from difflib import get_close_matches

    near = get_close_matches(key, known, n=3, cutoff=0.5)
    hint = f"near keys are {', '.join(near)}" if near else f"known keys are {', '.join(known)}"
    return f"there is no option {key!r}; {hint}"


def _words(
    action: argparse.Action, key: str, value: Any, path: str, options: Mapping[str, Any]
) -> list[str]:
    """The words of the command line that mean `key = value`."""
    if action.nargs == 0 or (action.nargs == "?" and isinstance(value, bool)):
        if not isinstance(value, bool):
            raise OptionError(f"{path}: {key} = {value!r}; expected true or false")
        negative = [f"--no-{key}"] if f"--no-{key}" in options else []
        return [f"--{key}"] if value else negative
    repeats = isinstance(action, argparse._AppendAction)
    many = action.nargs == "+" or repeats
    values = value if isinstance(value, list) and many else [value]
    if not values or any(
        isinstance(v, bool) or not isinstance(v, str | int | float) for v in values
    ):
        what = "a list of text or numbers" if many else "one text or number"
        raise OptionError(f"{path}: {key} = {value!r}; expected {what}")
    texts = [str(v) for v in values]
    if any("\0" in text for text in texts):
        raise OptionError(f"{path}: {key} holds a zero byte, which no option can")
    if repeats or len(texts) == 1:
        return [f"--{key}={text}" for text in texts]
    return [f"--{key}", *texts]


def _toml(value: object) -> str:
    """A TOML value: JSON's text and lists are TOML's, but for one character and floats."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else str(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(_toml(item) for item in value)}]"
    if isinstance(value, int):
        return str(value)
    text = str(value)
    # Options that take numbers or a file arrive as text; numbers look better as numbers.
    number = re.fullmatch(r"-?(0|[1-9]\d{0,9})(\.\d{1,9})?", text)
    if number and text in (str(int(float(text))), str(float(text))):
        return text
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
