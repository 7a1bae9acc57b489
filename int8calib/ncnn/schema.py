"""The parameters of every ncnn layer type: ids, names, defaults, and the order ncnn's tools print.

The table is `schema.tsv`; a default of `=1` means "the same as parameter 1", `-` that the layer
computes it (source: ncnn, src/layer/*.cpp, load_param).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

from int8calib.ncnn.param import FEATURE_MASK, HINTS, NcnnLayer, Scalar, Value, WrittenFloat

_TABLE = Path(__file__).with_name("schema.tsv")
_CONVOLUTION = (0, 1, 11, 2, 12, 3, 13, 4, 14, 15, 16, 18, 5, 6, 7, 8, 9, 10, 19)
_DECONVOLUTION = (0, 1, 11, 2, 12, 3, 13, 4, 14, 15, 16, 18, 19, 20, 21, 5, 6, 7, 9, 10, 28)
ORDER: Mapping[str, tuple[int, ...]] = {
    "Convolution": _CONVOLUTION,
    "ConvolutionDepthWise": _CONVOLUTION,
    "Deconvolution": _DECONVOLUTION,
    "DeconvolutionDepthWise": _DECONVOLUTION,
    "Pooling": (0, 1, 11, 2, 12, 3, 13, 14, 15, 4, 5, 6, 7, 8, 18),
    "Crop": (0, 1, 13, 2, 3, 4, 14, 5, 6, 7, 15, 8, 9, 10, 11, 19, 20, 21),
    "Normalize": (0, 1, 2, 3, 4, 9),
    "Reshape": (0, 1, 11, 2, 6),
    "MemoryData": (0, 1, 2, 11),
}
"""How ncnnoptimize orders parameters where it is not by id (source: tools/modelwriter.h)."""
_OBSOLETE: Mapping[str, frozenset[int]] = {"Reshape": frozenset((3,))}
"""Ids that old converters write and no ncnn reads any more."""
_ONE_GROUP = ("Convolution", "Deconvolution"), 7
"""Types of which pnnx writes the number of groups all the same, and its id: it is 1."""
_WITHOUT_PARAMETERS = frozenset(
    (
        "AbsVal", "BNLL", "DeepCopy", "Erf", "Flatten", "Mish", "Noop", "Sigmoid", "Softplus",
        "Split", "Swish", "TanH",
    )
)  # fmt: skip


@cache
def _schema() -> Mapping[str, Mapping[int, tuple[str, str]]]:
    schema: dict[str, dict[int, tuple[str, str]]] = {}
    for line in _TABLE.read_text(encoding="utf-8").splitlines()[1:]:
        kind, key, name, default = line.split("\t")
        schema.setdefault(kind, {})[int(key)] = (name, default)
    return schema


def parameter_names(kind: str) -> Mapping[str, int]:
    """The ids of the parameters of layer type `kind` by name; empty for types that have none."""
    return {name: key for key, (name, _) in _schema().get(kind, {}).items()}


def is_known_type(kind: str) -> bool:
    """Whether ncnn has the layer type `kind`."""
    return kind in _schema() or kind in _WITHOUT_PARAMETERS


def unknown_parameters(layer: NcnnLayer) -> list[int]:
    """The ids of a layer that its type does not have, which ncnn passes over."""
    if not is_known_type(layer.type):
        return []
    common = {HINTS, FEATURE_MASK} | _OBSOLETE.get(layer.type, frozenset())
    kinds, group = _ONE_GROUP
    if layer.type in kinds and layer.params.get(group) == 1:
        common |= {group}
    return [key for key in layer.params if key not in _schema().get(layer.type, {}).keys() | common]


def default_value(layer: NcnnLayer, key: int) -> Value | None:
    """What parameter `key` of `layer` is where the file leaves it out; None where unknown."""
    _, default = _schema().get(layer.type, {}).get(key, ("", "-"))
    if default == "-":
        return None
    if default.startswith("="):
        return value_of(layer, int(default[1:]))
    if default == "[]":
        return ()
    if default == '""':
        return ""
    return float(default) if "." in default else int(default)


def value_of(layer: NcnnLayer, key: int) -> Value | None:
    """Parameter `key` of `layer`: as given, else its default."""
    return layer.params[key] if key in layer.params else default_value(layer, key)


def tidied(layer: NcnnLayer) -> NcnnLayer:
    """The layer as ncnnoptimize prints it: no defaults, its order, floats of seven digits.

    Ids that are not known are kept.
    Shape hints are left out: they are no more than hints, and those of the tools depend on
    uninitialized memory in places.
    """
    left_out = {HINTS} | _OBSOLETE.get(layer.type, frozenset())
    kept = {
        key: value
        for key, value in layer.params.items()
        if key == FEATURE_MASK or (key not in left_out and value != default_value(layer, key))
    }
    if layer.type == "Softmax" and not kept.get(0):
        kept.pop(1, None)  # what it mends concerns other axes only
    order = {key: place for place, key in enumerate(ORDER.get(layer.type, range(32)))}
    ordered = sorted(kept.items(), key=lambda item: order.get(item[0], 99))
    return replace(layer, params={key: _printed(value) for key, value in ordered})


def _printed(value: Value) -> Value:
    """Floats with the seven digits that ncnn's tools print."""
    if isinstance(value, tuple):
        return tuple(_printed_scalar(each) for each in value)
    return _printed_scalar(value)


def _printed_scalar(value: Scalar) -> Scalar:
    return WrittenFloat(f"{value:e}") if isinstance(value, float) else value
