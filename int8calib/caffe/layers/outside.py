"""Layer types that a program registers from outside, held to what they announce."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence

import numpy as np

from caffe_proto import LayerParameter
from int8calib.arrays import MASKED, Array, Shape, is_masked
from int8calib.caffe.layers.registry import (
    LayerType,
    Macs,
    Run,
    ShapeRule,
    add_type,
    type_names,
)
from int8calib.errors import Int8CalibError, ModelError, OptionError, ShapeError


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

    Parameters
    ----------
    name : str
        The `type` string of the prototxt.
    run : callable
        `run(params, weights, bottoms)` returns the list of tops: float32 arrays of the shapes
        that `shape` gives. It gets lists of float32 arrays that it must not write.
    shape : callable
        `shape(params, bottom shapes)` returns the list of top shapes.
    weights : callable, optional
        `weights(params, bottom shapes)` returns the shapes of the blobs expected in the
        caffemodel, in its order; None for a layer without.
    macs : callable, optional
        `macs(params, bottom shapes, top shapes)` returns the layer's multiply-adds.
    replace : bool
        Whether the type may take the place of one that exists.

    Raises
    ------
    OptionError
        Where the type exists and `replace` is false, for an empty name, and for something that
        cannot be called.

    Notes
    -----
    `params` is the layer as a `LayerParameter` message. Options that the schema does not know are
    kept as they were written: ``caffe_proto.unknown_fields(params)`` gives them, so that
    ``foo_param { size: 3 }`` reads ``int(unknown_fields(params)["foo_param"][0]["size"][0])``.
    What `run` and `shape` find wrong they raise as `int8calib.errors.ShapeError`, without the
    layer's name. A top of another shape or dtype than announced is a `ModelError`. `run` gets
    numpy's arrays also where the network runs on a GPU: its bottoms come from there and its tops
    go back.

    Examples
    --------
    >>> def run(params, weights, bottoms):
    ...     return [bottoms[0] * 2]
    >>> def shape(params, bottoms):
    ...     return [bottoms[0]]
    >>> register_layer("Double", run, shape, replace=True)
    """
    type_names()  # loads the types of this package, whose names are taken
    if not isinstance(name, str) or not name:
        raise OptionError(f"layer type {name!r}: expected the type's name in the prototxt")
    for what, function in (("run", run), ("shape", shape), ("weights", weights), ("macs", macs)):
        if not callable(function) and (what in ("run", "shape") or function is not None):
            raise OptionError(f"layer type {name!r}: {what} is {function!r}; expected a function")
    shape = _announcing(shape, "shape")
    weights = None if weights is None else _announcing(weights, "weights")
    kind = LayerType(name, _holding_to(shape, run), shape, weights, macs=macs, outside=True)
    add_type(kind, replace=replace)


def _announcing(rule: ShapeRule, what: str) -> ShapeRule:
    """`rule`, held to giving shapes."""

    @functools.wraps(rule)
    def checked(params: LayerParameter, bottoms: Sequence[Shape]) -> Sequence[Shape]:
        try:
            return [tuple(map(operator.index, shape)) for shape in rule(params, bottoms)]
        except (Int8CalibError, ArithmeticError, IndexError, ValueError):
            raise  # shapes and options that do not fit, of which the caller tells
        except Exception as error:
            raise ShapeError(
                f"the {what} rule registered for it gives no list of shapes: "
                f"{type(error).__name__}: {error}"
            ) from error

    return checked


def _holding_to(shape: ShapeRule, run: Run) -> Run:
    """`run`, held to the shapes it announced and to float32; its tops are arrays of their own."""

    @functools.wraps(run)
    def checked(
        params: LayerParameter, weights: Sequence[Array], bottoms: Sequence[Array]
    ) -> Sequence[Array]:
        try:
            tops = list(run(params, weights, [_read_only(bottom) for bottom in bottoms]))
        except Int8CalibError:
            raise
        except Exception as error:
            raise ModelError(
                f"the function registered for it failed: {type(error).__name__}: {error}"
            ) from error
        wanted = list(shape(params, [bottom.shape for bottom in bottoms]))
        if len(tops) != len(wanted):
            raise ModelError(f"gives {len(tops)} tops; its shape rule announced {len(wanted)}")
        for i, (top, size) in enumerate(zip(tops, wanted, strict=True)):
            if not isinstance(top, np.ndarray) or top.dtype != np.float32:
                kind = getattr(top, "dtype", type(top).__name__)
                raise ModelError(f"top {i} is {kind}; expected a numpy array of float32")
            if is_masked(top):
                raise ModelError(f"top {i} is {MASKED}")
            if top.shape != tuple(size):
                raise ModelError(
                    f"top {i} has shape {top.shape}; its shape rule announced {tuple(size)}"
                )
            # A copy: it may be a bottom, or an array that the function uses again.
            tops[i] = np.array(top, order="C")
        return tops

    return checked


def _read_only(array: Array) -> Array:
    view: Array = array.view()
    view.flags.writeable = False
    return view
