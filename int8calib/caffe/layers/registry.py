"""Which Caffe types the engine can run: name -> `LayerType`; filled by the family files beside it.

A layer is a pure function of `(params, weights, bottoms)` with a shape rule beside it. Where
speed matters it may have a *planner*: given the shapes once, it returns a *fast path*, a function
that writes into buffers the engine owns. The plain function stays the definition; a test holds
the fast path to it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from caffe_proto import LayerParameter
from int8calib.arrays import Array, Shape
from int8calib.errors import (
    ModelError,
    OptionError,
    ShapeError,
    UnsupportedLayerError,
)

Run: TypeAlias = Callable[[LayerParameter, Sequence[Array], Sequence[Array]], Sequence[Array]]
ShapeRule: TypeAlias = Callable[[LayerParameter, Sequence[Shape]], Sequence[Shape]]
FastPath: TypeAlias = Callable[[Sequence[Array], Sequence[Array]], None]
Scratch: TypeAlias = Callable[[Shape], Array]
Planner: TypeAlias = Callable[[LayerParameter, Sequence[Array], Sequence[Shape], Scratch], FastPath]
Joins: TypeAlias = Callable[[LayerParameter, Sequence[Shape]], bool]
Macs: TypeAlias = Callable[[LayerParameter, Sequence[Shape], Sequence[Shape]], int]


@dataclass(frozen=True)
class LayerType:
    """How one Caffe layer type runs.

    name
        the `type` string of the prototxt.
    run
        `(params, weights, bottoms) -> tops`, float32 arrays, bottoms never written; raises
        `ModelError` for values that have no meaning, without the layer's name, which is added.
    shape
        `(params, bottom shapes) -> top shapes`; raises `ShapeError` without a layer name, which
        the caller adds.
    weights
        `(params, bottom shapes) -> weight shapes` in caffemodel order, or None for no weights.
    plan
        `(params, weights, bottom shapes, scratch) -> fast path`, where `fast_path(bottoms, tops)`
        writes the tops and `scratch(shape)` gives a scratch buffer that is its own only while it
        runs; None where `run` is all there is.
    inplace
        the fast path may get the same array as bottom and top.
    view
        each top is its one bottom's memory in another shape; nothing is computed.
    joins
        `(params, bottom shapes) -> bool`: whether the top's memory is that of its bottoms, one
        after another, so that these may be made in it and nothing is left to copy.
    macs
        `(params, bottom shapes, top shapes) -> multiply-adds`, None for none worth counting.
    internal
        made by this package from other layers and met in no prototxt; not listed.
    host
        its `run` takes numpy arrays only, so that it runs on the CPU, between two transfers, where
        the others run on a device. Of the types of this package those that go box by box; what
        else makes a `LayerType` must say that its functions are those of `namespace(bottom)`.
    outside
        registered by an embedding program; its functions read options that the schema lacks.
    """

    name: str
    run: Run
    shape: ShapeRule
    weights: ShapeRule | None = None
    plan: Planner | None = None
    inplace: bool = False
    view: bool = False
    joins: Joins | None = None
    macs: Macs | None = None
    internal: bool = False
    outside: bool = False
    host: bool = True


_types: dict[str, LayerType] = {}


def layer(
    *names: str,
    shape: ShapeRule,
    weights: ShapeRule | None = None,
    plan: Planner | None = None,
    inplace: bool = False,
    view: bool = False,
    joins: Joins | None = None,
    macs: Macs | None = None,
    host: bool = False,
) -> Callable[[Run], Run]:
    """Register a function as one or several layer types of this package.

    Parameters
    ----------
    names
        The Caffe types.
    shape, weights, plan, inplace, view, joins, macs, host
        See `LayerType`.

    Returns
    -------
    callable
        The decorator of `run(params, weights, bottoms)`, which returns the tops.
    """

    def add(run: Run) -> Run:
        for name in names:
            kind = LayerType(name, run, shape, weights, plan, inplace, view, joins, macs)
            add_type(dataclasses.replace(kind, host=host))
        return run

    return add


def copying_fast_path(run: Run, params: LayerParameter, weights: Sequence[Array]) -> FastPath:
    """Make a fast path of the plain function, for cases without a faster form.

    Parameters
    ----------
    run
        The plain function.
    params, weights
        Those of the layer.

    Returns
    -------
    callable
        `fast_path(bottoms, tops)`, which copies what `run` returns.
    """

    def copy(bottoms: Sequence[Array], tops: Sequence[Array]) -> None:
        for top, value in zip(tops, run(params, weights, bottoms), strict=True):
            np.copyto(top, value)

    return copy


def add_type(kind: LayerType, *, replace: bool = False) -> None:
    """Add a layer type.

    Parameters
    ----------
    kind
        The type; its shape rule will refuse options that are no numbers, and errors of its `run`
        will name the layer.
    replace
        Whether it may take the place of a type of that name.

    Raises
    ------
    OptionError
        Where the name is taken and may not be replaced.
    """
    if kind.name in _types and not replace:
        raise OptionError(
            f"layer type {kind.name!r} is registered already; pass replace=True to replace it"
        )
    _types[kind.name] = dataclasses.replace(
        kind, run=_naming(kind.run), shape=_checking_options(kind.shape)
    )


def _naming(run: Run) -> Run:
    """`run`, with the layer's name in front of its errors."""

    @functools.wraps(run)
    def named(
        params: LayerParameter, weights: Sequence[Array], bottoms: Sequence[Array]
    ) -> Sequence[Array]:
        try:
            return run(params, weights, bottoms)
        except ModelError as error:
            message = f"layer {params.name!r} ({params.type}): {error}"
            raise type(error)(message) from error.__cause__

    return named


def _checking_options(shape: ShapeRule) -> ShapeRule:
    """`shape`, which first refuses an option that is not a number."""

    @functools.wraps(shape)
    def checked(params: LayerParameter, bottoms: Sequence[Shape]) -> Sequence[Shape]:
        for field, value in params.ListFields():
            if field.name.endswith("_param"):
                for name in _not_numbers(value):
                    raise ShapeError(f"{field.name}.{name} is nan; expected a number")
        return shape(params, bottoms)

    return checked


def _not_numbers(message: Any) -> Iterator[str]:
    """The fields of a message, and of those in it, that hold NaN."""
    for field, value in message.ListFields():
        many = hasattr(value, "__len__") and not isinstance(value, (str, bytes))
        values = value if many else [value]
        if field.message_type is not None:
            yield from (f"{field.name}.{name}" for part in values for name in _not_numbers(part))
        elif any(isinstance(number, float) and math.isnan(number) for number in values):
            yield field.name


def find_type(name: str) -> LayerType:
    """The type registered as `name`; raises `UnsupportedLayerError`."""
    _load_builtin()
    try:
        return _types[name]
    except KeyError:
        raise UnsupportedLayerError(
            f"layer type {name!r} is not supported; int8calib.register_layer() adds one, "
            "`int8calib inspect --layers` lists those there are"
        ) from None


def has_type(name: str) -> bool:
    """Whether the engine can run layers of type `name`."""
    _load_builtin()
    return name in _types


def is_built_in(name: str) -> bool:
    """Whether `name` is a type of this package, not one registered from outside."""
    return has_type(name) and not _types[name].outside


def type_names() -> list[str]:
    """The names of all types a prototxt may hold, sorted without regard to case."""
    _load_builtin()
    names = (name for name, kind in _types.items() if not kind.internal)
    return sorted(names, key=lambda name: (name.lower(), name))


def _load_builtin() -> None:
    """Import the family files once, so that they have registered their types."""
    from int8calib.caffe.layers import families  # noqa: F401
