"""The parameters of an ncnn layer by name, and how a layer of the engine carries them.

The engine's layers have a Caffe `LayerParameter`. That of an ncnn layer has the type
``ncnn.<type>`` and, in the text that Caffe keeps for layers written in Python, the parameters as a
`.param` file writes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

from caffe_proto import LayerParameter
from int8calib.errors import ModelFileError, ShapeError
from int8calib.ncnn.param import NcnnLayer, Value, parse_parameters
from int8calib.ncnn.schema import parameter_names, value_of

PREFIX = "ncnn."
"""What stands before an ncnn type in the name of its layer in the engine."""


class Options:
    """The parameters of one ncnn layer by the names of its schema, with ncnn's defaults."""

    def __init__(self, layer: NcnnLayer) -> None:
        self._layer = layer
        self._keys = parameter_names(layer.type)

    def _value(self, name: str) -> Value | None:
        return value_of(self._layer, self._keys[name])

    def _refused(self, name: str, right: str) -> ShapeError:
        return ShapeError(f"{name} is {self._value(name)}; expected {right}")

    def given(self, name: str) -> bool:
        """Whether the file gives `name`; otherwise its default counts."""
        return self._keys[name] in self._layer.params

    def integer(self, name: str) -> int:
        """The whole number `name`; raises `ShapeError` where it is none."""
        value = self._value(name)
        if not isinstance(value, int):
            raise self._refused(name, "a whole number")
        return value

    def number(self, name: str) -> float:
        """The number `name`; raises `ShapeError` where it is none."""
        value = self._value(name)
        if not isinstance(value, (int, float)):
            raise self._refused(name, "a number")
        return float(value)

    def numbers(self, name: str) -> tuple[float, ...]:
        """The array `name`, empty where it is absent; raises `ShapeError` for other values."""
        value = self._value(name)
        values = value if isinstance(value, tuple) else (value,)
        if not all(isinstance(each, (int, float)) for each in values):
            raise self._refused(name, "numbers")
        return tuple(float(each) for each in values if isinstance(each, (int, float)))

    def integers(self, name: str) -> tuple[int, ...]:
        """The array of whole numbers `name`; raises `ShapeError` for other values."""
        values = self.numbers(name)
        if any(value != int(value) for value in values):
            raise self._refused(name, "whole numbers")
        return tuple(map(int, values))

    def text(self, name: str) -> str:
        """The text `name`, empty where it is absent; raises `ShapeError` where it is none."""
        value = self._value(name)
        if not isinstance(value, str):
            raise self._refused(name, "a text")
        return value


def pack_options(
    layer: NcnnLayer, name: str, bottoms: Sequence[str], tops: Sequence[str], kind: str = ""
) -> LayerParameter:
    """Make the message that carries the parameters of an ncnn layer.

    Parameters
    ----------
    layer
        The ncnn layer.
    name, bottoms, tops
        Its name and blobs in the engine.
    kind
        What the engine does with these parameters, where that is not all that the layer does.

    Returns
    -------
    LayerParameter
        `unpack_options` reads it.
    """
    kind = PREFIX + (kind or layer.type)
    params = LayerParameter(name=name, type=kind, bottom=bottoms, top=tops)
    params.python_param.layer = layer.type
    params.python_param.param_str = _written(layer.params)
    return params


def _written(params: Mapping[int, Value]) -> str:
    """The parameters as text, floats with all their digits; shape hints are left out."""
    words = []
    for key, value in params.items():
        if key < 30:
            values = value if isinstance(value, tuple) else (value,)
            texts = [f'"{each}"' if isinstance(each, str) else repr(each) for each in values]
            count = [str(len(values))] if isinstance(value, tuple) else []
            words.append(f"{-23300 - key if count else key}={','.join(count + texts)}")
    return " ".join(words)


def unpack_options(params: LayerParameter) -> Options:
    """Read the options that `pack_options` wrote; raises `ShapeError` for what is none."""
    carried = params.python_param
    return _parsed(carried.layer, carried.param_str)


@lru_cache(maxsize=4096)
def _parsed(kind: str, text: str) -> Options:
    try:
        return Options(NcnnLayer(kind, "", (), (), parse_parameters(text, kind)))
    except ModelFileError as error:
        raise ShapeError(str(error)) from None
