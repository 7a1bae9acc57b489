"""A Caffe graph in numpy as a calibration runs it: its layers, its inputs, its blobs by key."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

from int8calib.arrays import Array, Shape, to_host
from int8calib.caffe.engine.run import Runner
from int8calib.caffe.network.fingerprint import network_fingerprint
from int8calib.caffe.network.graph import Blob, Graph
from int8calib.caffe.network.inputs import INPUT_TYPES
from int8calib.caffe.network.runnable import layers_to_quantize
from int8calib.caffe.network.shapes import reach
from int8calib.calibration import executor as protocol
from int8calib.device import Device
from int8calib.errors import ModelError
from int8calib.limits import name_list
from int8calib.workers import Batch


class CaffeExecutor:
    """A graph that a calibration runs.

    Blobs go by key: the text form of a blob version.

    Attributes
    ----------
    graph : Graph
        What runs.
    inputs : dict of str to Shape
        The declared shape of each input.
    layers : tuple of QuantizedLayer
        The layers that can be INT8.
    blocked : dict of str to str
        Layers that could be INT8 if it were not for a layer before them that cannot run, with what
        that is.
    warnings : tuple of str
        What to mind of the network.
    source : str
        The prototxt.
    blobs : dict of str to str
        Every blob that can be made by name, with the key of its last version.
    fingerprint : str
        A hash of layers and weights.
    facts : dict
        For reports: what of the prototxt was left out.
    device : Device or None
        The GPU that runs it; listeners of its runners get the GPU's arrays.

    Raises
    ------
    ModelError
        Where nothing is left to quantize; says what stands in the way.
    """

    def __init__(
        self,
        graph: Graph,
        inputs: Mapping[str, Shape],
        warnings: Sequence[str] = (),
        device: Device | None = None,
    ) -> None:
        self.device = device
        self.graph = graph
        self.inputs = dict(inputs)
        self.layers, self.blocked = layers_to_quantize(graph, self.inputs)
        self.warnings = warnings
        self.source = graph.source
        self.facts = graph.facts
        tops = list(reach(graph, self.inputs).shapes)
        self.blobs = {top.name: str(top) for top in tops}
        self._versions = {str(top): top for top in tops}

    @cached_property
    def fingerprint(self) -> str:
        """A hash of layers and weights, with BatchNorm folded or not as they are here."""
        return network_fingerprint(self.graph)

    def versions(self, blobs: Iterable[str]) -> tuple[Blob, ...]:
        """Return the blob versions of these keys; raises `ModelError` for an unknown one."""
        blobs = name_list(blobs, f"{self.source}: blobs")
        for key in blobs:
            if key not in self._versions:
                raise ModelError(f"{self.source}: has no blob {key!r}")
        return tuple(self._versions[key] for key in blobs)

    def needed_inputs(self, blobs: Sequence[str]) -> tuple[str, ...]:
        """Return the inputs that the blobs of these keys depend on."""
        needed = self.graph.ancestors(self.versions(blobs))
        return tuple(
            top.name for layer in needed for top in layer.tops if layer.type in INPUT_TYPES
        )

    def runner(self, blobs: Sequence[str]) -> protocol.Runner:
        """Return what runs batches in one thread and hands out these blobs without a copy."""
        runner = Runner(self.graph, self.versions(blobs), self.device)

        def run(batch: Batch, listener: protocol.Listener) -> None:
            runner.run(batch, lambda blob, top: listener(str(blob), top))

        return run

    def run(self, inputs: Batch, blobs: Sequence[str]) -> dict[str, Array]:
        """Run one batch and return copies of the blobs of these keys, as numpy's arrays."""
        tops: dict[str, Array] = {}

        def keep(blob: str, top: Array) -> None:
            tops[blob] = top.copy() if self.device is None else to_host(top)

        self.runner(blobs)(inputs, keep)
        return tops
