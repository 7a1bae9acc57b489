"""Which Caffe types the engine can run: name -> `LayerType`; filled by the family files beside it.

A layer is a pure function of `(params, weights, bottoms)` with a shape rule beside it. Where
speed matters it may have a *planner*: given the shapes once, it returns a *fast path*, a function
that writes into buffers the engine owns. The plain function stays the definition; a test holds
the fast path to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from caffe_proto import LayerParameter
from int8calib.arrays import Array, Shape
from int8calib.errors import OptionError, UnsupportedLayerError

Run: TypeAlias = Callable[[LayerParameter, Sequence[Array], Sequence[Array]], Sequence[Array]]
ShapeRule: TypeAlias = Callable[[LayerParameter, Sequence[Shape]], Sequence[Shape]]
FastPath: TypeAlias = Callable[[Sequence[Array], Sequence[Array]], None]
Scratch: TypeAlias = Callable[[Shape], Array]
Planner: TypeAlias = Callable[[LayerParameter, Sequence[Array], Sequence[Shape], Scratch], FastPath]
Macs: TypeAlias = Callable[[LayerParameter, Sequence[Shape], Sequence[Shape]], int]


@dataclass(frozen=True)
class LayerType:
    """How one Caffe layer type runs.

    name
        the `type` string of the prototxt.
    run
        `(params, weights, bottoms) -> tops`, float32 arrays, bottoms never written.
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
    macs
        `(params, bottom shapes, top shapes) -> multiply-adds`, None for none worth counting.
    internal
        made by this package from other layers and met in no prototxt; not listed.
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
    macs: Macs | None = None
    internal: bool = False
    outside: bool = False


_types: dict[str, LayerType] = {}


def layer(
    *names: str,
    shape: ShapeRule,
    weights: ShapeRule | None = None,
    plan: Planner | None = None,
    inplace: bool = False,
    view: bool = False,
    macs: Macs | None = None,
) -> Callable[[Run], Run]:
    """Register the decorated function under one or several Caffe types (see `LayerType`)."""

    def add(run: Run) -> Run:
        for name in names:
            add_type(LayerType(name, run, shape, weights, plan, inplace, view, macs))
        return run

    return add


def copying_fast_path(run: Run, params: LayerParameter, weights: Sequence[Array]) -> FastPath:
    """Make a fast path of the plain function, for cases without a faster form: tops are copied."""

    def copy(bottoms: Sequence[Array], tops: Sequence[Array]) -> None:
        for top, value in zip(tops, run(params, weights, bottoms), strict=True):
            np.copyto(top, value)

    return copy


def add_type(kind: LayerType, *, replace: bool = False) -> None:
    """Add `kind`; raises `OptionError` where its name is taken and `replace` is false."""
    if kind.name in _types and not replace:
        raise OptionError(
            f"layer type {kind.name!r} is registered already; pass replace=True to replace it"
        )
    _types[kind.name] = kind


def register_layer(
    name: str,
    run: Run,
    shape: ShapeRule,
    *,
    weights: ShapeRule | None = None,
    macs: Macs | None = None,
    replace: bool = False,
) -> None:
    """Teach the engine a Caffe layer type from outside.

    `run(params, weights, bottoms)` returns the list of float32 tops, `shape(params, bottom
    shapes)` their shapes and `weights(params, bottom shapes)` the shapes of the blobs expected in
    the caffemodel; `params` is the `LayerParameter` message. Options that the schema lacks, such
    as those of the type's own `foo_param`, are in `caffe_proto.unknown_fields(params)`. Raises
    `OptionError` where the type exists and `replace` is false.
    """
    _load_builtin()
    add_type(LayerType(name, run, shape, weights, macs=macs, outside=True), replace=replace)


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
    return sorted((n for n, kind in _types.items() if not kind.internal), key=str.lower)


def _load_builtin() -> None:
    """Import the family files once, so that they have registered their types."""
    from int8calib.caffe.layers import families  # noqa: F401
