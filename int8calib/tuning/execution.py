"""Run a float network and its INT8 form layer by layer, or only the layers from one on.

`Layerwise` takes all images through one layer before the next one runs, so that a layer's INT8
form can be chosen when all layers before it are solved: a tuning costs about two passes of the
network. `SuffixNetwork` tells what rounding one blob does to the outputs: a layer's own error
weighs a rare value beyond the threshold by its square, while the layers behind even it out.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from int8calib.analysis.side_by_side import MARK
from int8calib.arrays import Array, Shape
from int8calib.caffe.engine.run import Runner
from int8calib.caffe.layers.registry import find_type
from int8calib.caffe.network.graph import Blob, Graph, Layer
from int8calib.caffe.network.inputs import INPUT_TYPES
from int8calib.caffe.network.shapes import infer_shapes, multiply_adds, reach
from int8calib.evaluation.evaluate import copied_tops
from int8calib.evaluation.outputs import ComparedBlobs
from int8calib.workers import Batch, batch_size, work_through

MIN_IMAGES = 64
"""Images from which on the network's outputs decide on thresholds."""
MIN_BATCHES = 24
"""Fewest batches whose outputs are compared."""
MAX_MULTIPLY_ADDS = 6e9
"""Work of one pass over these batches: small networks compare more of them."""
_ROUNDED = f"rounded{MARK}"
"""The name of the input of a suffix network that is the rounded blob."""

Values = list[Array]
"""One blob: its array for each batch."""
Outputs = Mapping[Blob, Array]


class Layerwise:
    """The blobs that layers still to come need, of the float and the INT8 network, by batch.

    Where no INT8 layer stands before a blob, both networks share its arrays.
    """

    def __init__(self, graph: Graph, batches: Sequence[Batch], *, workers: int) -> None:
        self.graph = graph
        self._batches = batches
        self._workers = workers
        self._float: dict[Blob, Values] = {}
        self._int8: dict[Blob, Values] = {}
        self._last_reader = {blob: i for i, layer in enumerate(graph.layers)
                             for blob in layer.bottoms}  # fmt: skip
        self._done = 0
        inputs = {name: array.shape for name, array in batches[0].items()}
        self._blocked = reach(graph, inputs).blocked

    @property
    def done(self) -> int:
        """How many layers have run."""
        return self._done

    @property
    def live(self) -> Mapping[Blob, Values]:
        """The blobs of the float network that layers still to come read."""
        return self._float

    def bottoms(self, blob: Blob) -> tuple[Values, Values]:
        """A blob in the float network and in the INT8 network."""
        return self._float[blob], self._int8[blob]

    def step(self, layer: Layer, int8_layer: Layer) -> None:
        """Run the next layer; `int8_layer` is its form in the INT8 network, maybe the same."""
        if layer in self._blocked:
            pass  # no output that is compared depends on it
        elif layer.type in INPUT_TYPES:
            for top in layer.tops:
                self._float[top] = self._int8[top] = [batch[top.name] for batch in self._batches]
        else:
            self._run(layer, int8_layer)
        for blob in (*layer.bottoms, *layer.tops):
            if self._last_reader.get(blob, -1) <= self._done:
                self._float.pop(blob, None)
                self._int8.pop(blob, None)
        self._done += 1

    def _run(self, layer: Layer, int8_layer: Layer) -> None:
        same = int8_layer is layer and all(self._float[b] is self._int8[b] for b in layer.bottoms)
        count = len(self._batches)
        float_tops: list[list[Array]] = [[] for _ in range(count)]
        int8_tops = float_tops if same else [[] for _ in range(count)]

        def work(runners: tuple[_LayerRunner, _LayerRunner], i: int) -> int:
            float_tops[i] = runners[0].run([self._float[b][i] for b in layer.bottoms])
            if not same:
                int8_tops[i] = runners[1].run([self._int8[b][i] for b in layer.bottoms])
            return 1

        work_through(
            range(count),
            lambda: (_LayerRunner(layer), _LayerRunner(int8_layer)),
            work,
            workers=self._workers,
            progress=lambda done: None,
        )
        for number, top in enumerate(layer.tops):
            self._float[top] = [tops[number] for tops in float_tops]
            if same:
                self._int8[top] = self._float[top]
            else:
                self._int8[top] = [tops[number] for tops in int8_tops]


