"""Run a network on a GPU: the plain layer functions on its arrays, one step after another.

Types that need numpy (`LayerType.host`) run on copies of their bottoms, and their tops go back.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import prod
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

from int8calib.arrays import Array, Shape, to_host
from int8calib.caffe.engine.plan import Plan, Step, deaths, kind_of, plan_of_steps
from int8calib.caffe.layers.convolution import MOST_COLUMNS, groups
from int8calib.caffe.network.batch import is_batchable
from int8calib.caffe.network.graph import CONVOLUTIONS, Blob, Graph, Layer
from int8calib.caffe.network.layer_shapes import require_weights
from int8calib.caffe.network.shapes import infer_shapes
from int8calib.device import Device
from int8calib.limits import within_memory

Listener: TypeAlias = Callable[[Layer, Blob, Any], None]

MOST_IMAGES = 256
"""Images of the largest batch; more make no GPU faster."""
USABLE = 0.6
"""The part of the free memory that blobs may take; statistics and odd sizes take some too."""


class DeviceWeights:
    """The weights of a graph on a device, each uploaded when its layer first runs.

    Attributes
    ----------
    device : Device
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self._uploading = threading.Lock()
        self._arrays: dict[Layer, tuple[Any, ...]] = {}

    def of(self, layer: Layer) -> tuple[Any, ...]:
        """Return the weights of a layer as the device's arrays."""
        with self._uploading:
            if layer not in self._arrays:
                self._arrays[layer] = tuple(map(self.device.asarray, layer.weights))
            return self._arrays[layer]


_weights: WeakKeyDictionary[Graph, dict[Device, DeviceWeights]] = WeakKeyDictionary()
_finding = threading.Lock()


def weights_on(graph: Graph, device: Device) -> DeviceWeights:
    """Return the weights of a graph on a device, which all that run it share."""
    with _finding:
        devices = _weights.setdefault(graph, {})
        if device not in devices:
            devices[device] = DeviceWeights(device)
        return devices[device]


def plan_on_device(
    graph: Graph, inputs: Mapping[str, Shape], wanted: Iterable[Blob], *, keep: bool = True
) -> Plan:
    """Plan the layers that the wanted blobs need, by their plain functions.

    Parameters, results and errors are those of `make_plan`, without fast paths and buffers.
    """
    wanted = tuple(dict.fromkeys(wanted))
    kept = wanted if keep else ()
    layers = graph.ancestors(wanted)
    shapes = infer_shapes(graph, inputs, layers)
    require_weights(graph, layers, shapes)
    steps = [
        Step(layer, kind_of(layer), None, dead)
        for layer, dead in zip(layers, _deaths(layers, kept), strict=True)
    ]
    return plan_of_steps(graph.source, inputs, kept, steps, {})


def _deaths(layers: Sequence[Layer], kept: Sequence[Blob]) -> list[tuple[Blob, ...]]:
    """`deaths` where each blob has memory of its own."""
    blobs = {blob: blob for layer in layers for blob in (*layer.bottoms, *layer.tops)}
    return deaths(layers, kept, blobs)


def run_on_device(
    weights: DeviceWeights, plan: Plan, inputs: Mapping[str, Array], listen: Listener
) -> dict[Blob, Any]:
    """Run one batch.

    Parameters
    ----------
    weights : DeviceWeights
        Of the graph that was planned.
    plan : Plan
        Of `plan_on_device`.
    inputs : mapping of str to Array
        Each input, of the shape that was planned.
    listen : callable
        As for `run_plan`; `top` is the device's array.

    Returns
    -------
    dict of Blob to array
        The blobs the plan keeps, on the device.

    Raises
    ------
    ModelError
        Where a layer cannot take the values that reach it, or a registered one fails; names it.
        A `ShapeError` where the device's memory is full.
    """
    device = weights.device
    there: dict[Blob, Any] = {}
    here: dict[Blob, Array] = {}  # copies that a layer has asked for, and what was made here

    def on_host(blob: Blob) -> Array:
        if blob not in here:
            here[blob] = to_host(there[blob])
        return here[blob]

    with within_memory(f"{plan.source}: {device.name}"), device.current():
        for step in plan.steps:
            layer, kind = step.layer, step.kind
            if kind is None:
                tops = [inputs[top.name] for top in layer.tops]
            elif kind.host:
                bottoms = [on_host(bottom) for bottom in layer.bottoms]
                tops = step.run_plain(plan.source, layer.weights, bottoms)
            else:
                bottoms = [there[bottom] for bottom in layer.bottoms]
                tops = step.run_plain(plan.source, weights.of(layer), bottoms)
            if kind is None or kind.host:
                here.update(zip(layer.tops, tops, strict=True))
                tops = [device.asarray(top) for top in tops]
            for blob, top in zip(layer.tops, tops, strict=True):
                there[blob] = top
                listen(layer, blob, top)
            for blob in step.dead:
                there.pop(blob, None)
                here.pop(blob, None)
        return {blob: there[blob] for blob in plan.kept}


