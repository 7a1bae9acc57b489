"""Images that nothing was fitted to come in; how near INT8 nets are to the float net goes out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from int8calib.arrays import Array
from int8calib.caffe.engine.run import Net, Runner
from int8calib.caffe.network.graph import Blob
from int8calib.evaluation.evaluate import Labelled, batch_and_labels, copied_tops, run_pass
from int8calib.evaluation.outputs import ComparedBlobs, compared_blobs
from int8calib.evaluation.records import Record, compare, sum_up
from int8calib.evaluation.results import Evaluation, TableResult
from int8calib.workers import Batch, Progress, batch_size


class Judge:
    """Compares INT8 nets with one float net over the same images; that net runs only once."""

    def __init__(
        self,
        net: Net,
        given: Sequence[Batch | Labelled],
        *,
        scores: str | None,
        outputs: Sequence[str] | None = None,
        workers: int,
    ) -> None:
        """`given` are the images, with their labels or without."""
        labelled = any(isinstance(each, Labelled) for each in given)
        self.watched = _before_softmax(net, compared_blobs(net, scores, outputs, labelled=labelled))
        self._net = net
        self._given = given
        self._workers = workers
        self._expected: dict[int, dict[Blob, Array]] = {}
        self.images = sum(batch_size(batch_and_labels(each)[0]) for each in given)

    def __call__(self, nets: Mapping[str, Net], progress: Progress | None = None) -> Evaluation:
        """Each of `nets`, by name, beside the float net."""
        records: dict[int, Record] = {}

        def work(runners: list[Runner], item: tuple[int, Batch | Labelled]) -> int:
            index, given = item
            batch, labels = batch_and_labels(given)
            if index not in self._expected:
                self._expected[index] = self._tops(runners[0], batch)
            tops = [self._expected[index], *(self._tops(r, batch) for r in runners[1:])]
            records[index] = compare(self.watched, tops, labels, batch_size(batch))
            return batch_size(batch)

        run_pass(
            self._given,
            lambda: [Runner(n.graph, self.watched.blobs) for n in (self._net, *nets.values())],
            work,
            stage="validation",
            workers=self._workers,
            total=self.images,
            progress=progress,
        )
        return sum_up([records[i] for i in sorted(records)], list(nets), self.watched, (1, 5))

    def _tops(self, runner: Runner, batch: Batch) -> dict[Blob, Array]:
        """The blobs to compare; class scores without what they have in common."""
        tops = copied_tops(runner, batch)
        if self.watched.scores in self.watched.tensors:
            scores = tops[self.watched.scores]
            scores -= scores.mean(axis=1, keepdims=True)
        return tops


def _before_softmax(net: Net, watched: ComparedBlobs) -> ComparedBlobs:
    """`watched` with the scores that a Softmax takes in place of its probabilities.

    Those show errors that probabilities near 0 and 1 hide.
    """
    found = watched.scores
    if found is None or net.graph.producer(found).type != "Softmax":
        return watched
    before = net.graph.producer(found).bottoms[0]
    tensors = tuple(before if blob == found else blob for blob in watched.tensors)
    return replace(watched, scores=before, tensors=tensors)


def nearness(result: TableResult) -> float:
    """The lowest SQNR of what is compared, in dB: finer than counts of equal classes."""
    return min((blob.sqnr for blob in result.blobs), default=-math.inf)


def drop(evaluation: Evaluation, result: TableResult) -> float | None:
    """Points of top-1 that INT8 loses against float; None without labels."""
    if evaluation.float_accuracy is None or result.accuracy is None:
        return None
    before, after = (a.topk[1].value for a in (evaluation.float_accuracy, result.accuracy))
    return 100 * (before - after)