class _LayerRunner:
    """One layer that runs alone; it is planned anew where the shapes of its bottoms change."""

    def __init__(self, layer: Layer) -> None:
        self._layer = layer
        self._type = find_type(layer.type)
        self._shapes: list[Shape] = []

    def run(self, bottoms: Sequence[Array]) -> list[Array]:
        """The tops, as arrays of their own."""
        layer, kind = self._layer, self._type
        if kind.plan is None:
            return list(kind.run(layer.params, layer.weights, bottoms))
        shapes = [bottom.shape for bottom in bottoms]
        if shapes != self._shapes:
            self._planned = kind.plan(layer.params, layer.weights, shapes, _scratch_buffer)
            self._shapes = shapes
        tops = [np.empty(shape, np.float32) for shape in kind.shape(layer.params, shapes)]
        self._planned(bottoms, tops)
        return tops


def _scratch_buffer(shape: Shape) -> Array:
    return np.empty(shape, np.float32)


def bytes_per_image(graph: Graph, inputs: Mapping[str, Shape]) -> int:
    """The most memory that `Layerwise` holds for one image, both networks together."""
    shapes = infer_shapes(graph, {name: (1, *shape[1:]) for name, shape in inputs.items()})
    last_reader = {blob: i for i, layer in enumerate(graph.layers) for blob in layer.bottoms}
    held: dict[Blob, int] = {}
    peak = 0
    for i, layer in enumerate(graph.layers):
        held.update({top: 8 * prod(shapes.get(top, ())) for top in layer.tops})
        peak = max(peak, sum(held.values()))
        held = {blob: size for blob, size in held.items() if last_reader.get(blob, -1) > i}
    return peak


@dataclass(frozen=True, eq=False)
class ReferenceOutputs:
    """The outputs of a float network for some batches.

    Attributes
    ----------
    chosen
        The numbers of those batches.
    expected
        The tops that are compared, batch by batch.
    scores
        The blob of class scores, whose mean does not count, or None.
    """

    chosen: tuple[int, ...]
    expected: tuple[Outputs, ...]
    scores: Blob | None

    def share(self, number: int, outputs: Outputs) -> float:
        """The energy of the error over that of the signal: the mean over tops of a chosen batch."""
        shares = [
            self._energy(blob, outputs[blob] - top) / max(self._energy(blob, top), 1e-30)
            for blob, top in self.expected[number].items()
        ]
        return float(np.mean(shares))

    def _energy(self, blob: Blob, values: Array) -> float:
        if blob == self.scores:
            values = values - values.mean(axis=1, keepdims=True)
        return float(np.square(values).sum(dtype=np.float64))


def reference_outputs(
    graph: Graph, batches: Sequence[Batch], compared: ComparedBlobs, workers: int
) -> ReferenceOutputs | None:
    """Run `graph` on some of `batches`, evenly spread; None where nothing is compared.

    None for few images as well: these do not show how large the values of others become.
    """
    wanted = compared.tensors
    if not wanted or sum(batch_size(batch) for batch in batches) < MIN_IMAGES:
        return None
    shapes = {name: array.shape for name, array in batches[0].items()}
    affordable = int(MAX_MULTIPLY_ADDS / max(multiply_adds(graph, shapes), 1))
    count = min(max(MIN_BATCHES, affordable), len(batches))
    chosen = tuple(int(i) for i in np.arange(count) * (len(batches) / count))
    outputs: list[Outputs] = [{} for _ in chosen]

    def work(runner: Runner, item: tuple[int, Batch]) -> int:
        i, batch = item
        outputs[i] = copied_tops(runner, batch)
        return 1

    runners = _runners(graph, wanted, workers)
    _work_through(runners, enumerate(batches[i] for i in chosen), work)
    return ReferenceOutputs(chosen, tuple(outputs), compared.scores)


