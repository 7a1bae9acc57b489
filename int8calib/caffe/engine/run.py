"""A running network: a plan and a batch in, tops out one at a time to whoever listens.

`Net` is what users hold. It keeps the last plan, so a second batch of the same shape costs no
planning.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from int8calib.arrays import Array, Shape
from int8calib.caffe.engine.plan import Plan, make_plan
from int8calib.caffe.network.fold import fold_batch_norm
from int8calib.caffe.network.graph import Blob, Graph, Layer
from int8calib.caffe.network.load import load_graph
from int8calib.caffe.network.runnable import batch_statistics
from int8calib.errors import OptionError, ShapeError
from int8calib.workers import Batch

if TYPE_CHECKING:
    from int8calib.caffe.engine.executor import CaffeExecutor

OnTop: TypeAlias = Callable[[str, str, Array], None]
Listener: TypeAlias = Callable[[Layer, Blob, Array], None]


def run_plan(plan: Plan, inputs: Mapping[str, Array], listen: Listener) -> dict[Blob, Array]:
    """Run one batch; `listen` hears of every top, inputs included, right after its layer ran.

    Returns the blobs the plan keeps. All arrays, there and in `listen`, may be the plan's own
    buffers: they hold until the next layer (in `listen`) or the next run (returned).
    """
    values: dict[Blob, Array] = {}
    for step in plan.steps:
        layer = step.layer
        bottoms = [values[bottom] for bottom in layer.bottoms]
        if step.kind is None:
            tops = [inputs[top.name] for top in layer.tops]
        elif step.kernel is None:
            tops = list(step.kind.run(layer.params, layer.weights, bottoms))
        else:
            tops = [plan.arrays[top] for top in layer.tops]
            step.kernel(bottoms, tops)
        for blob, top in zip(layer.tops, tops, strict=True):
            values[blob] = top
            listen(layer, blob, top)
        for blob in step.dead:
            values.pop(blob, None)
    return {blob: values[blob] for blob in plan.kept}


class Net:
    """A Caffe network that runs in numpy.

    `graph` is its structure, `input_shapes` maps each input blob to its shape as declared. Not
    safe to share between threads: copy it with `Net(net.graph, net.input_shapes)` (weights are
    shared).
    """

    def __init__(self, graph: Graph, input_shapes: Mapping[str, Shape]) -> None:
        self.graph = graph
        self.input_shapes = dict(input_shapes)
        self._plan: Plan | None = None

    def plan(self, inputs: Mapping[str, Shape], wanted: Iterable[Blob]) -> Plan:
        """The plan for these input shapes and wanted blobs; the last one is kept."""
        wanted = tuple(dict.fromkeys(wanted))
        shapes = {name: tuple(inputs.get(name, shape)) for name, shape in self.input_shapes.items()}
        old = self._plan
        same = old is not None and old.kept == wanted
        if old is None or not same or any(shapes[n] != s for n, s in old.inputs.items()):
            self._plan = old = make_plan(self.graph, shapes, wanted)
        return old

    def executor(self, *, fold_bn: bool = True) -> CaffeExecutor:
        """Return the net as `calibrate` runs it, with BatchNorm folded or not."""
        from int8calib.caffe.engine.executor import CaffeExecutor

        graph = fold_batch_norm(self.graph) if fold_bn else self.graph
        return CaffeExecutor(graph, self.input_shapes, tuple(batch_statistics(self.graph)))

    def forward(
        self,
        inputs: Mapping[str, ArrayLike],
        on_top: OnTop | None = None,
        outputs: Iterable[str] | None = None,
    ) -> dict[str, Array]:
        """Run one batch and return its outputs by blob name.

        `inputs` maps input blob names to arrays (N, ...), any N, turned into float32; other axes
        may differ from the prototxt where the layers allow it. `outputs` names the blobs to
        return (by default those that no layer reads), and only what they need is run.
        `on_top(layer_name, blob_name, array)` is called for every top right after its layer ran,
        in order, inputs included; in-place results are as they are at that layer, and the array
        must be copied to be kept. With `on_top` and no `outputs`, every layer runs.

        Raises `ShapeError` for inputs that are missing or do not fit, `UnsupportedLayerError`
        for a needed layer of an unknown type, `ModelError` for an unknown output name.
        """
        arrays = self._check(inputs)
        wanted = self.graph.outputs
        if outputs is not None:
            wanted = tuple(self.graph.last_version(name) for name in outputs)
        plan = self.plan({name: array.shape for name, array in arrays.items()}, wanted)
        missing = [name for name in plan.inputs if name not in arrays]
        if missing:
            raise ShapeError(f"{self.graph.source}: input {missing[0]!r} is not given")

        def listen(layer: Layer, blob: Blob, top: Array) -> None:
            if on_top is not None:
                on_top(layer.name, blob.name, top)

        return {blob.name: top.copy() for blob, top in run_plan(plan, arrays, listen).items()}

    def _check(self, inputs: Mapping[str, ArrayLike]) -> dict[str, Array]:
        """The inputs as contiguous float32 arrays, checked for name and number of axes."""
        arrays = {}
        for name, value in inputs.items():
            if name not in self.input_shapes:
                raise OptionError(
                    f"{self.graph.source}: {name!r} is no input; "
                    f"the inputs are {', '.join(map(repr, self.input_shapes))}"
                )
            array = np.ascontiguousarray(value, dtype=np.float32)
            if array.ndim != len(self.input_shapes[name]):
                raise ShapeError(
                    f"{self.graph.source}: input {name!r} has shape {array.shape}; "
                    f"expected {len(self.input_shapes[name])} axes as {self.input_shapes[name]}"
                )
            arrays[name] = array
        return arrays


class Runner:
    """One worker's plan of a graph, made anew only when the input shapes change.

    It runs what the wanted `blobs` need, and hands each of them to a listener when it is ready.
    """

    def __init__(self, graph: Graph, blobs: Iterable[Blob]) -> None:
        self._graph = graph
        self._blobs = frozenset(blobs)
        self._plan: Plan | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}

    def run(self, batch: Batch, hear: Callable[[Blob, Array], None]) -> None:
        """Run one batch; `hear(blob, top)` gets each wanted top, valid until it returns."""
        shapes = {name: array.shape for name, array in batch.items()}
        if self._plan is None or shapes != self._shapes:
            self._plan = make_plan(self._graph, shapes, self._blobs, keep=False)
            self._shapes = shapes

        def listen(layer: Layer, blob: Blob, top: Array) -> None:
            if blob in self._blobs:
                hear(blob, top)

        run_plan(self._plan, batch, listen)


def load_caffe(
    prototxt: str | os.PathLike[str],
    caffemodel: str | os.PathLike[str] | None,
    *,
    input_shapes: Mapping[str, Shape] | None = None,
    ignore_fields: Sequence[str] = (),
) -> Net:
    """Load a Caffe model from its two files, ready to run.

    Parameters
    ----------
    prototxt, caffemodel
        The files; without a caffemodel the network can be looked at, not run.
    input_shapes
        Shapes by input name, such as ``{"data": (1, 3, 224, 224)}``, which override or complete
        what the prototxt says.
    ignore_fields
        Fields of the prototxt that are not known and shall not matter, such as
        ``convolution_param.foo``. Without that, a layer that must run and says something that is
        not known is an error.

    Returns
    -------
    Net
        The network. ``net.graph.notes`` tells what of the prototxt was left out.

    Raises
    ------
    ModelError
        Or one of its kin, each naming the file and layer.
    OptionError
        For a shape given to something that is no input.
    """
    return Net(*load_graph(prototxt, caffemodel, input_shapes, ignore_fields))
