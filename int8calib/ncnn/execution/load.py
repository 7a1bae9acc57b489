"""Load an ncnn model from its two files, ready to run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal, TypeAlias

import numpy as np

from int8calib.arrays import Shape
from int8calib.errors import ModelFileError, OptionError
from int8calib.ncnn.execution.network import NcnnNet, optimized
from int8calib.ncnn.model import NcnnModel, load_model
from int8calib.ncnn.runtime import import_ncnn

Engine: TypeAlias = Literal["runtime"]
ENGINES = ("runtime",)


def load_ncnn(
    param: str | os.PathLike[str],
    weights: str | os.PathLike[str],
    *,
    engine: Engine = "runtime",
    input_shapes: Mapping[str, Shape] | None = None,
    optimize: bool = False,
    threads: int | None = None,
) -> NcnnNet:
    """Load an ncnn model from its `.param` and `.bin`, ready to run.

    Parameters
    ----------
    param, weights : path
        The two files of a float model, whoever wrote it: pnnx, onnx2ncnn, caffe2ncnn, ...
    engine : str
        What runs it: ``runtime``, ncnn itself from PyPI (the extra ``ncnn``).
    input_shapes : mapping of str to Shape, optional
        Shapes by input name, such as ``{"in0": (1, 3, 224, 224)}``, which override or complete
        what the structure file says.
    optimize : bool
        Do first what ncnnoptimize does. A table is then for the optimized model, otherwise for
        the model as it is in the files.
    threads : int, optional
        Threads for one image, by default as many as there are cores.

    Returns
    -------
    NcnnNet
        The network: `calibrate`, `evaluate` and all that takes an `Executor` take it.

    Raises
    ------
    ModelError
        For files that cannot be read, do not belong together, or that ncnn does not load.
    OptionError
        Where the package `ncnn` is missing, for an unknown engine, and for a shape given to
        something that is no input.
    """
    if engine not in ENGINES:
        raise OptionError(f"engine {engine!r}; expected one of {', '.join(ENGINES)}")
    import_ncnn()
    model = load_model(param, weights)
    _refuse_no_numbers(model, os.fspath(weights))
    return NcnnNet(
        optimized(model) if optimize else model, input_shapes=input_shapes, threads=threads
    )


def _refuse_no_numbers(model: NcnnModel, source: str) -> None:
    """Raise `ModelFileError` for weights that no training gives: the file is of another model."""
    for layer in model.layers:
        # Data may be anything, a mask of minus infinity for example.
        if layer.type != "MemoryData" and not all(np.isfinite(w).all() for w in layer.weights):
            raise ModelFileError(
                f"{source}: layer {layer.name!r} has weights that are NaN or infinite; is it the "
                ".bin of this .param?"
            )
