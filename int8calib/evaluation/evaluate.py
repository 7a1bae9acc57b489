"""Compare a network in float with itself in INT8, over images with labels or without."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

from int8calib.arrays import Array
from int8calib.caffe.engine.run import Net, Runner
from int8calib.caffe.network.fingerprint import network_fingerprint
from int8calib.caffe.network.graph import Blob
from int8calib.errors import ImageError, ModelError, OptionError
from int8calib.evaluation.measures import MIN_SCORE
from int8calib.evaluation.outputs import ComparedBlobs, Comparison, compared_blobs
from int8calib.evaluation.records import Labels, Record, compare, sum_up
from int8calib.evaluation.results import Evaluation
from int8calib.ncnn.execution.network import NcnnNet
from int8calib.simulation.build import simulate
from int8calib.table.model import CalibrationTable, named_tables
from int8calib.workers import (
    Batch,
    Progress,
    batch_size,
    single_threaded_blas,
    start_pass,
    work_through,
)


class Labeled(NamedTuple):
    """A batch and what is known of each of its images.

    Attributes
    ----------
    batch : mapping of str to array (N, ...)
        By input.
    labels : sequence of int, or of sequences of Truth
        N class indices; for a detector the labeled boxes of each of the N images.
    """

    batch: Batch
    labels: Labels


LabeledLoader: TypeAlias = Callable[[], Iterable[Batch | Labeled]]
"""Starts a pass over the images, as a `Loader` does; its batches may come with labels."""


def evaluate(
    net: Net | NcnnNet,
    tables: CalibrationTable | Mapping[str, CalibrationTable],
    batches: LabeledLoader,
    *,
    topk: Sequence[int] = (1, 5),
    scores: str | None = None,
    outputs: Sequence[str] | None = None,
    kind: str | None = None,
    box_score: float = MIN_SCORE,
    peak: float | None = None,
    fold_bn: bool | None = None,
    workers: int | None = None,
    total: int = 0,
    progress: Progress | None = None,
    cluster: Any = None,
) -> Evaluation:
    """Compare a network in float with itself in INT8, table by table.

    The float network runs once per image, whatever the number of tables.

    Parameters
    ----------
    net : Net or NcnnNet
        The float network: one that runs in numpy, with INT8 simulated, or an ncnn model, with INT8
        in ncnn's own runtime.
    tables : CalibrationTable or mapping of str to CalibrationTable
        One calibration table, or several by name.
    batches : callable
        Called to start a pass; gives `{input blob: float32 (N, ...)}`, or such a batch with its
        labels as `Labeled`.
    topk : sequence of int
        The accuracies to count, from labels.
    scores : str, optional
        The blob of class scores; by default the only output, if that is a vector.
    outputs : sequence of str, optional
        The blobs to compare; by default the network's outputs, and in place of those that cannot
        run the last blobs before them.
    kind : str, optional
        What the network is for: `classifier`, `detector`, `regressor` or `image-to-image`; by
        default what its outputs tell.
    box_score : float
        The score from which on detections count.
    peak : float, optional
        The span of an image's values for PSNR, such as 1 or 255; by default the span of the float
        network's output.
    fold_bn : bool, optional
        As in `simulate`; an ncnn model runs as it is.
    workers : int, optional
        Batches in parallel, by default as many as there are cores; the result does not depend on
        it.
    total : int
        The number of images, where it is known, for `progress`.
    progress : callable, optional
        Called as `progress(stage, images done, total)`.
    cluster : dask.distributed.Client, optional
        Where the images run instead of on this machine (extra dask); the result is the same.

    Returns
    -------
    Evaluation
        The float network's figures, those of each table, and which blobs were compared.

    Raises
    ------
    OptionError
        Where it is unclear what labels mean, or a value means nothing.
    ImageError
        For no batches, or labels that are not one class index, or list of boxes, per image.
    ModelError
        For the name of a blob that cannot be compared; and what `simulate` raises.
    """
    how = Comparison(topk, scores, outputs, kind, box_score, peak)
    if isinstance(net, NcnnNet):
        if cluster is not None:
            raise OptionError(
                f"{net.source}: runs in ncnn's runtime, which a cluster does not compare; take a "
                "network that runs in numpy, or no cluster"
            )
        from int8calib.evaluation.ncnn_model import evaluate_ncnn

        return evaluate_ncnn(
            net, tables, batches, how, threads=net.threads, total=total, progress=progress
        ).evaluation
    named = named_tables(tables)
    nets = [net, *(simulate(net, table, fold_bn=fold_bn) for table in named.values())]
    compared = compared_blobs(net, scores, outputs, kind=kind)
    for each in nets:
        check_present(each, compared)
    if cluster is not None:
        from int8calib.evaluation.cluster import compare_on_cluster

        ordered = compare_on_cluster(
            cluster, nets, compared, batches, box_score, total=total, progress=progress
        )
    else:
        ordered = _compare_here(nets, compared, batches, box_score, workers, total, progress)
    summed = sum_up(
        ordered, list(named), compared, how.topk, box_score=how.box_score, peak=how.peak
    )
    return replace(summed, network=network_fingerprint(net.graph))


def _compare_here(
    nets: Sequence[Net],
    compared: ComparedBlobs,
    batches: LabeledLoader,
    box_score: float,
    workers: int | None,
    total: int,
    progress: Progress | None,
) -> list[Record]:
    """The record of each batch, in their order."""
    records: dict[int, Record] = {}

    def work(runners: list[Runner], item: tuple[int, Batch | Labeled]) -> int:
        records[item[0]] = record = compare_batch(compared, runners, item[1], box_score)
        return record.images

    run_pass(
        start_pass(batches),
        lambda: [Runner(each.graph, compared.blobs) for each in nets],
        work,
        stage="evaluation",
        workers=workers,
        total=total,
        progress=progress,
    )
    return [records[i] for i in sorted(records)]


def compare_batch(
    compared: ComparedBlobs, runners: Sequence[Runner], given: Batch | Labeled, box_score: float
) -> Record:
    """Run one batch through the nets, the float one first, and measure it."""
    batch, labels = batch_and_labels(given)
    tops = [copied_tops(runner, batch) for runner in runners]
    return compare(compared, tops, labels, batch_size(batch), box_score)


def check_present(net: Net, compared: ComparedBlobs) -> None:
    """Raise `ModelError` where folding BatchNorm takes a blob away that is to be compared."""
    made = {top for layer in net.graph.layers for top in layer.tops}
    for blob in compared.blobs:
        if blob not in made:
            raise ModelError(
                f"{net.graph.source}: the blob {blob.name!r} is gone once BatchNorm is folded; "
                "name the top of its BatchNorm or Scale, or do not fold (--no-fold-bn)"
            )


def batch_and_labels(given: Batch | Labeled) -> tuple[Batch, Labels | None]:
    """A batch, and its labels or None."""
    return given if isinstance(given, Labeled) else (given, None)


def copied_tops(runner: Runner, batch: Batch) -> dict[Blob, Array]:
    """Run one batch and copy the runner's wanted tops."""
    tops: dict[Blob, Array] = {}
    runner.run(batch, lambda blob, top: tops.__setitem__(blob, top.copy()))
    return tops


def run_pass(
    batches: Iterable[Batch | Labeled],
    prepare: Callable[[], list[Runner]],
    work: Callable[[list[Runner], tuple[int, Batch | Labeled]], int],
    *,
    stage: str,
    workers: int | None,
    total: int,
    progress: Progress | None,
) -> None:
    """Call `work(runners, (index, batch))` for every batch, in parallel.

    Parameters
    ----------
    batches
        The batches of one pass.
    prepare
        Makes the runners of one worker.
    work
        Deals with one batch; returns its number of images.
    stage, total, progress
        What `progress(stage, images done, total)` is called with, if it is given.
    workers
        The number of threads; None for the cores that the process may use.

    Raises
    ------
    ImageError
        For no batches.
    """
    report = progress or (lambda stage, done, of: None)
    with single_threaded_blas():
        count = work_through(
            enumerate(batches),
            prepare,
            work,
            workers=workers,
            progress=lambda done: report(stage, done, total),
        )
    if not count:
        raise ImageError("there are no images to evaluate with")
