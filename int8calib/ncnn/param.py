"""ncnn structure files (`.param`), read and written without loss.

The text: the magic 7767517, then the counts of layers and blobs, then one layer a line: type,
name, count of bottoms, count of tops, bottoms, tops, `id=value` parameters. An id of -23300 - k
holds an array `count,v0,v1,...` for k; newer files write `k=v0,v1,...`. A value with a point or an
exponent is a float, one that begins with a letter or a quote a string (source: ncnn,
src/paramdict.cpp and src/net.cpp).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from int8calib.errors import ModelFileError

MAGIC = "7767517"
HINTS, FEATURE_MASK = 30, 31
"""Parameters of every layer: shape hints of its tops, and features switched off for it."""
ARRAY_BASE = -23300
MOST_NAME = 255
MOST_NUMBER = 15
"""The characters of a number that ncnn's reader keeps."""
MOST_ID = 31
MOST_LAYERS = 1_000_000
MOST_BLOBS = 4 * MOST_LAYERS
_FIELD = re.compile(r'[^\s"]*"[^"]*"|\S+')
_PARAMETER = re.compile(r"(-?\d{1,6})=(.+)", re.ASCII | re.DOTALL)
_INTEGER = re.compile(r"[+-]?\d{1,18}", re.ASCII)
_FLOAT = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)

Scalar: TypeAlias = "int | float | str"
Value: TypeAlias = "int | float | str | tuple[int | float | str, ...]"


class WrittenFloat(float):
    """A float that remembers how the file writes it."""

    text: str

    def __new__(cls, text: str) -> WrittenFloat:
        """Parse `text`."""
        made = super().__new__(cls, text)
        made.text = text
        return made


@dataclass(frozen=True)
class NcnnLayer:
    """One layer of an ncnn model.

    Attributes
    ----------
    type, name : str
        As in the file.
    bottoms, tops : tuple of str
        Blob names.
    params : mapping of int to value
        Parameters by id: int, float, str, or a tuple for an array; what the file leaves out is
        not in it.
    weights : tuple of arrays
        The blobs of the `.bin` in their order, shapes flat: float32, float16 or int8; empty where
        only the structure is read.
    line : int
        The line of the file, 0 where there is none.
    """

    type: str
    name: str
    bottoms: tuple[str, ...]
    tops: tuple[str, ...]
    params: Mapping[int, Value] = field(default_factory=dict)
    weights: tuple[Any, ...] = ()
    line: int = field(default=0, compare=False)

    def integer(self, key: int, default: int = 0) -> int:
        """The int parameter `key`; raises `ModelFileError` where it is another kind."""
        value = self.params.get(key, default)
        if not isinstance(value, int):
            shown = ",".join(map(str, value)) if isinstance(value, tuple) else value
            raise ModelFileError(f"layer {self.name!r}: {key}={shown}, one whole number is right")
        return value

    def number(self, key: int, default: float) -> float:
        """The float parameter `key`; raises `ModelFileError` where it is another kind."""
        value = self.params.get(key, default)
        if not isinstance(value, (int, float)):
            raise ModelFileError(f"layer {self.name!r}: {key}={value}, one number is right")
        return float(value)

    def array(self, key: int) -> tuple[int | float | str, ...]:
        """The array parameter `key`, empty where it is absent."""
        value = self.params.get(key, ())
        return value if isinstance(value, tuple) else (value,)

    def with_params(self, **changes: Value | None) -> NcnnLayer:
        """This layer with other parameters, given as `p8=2`; None takes one away."""
        params = dict(self.params)
        for name, value in changes.items():
            if value is None:
                params.pop(int(name[1:]), None)
            else:
                params[int(name[1:])] = value
        return replace(self, params=params)


def parse_param(text: str, name: str) -> tuple[NcnnLayer, ...]:
    """The layers of a structure file.

    Parameters
    ----------
    text : str
        The file's text.
    name : str
        How errors call the file.

    Raises
    ------
    ModelFileError
        `name:line: ...` for everything that ncnn would refuse or misread.
    """
    numbered = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not numbered or numbered[0][1].split() != [MAGIC]:
        raise ModelFileError(f"{name}:1: no ncnn structure file, its first line is {MAGIC}")
    counts = numbered[1][1].split() if len(numbered) > 1 else []
    if len(counts) != 2 or not all(_INTEGER.fullmatch(count) for count in counts):
        raise ModelFileError(f"{name}:2: the counts of layers and blobs are missing")
    announced, blobs = (int(count) for count in counts)
    if len(numbered) - 2 != announced or not 0 < announced <= MOST_LAYERS:
        raise ModelFileError(
            f"{name}: {len(numbered) - 2} layers found, {announced} announced: is the file whole?"
        )
    layers = tuple(_parse_line(line, f"{name}:{number}", number) for number, line in numbered[2:])
    tops = [top for layer in layers for top in layer.tops]
    if not len(set(tops)) <= blobs <= MOST_BLOBS:
        raise ModelFileError(
            f"{name}:2: {blobs} blobs announced, the layers make {len(set(tops))}; ncnn writes "
            f"out of bounds with too small a count, and at most {MOST_BLOBS} are right"
        )
    return layers


