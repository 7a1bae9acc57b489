"""An ncnn model that runs in ncnn's own runtime: an executor for calibrations and evaluations."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from int8calib.arrays import Array, Shape
from int8calib.calibration.executor import Listener, Runner
from int8calib.calibration.layers import QuantLayer
from int8calib.errors import ModelError, OptionError, ShapeError
from int8calib.limits import check_shape, name_list
from int8calib.ncnn.execution.layers import input_shapes, quant_layers, split_origins
from int8calib.ncnn.execution.quantizable import QuantizableModel
from int8calib.ncnn.model import NcnnModel
from int8calib.ncnn.optimize import optimize_model
from int8calib.ncnn.param import NcnnLayer
from int8calib.ncnn.runtime import RuntimeNet, read_as_ids
from int8calib.workers import Batch, batch_size, usable_cores


class NcnnNet(QuantizableModel):
    """An ncnn model in ncnn's runtime, which `calibrate` and `evaluate` run.

    It is an `Executor`. Floats stay float32, as in ncnn2table. ncnn takes one image at a time:
    batches run image by image.

    Parameters
    ----------
    model : NcnnModel
        Structure and weights.
    input_shapes : mapping of str to Shape, optional
        Shapes by input name, such as ``{"in0": (1, 3, 224, 224)}``, which override or complete
        what the structure file says.
    threads : int or None
        ncnn's threads; None for the cores that the process may use. The values do not depend on
        it.

    Attributes
    ----------
    input_shapes : dict of str to Shape
        The shape of each input with an axis of one image in front; 0 for a size that is not
        known, ``()`` where not even the number of axes is.
    inputs : tuple of str
        The names of the inputs.
    outputs : tuple of str
        The blobs that nothing reads.
    source : str
        The structure file.
    blobs : dict of str to str
        Every blob by name; copies that a Split makes are left out.

    Raises
    ------
    OptionError
        Where the package `ncnn` is missing, and for a shape given to something that is no input.
    ModelError
        For a model that ncnn cannot load.
    """

    def __init__(
        self,
        model: NcnnModel,
        *,
        input_shapes: Mapping[str, Shape] | None = None,
        threads: int | None = None,
    ) -> None:
        self.model = model
        self.threads = usable_cores() if threads is None else threads
        self.source = model.source
        self._runtime = RuntimeNet(model, threads=self.threads, float32=True)
        self.inputs = self._runtime.inputs
        self.outputs = self._runtime.outputs
        if not self.inputs:
            raise ModelError(f"{self.source}: has no Input layer; nothing can be run")
        self.input_shapes = with_given_shapes(model, input_shapes or {})
        copies, ids = split_origins(model.layers), read_as_ids(model.layers)
        self.blobs = {
            top: top
            for layer in model.layers
            for top in layer.tops
            if top not in copies and top not in ids
        }

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel as structure and weights; elsewhere one thread runs it, as all on a cluster."""
        return _loaded_again, (self.model, self.input_shapes)

    @cached_property
    def _quant_layers(self) -> tuple[tuple[QuantLayer, ...], dict[str, str]]:
        return quant_layers(self.model.layers, self.source)

    @property
    def layers(self) -> tuple[QuantLayer, ...]:
        """The layers that a table makes INT8, in running order."""
        return self._quant_layers[0]

    @property
    def blocked(self) -> dict[str, str]:
        """Layers that could be INT8 but for what is told of them."""
        return self._quant_layers[1]

    @cached_property
    def fingerprint(self) -> str:
        """A hash of structure and weights."""
        return model_hash(self.model.layers)

    @property
    def facts(self) -> dict[str, Any]:
        """What the report of a table says of the network."""
        return {"engine": "ncnn's runtime"}

    def needed_inputs(self, blobs: Sequence[str]) -> tuple[str, ...]:
        """Return the inputs that some blobs depend on.

        Parameters
        ----------
        blobs : sequence of str
            Names of blobs.

        Returns
        -------
        tuple of str
        """
        needed = set(name_list(blobs, f"{self.source}: blobs"))
        for layer in reversed(self.model.layers):
            if not needed.isdisjoint(layer.tops):
                needed.update(layer.bottoms)
        return tuple(name for name in self.inputs if name in needed)

    def run(self, inputs: Batch, blobs: Sequence[str]) -> dict[str, Array]:
        """Run one batch, image by image.

        Parameters
        ----------
        inputs : mapping of str to array (N, ...)
            Each input.
        blobs : sequence of str
            Names of the blobs to return.

        Returns
        -------
        dict of str to float32 array (N, ...)

        Raises
        ------
        ModelError
            For an input or blob that the model does not have or that cannot be computed.
        ShapeError
            For a blob whose shape differs from image to image.
        """
        blobs = name_list(blobs, f"{self.source}: blobs")
        images = [self._runtime.run(image, blobs) for image in _images(inputs, batch_size(inputs))]
        return {blob: self._stacked(blob, [tops[blob] for tops in images]) for blob in blobs}

    def _stacked(self, blob: str, tops: Sequence[Array]) -> Array:
        if any(top.shape != tops[0].shape for top in tops):
            raise ShapeError(
                f"{self.source}: blob {blob!r} has another shape in each image; run one at a time"
            )
        return tops[0][None] if len(tops) == 1 else np.stack(tops)

    def runner(self, blobs: Sequence[str]) -> Runner:
        """Return what runs batches and hands out blobs one at a time.

        Parameters
        ----------
        blobs : sequence of str
            Names of blobs.

        Returns
        -------
        callable
            Called as ``run(batch, listener)``.
        """
        blobs = name_list(blobs, f"{self.source}: blobs")

        def run(batch: Batch, listener: Listener) -> None:
            count = batch_size(batch)
            if count > 1:
                for blob, top in self.run(batch, blobs).items():
                    listener(blob, top)
                return
            (image,) = _images(batch, count)
            self._runtime.stream(image, blobs, lambda blob, top: listener(blob, top[None]))

        return run


def _loaded_again(model: NcnnModel, input_shapes: Mapping[str, Shape]) -> NcnnNet:
    net = NcnnNet(model, threads=1)
    net.input_shapes = dict(input_shapes)
    return net


def _images(batch: Batch, count: int) -> list[dict[str, Array]]:
    """Each image of a batch; an input without an axis of images belongs to each of them."""
    return [
        {name: array[i] if len(array) == count else array for name, array in batch.items()}
        for i in range(count)
    ]


def with_given_shapes(model: NcnnModel, given: Mapping[str, Shape]) -> dict[str, Shape]:
    """Return the shapes of a model's inputs, those in `given` in place of the file's."""
    shapes = input_shapes(model.layers)
    for name, shape in given.items():
        if name not in shapes:
            raise OptionError(
                f"{model.source}: {name!r} is no input; the inputs are {', '.join(shapes)}"
            )
        shapes[name] = tuple(shape)
    for name, shape in shapes.items():
        if shape and min(shape) > 0:
            check_shape(shape, f"{model.source}: input {name!r}")
    return shapes


def model_hash(layers: Sequence[NcnnLayer]) -> str:
    """Return a hash of the structure and the weights of a model, the file's spacing aside."""
    digest = hashlib.sha256()
    for layer in layers:
        blobs, params = (layer.bottoms, layer.tops), sorted(layer.params.items())
        digest.update(repr((layer.type, layer.name, blobs, params)).encode())
        for array in layer.weights:
            digest.update(array.dtype.char.encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def optimized(model: NcnnModel) -> NcnnModel:
    """Return the model as ncnnoptimize leaves it."""
    return replace(model, layers=optimize_model(model.layers))
