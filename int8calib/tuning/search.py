"""A network and images come in; the best table that was found, and why, goes out: `tune`.

Some images decide layer by layer, the others, which nothing is fitted to, decide between results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
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
from int8calib.evaluation.evaluate import LabelledLoader
from int8calib.evaluation.outputs import compared_blobs
from int8calib.evaluation.results import Evaluation
from int8calib.simulation.build import int8_layers, simulate
from int8calib.table.model import CalibrationTable, LayerScales
from int8calib.tuning.budget import OutOfTimeError, check_targets, clock_of, split, taken
from int8calib.tuning.explain import choices_of
from int8calib.tuning.float_layers import leave_float, meets, without
from int8calib.tuning.judge import Judge, nearness
from int8calib.tuning.results import TuneOptions, Tuning
from int8calib.tuning.sequence import SettledLayer, settle_layers
from int8calib.tuning.suited import Suited, suit_channels
from int8calib.tuning.weights import Changes
from int8calib.workers import Batch, Progress, batch_size, single_threaded_blas

PLAIN = ("mse", "kl", "aciq")
"""Methods whose plain tables are tried too; the first is what tuning starts from."""
TUNED = "tuned"
SCALES = "weights tuned"
"""Tuned weight scales with plain thresholds: a second try where the model may not change."""
RANKING_IMAGES = 12


@dataclass(eq=False)
class _State:
    """The best so far, which a stopped run returns."""

    net: Net
    table: CalibrationTable
    name: str
    changed: bool = False
    evaluation: Evaluation | None = None
    suited: Suited | None = None
    settled: dict[str, SettledLayer] = field(default_factory=dict)
    floats: tuple[str, ...] = ()
    target_met: bool | None = None

    def take(self, other: _State) -> None:
        """Be as `other` is."""
        vars(self).update(vars(other))


def tune(
    net: Net,
    batches: LabelledLoader,
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
    options, tuning = options or Options(), tuning or TuneOptions()
    job = prepare(net, options)
    fitted, held = split(taken(batches(), tuning.images), tuning, job, net)
    judge = Judge(net, held, scores=tuning.scores, outputs=tuning.outputs, workers=options.workers)
    check_targets(tuning, held)
    clock = clock_of(progress, tuning.seconds)
    images = sum(batch_size(batch) for batch in fitted)
    run = _Run(net, job, options, tuning, fitted, images, judge, clock, meta)
    statistics = run_job(job, lambda: fitted, options, total=images, progress=progress).statistics
    plain = {m: _plain_table(job, statistics, options, m, meta) for m in PLAIN}
    state = _State(net, plain[PLAIN[0]], PLAIN[0])
    stopped = None
    try:
        run.search(state, plain)
    except KeyboardInterrupt:
        stopped = "interrupted"
    except OutOfTimeError:
        stopped = "time"
    return run.result(state, stopped)


def _plain_table(
    job: Job[CaffeExecutor],
    statistics: Statistics,
    options: Options,
    method: str,
    meta: Mapping[str, Any],
) -> CalibrationTable:
    """The table of one method, the layers' own methods left aside."""
    chosen = replace(options, method=method, layer_methods=())
    return make_table(job, statistics, chosen, meta).table


