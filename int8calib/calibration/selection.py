"""Names and patterns come in; which layers are quantized, and by which method, goes out.

A pattern is a layer's name, or a glob of names (`fire*/expand*`). One that matches nothing is a
mistake and never passed over.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Protocol

from int8calib.errors import OptionError

AUTO = "auto"
SAME = "same"
INPUT_METHOD = "minmax"
"""The method of input blobs under `auto`. Pixels end where they end: on SqueezeNet v1.0, v1.1 and
a MobileNet v2, kl clips 1.8 % of them and puts 10 to 13 dB more noise on the output than minmax,
as long as nothing else is quantized; with all of it quantized minmax is between 0.05 dB behind
and 1 dB ahead."""
REPLICAS = frozenset(("kl-tool", "kl-tool-v1", "aciq"))
"""Methods that repeat another tool's table, which treats input blobs as any other."""


class Selectable(Protocol):
    """What choosing needs to know of a layer."""

    @property
    def name(self) -> str:
        """The layer's name."""

    @property
    def bottom(self) -> str:
        """The blob version it reads, as text."""

    @property
    def reads_input(self) -> bool:
        """Whether that blob is an input of the network."""

    @property
    def first(self) -> bool:
        """Whether no quantized layer stands before it."""

    @property
    def last(self) -> bool:
        """Whether no quantized layer stands behind it."""


class Choice(Protocol):
    """The options that choose layers and methods."""

    @property
    def method(self) -> str:
        """The method of all blobs without one of their own."""

    @property
    def input_method(self) -> str:
        """The method of input blobs: a method's name, `auto` or `same`."""

    @property
    def layer_methods(self) -> Sequence[tuple[str, str]]:
        """(pattern, method) pairs; of several that match a layer the last one counts."""

    @property
    def exclude(self) -> Sequence[str]:
        """Patterns of layers that stay in float."""

    @property
    def only(self) -> Sequence[str]:
        """Patterns of the layers to quantize; all where empty."""

    @property
    def first_last_float(self) -> bool:
        """Whether the first and last quantized layers stay in float."""


def matching(names: Sequence[str], pattern: str, option: str) -> tuple[str, ...]:
    """The names that `pattern` means; raises `OptionError` with near names where none.

    A name that is written out means that layer alone, whatever glob characters it holds.
    """
    if pattern in names:
        return (pattern,)
    found = tuple(name for name in names if fnmatchcase(name, pattern))
    if not found:
        near = get_close_matches(pattern, names, n=3, cutoff=0.5) or list(names[:3])
        raise OptionError(f"{option} {pattern}: matches no layer; near names are {', '.join(near)}")
    return found


def chosen_layers(layers: Sequence[Selectable], choice: Choice) -> tuple[str, ...]:
    """The names of the layers to quantize, in their order.

    `only` first, then `exclude` and `first_last_float` take away. Raises `OptionError` for a
    pattern that matches nothing, and where nothing is left.
    """
    names = [layer.name for layer in layers]
    kept = set(names)
    if choice.only:
        kept = {name for pattern in choice.only for name in matching(names, pattern, "only")}
    for pattern in choice.exclude:
        kept.difference_update(matching(names, pattern, "exclude"))
    if choice.first_last_float:
        kept.difference_update(layer.name for layer in layers if layer.first or layer.last)
    if not kept:
        raise OptionError(
            f"all {len(names)} layers that could be INT8 are left out by only, exclude and "
            "first-last-float; leave at least one"
        )
    return tuple(name for name in names if name in kept)


def blob_methods(
    layers: Sequence[Selectable], chosen: Iterable[str], choice: Choice
) -> tuple[dict[str, str], list[str]]:
    """The method of each bottom of the `chosen` layers, and notes on what followed from what.

    A blob has one threshold for all its consumers, since ncnn requantizes it by one scale. So a
    method given to one consumer holds for all of them (a note says so), and two different
    methods given to consumers of one blob are an `OptionError` that names both layers.
    """
    wanted = set(chosen)
    given = _given_methods(layers, choice.layer_methods)
    deciding: dict[str, str] = {}
    for layer in layers:
        if layer.name not in wanted or layer.name not in given:
            continue
        other = deciding.setdefault(layer.bottom, layer.name)
        if given[other] != given[layer.name]:
            raise OptionError(
                f"layer-method: {other} ({given[other]}) and {layer.name} ({given[layer.name]}) "
                f"read the same blob {layer.bottom}, which has one scale; give both one method"
            )
    methods, notes = {}, []
    for layer in layers:
        if layer.name not in wanted:
            continue
        leader = deciding.get(layer.bottom)
        if leader is None:
            methods[layer.bottom] = default_method(layer.reads_input, choice)
            continue
        methods[layer.bottom] = given[leader]
        if layer.name not in given:
            notes.append(
                f"{layer.name}: method {given[leader]}, as {leader} reads the same blob "
                f"{layer.bottom}"
            )
    return methods, notes


def _given_methods(
    layers: Sequence[Selectable], pairs: Sequence[tuple[str, str]]
) -> Mapping[str, str]:
    """The method given to each layer by name or pattern; the last pattern that matches counts."""
    names = [layer.name for layer in layers]
    return {
        name: method
        for pattern, method in pairs
        for name in matching(names, pattern, "layer-method")
    }


def default_method(is_input: bool, choice: Choice) -> str:
    """The method of a blob that no layer-method names; `is_input`: whether it is an input."""
    if not is_input or choice.input_method == SAME:
        return choice.method
    if choice.input_method == AUTO:
        return choice.method if choice.method in REPLICAS else INPUT_METHOD
    return choice.input_method
