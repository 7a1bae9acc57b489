"""Lists of the supported layers, for `inspect --layers` and docs/reference/layers.md."""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Iterable

from int8calib.caffe.layers.registry import find_type, has_type, type_names


def layer_families() -> dict[str, list[str]]:
    """List the types this package brings by family, both sorted.

    A family is a module; its name is the head of its docstring. Types that an embedding program
    has registered are not in it.
    """
    families: dict[str, list[str]] = defaultdict(list)
    for name in type_names():
        module = find_type(name).run.__module__
        if module.startswith("int8calib.caffe.layers."):
            families[_family(module)].append(name)
    return {family: families[family] for family in sorted(families)}


def layers_markdown() -> str:
    """Write `layer_families` as a Markdown table, one row a family."""
    rows = (
        f"| {family} | {', '.join(f'`{name}`' for name in names)} |"
        for family, names in layer_families().items()
    )
    return "\n".join(["| family | layer types |", "|---|---|", *rows])


def host_layers(layers: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """List the layers that run on the CPU where a GPU runs the others.

    Parameters
    ----------
    layers
        Name and type of each layer; types that do not run are passed over.

    Returns
    -------
    dict
        Each such type with the names of its layers, in the order given.
    """
    found: dict[str, list[str]] = defaultdict(list)
    for name, kind in layers:
        if has_type(kind) and find_type(kind).host:
            found[kind].append(name)
    return dict(found)


def _family(module: str) -> str:
    """The head of the module's docstring, up to the first colon, semicolon or full stop."""
    return re.split(r"[:;.]", sys.modules[module].__doc__ or module, maxsplit=1)[0]