@dataclass(frozen=True, eq=False)
class _Run:
    """What one search works with."""

    net: Net
    job: Job[CaffeExecutor]
    options: Options
    tuning: TuneOptions
    fitted: Sequence[Batch]
    images: int
    judge: Judge
    clock: Progress
    meta: Mapping[str, Any]

    def search(self, state: _State, plain: Mapping[str, CalibrationTable]) -> None:
        """Improve `state` step by step."""
        judged = {name: self._int8(self.net, table) for name, table in plain.items()}
        state.evaluation = self.judge(judged, self.clock)
        best = max(state.evaluation.tables, key=nearness)
        state.table, state.name = plain[best.name], best.name
        for name in (TUNED,) if self.tuning.change_model else (TUNED, SCALES):
            before = replace(state)
            state.settled = {}
            try:
                tuned = self._tuned(state, plain[PLAIN[0]], name)
                found = self.judge({name: self._int8(*tuned)}, self.clock)
            except (KeyboardInterrupt, OutOfTimeError):
                if name == SCALES:  # what is known to be good goes before half a second try
                    state.take(before)
                raise
            tables = (*state.evaluation.tables, *found.tables)
            if nearness(found.tables[0]) >= nearness(best):
                best = found.tables[0]
            else:
                state.take(before)
            state.evaluation = replace(found, tables=tables)
        if best.name in plain:
            # Where a model is to be written, it is the given one with BatchNorm folded.
            graph = self.job.executor.graph if self.tuning.change_model else self.net.graph
            state.net = Net(graph, self.net.input_shapes)
            state.table, state.name, state.changed = plain[best.name], best.name, False
            state.settled, state.suited = {}, None
        self._reach_target(state)

    def _int8(self, net: Net, table: CalibrationTable) -> Net:
        return simulate(net, table, fold_bn=self.options.fold_bn)

    def _tuned(
        self, state: _State, start: CalibrationTable, name: str
    ) -> tuple[Net, CalibrationTable]:
        """Tune layer by layer; `state` has what is done at any time."""
        suited = suit_channels(
            self.net,
            self.job,
            start,
            self.fitted,
            self.judge.watched,
            self.options,
            self.tuning,
            table_of=lambda job, found: _plain_table(job, found, self.options, PLAIN[0], self.meta),
            clock=self.clock,
        )
        state.suited = suited
        job = suited.job
        grids = {layer.name: self.options.weights.grid(layer) for layer in job.candidates}
        techniques = self.tuning.techniques if self.tuning.change_model else ()
        changes = Changes(
            rounding="rounding" in techniques,
            refit="refit" in techniques,
            bias="bias" in techniques,
        )
        rows = {layer.name: layer for layer in suited.start.layers}
        with single_threaded_blas():
            for settled in settle_layers(
                job.executor.graph,
                infer_shapes(job.executor.graph, self.net.input_shapes),
                self.fitted,
                rows,
                {name: grids[name] for name in rows},
                changes,
                thresholds=name == TUNED,
                aim=suited.aim,
                workers=self.options.workers,
            ):
                state.settled[settled.layer.name] = settled
                state.net, state.table = self._merged(suited, state.settled)
                state.name, state.changed = name, self.tuning.change_model
                self.clock("layers", len(state.settled), len(rows))
        return state.net, state.table

    def _merged(
        self, suited: Suited, settled: Mapping[str, SettledLayer]
    ) -> tuple[Net, CalibrationTable]:
        """The net and the table with what is settled, and the start for all other layers."""
        rows: list[LayerScales] = [
            settled[layer.name].rows if layer.name in settled else layer
            for layer in suited.start.layers
        ]
        table = replace(suited.start, layers=tuple(rows))
        if not self.tuning.change_model:
            return self.net, table
        layers = tuple(
            settled[layer.name].layer if layer.name in settled else layer
            for layer in suited.job.executor.graph.layers
        )
        return Net(
            replace(suited.job.executor.graph, layers=layers), suited.net.input_shapes
        ), table

    def _reach_target(self, state: _State) -> None:
        """Leave layers in float until the targets hold, if there are any."""
        tuning, evaluation = self.tuning, state.evaluation
        if evaluation is None or (tuning.max_drop is None and tuning.min_agreement is None):
            return
        (now,) = (table for table in evaluation.tables if table.name == state.name)
        state.target_met = meets(evaluation, now, tuning)
        if state.target_met:
            return
        for trial in leave_float(
            state.table,
            self._ranked(state),
            tuning,
            lambda table: self._judge_floats(state, table),
        ):
            result = trial.evaluation.tables[0]
            evaluation = replace(evaluation, tables=(*evaluation.tables, result))
            state.evaluation = evaluation
            state.floats = trial.left
            state.target_met = meets(trial.evaluation, result, tuning)
        state.table = without(state.table, state.floats)
        if state.floats:
            state.name = evaluation.tables[-1].name

    def _judge_floats(self, state: _State, table: CalibrationTable) -> Evaluation:
        count = len(state.table.layers) - len(table.layers)
        name = f"{state.name}, {count} in float"
        return self.judge({name: self._int8(state.net, table)}, self.clock)

    def _ranked(self, state: _State) -> list[str]:
        """The layers in INT8, the one that costs the outputs most first."""
        graph = fold_batch_norm(state.net.graph) if self.options.fold_bn else state.net.graph
        base = Net(graph, state.net.input_shapes)
        effects, _ = output_sensitivity(
            base,
            int8_layers(graph, state.table, optimized=self.options.fold_bn),
            lambda: self.fitted,
            compared_blobs(base, self.tuning.scores, self.tuning.outputs),
            images=RANKING_IMAGES,
            workers=self.options.workers,
            progress=self.clock,
        )
        return sorted(effects, key=lambda name: effects[name].sqnr)

    def result(self, state: _State, stopped: str | None) -> Tuning:
        """The state as what `tune` returns."""
        suited = state.suited if state.changed else None
        choices = choices_of(state.table, state.settled, suited, state.floats)
        notes = [*self.judge.watched.notes]
        if suited is not None and suited.grown:
            notes.append(
                f"copies of channels: {100 * suited.work:.1f} % more multiply-adds; the layers "
                f"{', '.join(suited.grown)} have more outputs"
            )
        if stopped is not None:
            total = len(state.table.layers)
            notes.append(
                f"stopped ({stopped}): {len(state.settled)} of {total} layers are tuned, the "
                "others have plain thresholds"
            )
        table = replace(state.table, meta={**state.table.meta, "tuned": state.name})
        return Tuning(
            table,
            state.net,
            state.changed,
            state.name,
            choices,
            state.evaluation,
            self.images,
            stopped,
            state.target_met,
            tuple(notes),
        )
