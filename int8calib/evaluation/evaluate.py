"""A network, tables and images (with labels or without) to an `Evaluation`: float beside INT8.

The float net runs once per image, whatever the number of tables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

from int8calib.arrays import Array
from int8calib.caffe.engine.run import Net, Runner
from int8calib.caffe.network.graph import Blob
from int8calib.errors import ImageError, OptionError
from int8calib.evaluation.boxes import SCORE
from int8calib.evaluation.outputs import watched_blobs
from int8calib.evaluation.records import Record, compare, sum_up
from int8calib.evaluation.results import Evaluation
from int8calib.simulation.build import simulate
from int8calib.table.model import CalibrationTable
from int8calib.workers import Batch, Progress, batch_size, single_threaded_blas, work_through


class Labelled(NamedTuple):
    """A batch and the class index of each of its images."""

    batch: Batch
    labels: Sequence[int]


LabelledLoader: TypeAlias = Callable[[], Iterable[Batch | Labelled]]


def evaluate(
    net: Net,
    tables: CalibrationTable | Mapping[str, CalibrationTable],
    batches: LabelledLoader,
    *,
    topk: Sequence[int] = (1, 5),
    scores: str | None = None,
    box_score: float = SCORE,
    fold_bn: bool | None = None,
    workers: int = 2,
    total: int = 0,
    progress: Progress | None = None,
) -> Evaluation:
    """Compare `net` in float with itself in INT8 for each of `tables` (by name, or one alone).

    `batches()` gives `{input blob: float32 (N, ...)}`, or such a batch with its labels as
    `Labelled`. `scores` names the blob of class scores, by default the only output if that is a
    vector; `box_score` is the score from which detections count; `fold_bn` is as in `simulate`.
    Raises `OptionError` where it is unclear what labels mean, `ImageError` for no batches or wrong
    labels, and what `simulate` raises.
    """
    if not topk or min(topk) < 1:
        raise OptionError(f"top-k {tuple(topk)}: expected whole numbers of at least 1")
    named = {"table": tables} if isinstance(tables, CalibrationTable) else dict(tables)
    nets = [net, *(simulate(net, table, fold_bn=fold_bn) for table in named.values())]
    watched = watched_blobs(net, scores)
    records: dict[int, Record] = {}

    def work(runners: list[Runner], item: tuple[int, Batch | Labelled]) -> int:
        index, given = item
        batch, labels = given if isinstance(given, Labelled) else (given, None)
        if labels is not None and watched.scores is None:
            watched_blobs(net, scores, labelled=True)
        tops = [copied_tops(runner, batch) for runner in runners]
        records[index] = compare(watched, tops, labels, batch_size(batch), box_score)
        return batch_size(batch)

    run_pass(
        batches(),
        lambda: [Runner(each.graph, watched.blobs) for each in nets],
        work,
        stage="evaluation",
        workers=workers,
        total=total,
        progress=progress,
    )
    ordered = [records[i] for i in sorted(records)]
    return sum_up(ordered, list(named), watched, topk)


def copied_tops(runner: Runner, batch: Batch) -> dict[Blob, Array]:
    """The wanted tops of one batch, as copies."""
    tops: dict[Blob, Array] = {}
    runner.run(batch, lambda blob, top: tops.__setitem__(blob, top.copy()))
    return tops


def run_pass(
    batches: Iterable[Batch | Labelled],
    prepare: Callable[[], list[Runner]],
    work: Callable[[list[Runner], tuple[int, Batch | Labelled]], int],
    *,
    stage: str,
    workers: int,
    total: int,
    progress: Progress | None,
) -> None:
    """`work(runners, (index, batch))` for every batch; raises `ImageError` where there are none."""
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
