"""Comparisons that the workers of a Dask cluster make, each of a chunk of the images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from int8calib.caffe.engine.run import Net, Runner
from int8calib.cluster.chunks import Read, chunks_of, hear, reader_of
from int8calib.cluster.job import ClusterJob
from int8calib.errors import ImageError
from int8calib.evaluation.evaluate import compare_batch
from int8calib.evaluation.outputs import ComparedBlobs
from int8calib.evaluation.records import Record
from int8calib.workers import Progress


@dataclass(frozen=True, eq=False)
class _Work:
    """What each worker gets once."""

    nets: tuple[Net, ...]
    compared: ComparedBlobs
    read: Read
    box_score: float


def compare_on_cluster(
    cluster: Any,
    nets: Sequence[Net],
    compared: ComparedBlobs,
    batches: Any,
    box_score: float,
    *,
    total: int,
    progress: Progress | None,
) -> list[Record]:
    """Measure every batch in each net.

    Parameters
    ----------
    cluster : dask.distributed.Client
    nets
        The float network first.
    compared
        Which blobs, and what they hold.
    batches
        ``batches()`` starts a pass, whose batches are sent; those of a `DivisibleLoader` are read
        by the workers.
    box_score
        The score from which on detections count.
    total, progress
        As for `evaluate`.

    Returns
    -------
    list of Record
        Of each batch, in their order.

    Raises
    ------
    ImageError
        For no batches, and what the workers raise.
    """
    job = ClusterJob(cluster, _Work(tuple(nets), compared, reader_of(batches), box_score))
    records: dict[int, list[Record]] = {}
    done = 0

    def take(number: int, found: list[Record]) -> None:
        nonlocal done
        records[number] = found
        done += sum(record.images for record in found)
        if progress is not None:
            progress("evaluation", done, total)

    lines = job.run(_compare, chunks_of(batches, job.threads), take)
    hear(batches, lines)
    if not done:
        raise ImageError(
            f"not one of the {len(lines)} images could be used; the first: {lines[0]}"
            if lines
            else "there are no images to evaluate with"
        )
    return [record for number in sorted(records) for record in records[number]]


def _compare(work: _Work, chunk: Any) -> tuple[list[Record], list[str]]:
    """The records of a chunk; runs on a worker."""
    lines: list[str] = []
    runners = [Runner(net.graph, work.compared.blobs) for net in work.nets]
    batches = work.read(chunk, work.nets[0], lines.append)
    return [compare_batch(work.compared, runners, b, work.box_score) for b in batches], lines
