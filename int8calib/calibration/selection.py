"""Which layers are quantized, and by which method, from names and patterns.

A pattern is a layer's name, or a glob of names (`fire*/expand*`). One that matches nothing is a
mistake and never passed over.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from types import MappingProxyType

from int8calib.calibration.layers import QuantLayer
from int8calib.calibration.options import AUTO, SAME, Options
from int8calib.errors import OptionError
from int8calib.table.rules import WEIGHT_MARK, grouped_problem
from int8calib.words import listed

INPUT_METHOD = "minmax"
"""The method of input blobs under `auto`. Pixels end where they end: on SqueezeNet v1.0, v1.1 and
a MobileNet v2, kl clips 1.8 % of them and puts 10 to 13 dB more noise on the output than minmax,
as long as nothing else is quantized; with all of it quantized minmax is between 0.05 dB behind
and 1 dB ahead."""
REPLICAS = frozenset(("kl-tool", "kl-tool-v1", "aciq"))
"""Methods that repeat another tool's table, which treats input blobs as any other."""


def matching(names: Sequence[str], pattern: str, option: str) -> tuple[str, ...]:
    """Return the names that a pattern means.

    Parameters
    ----------
    names : sequence of str
        Those of all layers.
    pattern : str
        A glob, or a name: written out it means that layer alone, whatever glob characters it
        holds.
    option : str
        The option that holds the pattern, for the message.

    Raises
    ------
    OptionError
        With near names, for a pattern that matches none.
    """
    if pattern in names:
        return (pattern,)
    matched = tuple(name for name in names if fnmatchcase(name, pattern))
    if not matched:
        near = get_close_matches(pattern, names, n=3, cutoff=0.5) or list(names[:3])
        raise OptionError(f"{option} {pattern}: matches no layer; near names are {', '.join(near)}")
    return matched


def chosen_layers(
    layers: Sequence[QuantLayer],
    options: Options,
    blocked: Mapping[str, str] = MappingProxyType({}),
    rows: Iterable[str] = (),
) -> tuple[str, ...]:
    """Return the names of the layers to quantize, in their order.

    Parameters
    ----------
    layers : sequence of QuantLayer
        Those that can be quantized.
    options : Options
        `only` first, then `exclude`, `first_last_float` and `grouped` take away.
    blocked : mapping of str to str
        Layers that stay in float because something stands in their way: name to what. Patterns
        may name them.
    rows : iterable of str
        Keys of weight rows, ``<layer>_param_<k>``, whose layers are chosen from too, and come last.

    Raises
    ------
    OptionError
        For a pattern that matches nothing, an `only` that means blocked layers alone, and where
        nothing is left.
    """
    names = [*(layer.name for layer in layers), *dict.fromkeys(map(row_owner, rows))]
    known = [*names, *blocked]
    in_float = grouped_in_float(layers, options)
    blocked = {**blocked, **in_float}
    kept = set(names)
    if options.only:
        kept = set()
        for pattern in options.only:
            meant = matching(known, pattern, "only")
            if blocked.keys() >= set(meant):
                raise OptionError(f"only {pattern}: cannot be INT8: {blocked[meant[0]]}")
            kept.update(set(meant).intersection(names))
    for pattern in options.exclude:
        kept.difference_update(matching(known, pattern, "exclude"))
    if options.first_last_float:
        kept.difference_update(layer.name for layer in layers if layer.first or layer.last)
    kept.difference_update(in_float)
    if not kept:
        raise OptionError(
            f"all {len(names)} layers that could be INT8 are left out by only, exclude, "
            "first-last-float and grouped; leave at least one"
        )
    return tuple(name for name in names if name in kept)


def row_owner(key: str) -> str:
    """Return the layer whose weight row has this key, ``<layer>_param_<k>``."""
    return key.rpartition(WEIGHT_MARK)[0]


def grouped_in_float(layers: Iterable[QuantLayer], options: Options) -> dict[str, str]:
    """Return the grouped convolutions that stay in float, each with what goes wrong in INT8."""
    if options.grouped != "float":
        return {}
    problems = {layer.name: grouped_problem(layer.group, layer.outputs) for layer in layers}
    return {
        name: f"{problem}; --grouped int8 quantizes it all the same"
        for name, problem in problems.items()
        if problem is not None
    }


def blocked_warnings(blocked: Mapping[str, str], options: Options) -> list[str]:
    """Return a line for each thing that keeps layers in float, unless `options` leave them out."""
    waiting: dict[str, list[str]] = {}
    for name, reason in blocked.items():
        if not _means(options.exclude, name) and (not options.only or _means(options.only, name)):
            waiting.setdefault(reason, []).append(name)
    return [
        f"{listed(names)} stay{'s' * (len(names) == 1)} in float: {reason}; "
        "--exclude says that it is meant"
        for reason, names in waiting.items()
    ]


def _means(patterns: Iterable[str], name: str) -> bool:
    """Whether one of the patterns means the layer `name`."""
    return any(pattern == name or fnmatchcase(name, pattern) for pattern in patterns)


def blob_methods(
    layers: Sequence[QuantLayer], chosen: Iterable[str], options: Options
) -> tuple[dict[str, str], list[str]]:
    """Return the method of each blob that the chosen layers read.

    A blob has one threshold for all its consumers, since ncnn requantizes it by one scale. So a
    method given to one consumer holds for all of them.

    Parameters
    ----------
    layers : sequence of QuantLayer
        All that can be quantized.
    chosen : iterable of str
        The names of those that will be.
    options : Options
        The methods.

    Returns
    -------
    methods : dict of str to str
        By blob.
    notes : list of str
        What followed from what.

    Raises
    ------
    OptionError
        Names two layers that read one blob and were given different methods.
    """
    wanted = set(chosen)
    given = _given_methods(layers, options.layer_methods)
    deciding: dict[str, str] = {}
    for layer in layers:
        if layer.name not in wanted or layer.name not in given:
            continue
        other = deciding.setdefault(layer.blob, layer.name)
        if given[other] != given[layer.name]:
            raise OptionError(
                f"layer-method: {other} ({given[other]}) and {layer.name} ({given[layer.name]}) "
                f"read the same blob {layer.blob}, which has one scale; give both one method"
            )
    methods, notes = {}, []
    for layer in layers:
        if layer.name not in wanted:
            continue
        leader = deciding.get(layer.blob)
        if leader is None:
            methods[layer.blob] = default_method(layer.reads_input, options)
            continue
        methods[layer.blob] = given[leader]
        if layer.name not in given:
            notes.append(
                f"{layer.name}: method {given[leader]}, as {leader} reads the same blob "
                f"{layer.blob}"
            )
    return methods, notes


def _given_methods(
    layers: Sequence[QuantLayer], pairs: Sequence[tuple[str, str]]
) -> Mapping[str, str]:
    """The method given to each layer by name or pattern; the last pattern that matches counts."""
    names = [layer.name for layer in layers]
    return {
        name: method
        for pattern, method in pairs
        for name in matching(names, pattern, "layer-method")
    }


def default_method(is_input: bool, options: Options) -> str:
    """Return the method of a blob, an input or not, that no layer-method names."""
    if not is_input or options.input_method == SAME:
        return options.method
    if options.input_method == AUTO:
        return options.method if options.method in REPLICAS else INPUT_METHOD
    return options.input_method
