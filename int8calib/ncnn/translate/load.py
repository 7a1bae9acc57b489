"""Load an ncnn model from its two files, ready to run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal, TypeAlias, overload

import numpy as np

from int8calib.arrays import Shape
from int8calib.device import Device, find_device
from int8calib.errors import ModelError, ModelFileError, OptionError, ShapeError
from int8calib.ncnn.execution.network import NcnnNet, optimized
from int8calib.ncnn.model import NcnnModel, load_model
from int8calib.ncnn.runtime import import_ncnn
from int8calib.ncnn.sound import refuse_int8
from int8calib.ncnn.translate.network import TranslatedNet, obstacles, translate_model

Engine: TypeAlias = Literal["numpy", "runtime"]
ENGINES: tuple[Engine, ...] = ("numpy", "runtime")


@overload
def load_ncnn(
    param: str | os.PathLike[str],
    weights: str | os.PathLike[str],
    *,
    engine: Literal["numpy"],
    input_shapes: Mapping[str, Shape] | None = None,
    optimize: bool = False,
    threads: int | None = None,
    device: str | Device | None = None,
) -> TranslatedNet: ...
@overload
def load_ncnn(
    param: str | os.PathLike[str],
    weights: str | os.PathLike[str],
    *,
    engine: Literal["runtime"],
    input_shapes: Mapping[str, Shape] | None = None,
    optimize: bool = False,
    threads: int | None = None,
    device: str | Device | None = None,
) -> NcnnNet: ...
@overload
def load_ncnn(
    param: str | os.PathLike[str],
    weights: str | os.PathLike[str],
    *,
    engine: Engine | None = None,
    input_shapes: Mapping[str, Shape] | None = None,
    optimize: bool = False,
    threads: int | None = None,
    device: str | Device | None = None,
) -> TranslatedNet | NcnnNet: ...
def load_ncnn(
    param: str | os.PathLike[str],
    weights: str | os.PathLike[str],
    *,
    engine: Engine | None = None,
    input_shapes: Mapping[str, Shape] | None = None,
    optimize: bool = False,
    threads: int | None = None,
    device: str | Device | None = None,
) -> TranslatedNet | NcnnNet:
    """Load an ncnn model from its `.param` and `.bin`, ready to run.

    Parameters
    ----------
    param, weights : path
        The two files of a float model, whoever wrote it: pnnx, onnx2ncnn, caffe2ncnn, ...
        ``engine="runtime"`` also runs one in INT8.
    engine : str, optional
        What runs it: ``numpy``, this package's engine, in which it can also be simulated,
        analyzed and tuned; or ``runtime``, ncnn itself from PyPI (the extra ``ncnn``). By default
        numpy where every layer has an equivalent there and the sizes of the inputs are known.
    input_shapes : mapping of str to Shape, optional
        Shapes by input name, such as ``{"in0": (1, 3, 224, 224)}``, which override or complete
        what the structure file says.
    optimize : bool
        Do first what ncnnoptimize does. A table is then for the optimized model, otherwise for
        the model as it is in the files.
    threads : int, optional
        Threads of ncnn for one image, by default as many as there are cores.
    device : str or Device, optional
        The GPU that runs it, such as ``cuda:0``, see `Net`; not with ncnn itself. None for the
        CPU.

    Returns
    -------
    TranslatedNet or NcnnNet
        The network, which runs in numpy or in ncnn: `calibrate`, `evaluate` and all that takes an
        `Executor` take it. With ``engine="numpy"`` a layer without an equivalent cannot run, and
        neither can those behind it.

    Raises
    ------
    ModelError
        For files that cannot be read, do not belong together, or that ncnn does not load.
    ShapeError
        With ``engine="numpy"`` where the size of an input is not known.
    OptionError
        Where the package `ncnn` is needed and missing, for an unknown engine, for a shape given
        to something that is no input, and for a device that is not there or that ncnn itself
        would have to run on.
    """
    if engine is not None and engine not in ENGINES:
        raise OptionError(f"engine {engine!r}; expected one of {', '.join(ENGINES)}")
    found = find_device(device)
    if engine == "runtime":
        _need_cpu(found, "engine 'runtime'")
        import_ncnn()
    model = load_model(param, weights)
    if engine != "runtime":
        refuse_int8(model.layers, model.source)
    _refuse_no_numbers(model, os.fspath(weights))
    model = optimized(model) if optimize else model
    reason = ""
    if engine != "runtime":
        try:
            net = translate_model(model, input_shapes, found)
            reason = next(iter(obstacles(net)), "")
        except ShapeError as error:
            if engine == "numpy":
                raise
            reason = str(error)
        if engine == "numpy" or not reason:
            return net
        _need_cpu(found, reason)
        _need_runtime(reason)
    try:
        return NcnnNet(model, input_shapes=input_shapes, threads=threads)
    except ModelError as error:
        reason = reason.removeprefix(f"{model.source}: ")
        if not reason or reason in str(error):
            raise
        raise ModelError(f"{error}; nor does it run in numpy: {reason}") from error


def _need_cpu(device: Device | None, reason: str) -> None:
    """Raise `OptionError` for a device where a model runs in ncnn itself for some reason."""
    if device is not None:
        raise OptionError(
            f"{reason}; so the model runs in ncnn itself, on the CPU: leave the device out"
        )


def _need_runtime(reason: str) -> None:
    """Raise `OptionError` that says why the model needs the package `ncnn`, where it is missing."""
    try:
        import_ncnn()
    except OptionError as error:
        raise OptionError(f"{reason}; so the model would run in ncnn itself, but {error}") from None


def _refuse_no_numbers(model: NcnnModel, source: str) -> None:
    """Raise `ModelFileError` for weights that no training gives: the file is of another model."""
    for layer in model.layers:
        # Data may be anything, a mask of minus infinity for example.
        if layer.type != "MemoryData" and not all(np.isfinite(w).all() for w in layer.weights):
            raise ModelFileError(
                f"{source}: layer {layer.name!r} has weights that are NaN or infinite; is it the "
                ".bin of this .param?"
            )
