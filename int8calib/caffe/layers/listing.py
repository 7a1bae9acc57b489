"""The registry comes in; the Markdown list of supported layers goes out, for README.md.

python -m int8calib.caffe.layers.listing [--write README.md]
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from int8calib.caffe.layers.registry import find_type, type_names
from int8calib.errors import OutputError

BEGIN, END = "<!-- layers:begin -->", "<!-- layers:end -->"


def layers_markdown() -> str:
    """A Markdown table of the types this package brings, one row a family, without the markers.

    A family is a module; its name is the head of its docstring. Types that an embedding program
    has registered are not in it.
    """
    families: dict[str, list[str]] = defaultdict(list)
    for name in type_names():
        module = find_type(name).run.__module__
        if module.startswith("int8calib.caffe.layers."):
            families[_family(module)].append(f"`{name}`")
    rows = (f"| {family} | {', '.join(families[family])} |" for family in sorted(families))
    return "\n".join(["| family | layer types |", "|---|---|", *rows])


def _family(module: str) -> str:
    """The head of the module's docstring, up to the first colon, semicolon or full stop."""
    return re.split(r"[:;.]", sys.modules[module].__doc__ or module, maxsplit=1)[0]


def with_layers(text: str, source: str) -> str:
    """`text` with the list between its markers; raises `OutputError` where they are missing."""
    before, begun, rest = text.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not begun or not ended:
        raise OutputError(f"{source}: holds no {BEGIN} with {END} behind it")
    return f"{before}{BEGIN}\n{layers_markdown()}\n{END}{after}"


def main(argv: Sequence[str] | None = None) -> int:
    """Write the list into a file with markers, or to stdout."""
    parser = argparse.ArgumentParser(
        prog="python -m int8calib.caffe.layers.listing",
        description="List the supported layer types.",
    )
    parser.add_argument("--write", type=Path, metavar="FILE", help="a file with the two markers")
    file = parser.parse_args(argv).write
    if file is None:
        sys.stdout.write(layers_markdown() + "\n")
    else:
        text = file.read_text(encoding="utf-8")
        file.write_text(with_layers(text, str(file)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