def device_batch(
    graph: Graph,
    input_shapes: Mapping[str, Shape],
    free_bytes: int,
    blobs: Iterable[Blob] | None = None,
) -> int:
    """Choose how many images to run at a time on a device.

    Parameters
    ----------
    graph : Graph
        The network, with weights.
    input_shapes : mapping of str to Shape
        The shape of each input.
    free_bytes : int
        The device's memory.
    blobs : iterable of Blob, optional
        What is to be made; by default the outputs.

    Returns
    -------
    int
        From 1 to `MOST_IMAGES`; 1 where a layer on the way mixes or fixes the batch.
    """
    blobs = graph.outputs if blobs is None else tuple(blobs)
    layers = graph.ancestors(blobs)
    if not is_batchable(graph, input_shapes, layers):
        return 1
    fixed, image = device_bytes(graph, input_shapes, blobs)
    return max(1, min(MOST_IMAGES, (int(USABLE * free_bytes) - fixed) // image))


def device_bytes(
    graph: Graph, input_shapes: Mapping[str, Shape], blobs: Iterable[Blob] | None = None
) -> tuple[int, int]:
    """Estimate the memory of a run on a device.

    Parameters
    ----------
    graph : Graph
        The network, with weights.
    input_shapes : mapping of str to Shape
        The shape of each input.
    blobs : iterable of Blob, optional
        What is to be made; by default the outputs.

    Returns
    -------
    fixed : int
        Bytes that a run takes however large its batch is: weights, and the column matrix of a
        convolution, see `MOST_COLUMNS`.
    image : int
        Bytes of each image more: at the largest step the blobs that live, and two intermediate
        arrays of the size of its bottoms and tops.
    """
    layers = graph.ancestors(graph.outputs if blobs is None else blobs)
    single = {name: (1, *shape[1:]) for name, shape in input_shapes.items()}
    sizes = {blob: prod(shape) for blob, shape in infer_shapes(graph, single, layers).items()}
    weights = sum(blob.size for layer in layers for blob in layer.weights)
    columns, alive, most = 0, 0, 1
    for layer, dead in zip(layers, _deaths(layers, ()), strict=True):
        kind = kind_of(layer)
        alive += sum(sizes[top] for top in layer.tops)
        computes = kind is not None and not kind.view
        touched = sum(sizes[blob] for blob in (*layer.bottoms, *layer.tops)) if computes else 0
        most = max(most, alive + 2 * touched)
        columns = max(columns, _columns(layer, sizes))
        alive -= sum(sizes[blob] for blob in dead)
    return 4 * (weights + (max(columns, MOST_COLUMNS) if columns else 0)), 4 * most


def _columns(layer: Layer, sizes: Mapping[Blob, int]) -> int:
    """The values of the column matrix of one image."""
    if layer.type not in CONVOLUTIONS | {"Deconvolution"} or not layer.weights:
        return 0
    weight, outputs = layer.weights[0], int(layer.params.convolution_param.num_output)
    taps: int = prod(weight.shape[2:])
    if layer.type == "Deconvolution":
        # Each pixel has a window in every output: weight (C, outputs / group, ...).
        return max(outputs * taps * sizes[blob] // len(weight) for blob in layer.bottoms)
    # Each pixel of an output has a window in every channel: weight (outputs, C / group, ...).
    channels: int = weight.shape[1] * groups(layer.params)
    return max(channels * taps * sizes[blob] // outputs for blob in layer.tops)
