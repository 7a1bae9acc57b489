"""What an ncnn structure file needs of a calibration table: one requirement a layer."""

from __future__ import annotations

import os
from pathlib import Path

from int8calib.errors import ModelFileError
from int8calib.levels import LEVELS, WINOGRAD_LEVELS
from int8calib.ncnn.model import read_text
from int8calib.ncnn.param import NcnnLayer, parse_param
from int8calib.table.model import Requirement
from int8calib.table.rules import grouped_problem


def read_param(path: str | os.PathLike[str]) -> list[Requirement]:
    """What the structure file `path` needs; raises ModelFileError when it is none."""
    return requirements_from_param(read_text(path), str(Path(path)))


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
                caution=_caution(layer, name),
            )
        )
    return requirements


def _integer(layer: NcnnLayer, key: int, default: int, name: str) -> int:
    try:
        return layer.integer(key, default)
    except ModelFileError as error:
        raise ModelFileError(f"{name}:{layer.line}: {error}") from None


def _weight_count(layer: NcnnLayer, name: str) -> int | None:
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


def _caution(layer: NcnnLayer, name: str) -> str | None:
    """Why a grouped convolution had better stay in float."""
    if layer.type != "ConvolutionDepthWise":
        return None
    return grouped_problem(_integer(layer, 7, 1, name), _integer(layer, 0, 0, name))


def _levels(layer: NcnnLayer, name: str) -> int:
    """31 where ncnn2table leaves head room for winograd (3x3, stride 1, dilation 1), else 127."""
    if layer.type != "Convolution":
        return LEVELS
    width = [_integer(layer, key, default, name) for key, default in ((1, 0), (3, 1), (2, 1))]
    height = [
        _integer(layer, key, default, name)
        for key, default in zip((11, 13, 12), width, strict=True)
    ]
    return WINOGRAD_LEVELS if width == height == [3, 1, 1] else LEVELS
