"""One blob of a float net, rounded, comes in; how much the net's outputs change goes out.

A layer's own error weighs a rare value beyond the threshold by its square. The outputs do not:
layers behind even it out, while the rounding of all small values adds up. So a blob's threshold
is settled by running the rest of the net.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from int8calib.analysis.side_by_side import MARK
from int8calib.arrays import Array
from int8calib.caffe.engine.run import Runner
from int8calib.caffe.network.graph import Blob, Graph, Layer
from int8calib.caffe.network.shapes import multiply_adds
from int8calib.evaluation.evaluate import copied_tops
from int8calib.evaluation.outputs import ComparedBlobs
from int8calib.levels import LEVELS
from int8calib.tuning.bottoms import rounded, strength
from int8calib.workers import Batch, batch_size, work_through

FEWEST = 64
"""Images from which on thresholds are fitted to the outputs."""
IMAGES = 24
"""Fewest batches by which a threshold is judged."""
WORK = 6e9
"""Multiply-adds that one look at a whole net may take: small nets look at more batches."""
STEP = 1.25
FINE = (0.89, 1.12)
MOST_STEPS = 6
_ROUNDED = f"rounded{MARK}"
"""The name of the input that is the rounded blob."""

Outputs = Mapping[Blob, Array]


@dataclass(frozen=True, eq=False)
class Aim:
    """What the outputs of a float net are, for some batches.

    chosen
        the numbers of those batches.
    expected
        the tops that count, batch by batch.
    scores
        the blob of class scores, whose mean does not count, or None.
    """

    chosen: tuple[int, ...]
    expected: tuple[Outputs, ...]
    scores: Blob | None

    def loss(self, found: Sequence[Outputs]) -> float:
        """Error energy over signal energy: the mean over the tops and batches.

        Each batch counts alike, so that a few images of large values do not decide for all.
        """
        shares = [
            self._energy(blob, b[blob] - a[blob]) / max(self._energy(blob, a[blob]), 1e-30)
            for a, b in zip(self.expected, found, strict=True)
            for blob in a
        ]
        return float(np.mean(shares))

    def _energy(self, blob: Blob, values: Array) -> float:
        if blob == self.scores:
            values = values - values.mean(axis=1, keepdims=True)
        return float(np.square(values).sum(dtype=np.float64))


def aim_of(
    graph: Graph, batches: Sequence[Batch], watched: ComparedBlobs, workers: int
) -> Aim | None:
    """What `graph` gives for some of `batches`, evenly spread; None where nothing is compared.

    None for few images as well: these do not show how large the values of others become.
    """
    wanted = watched.tensors
    if not wanted or sum(batch_size(batch) for batch in batches) < FEWEST:
        return None
    shapes = {name: array.shape for name, array in batches[0].items()}
    count = min(max(IMAGES, int(WORK / max(multiply_adds(graph, shapes), 1))), len(batches))
    chosen = tuple(int(i) for i in np.arange(count) * (len(batches) / count))
    found = _run_all(_runners(graph, wanted, workers), [batches[i] for i in chosen])
    return Aim(chosen, tuple(found), watched.scores)


class Tail:
    """The layers of a float net from one on, with one of their bottoms rounded for some of them."""

    def __init__(
        self,
        graph: Graph,
        done: int,
        live: Mapping[Blob, Sequence[Array]],
        bottom: Blob,
        readers: Iterable[str],
        aim: Aim,
        workers: int,
    ) -> None:
        """`graph` has run up to layer `done`, which left `live`; `readers` are to take `bottom`."""
        tail, names = _tail(graph, done, live, bottom, set(readers))
        wanted = tuple(aim.expected[0])
        self.whole = set(wanted) <= {top for layer in tail.layers for top in layer.tops}
        """Whether all outputs come behind; without this there is no loss."""
        self.bottoms = [live[bottom][i] for i in aim.chosen]
        """`bottom` as it is, for the batches of `aim`."""
        self._aim = aim
        self._batches = [{name: live[blob][i] for blob, name in names.items()} for i in aim.chosen]
        self._runners = _runners(tail, wanted, workers) if self.whole else []

    def loss(self, bottoms: Iterable[Array]) -> float:
        """What the outputs lose where the readers take these arrays, one for each batch."""
        pairs = zip(self._batches, bottoms, strict=True)
        return self._aim.loss(
            _run_all(self._runners, [{**batch, _ROUNDED: array} for batch, array in pairs])
        )


def best_by_outputs(tail: Tail, start: float, most: float, *, headroom: bool) -> float:
    """The threshold with the least loss of `tail`: `start`, or better.

    Thresholds are at most `most`. With `headroom` some images count as if their values were
    larger, as those of images to come will be.
    """
    if not tail.whole:
        return start
    # An image whose values are f times as large meets a threshold that is 1/f as large.
    count = len(tail.bottoms)
    stronger = strength(count) if headroom else np.ones(count)

    def loss(threshold: float) -> float:
        pairs = zip(tail.bottoms, stronger, strict=True)
        return tail.loss(rounded(b, LEVELS / threshold * float(factor)) for b, factor in pairs)

    tried = {start: loss(start)}
    for factor in (1 / STEP, STEP):
        best = start
        for _ in range(MOST_STEPS):
            threshold = best * factor
            if threshold > most:
                break
            tried[threshold] = loss(threshold)
            if tried[threshold] >= tried[best]:
                break
            best = threshold
        if best != start:
            break
    best = min(tried, key=tried.__getitem__)
    for factor in FINE:
        if best * factor <= most:
            tried[best * factor] = loss(best * factor)
    return min(tried, key=tried.__getitem__)


def _tail(
    graph: Graph, done: int, live: Container[Blob], bottom: Blob, readers: set[str]
) -> tuple[Graph, dict[Blob, str]]:
    """The layers from `done` on with all that they read from before as inputs, and their names."""
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


def _run_all(runners: Sequence[Runner], batches: Sequence[Batch]) -> Sequence[Outputs]:
    """The runners' blobs for each batch, as arrays of their own."""
    found: list[Outputs] = [{} for _ in batches]

    def work(runner: Runner, i: int) -> int:
        found[i] = copied_tops(runner, batches[i])
        return 1

    work_through(
        range(len(batches)),
        iter(runners).__next__,
        work,
        workers=len(runners),
        progress=lambda done: None,
    )
    return found
