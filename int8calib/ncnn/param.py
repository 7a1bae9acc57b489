"""An ncnn structure file (`.param`) comes in, what it needs of a table goes out.

The text: the magic 7767517, then the counts of layers and blobs, then one layer a line: type,
name, count of bottoms, count of tops, bottoms, tops, `key=value` parameters; a key of -23300 - k
holds an array `count,v0,v1,...` for k (ncnn, src/paramdict.cpp and src/net.cpp).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from int8calib.errors import ModelFileError
from int8calib.table.requirement import Requirement

MAGIC = "7767517"
_ARRAY_BASE = -23300
_PARAMETER = re.compile(r"(-?\d+)=(.+)", re.ASCII)
_INTEGER = re.compile(r"[+-]?\d+", re.ASCII)


@dataclass(frozen=True)
class ParamLayer:
    """One line of a structure file; `parameters` maps a key to its values as text."""

    line: int
    type: str
    name: str
    bottoms: tuple[str, ...]
    tops: tuple[str, ...]
    parameters: Mapping[int, tuple[str, ...]]


def read_param(path: str | os.PathLike[str]) -> list[Requirement]:
    """What the structure file `path` needs; raises ModelFileError when it is none."""
    try:
        text = Path(path).read_bytes().decode("utf-8")
    except OSError as error:
        message = f"{Path(path)}: cannot be read: {error.strerror or error}"
        raise ModelFileError(message) from error
    except UnicodeDecodeError:
        message = f"{Path(path)}: no text, name the .param file (not .bin or .param.bin)"
        raise ModelFileError(message) from None
    return requirements_from_param(text, str(Path(path)))


def requirements_from_param(text: str, name: str) -> list[Requirement]:
    """One requirement for each layer that ncnn2int8 quantizes by a table, in file order.

    Deconvolution, RNNs and convolutions with weights from a blob (dynamic) are not among them.
    A blob that passes through Split is one blob for all its readers. `name` is the file's, for
    errors: raises ModelFileError `name:line: ...`.
    """
    origin: dict[str, str] = {}
    requirements = []
    for layer in parse_param(text, name):
        if layer.type == "Split" and layer.bottoms:
            source = layer.bottoms[0]
            origin.update(dict.fromkeys(layer.tops, origin.get(source, source)))
        count = _weight_count(layer, name)
        if count is None:
            continue
        bottom = layer.bottoms[0] if layer.bottoms else None
        requirements.append(
            Requirement(
                layer.name,
                layer.type,
                count,
                levels=_levels(layer, name),
                bottom=None if bottom is None else origin.get(bottom, bottom),
            )
        )
    return requirements


def parse_param(text: str, name: str) -> list[ParamLayer]:
    """Every layer line of a structure file; raises ModelFileError `name:line: ...`."""
    numbered = [(n, line.split()) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not numbered or numbered[0][1] != [MAGIC]:
        raise ModelFileError(f"{name}:1: no ncnn structure file, its first line is {MAGIC}")
    counts = numbered[1][1] if len(numbered) > 1 else []
    if len(counts) != 2 or not all(_INTEGER.fullmatch(count) for count in counts):
        raise ModelFileError(f"{name}:2: the counts of layers and blobs are missing")
    layers = [_parse_line(fields, line, name) for line, fields in numbered[2:]]
    if len(layers) != int(counts[0]):
        raise ModelFileError(
            f"{name}: {len(layers)} layers found, {counts[0]} announced: is the file whole?"
        )
    return layers


def _parse_line(fields: list[str], line: int, name: str) -> ParamLayer:
    place = f"{name}:{line}"
    if len(fields) < 4 or not all(field.isdecimal() for field in fields[2:4]):
        raise ModelFileError(f"{place}: <type> <name> <bottoms> <tops> is right for a layer line")
    first_top = 4 + int(fields[2])
    end = first_top + int(fields[3])
    if len(fields) < end:
        raise ModelFileError(
            f"{place}: {len(fields) - 4} blobs and parameters, {end - 4} announced"
        )
    parameters: dict[int, tuple[str, ...]] = {}
    for field in fields[end:]:
        match = _PARAMETER.fullmatch(field)
        if match is None:
            raise ModelFileError(f"{place}: {field!r} is no parameter, <key>=<value> is right")
        key, value = int(match[1]), match[2]
        if key <= _ARRAY_BASE:
            # The first field of an array is its length.
            parameters[_ARRAY_BASE - key] = tuple(value.split(",")[1:])
        else:
            parameters[key] = tuple(value.split(","))
    return ParamLayer(
        line, fields[0], fields[1], tuple(fields[4:first_top]), tuple(fields[first_top:end]),
        parameters,
    )  # fmt: skip


def _integer(layer: ParamLayer, key: int, default: int, name: str) -> int:
    values = layer.parameters.get(key)
    if values is None:
        return default
    if len(values) != 1 or not _INTEGER.fullmatch(values[0]):
        shown = ",".join(values)
        raise ModelFileError(f"{name}:{layer.line}: {key}={shown}, one whole number is right")
    return int(values[0])


def _weight_count(layer: ParamLayer, name: str) -> int | None:
    """How many weight scales ncnn loads for `layer`, None when no table quantizes it."""
    if layer.type == "InnerProduct":
        return _integer(layer, 0, 0, name)
    if layer.type not in ("Convolution", "ConvolutionDepthWise"):
        return None
    if _integer(layer, 19, 0, name):
        return None
    return (
        _integer(layer, 7, 1, name)
        if layer.type == "ConvolutionDepthWise"
        else _integer(layer, 0, 0, name)
    )


def _levels(layer: ParamLayer, name: str) -> int:
    """31 where ncnn2table leaves head room for winograd (3x3, stride 1, dilation 1), else 127."""
    if layer.type != "Convolution":
        return 127
    width = [_integer(layer, key, default, name) for key, default in ((1, 0), (3, 1), (2, 1))]
    height = [
        _integer(layer, key, default, name)
        for key, default in zip((11, 13, 12), width, strict=True)
    ]
    return 31 if width == height == [3, 1, 1] else 127
