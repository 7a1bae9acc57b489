"""Search the table, and if wanted the weights, that lose least in INT8: `tune`.

Some images tune layer by layer, the others, which nothing is fitted to, decide between results.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from int8calib.analysis.sensitivity import output_sensitivity
from int8calib.caffe.engine.executor import CaffeExecutor
from int8calib.caffe.engine.run import Net
from int8calib.caffe.network.fold import fold_batch_norm
from int8calib.caffe.network.shapes import infer_shapes
from int8calib.calibration.options import Options
from int8calib.calibration.pipeline import Job, make_table, prepare, run_job
from int8calib.calibration.statistics.store import Statistics
from int8calib.evaluation.evaluate import LabeledLoader
from int8calib.evaluation.outputs import compared_blobs
from int8calib.evaluation.results import Evaluation
from int8calib.ncnn.convert.offsets import OffsetGroup
from int8calib.rounding.unsigned import network_groups, unsigned_table
from int8calib.rounding.weights import Changes
from int8calib.simulation.build import int8_layers, simulate
from int8calib.table.model import CalibrationTable
from int8calib.tuning.candidates import (
    Candidate,
    PreparedNetwork,
    explain_choices,
    prepare_network,
)
from int8calib.tuning.layer_solver import LayerSolution, SolverOptions, solve_layers
from int8calib.tuning.results import TuneOptions, Tuning, checked_tuning
from int8calib.tuning.validation import (
    Validator,
    check_targets,
    closeness,
    first_batches,
    meets_targets,
    split_batches,
)
from int8calib.workers import Batch, Progress, batch_size, single_threaded_blas, start_pass

PLAIN = ("mse", "kl", "aciq")
"""Methods whose plain tables are tried too; the first is what tuning starts from."""
TUNED = "tuned"
SCALES = "weights tuned"
"""Tuned weight scales with plain thresholds: a second try where the model may not change."""
RANKING_IMAGES = 12


class OutOfTimeError(Exception):
    """The time is over; never leaves this module."""


def tune(
    net: Net,
    batches: LabeledLoader,
    options: Options | None = None,
    tuning: TuneOptions | None = None,
    *,
    progress: Progress | None = None,
    meta: Mapping[str, Any] = MappingProxyType({}),
) -> Tuning:
    """Search the table (and with `change_model` the weights) that loses least in INT8.

    Ctrl-C and the time limit end the search early, with the best result so far; before there is
    one, Ctrl-C is raised. What `calibrate` and `evaluate` raise comes besides what stands below.

    Parameters
    ----------
    net : Net
        The network.
    batches : callable
        Gives the images as in `evaluate`, with labels or without; the first ones are used.
    options : Options, optional
        What `calibrate` would do: which layers, which weights.
    tuning : TuneOptions, optional
        What the search may do.
    progress : callable, optional
        Called as ``progress(stage, done, total)``.
    meta : mapping
        JSON values for the report.

    Returns
    -------
    Tuning
        The table, the network it is for, and why.

    Raises
    ------
    OptionError
        For a target that cannot be told.
    ImageError
        For fewer than two batches.
    """
    options, tuning = options or Options(), checked_tuning(tuning)
    job = prepare(net, options)
    given = first_batches(start_pass(batches), tuning.images)
    tuned, held_out = split_batches(given, tuning, job.executor.graph, net.input_shapes)
    validator = Validator(
        net,
        held_out,
        scores=tuning.scores,
        outputs=tuning.outputs,
        kind=tuning.kind,
        workers=options.workers,
    )
    check_targets(tuning, held_out, validator.compared)
    within_time = _with_deadline(progress, tuning.seconds)
    images = sum(batch_size(batch) for batch in tuned)
    statistics = run_job(job, lambda: tuned, options, total=images, progress=progress).statistics
    search = _Search(net, job, options, tuning, tuned, validator, within_time, meta, statistics)
    plain = {method: search.plain_table(job, statistics, method) for method in PLAIN}
    best = Candidate(net, plain[PLAIN[0]], PLAIN[0])
    stopped = None
    try:
        for candidate in search.improve(plain):
            best = candidate
    except KeyboardInterrupt:
        stopped = "interrupted"
    except OutOfTimeError:
        stopped = "time"
    table = replace(best.table, meta={**best.table.meta, "tuned": best.name})
    return Tuning(
        table,
        best.net,
        best.changed,
        best.name,
        explain_choices(best),
        best.evaluation,
        images,
        stopped,
        best.target_met,
        (*validator.compared.notes, *_notes(best, stopped)),
        best.rounded,
    )


def _with_deadline(progress: Progress | None, seconds: float | None) -> Progress:
    """`progress` that also ends the search, by `OutOfTimeError`, when the time is over."""
    deadline = None if seconds is None else time.monotonic() + seconds

    def report(stage: str, done: int, total: int) -> None:
        if progress is not None:
            progress(stage, done, total)
        if deadline is not None and time.monotonic() > deadline:
            raise OutOfTimeError

    return report


def _notes(best: Candidate, stopped: str | None) -> list[str]:
    """What there is to say about a result."""
    notes = []
    if best.changed and best.prepared is not None and best.prepared.grown:
        notes.append(
            f"split channels: {100 * best.prepared.work:.1f} % more multiply-adds; the layers "
            f"{', '.join(best.prepared.grown)} have more outputs"
        )
    if stopped is not None:
        notes.append(
            f"stopped ({stopped}): {len(best.solutions)} of {len(best.table.layers)} layers are "
            "tuned, the others have plain thresholds"
        )
    return notes


@dataclass(frozen=True, eq=False)
class _Search:
    """What one search works with; its steps take a candidate and give a better one."""

    net: Net
    job: Job[CaffeExecutor]
    options: Options
    tuning: TuneOptions
    batches: Sequence[Batch]
    validator: Validator
    progress: Progress
    meta: Mapping[str, Any]
    statistics: Statistics

    def plain_table(
        self, job: Job[CaffeExecutor], statistics: Statistics, method: str = PLAIN[0]
    ) -> CalibrationTable:
        """The table of one method, the layers' own methods left aside."""
        chosen = replace(self.options, method=method, layer_methods=())
        return make_table(job, statistics, chosen, self.meta).table

    def start_table(self, job: Job[CaffeExecutor], statistics: Statistics) -> CalibrationTable:
        """The table that solving starts from."""
        return self._with_offsets(self.plain_table(job, statistics), statistics)

    def _with_offsets(self, table: CalibrationTable, statistics: Statistics) -> CalibrationTable:
        if not self.tuning.offsets:
            return table
        return unsigned_table(table, self._offset_groups(table), statistics.histograms)

    def _offset_groups(self, table: CalibrationTable) -> tuple[OffsetGroup, ...]:
        """What the INT8 model can store with an offset."""
        if not self.tuning.offsets:
            return ()
        return network_groups(self.net, table)

    def improve(self, plain: Mapping[str, CalibrationTable]) -> Iterator[Candidate]:
        """Give the best candidate so far, again and again, until nothing is left to try."""
        best = self._best_plain(plain)
        yield best
        prepared = self._prepare(self._with_offsets(plain[PLAIN[0]], self.statistics))
        for name in (TUNED,) if self.tuning.change_model else (TUNED, SCALES):
            tuned = best
            for tuned in self._solve(prepared, best, name):
                # A second try counts only as a whole: what is known to be good goes before half.
                if name == TUNED:
                    yield tuned
            best = self._better(best, tuned)
            yield best
        if best.name in plain and self.tuning.change_model:
            # A model is to be written: it is the given one with BatchNorm folded.
            best = replace(best, net=Net(self.job.executor.graph, self.net.input_shapes))
            yield best
        yield from self._reach_target(best)

    def _best_plain(self, plain: Mapping[str, CalibrationTable]) -> Candidate:
        """The best of the plain tables."""
        nets = {name: self._int8(self.net, table) for name, table in plain.items()}
        evaluation = self.validator(nets, self.progress)
        name = max(evaluation.tables, key=closeness).name
        return Candidate(self.net, plain[name], name, evaluation=evaluation)

    def _better(self, best: Candidate, tuned: Candidate) -> Candidate:
        """The one of two that is nearer to the float network, with the results of both."""
        new = self.validator({tuned.name: self._int8(tuned.net, tuned.table)}, self.progress)
        known = () if best.evaluation is None else best.evaluation.tables
        (before,) = (closeness(result) for result in known if result.name == best.name)
        better = tuned if closeness(new.tables[0]) >= before else best
        return replace(better, evaluation=replace(new, tables=(*known, *new.tables)))

    def _int8(self, net: Net, table: CalibrationTable) -> Net:
        return simulate(net, table, fold_bn=self.options.fold_bn)

    def _prepare(self, start: CalibrationTable) -> PreparedNetwork:
        """The network whose layers are solved, with the table of `start` or a new one."""
        net = self.net
        if self.tuning.change_model:
            net = Net(self.job.executor.graph, net.input_shapes)
        return prepare_network(
            PreparedNetwork(net, self.job, start),
            self.batches,
            self.validator.compared,
            self.options,
            self.tuning,
            make_table=self.start_table,
            progress=self.progress,
        )

    def _solve(self, prepared: PreparedNetwork, best: Candidate, name: str) -> Iterator[Candidate]:
        """Solve layer by layer: each candidate has one more solved layer than that before."""
        changed = self.tuning.change_model
        graph = prepared.job.executor.graph
        grids = {layer.name: self.options.weights.grid(layer) for layer in prepared.job.candidates}
        techniques = self.tuning.techniques if changed else ()
        start = {rows.name: rows for rows in prepared.start.layers}
        solver = SolverOptions(
            Changes(
                rounding="rounding" in techniques,
                refit="refit" in techniques,
                bias="bias" in techniques,
            ),
            thresholds=name == TUNED,
            reference=prepared.reference,
            workers=self.options.workers,
            shared={
                name: group.readers[0]
                for group in self._offset_groups(prepared.start)
                for name in group.readers
            },
        )
        solutions: dict[str, LayerSolution] = {}
        shapes = infer_shapes(graph, self.net.input_shapes)
        with single_threaded_blas():
            for solution in solve_layers(graph, shapes, self.batches, start, grids, solver):
                solutions = {**solutions, solution.layer.name: solution}
                net, table = prepared.with_solutions(solutions, changed=changed)
                yield Candidate(net, table, name, changed, best.evaluation, prepared, solutions)
                self.progress("layers", len(solutions), len(start))

    def _reach_target(self, best: Candidate) -> Iterator[Candidate]:
        """Leave layers in float until the targets hold, those that cost the outputs most first."""
        tuning, evaluation = self.tuning, best.evaluation
        if evaluation is None or (tuning.max_drop is None and tuning.min_agreement is None):
            return
        (now,) = (result for result in evaluation.tables if result.name == best.name)
        best = replace(best, target_met=meets_targets(evaluation, now, tuning))
        yield best
        if not best.target_met:
            yield leave_float(
                best,
                self._ranked(best),
                tuning,
                lambda tried: self.validator(
                    {tried.name: self._int8(tried.net, tried.table)}, self.progress
                ),
            )

    def _ranked(self, candidate: Candidate) -> list[str]:
        """The layers in INT8, the one that costs the outputs most first."""
        fold = self.options.fold_bn
        graph = fold_batch_norm(candidate.net.graph) if fold else candidate.net.graph
        base = Net(graph, candidate.net.input_shapes)
        effects, _ = output_sensitivity(
            base,
            int8_layers(graph, candidate.table, optimized=fold),
            lambda: self.batches,
            compared_blobs(base, self.tuning.scores, self.tuning.outputs),
            images=RANKING_IMAGES,
            workers=self.options.workers,
            progress=self.progress,
        )
        return sorted(effects, key=lambda name: effects[name].sqnr)


def leave_float(
    best: Candidate,
    ranked: Sequence[str],
    options: TuneOptions,
    validate: Callable[[Candidate], Evaluation],
) -> Candidate:
    """Leave one after the other of the layers `ranked` in float until the targets hold.

    Where they never do, as many are left as `max_float_layers` allows; one layer stays INT8.
    """
    allowed = len(best.table.layers) - 1
    if options.max_float_layers is not None:
        allowed = min(allowed, options.max_float_layers)
    tried = best
    for count in range(1, allowed + 1):
        known = () if tried.evaluation is None else tried.evaluation.tables
        tried = best.without(ranked[:count], f"{best.name}, {count} in float")
        new = validate(tried)
        met = meets_targets(new, new.tables[0], options)
        evaluation = replace(new, tables=(*known, *new.tables))
        tried = replace(tried, evaluation=evaluation, target_met=met)
        if met:
            break
    return tried