def _parse_line(line: str, place: str, number: int) -> NcnnLayer:
    fields = _FIELD.findall(line)
    if len(fields) < 4 or not all(
        re.fullmatch(r"\d{1,6}", count, re.ASCII) for count in fields[2:4]
    ):
        raise ModelFileError(f"{place}: <type> <name> <bottoms> <tops> is right for a layer line")
    first_top = 4 + int(fields[2])
    end = first_top + int(fields[3])
    if len(fields) < end:
        raise ModelFileError(
            f"{place}: {len(fields) - 4} blobs and parameters, {end - 4} announced"
        )
    for word in fields[:2] + fields[4:end]:
        if len(word.encode("utf-8", "surrogateescape")) > MOST_NAME:
            raise ModelFileError(f"{place}: a name of {len(word)} characters, at most {MOST_NAME}")
    params = _parse_words(fields[end:], place)
    bottoms, tops = tuple(fields[4:first_top]), tuple(fields[first_top:end])
    return NcnnLayer(fields[0], fields[1], bottoms, tops, params, line=number)


def parse_parameters(text: str, place: str) -> dict[int, Value]:
    """The parameters of a layer written as in a structure file, `id=value` with spaces between.

    Raises `ModelFileError` that begins with `place`.
    """
    return _parse_words(_FIELD.findall(text), place)


def _parse_words(words: Iterable[str], place: str) -> dict[int, Value]:
    params: dict[int, Value] = {}
    for word in words:
        match = _PARAMETER.fullmatch(word)
        if match is None:
            shown = word if len(word) <= 60 else f"{word[:57]}..."
            raise ModelFileError(f"{place}: {shown!r} is no parameter, <id>=<value> is right")
        key, value = _parse_parameter(int(match[1]), match[2], place)
        if key in params:
            raise ModelFileError(f"{place}: parameter {key} is given twice")
        params[key] = value
    return params


def _parse_parameter(key: int, text: str, place: str) -> tuple[int, Value]:
    if key <= ARRAY_BASE:
        count, *values = _split(text)
        if not _INTEGER.fullmatch(count) or int(count) != len(values):
            raise ModelFileError(
                f"{place}: {key} announces {count[:20]} values and has {len(values)}"
            )
        key, value = ARRAY_BASE - key, tuple(_parse_scalar(each, place) for each in values)
    else:
        parts = _split(text)
        value = tuple(_parse_scalar(each, place) for each in parts)
        if len(parts) == 1:
            return _checked(key, place), value[0]
    return _checked(key, place), value


def _checked(key: int, place: str) -> int:
    if not 0 <= key <= MOST_ID:
        raise ModelFileError(f"{place}: parameter {key}; ncnn knows ids 0 to {MOST_ID}")
    return key


def _split(text: str) -> list[str]:
    return [text] if text.startswith('"') else text.split(",")


def _parse_scalar(text: str, place: str) -> Scalar:
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return WrittenFloat(text)
    if text[:1] == '"' and text[-1:] == '"' and len(text) > 1:
        return text[1:-1]
    if text[:1].isalpha() and len(text) <= MOST_NAME:
        return text
    shown = text if len(text) <= 40 else f"{text[:37]}..."
    raise ModelFileError(f"{place}: {shown!r} is no number and no text")


def format_param(layers: Sequence[NcnnLayer], *, width: int = 24) -> str:
    """The text of a structure file, as ncnn's tools write it.

    Parameters
    ----------
    layers : sequence of NcnnLayer
        In running order; parameters are written in the order of their mapping.
    width : int
        Columns of type and name: 24 as ncnnoptimize, 16 as caffe2ncnn.

    Raises
    ------
    ModelFileError
        For a name or number that ncnn's reader would cut.
    """
    blobs = {blob for layer in layers for blob in (*layer.bottoms, *layer.tops)}
    lines = [MAGIC, f"{len(layers)} {len(blobs)}"]
    lines += [_format_layer(layer, width) for layer in layers]
    return "\n".join(lines) + "\n"


def _format_layer(layer: NcnnLayer, width: int) -> str:
    for word in (layer.type, layer.name, *layer.bottoms, *layer.tops):
        if not word or len(word.encode("utf-8")) > MOST_NAME or word.split() != [word]:
            raise ModelFileError(
                f"layer {layer.name!r}: ncnn cannot hold the name {word[:60]!r}: 1 to {MOST_NAME} "
                "characters without spaces are right"
            )
    head = f"{layer.type:<{width}} {layer.name:<{width}} {len(layer.bottoms)} {len(layer.tops)}"
    params = (_format_parameter(key, value) for key, value in layer.params.items())
    return " ".join((head, *layer.bottoms, *layer.tops, *params))


def _format_parameter(key: int, value: Value) -> str:
    if isinstance(value, tuple):
        return f"{ARRAY_BASE - key}={','.join((str(len(value)), *map(_format_scalar, value)))}"
    return f"{key}={_format_scalar(value)}"


def _format_scalar(value: Scalar) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, WrittenFloat):
        return value.text
    text = f"{value:e}" if isinstance(value, float) else str(value)
    if len(text) > MOST_NUMBER:
        raise ModelFileError(f"the number {text} is longer than {MOST_NUMBER} characters")
    return text


def blob_readers(layers: Iterable[NcnnLayer]) -> dict[str, list[NcnnLayer]]:
    """The layers that read each blob, in running order."""
    readers: dict[str, list[NcnnLayer]] = {}
    for layer in layers:
        for bottom in layer.bottoms:
            readers.setdefault(bottom, []).append(layer)
    return readers