class SuffixNetwork:
    """The layers of a float network that `nets` has not run yet, with one bottom rounded.

    Only `readers` take the rounded blob; other layers read `bottom` as it is.
    """

    def __init__(
        self,
        nets: Layerwise,
        bottom: Blob,
        readers: Iterable[str],
        reference: ReferenceOutputs,
        *,
        workers: int,
    ) -> None:
        live, chosen = nets.live, reference.chosen
        graph, inputs = _suffix(nets.graph, nets.done, live, bottom, set(readers))
        wanted = tuple(reference.expected[0])
        self.complete = set(wanted) <= {top for layer in graph.layers for top in layer.tops}
        """Whether all compared outputs are made here; without them there is no loss."""
        self.bottoms = [live[bottom][i] for i in chosen]
        """`bottom` as it is, for the batches of `reference`."""
        self._reference = reference
        self._batches = [{name: live[blob][i] for blob, name in inputs.items()} for i in chosen]
        self._runners = _runners(graph, wanted, workers) if self.complete else []

    def loss(self, bottoms: Iterable[Array], limit: float = np.inf) -> float:
        """What the outputs lose where the readers take these arrays, one for each batch.

        The mean over batches and tops of the share of error energy: each batch counts alike, so
        that a few images of large values do not decide for all. Where it is above `limit`, not
        all batches may have run, and the result is only known to be above it.
        """
        shares = np.zeros(len(self._batches))

        def batches() -> Iterator[tuple[int, Batch]]:
            for i, array in enumerate(bottoms):
                if shares.mean() > limit:
                    return
                yield i, {**self._batches[i], _ROUNDED: array}

        def work(runner: Runner, item: tuple[int, Batch]) -> int:
            i, batch = item
            shares[i] = self._reference.share(i, copied_tops(runner, batch))
            return 1

        _work_through(self._runners, batches(), work)
        return float(shares.mean())


def _suffix(
    graph: Graph, done: int, live: Container[Blob], bottom: Blob, readers: set[str]
) -> tuple[Graph, dict[Blob, str]]:
    """The layers from `done` on, and the names of the inputs that stand for blobs of before."""
    made: set[Blob] = set()
    renamed: dict[Blob, Blob] = {}
    layers: list[Layer] = []
    for layer in graph.layers[done:]:
        if any(blob not in made and blob not in live for blob in layer.bottoms):
            continue  # it stands behind a layer that cannot run
        bottoms = []
        for blob in layer.bottoms:
            if layer.name in readers and blob == layer.bottoms[0]:
                bottoms.append(Blob(_ROUNDED))
            elif blob in made:
                bottoms.append(blob)
            else:
                renamed[blob] = Blob(f"{blob}{MARK}")
                bottoms.append(renamed[blob])
        made.update(layer.tops)
        layers.append(replace(layer, bottoms=tuple(bottoms)))
    names = {blob: new.name for blob, new in renamed.items()}
    inputs = (*renamed.values(), Blob(_ROUNDED))
    source = next(layer for layer in graph.layers if not layer.bottoms)
    first = replace(source, name=MARK, type="Input", bottoms=(), tops=inputs, weights=())
    return replace(graph, layers=(first, *layers)), names


def _runners(graph: Graph, wanted: tuple[Blob, ...], workers: int) -> list[Runner]:
    return [Runner(graph, wanted) for _ in range(workers)]


def _work_through(
    runners: Sequence[Runner],
    batches: Iterable[tuple[int, Batch]],
    work: Callable[[Runner, tuple[int, Batch]], int],
) -> None:
    work_through(
        batches,
        iter(runners).__next__,
        work,
        workers=len(runners),
        progress=lambda done: None,
    )
