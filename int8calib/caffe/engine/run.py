"""Run a network: `Net`, which users hold, and `Runner`, which a worker thread holds.

Both keep their last plan, so that a second batch of the same shape costs no planning.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, TypeAlias

from numpy.typing import ArrayLike

from int8calib.arrays import Array, Shape, to_host
from int8calib.caffe.engine.on_device import plan_on_device, run_on_device, weights_on
from int8calib.caffe.engine.plan import Plan, Step, make_plan
from int8calib.caffe.network.fold import fold_batch_norm
from int8calib.caffe.network.graph import Blob, Graph, Layer
from int8calib.caffe.network.load import load_graph
from int8calib.caffe.network.runnable import batch_statistics
from int8calib.device import Device, find_device
from int8calib.errors import OptionError, ShapeError
from int8calib.limits import name_list, within_memory
from int8calib.workers import Batch, blas_threads, float_batch

if TYPE_CHECKING:
    from int8calib.caffe.engine.executor import CaffeExecutor

OnTop: TypeAlias = Callable[[str, str, Array], None]
Listener: TypeAlias = Callable[[Layer, Blob, Array], None]
MakePlan: TypeAlias = Callable[..., Plan]


def run_plan(plan: Plan, inputs: Mapping[str, Array], listen: Listener) -> dict[Blob, Array]:
    """Run one batch.

    Parameters
    ----------
    plan : Plan
    inputs : mapping of str to Array
        Each input, of the shape that was planned.
    listen : callable
        Called as ``listen(layer, blob, top)`` for every top, inputs included, right after its
        layer ran. `top` may be a buffer of the plan's and holds until `listen` returns.

    Returns
    -------
    dict of Blob to Array
        The blobs the plan keeps. They may be buffers of the plan's, which hold until its next run.

    Raises
    ------
    ModelError
        Where a layer cannot take the values that reach it, or a registered one fails; names it.
    """
    values: dict[Blob, Array] = {}
    for step in plan.steps:
        layer = step.layer
        if step.kind is None:
            tops = [inputs[top.name] for top in layer.tops]
        else:
            bottoms = [values[bottom] for bottom in layer.bottoms]
            tops = _run_step(plan, step, bottoms)
        for blob, top in zip(layer.tops, tops, strict=True):
            values[blob] = top
            listen(layer, blob, top)
        for blob in step.dead:
            values.pop(blob, None)
    return {blob: values[blob] for blob in plan.kept}


def _run_step(plan: Plan, step: Step, bottoms: Sequence[Array]) -> list[Array]:
    """The tops of one layer."""
    layer = step.layer
    if step.fast_path is None:
        return step.run_plain(plan.source, layer.weights, bottoms)
    tops = [plan.arrays[top] for top in layer.tops]
    step.fast_path(bottoms, tops)
    return tops


def _planner(device: Device | None) -> MakePlan:
    """`make_plan`, or what does the same for a device."""
    return make_plan if device is None else plan_on_device


def _run(
    graph: Graph, device: Device | None, plan: Plan, inputs: Batch, listen: Listener
) -> dict[Blob, Array]:
    """Run a plan of `_planner` where it belongs."""
    if device is None:
        return run_plan(plan, inputs, listen)
    return run_on_device(weights_on(graph, device), plan, inputs, listen)


class Net:
    """A Caffe network that runs in numpy, or on a GPU with CuPy.

    Not safe to share between threads: copy it with ``Net(net.graph, net.input_shapes)``, or
    ``Net(net.graph, net.input_shapes, net.device)`` (weights are shared, those on a GPU too).

    Parameters
    ----------
    graph : Graph
        Its structure, with weights.
    input_shapes : mapping of str to Shape
        The declared shape of each input.
    device : str or Device, optional
        The GPU that runs it, such as ``cuda:0``; needs ``pip install "int8calib[gpu]"``. Inputs
        go there, results come back as numpy's arrays. None for the CPU, which also runs what
        others make of a net: `simulate`, `evaluate`, `analyze` and `tune`.

    Raises
    ------
    OptionError
        For a device that is not there, or no CuPy; says what was found or what to install.

    Notes
    -----
    A GPU adds up in another order than the CPU, which depends on the size of the batch, too, and
    its exponentials may differ in the last digit: blobs agree within float32 rounding, not bit for
    bit. Types that go box by box (`int8calib inspect --gpu` lists them) and those of
    `register_layer` run on the CPU between two transfers.
    """

    def __init__(
        self,
        graph: Graph,
        input_shapes: Mapping[str, Shape],
        device: str | Device | None = None,
    ) -> None:
        self.graph = graph
        self.input_shapes = dict(input_shapes)
        self.device = find_device(device)
        self._plan: Plan | None = None

    def plan(self, inputs: Mapping[str, Shape], wanted: Iterable[Blob]) -> Plan:
        """Return the plan for these input shapes and wanted blobs; the last one is kept.

        Parameters
        ----------
        inputs : mapping of str to Shape
            Shapes of inputs, where they are others than declared.
        wanted : iterable of Blob
            The blob versions to compute.

        Returns
        -------
        Plan

        Raises
        ------
        ModelError
            Where a layer cannot run; names it.
        """
        wanted = tuple(dict.fromkeys(wanted))
        shapes = {name: tuple(inputs.get(name, shape)) for name, shape in self.input_shapes.items()}
        old = self._plan
        same = old is not None and old.kept == wanted
        if old is None or not same or any(shapes[n] != s for n, s in old.inputs.items()):
            self._plan = old = _planner(self.device)(self.graph, shapes, wanted)
        return old

    def executor(self, *, fold_bn: bool = True) -> CaffeExecutor:
        """Return the net as `calibrate` runs it.

        Parameters
        ----------
        fold_bn : bool
            Whether BatchNorm is folded into the layers before it, as ncnnoptimize does.

        Returns
        -------
        CaffeExecutor
            An `Executor`.

        Raises
        ------
        ModelError
            Where no layer is left to quantize; says what stands in the way.
        """
        from int8calib.caffe.engine.executor import CaffeExecutor

        graph = fold_batch_norm(self.graph) if fold_bn else self.graph
        warnings = tuple(batch_statistics(self.graph))
        return CaffeExecutor(graph, self.input_shapes, warnings, self.device)

    def forward(
        self,
        inputs: Mapping[str, ArrayLike],
        on_top: OnTop | None = None,
        outputs: Iterable[str] | None = None,
        *,
        threads: int | None = 1,
    ) -> dict[str, Array]:
        """Run one batch.

        Parameters
        ----------
        inputs : mapping of str to array_like
            An array (N, ...) of floats or integers for each input; any N. Other axes may differ
            from the prototxt where the layers allow it.
        on_top : callable, optional
            Called as ``on_top(layer_name, blob_name, array)`` for every top right after its layer
            ran, in order, inputs included. In-place results are as they are at that layer. The
            array must be copied to be kept.
        outputs : iterable of str, optional
            Names of the blobs to return, by default those that no layer reads. Only what they
            need is run.
        threads : int or None
            How many threads BLAS may use for matrix products; None leaves it as it is set. More
            than one is faster on an idle machine only: they wait for each other in busy loops,
            and are several times slower than one where other programs run. With one, the values
            are bit for bit those of a calibration without folding.

        Returns
        -------
        dict of str to float32 ndarray
            The outputs by blob name.

        Raises
        ------
        ShapeError
            For inputs that are missing, do not fit, or are beyond the limits on sizes.
        UnsupportedLayerError
            For a needed layer of an unknown type.
        ModelError
            For an unknown output name, and where a layer fails.
        OptionError
            For an array that is no input, outputs that are no list, and less than one thread.
        ImageError
            For an array that holds no numbers.
        """
        arrays = self._check(inputs)
        wanted = self.graph.outputs
        if outputs is not None:
            wanted = tuple(map(self.graph.last_version, name_list(outputs, "outputs")))
        with within_memory(self.graph.source):
            plan = self.plan({name: array.shape for name, array in arrays.items()}, wanted)
        missing = [name for name in plan.inputs if name not in arrays]
        if missing:
            raise ShapeError(f"{self.graph.source}: input {missing[0]!r} is not given")

        def listen(layer: Layer, blob: Blob, top: Array) -> None:
            if on_top is not None:
                on_top(layer.name, blob.name, to_host(top))

        current = nullcontext() if self.device is None else self.device.current()
        with within_memory(self.graph.source), blas_threads(threads), current:
            tops = _run(self.graph, self.device, plan, arrays, listen)
            if self.device is not None:
                return {blob.name: to_host(top) for blob, top in tops.items()}
            return {blob.name: top.copy() for blob, top in tops.items()}

    def _check(self, inputs: Mapping[str, ArrayLike]) -> Batch:
        """The inputs as contiguous float32 arrays, checked for name, type and number of axes."""
        batch = {} if isinstance(inputs, Mapping) and not inputs else float_batch(inputs)
        for name in batch:
            if name not in self.input_shapes:
                raise OptionError(
                    f"{self.graph.source}: {name!r} is no input; "
                    f"the inputs are {', '.join(map(repr, self.input_shapes))}"
                )
        for name, array in batch.items():
            if array.ndim != len(self.input_shapes[name]):
                raise ShapeError(
                    f"{self.graph.source}: input {name!r} has shape {array.shape}; "
                    f"expected {len(self.input_shapes[name])} axes as {self.input_shapes[name]}"
                )
        return batch


class Runner:
    """One worker's plan of a graph, made anew only when the input shapes change.

    Parameters
    ----------
    graph : Graph
    blobs : iterable of Blob
        What to make; only what they need is run.
    device : Device, optional
        Where they are made.
    """

    def __init__(self, graph: Graph, blobs: Iterable[Blob], device: Device | None = None) -> None:
        self._graph = graph
        self._device = device
        self._blobs = frozenset(blobs)
        self._plan: Plan | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}

    def run(self, batch: Batch, hear: Callable[[Blob, Array], None]) -> None:
        """Run one batch; `hear(blob, top)` gets each wanted top, valid until it returns.

        On a device `top` is its array, and `hear` runs where the device is the current one.
        """
        batch = float_batch(batch)
        shapes = {name: array.shape for name, array in batch.items()}
        if self._plan is None or shapes != self._shapes:
            make = _planner(self._device)
            self._plan = make(self._graph, shapes, self._blobs, keep=False)
            self._shapes = shapes

        def listen(layer: Layer, blob: Blob, top: Array) -> None:
            if blob in self._blobs:
                hear(blob, top)

        _run(self._graph, self._device, self._plan, batch, listen)


def load_caffe(
    prototxt: str | os.PathLike[str],
    caffemodel: str | os.PathLike[str] | None,
    *,
    input_shapes: Mapping[str, Shape] | None = None,
    ignore_fields: Sequence[str] = (),
    device: str | Device | None = None,
) -> Net:
    """Load a Caffe model from its two files, ready to run.

    Parameters
    ----------
    prototxt, caffemodel : path
        The files; without a caffemodel the network can be looked at, not run.
    input_shapes : mapping of str to Shape, optional
        Shapes by input name, such as ``{"data": (1, 3, 224, 224)}``, which override or complete
        what the prototxt says.
    ignore_fields : sequence of str
        Fields of the prototxt that are not known and shall not matter, such as
        ``convolution_param.foo``. Without that, a layer that must run and says something that is
        not known is an error.
    device : str or Device, optional
        The GPU that runs it, such as ``cuda:0``, see `Net`. None for the CPU.

    Returns
    -------
    Net
        The network. ``net.graph.notes`` tells what of the prototxt was left out.

    Raises
    ------
    ModelError
        Or one of its kin, each naming the file and layer.
    OptionError
        For a shape given to something that is no input, and for a device that is not there.
    """
    found = find_device(device)
    return Net(*load_graph(prototxt, caffemodel, input_shapes, ignore_fields), found)
