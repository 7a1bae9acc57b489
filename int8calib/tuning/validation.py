"""Compare INT8 networks with the float one over images that nothing was fitted to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from int8calib.arrays import Array, Shape
from int8calib.caffe.engine.run import Net, Runner
from int8calib.caffe.network.graph import Blob, Graph
from int8calib.errors import ImageError, OptionError
from int8calib.evaluation.evaluate import Labeled, batch_and_labels, copied_tops, run_pass
from int8calib.evaluation.outputs import ComparedBlobs, compared_blobs
from int8calib.evaluation.records import Record, compare, has_boxes, sum_up
from int8calib.evaluation.results import Evaluation, TableResult
from int8calib.tuning.execution import bytes_per_image
from int8calib.tuning.results import TuneOptions
from int8calib.workers import Batch, Progress, batch_size


def first_batches(batches: Iterable[Batch | Labeled], images: int) -> list[Batch | Labeled]:
    """Return the first batches, with about so many images.

    Raises
    ------
    ImageError
        For fewer than two batches.
    """
    result: list[Batch | Labeled] = []
    count = 0
    for each in batches:
        result.append(each)
        count += batch_size(batch_and_labels(each)[0])
        if count >= images:
            break
    if len(result) < 2:
        raise ImageError(
            f"{len(result)} batches of images: tuning needs two at least, one to tune and one to "
            "validate; give more images, or smaller batches"
        )
    return result


def split_batches(
    batches: Sequence[Batch | Labeled],
    options: TuneOptions,
    graph: Graph,
    inputs: Mapping[str, Shape],
) -> tuple[list[Batch], list[Batch | Labeled]]:
    """Split batches into those to tune on and those to validate with.

    The latter are spread evenly; of the former there are as many as the memory holds.
    """
    tuned: list[Batch] = []
    held_out: list[Batch | Labeled] = []
    for i, each in enumerate(batches):
        if int((i + 1) * options.validation) > int(i * options.validation):
            held_out.append(each)
        else:
            tuned.append(batch_and_labels(each)[0])
    if not held_out:
        held_out = [tuned.pop()]
    elif not tuned:
        tuned = [batch_and_labels(held_out.pop())[0]]
    size = bytes_per_image(graph, inputs) * batch_size(tuned[0])
    return tuned[: max(1, options.memory // max(size, 1))], held_out


class Validator:
    """Compares INT8 networks with one float network over the same images.

    The float network runs only once, whatever is compared with it later.

    Attributes
    ----------
    compared
        The blobs that are compared.
    images
        How many images there are.
    """

    def __init__(
        self,
        net: Net,
        batches: Sequence[Batch | Labeled],
        *,
        scores: str | None,
        outputs: Sequence[str] | None = None,
        kind: str | None = None,
        workers: int,
    ) -> None:
        """Take the images, with labels or without; `scores`, `outputs`, `kind` as in `evaluate`."""
        labeled = any(isinstance(x, Labeled) and not has_boxes(x.labels) for x in batches)
        compared = compared_blobs(net, scores, outputs, kind=kind, labeled=labeled)
        self.compared = _before_softmax(net, compared)
        self._net = net
        self._batches = batches
        self._workers = workers
        self._expected: dict[int, dict[Blob, Array]] = {}
        self.images = sum(batch_size(batch_and_labels(each)[0]) for each in batches)

    def __call__(self, nets: Mapping[str, Net], progress: Progress | None = None) -> Evaluation:
        """Compare each of `nets`, by name, with the float network."""
        records: dict[int, Record] = {}

        def work(runners: list[Runner], item: tuple[int, Batch | Labeled]) -> int:
            index, (batch, labels) = item[0], batch_and_labels(item[1])
            if index not in self._expected:
                self._expected[index] = self._tops(runners[0], batch)
            tops = [self._expected[index], *(self._tops(r, batch) for r in runners[1:])]
            records[index] = compare(self.compared, tops, labels, batch_size(batch))
            return batch_size(batch)

        run_pass(
            self._batches,
            lambda: [Runner(n.graph, self.compared.blobs) for n in (self._net, *nets.values())],
            work,
            stage="validation",
            workers=self._workers,
            total=self.images,
            progress=progress,
        )
        return sum_up([records[i] for i in sorted(records)], list(nets), self.compared, (1, 5))

    def _tops(self, runner: Runner, batch: Batch) -> dict[Blob, Array]:
        """The blobs to compare; class scores without what they have in common."""
        tops = copied_tops(runner, batch)
        if self.compared.scores in self.compared.tensors:
            scores = tops[self.compared.scores]
            scores -= scores.mean(axis=1, keepdims=True)
        return tops


def _before_softmax(net: Net, compared: ComparedBlobs) -> ComparedBlobs:
    """`compared` with the scores that a Softmax takes in place of its probabilities.

    Those show errors that probabilities near 0 and 1 hide.
    """
    scores = compared.scores
    if scores is None or net.graph.producer(scores).type != "Softmax":
        return compared
    before = net.graph.producer(scores).bottoms[0]
    tensors = tuple(before if blob == scores else blob for blob in compared.tensors)
    return replace(compared, scores=before, tensors=tensors)


def closeness(result: TableResult) -> tuple[float, float]:
    """What decides between results, the larger the nearer to the float network.

    Of detectors first the float network's boxes: the mean of their average precision and recall,
    in steps of one box, since finer differences are chance. Then, and of all other networks at
    once, the lowest SQNR of what is compared, in dB: finer than counts of equal classes.
    """
    lowest = min((blob.sqnr for blob in result.blobs), default=-math.inf)
    found = result.against_float
    if found is None or not found.recall.total:
        return 0.0, lowest
    share = (found.mean_precision + found.recall.value) / 2
    return float(round(share * found.recall.total)), lowest


def check_targets(
    options: TuneOptions, held_out: Sequence[Batch | Labeled], compared: ComparedBlobs
) -> None:
    """Raise `OptionError` for a target that needs labels where there are none."""
    if options.max_drop is None or compared.detections:
        return
    if not all(isinstance(each, Labeled) for each in held_out):
        raise OptionError("a largest drop of top-1 needs labels; give them, or a least agreement")


def meets_targets(evaluation: Evaluation, result: TableResult, options: TuneOptions) -> bool:
    """Whether one result holds all targets of `options`; a target that cannot be told fails."""
    if options.min_agreement is not None:
        same = result.agreement if result.boxes is None else result.boxes
        if same is None or not same.value >= options.min_agreement:
            return False
    if options.max_drop is not None:
        drop = _lost_points(evaluation, result)
        if drop is None or drop > options.max_drop + 1e-9:
            return False
    return True


def _lost_points(evaluation: Evaluation, result: TableResult) -> float | None:
    """Points of top-1, or of mean average precision, that INT8 loses; None without labels.

    Without labels a detector is to find the float network's boxes, which that finds all.
    """
    if result.against_float is not None:
        before = 1.0 if evaluation.float_boxes is None else evaluation.float_boxes.mean_precision
        found = result.against_labels or result.against_float
        lost = 100 * (before - found.mean_precision)
        return None if math.isnan(lost) else lost
    if evaluation.float_accuracy is None or result.accuracy is None:
        return None
    first, then = (a.topk[1].value for a in (evaluation.float_accuracy, result.accuracy))
    return 100 * (first - then)
