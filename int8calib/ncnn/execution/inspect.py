"""Inspection of an ncnn model: every layer with its shape, size, work and part in INT8."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from math import prod

import numpy as np

from int8calib.arrays import Shape
from int8calib.errors import ModelError, OptionError
from int8calib.inspection import InspectedLayer, Inspection
from int8calib.ncnn.execution.layers import quant_layers, row_counts
from int8calib.ncnn.execution.network import with_given_shapes
from int8calib.ncnn.layout import blob_layout
from int8calib.ncnn.model import NcnnModel, load_model, read_text
from int8calib.ncnn.param import NcnnLayer, blob_readers, parse_param
from int8calib.ncnn.quantize import RECURRENT
from int8calib.ncnn.runtime import RuntimeNet
from int8calib.ncnn.sound import is_int8
from int8calib.table.rules import grouped_problem, name_problem
from int8calib.words import listed

_ALWAYS = frozenset(("Gemm", "SDPA"))
"""Types that ncnn2int8 makes INT8 without a table."""
_FLOAT = {
    "Deconvolution": "ncnn has no INT8 Deconvolution",
    "DeconvolutionDepthWise": "ncnn has no INT8 DeconvolutionDepthWise",
}


def inspect_ncnn(
    param: str | os.PathLike[str],
    weights: str | os.PathLike[str] | None = None,
    *,
    input_shapes: Mapping[str, Shape] | None = None,
) -> Inspection:
    """Tell what an ncnn model is, what it costs, and what INT8 means for it.

    Shapes are those of one run of zeros in ncnn, where the sizes of its inputs are known, the
    weights are given and the package `ncnn` is installed.

    Parameters
    ----------
    param, weights : path
        The two files; without weights all but the shapes is told.
    input_shapes : mapping of str to Shape, optional
        As for `load_ncnn`.

    Returns
    -------
    Inspection
        What does not fit is a warning in it.

    Raises
    ------
    ModelError
        Where a file cannot be read or does not fit the other.
    OptionError
        For a shape given to something that is no input.
    """
    source = os.fspath(param)
    if weights is None:
        model = NcnnModel(parse_param(read_text(param), source), source)
    else:
        model = load_model(param, weights)
    inputs = with_given_shapes(model, input_shapes or {})
    shapes: dict[str, Shape] = {}
    notes: list[str] = []
    if weights is None:
        notes.append("no weight file is given, so shapes and multiply-adds are not known")
    else:
        shapes, notes = _measured(model, inputs)
    reasons = _parts_in_int8(model)
    layers = tuple(_layer(layer, shapes, *reasons[layer.name]) for layer in model.layers)
    readers = blob_readers(model.layers)
    return Inspection(
        network="",
        prototxt=source,
        caffemodel=None if weights is None else os.fspath(weights),
        inputs={name: None if _unknown(shape) else shape for name, shape in inputs.items()},
        outputs=tuple(t for layer in model.layers for t in layer.tops if t not in readers),
        layers=layers,
        parameters=sum(layer.parameters or 0 for layer in layers),
        macs=sum(layer.macs or 0 for layer in layers),
        quantized_macs=sum(layer.macs or 0 for layer in layers if layer.quantized),
        complete=all(layer.macs is not None for layer in layers),
        left_out=(),
        warnings=(*notes, *_warnings(model)),
    )


def _unknown(shape: Shape) -> bool:
    return not shape or 0 in shape


def _measured(model: NcnnModel, inputs: Mapping[str, Shape]) -> tuple[dict[str, Shape], list[str]]:
    """The shape of every blob, from a run of zeros, or none and the reason."""
    unknown = [name for name, shape in inputs.items() if _unknown(shape)]
    if unknown or not inputs:
        which = f"of {listed(unknown)}" if unknown else "of an input"
        return {}, [f"the size {which} is not known, so shapes are not; give --input-shape"]
    zeros = {name: np.zeros(shape[1:], np.float32) for name, shape in inputs.items()}
    shapes: dict[str, Shape] = {}
    try:
        net = RuntimeNet(model, float32=True)
        tops = [top for layer in model.layers for top in layer.tops]
        net.stream(zeros, tops, lambda blob, top: shapes.__setitem__(blob, (1, *top.shape)))
    except (ModelError, OptionError) as error:
        return shapes, [f"shapes are not known: {error}"]
    return shapes, []


def _layer(
    layer: NcnnLayer, shapes: Mapping[str, Shape], quantized: bool, why: str
) -> InspectedLayer:
    tops = tuple(shapes.get(top) for top in layer.tops)
    known = None not in tops and all(bottom in shapes for bottom in layer.bottoms)
    return InspectedLayer(
        name=layer.name,
        type=layer.type,
        bottoms=layer.bottoms,
        tops=layer.tops,
        shapes=tops,
        parameters=sum(blob.size for blob in blob_layout(layer)),
        macs=_macs(layer, shapes) if known else None,
        supported="." not in layer.type,
        quantized=quantized,
        why=why,
    )


def _macs(layer: NcnnLayer, shapes: Mapping[str, Shape]) -> int:
    """Multiply-adds for one image of layers with weights, and of attention."""
    if layer.type == "InnerProduct":
        bottom = shapes[layer.bottoms[0]]
        # A bottom of two axes may be many rows, each taken by itself.
        inputs = layer.integer(2) // max(layer.integer(0), 1)
        return layer.integer(2) * max(1, prod(bottom) // max(inputs, 1))
    if layer.type.startswith("Deconvolution"):
        return layer.integer(6) * prod(shapes[layer.bottoms[0]][2:])
    if layer.type.startswith("Convolution"):
        return layer.integer(6) * prod(shapes[layer.tops[0]][2:])
    if layer.type in RECURRENT:
        inputs, _, *rest = (blob.size for blob in blob_layout(layer) if blob.tagged)
        return (inputs + sum(rest)) * prod(shapes[layer.bottoms[0]][1:-1])
    if layer.type == "Gemm" and layer.integer(9):
        return layer.integer(9) * prod(shapes[layer.tops[0]][1:])
    return _attention_macs(layer, shapes) if layer.type == "MultiHeadAttention" else 0


def _attention_macs(layer: NcnnLayer, shapes: Mapping[str, Shape]) -> int:
    """Those of the four products with weights, and of queries with keys and with values."""
    query, _, key, _, value, _, out, _ = (blob.size for blob in blob_layout(layer)[:8])
    others = layer.bottoms[1 : len(layer.bottoms) - layer.integer(5)]
    asked = prod(shapes[layer.bottoms[0]][1:-1])
    looked = prod(shapes[others[0]][1:-1]) if others else asked
    return asked * (query + out) + looked * (key + value) + 2 * asked * looked * layer.integer(0)


def _parts_in_int8(model: NcnnModel) -> dict[str, tuple[bool, str]]:
    """Whether ncnn2int8 makes each layer INT8, and as what or why not."""
    plain = [layer.with_params(p8=None) for layer in model.layers]
    described, blocked = quant_layers(plain, model.source)
    found = {
        layer.name: (False, f"{problem}; --grouped int8 quantizes it all the same")
        if (problem := grouped_problem(layer.group, layer.outputs))
        else (True, layer.kind)
        for layer in described
    }
    found |= {name: (False, reason) for name, reason in blocked.items()}
    for layer in model.layers:
        if layer.name in found:
            if is_int8(layer):
                found[layer.name] = (True, f"{layer.type}, INT8 already")
            continue
        if row_counts(layer):
            problem = name_problem(layer.name)
            found[layer.name] = (problem is None, problem or f"{layer.type}, weight rows only")
        elif layer.type in _ALWAYS:
            found[layer.name] = (True, f"{layer.type}, without a table")
        elif layer.type == "Input":
            found[layer.name] = (False, "input")
        else:
            found[layer.name] = (False, _FLOAT.get(layer.type, "runs in float"))
    return found


def _warnings(model: NcnnModel) -> list[str]:
    """What to mind, one line each."""
    warnings = []
    if any(map(is_int8, model.layers)):
        warnings.append(
            "the model is in INT8 already: predict runs it, to calibrate give the float model"
        )
    foreign = [f"{layer.name} ({layer.type})" for layer in model.layers if "." in layer.type]
    if foreign:
        warnings.append(f"ncnn has no such layers; pnnx left them as they were: {listed(foreign)}")
    unfolded = [a.name for a in _before_batch_norm(model.layers)]
    if unfolded:
        warnings.append(
            f"BatchNorm behind {listed(unfolded)} is not folded; calibrate with --optimize, or run "
            "ncnnoptimize before"
        )
    return warnings


def _before_batch_norm(layers: Sequence[NcnnLayer]) -> list[NcnnLayer]:
    """The convolutions and inner products whose only reader is a BatchNorm."""
    readers = blob_readers(layers)
    return [
        layer
        for layer in layers
        if layer.type in ("Convolution", "ConvolutionDepthWise", "InnerProduct")
        and [reader.type for reader in readers.get(layer.tops[0], [])] == ["BatchNorm"]
    ]
