"""What each INT8 layer alone does to the outputs of a network.

The network runs once per layer and image, so this takes a few images, not all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from int8calib.arrays import Array
from int8calib.caffe.engine.run import Net, Runner
from int8calib.caffe.network.graph import Blob, Graph, Layer
from int8calib.evaluation.evaluate import (
    Labeled,
    LabeledLoader,
    batch_and_labels,
    copied_tops,
)
from int8calib.evaluation.measures import Share, total_energy
from int8calib.evaluation.outputs import ComparedBlobs
from int8calib.evaluation.records import Record, agreement, compare
from int8calib.workers import (
    Batch,
    Progress,
    batch_size,
    single_threaded_blas,
    start_pass,
    work_through,
)


@dataclass(frozen=True)
class OutputEffect:
    """The lowest SQNR of an output with one layer in INT8, and the share of equal best classes."""

    sqnr: float
    agreement: Share | None


def output_sensitivity(
    net: Net,
    int8: Mapping[str, Layer],
    batches: LabeledLoader,
    compared: ComparedBlobs,
    *,
    images: int,
    workers: int | None,
    progress: Progress | None,
) -> tuple[dict[str, OutputEffect], int]:
    """Run the network with one layer in INT8 at a time.

    Parameters
    ----------
    net
        The float network, with BatchNorm folded where its INT8 layers are.
    int8
        The INT8 layers to try, by name (`int8_layers`).
    batches
        Called to start a pass, as in `evaluate`; labels do not count.
    compared
        In which blobs the networks are compared.
    images
        How many of the first images are used; whole batches are taken, which may bring some more.
    workers
        Layers in parallel; None for the cores that the process may use.
    progress
        Called as `progress("sensitivity", runs done, runs to do)`.

    Returns
    -------
    dict of OutputEffect, int
        The effect of each layer, by name, and the number of images used.
    """
    few = list(_first(start_pass(batches), images))
    used = sum(batch_size(batch) for batch in few)
    effects: dict[str, OutputEffect] = {}
    report = progress or (lambda stage, done, of: None)
    with single_threaded_blas():
        runner = Runner(net.graph, compared.blobs)
        expected = [copied_tops(runner, batch) for batch in few]

        def work(state: None, name: str) -> int:
            graph = _with_one(net.graph, int8[name])
            effects[name] = _effect(graph, compared, few, expected)
            return used

        work_through(
            list(int8),
            lambda: None,
            work,
            workers=workers,
            progress=lambda done: report("sensitivity", done, len(int8) * used),
        )
    return effects, used


def _first(batches: Iterable[Batch | Labeled], images: int) -> Iterator[Batch]:
    taken = 0
    for given in batches:
        batch, _ = batch_and_labels(given)
        yield batch
        taken += batch_size(batch)
        if taken >= images:
            return


def _with_one(graph: Graph, int8: Layer) -> Graph:
    """The float graph with one layer in INT8."""
    layers = tuple(int8 if layer.name == int8.name else layer for layer in graph.layers)
    return replace(graph, layers=layers)


def _effect(
    graph: Graph,
    compared: ComparedBlobs,
    batches: Sequence[Batch],
    expected: Sequence[Mapping[Blob, Array]],
) -> OutputEffect:
    runner = Runner(graph, compared.blobs)
    records: list[Record] = []
    for batch, tops in zip(batches, expected, strict=True):
        pair = (tops, copied_tops(runner, batch))
        records.append(compare(compared, pair, None, batch_size(batch)))
    per_blob = zip(*(record.energies[0] for record in records), strict=True)
    return OutputEffect(min(total_energy(parts).sqnr for parts in per_blob), agreement(records, 1))
