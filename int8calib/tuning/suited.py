"""A net to tune comes in; one that computes the same with channels better suited to INT8 goes out.

Channels are made even, then the weightiest are copied. What was collected from the old net is
collected anew, since thresholds start from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from int8calib.caffe.engine.executor import CaffeExecutor
from int8calib.caffe.engine.run import Net
from int8calib.caffe.network.shapes import infer_shapes
from int8calib.calibration.options import Options
from int8calib.calibration.pipeline import Job, prepare, run_job
from int8calib.calibration.statistics.store import Statistics
from int8calib.evaluation.outputs import ComparedBlobs
from int8calib.table.model import CalibrationTable
from int8calib.tuning.center import center_scores
from int8calib.tuning.equalize import equalize
from int8calib.tuning.results import TuneOptions
from int8calib.tuning.splitting import split_channels
from int8calib.tuning.tail import Aim, aim_of
from int8calib.workers import Batch, Progress, batch_size, single_threaded_blas

TableOf = Callable[[Job[CaffeExecutor], Statistics], CalibrationTable]


@dataclass(frozen=True, eq=False)
class Suited:
    """A net, its job, the table that tuning starts from, and the outputs it aims at.

    left
        what share of its error equalizing leaves for each family of layers.
    grown
        num_output before and after of the layers whose channels were copied.
    work
        the multiply-adds that copies add, as a share.
    """

    net: Net
    job: Job[CaffeExecutor]
    start: CalibrationTable
    aim: Aim | None
    left: Mapping[tuple[str, ...], float] = field(default_factory=dict)
    grown: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    work: float = 0.0


def suit_channels(
    net: Net,
    job: Job[CaffeExecutor],
    start: CalibrationTable,
    fitted: Sequence[Batch],
    watched: ComparedBlobs,
    options: Options,
    tuning: TuneOptions,
    *,
    table_of: TableOf,
    clock: Progress,
) -> Suited:
    """Change the channels of `job`'s graph as far as `tuning` allows it.

    `start` is the table of `job`; `table_of` makes such a table from a job and its statistics.
    """
    techniques = tuning.techniques if tuning.change_model else ()

    def again(suited: Suited) -> Suited:
        """With the job and the table of its new net."""
        job = prepare(suited.net, replace(options, fold_bn=False))
        total = sum(batch_size(batch) for batch in fitted)
        found = run_job(job, lambda: fitted, options, total=total, progress=clock)
        return replace(suited, job=job, start=table_of(job, found.statistics))

    if tuning.change_model:
        net = Net(job.executor.graph, net.input_shapes)
    suited = Suited(net, job, start, None)
    if "equalize" in techniques:
        suited = again(_evened(suited, fitted, options, clock))
    with single_threaded_blas():
        aim = aim_of(suited.job.executor.graph, fitted, watched, options.workers)
    suited = replace(suited, aim=aim)
    if "copies" in techniques and aim is not None:
        copied = _copied(suited, aim, fitted, options, tuning.more_work, clock)
        suited = again(copied) if copied.grown else suited
    return suited


def _evened(suited: Suited, fitted: Sequence[Batch], options: Options, clock: Progress) -> Suited:
    """With even channels, and class scores that have no common part."""
    graph, inputs = suited.job.executor.graph, suited.net.input_shapes
    grids = {layer.name: options.weights.grid(layer) for layer in suited.job.candidates}
    with single_threaded_blas():
        evened = equalize(
            center_scores(graph),
            infer_shapes(graph, inputs),
            fitted,
            {rows.name: grids[rows.name] for rows in suited.start.layers},
            workers=options.workers,
            progress=clock,
        )
    return replace(suited, net=Net(evened.graph, inputs), left=dict(evened.left))


def _copied(
    suited: Suited,
    aim: Aim,
    fitted: Sequence[Batch],
    options: Options,
    more_work: float,
    clock: Progress,
) -> Suited:
    """With copies of the channels that are worth it; `grown` is empty where none are."""
    inputs = suited.net.input_shapes
    with single_threaded_blas():
        split = split_channels(
            suited.job.executor.graph,
            inputs,
            fitted,
            suited.start,
            aim,
            more_work,
            workers=options.workers,
            progress=clock,
        )
    return replace(suited, net=Net(split.graph, inputs), grown=split.grown, work=split.work)
