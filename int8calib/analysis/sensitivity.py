"""A float network and its INT8 layers to what each of them alone does to the outputs.

The net runs once per layer and image, so this takes a few images, not all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from int8calib.arrays import Array
from int8calib.caffe.engine.run import Net, Runner
from int8calib.caffe.network.graph import Blob, Graph, Layer
from int8calib.evaluation.evaluate import Labelled, LabelledLoader, copied_tops
from int8calib.evaluation.measures import Share, total_energy
from int8calib.evaluation.outputs import Watched, watched_blobs
from int8calib.evaluation.records import Record, agreement, compare
from int8calib.workers import Batch, Progress, batch_size, single_threaded_blas, work_through


@dataclass(frozen=True)
class Effect:
    """The lowest SQNR of an output with one layer in INT8, and the share of equal best classes."""

    sqnr: float
    agreement: Share | None


def single_layer_effects(
    net: Net,
    twins: Mapping[str, Layer],
    batches: LabelledLoader,
    *,
    images: int,
    scores: str | None,
    workers: int,
    progress: Progress | None,
) -> tuple[dict[str, Effect], int]:
    """The effect of each layer of `twins` over the first `images` images, and how many these were.

    Whole batches are taken, so a batch may bring some more.
    """
    few = list(_first(batches(), images))
    used = sum(batch_size(batch) for batch in few)
    watched = watched_blobs(net, scores)
    effects: dict[str, Effect] = {}
    report = progress or (lambda stage, done, of: None)
    with single_threaded_blas():
        runner = Runner(net.graph, watched.blobs)
        expected = [copied_tops(runner, batch) for batch in few]

        def work(state: None, name: str) -> int:
            graph = _with_one(net.graph, twins[name])
            effects[name] = _effect(graph, watched, few, expected)
            return used

        work_through(
            list(twins),
            lambda: None,
            work,
            workers=workers,
            progress=lambda done: report("sensitivity", done, len(twins) * used),
        )
    return effects, used


def _first(batches: Iterable[Batch | Labelled], images: int) -> Iterator[Batch]:
    taken = 0
    for given in batches:
        batch = given.batch if isinstance(given, Labelled) else given
        yield batch
        taken += batch_size(batch)
        if taken >= images:
            return


def _with_one(graph: Graph, twin: Layer) -> Graph:
    """The float graph with one layer in INT8."""
    layers = tuple(twin if layer.name == twin.name else layer for layer in graph.layers)
    return replace(graph, layers=layers)


def _effect(
    graph: Graph,
    watched: Watched,
    batches: Sequence[Batch],
    expected: Sequence[Mapping[Blob, Array]],
) -> Effect:
    runner = Runner(graph, watched.blobs)
    records: list[Record] = []
    for batch, tops in zip(batches, expected, strict=True):
        pair = (tops, copied_tops(runner, batch))
        records.append(compare(watched, pair, None, batch_size(batch)))
    per_blob = zip(*(record.energies[0] for record in records), strict=True)
    return Effect(min(total_energy(parts).sqnr for parts in per_blob), agreement(records, 1))
