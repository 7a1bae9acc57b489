"""A network and images come in; the best table that was found, and why, goes out: `tune`.

Some images decide layer by layer, the others, which nothing is fitted to, decide between results.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from int8calib.engine.run import Net
from int8calib.errors import ImageError, OptionError
from int8calib.evaluation.evaluate import Labelled, LabelledFeeds
from int8calib.evaluation.results import Evaluation
from int8calib.evaluation.sensitivity import single_layer_effects
from int8calib.net.shapes import infer_shapes
from int8calib.options import Options
from int8calib.pipeline import Job, make_table, prepare, run_job
from int8calib.simulation.build import int8_layers, simulate
from int8calib.stats.store import Statistics
from int8calib.table.model import CalibrationTable, LayerScales
from int8calib.tuning.centre import centre_scores
from int8calib.tuning.equalise import equalise
from int8calib.tuning.explain import choices_of
from int8calib.tuning.float_layers import leave_float, meets, without
from int8calib.tuning.judge import Judge, nearness
from int8calib.tuning.layerwise import bytes_per_image
from int8calib.tuning.results import TuneOptions, Tuning
from int8calib.tuning.sequence import SettledLayer, settle_layers
from int8calib.tuning.weights import Changes
from int8calib.workers import Feed, Progress, batch_of, single_threaded_blas

PLAIN = ("mse", "kl", "aciq")
"""Methods whose plain tables are tried too; the first is what tuning starts from."""
TUNED = "tuned"
RANKING_IMAGES = 12


class _OutOfTimeError(Exception):
    """The time is over."""


@dataclass(eq=False)
class _State:
    """The best so far, which a stopped run returns."""

    net: Net
    table: CalibrationTable
    name: str
    changed: bool = False
    evaluation: Evaluation | None = None
    left: dict[tuple[str, ...], float] = field(default_factory=dict)
    settled: dict[str, SettledLayer] = field(default_factory=dict)
    floats: tuple[str, ...] = ()
    target_met: bool | None = None


def tune(
    net: Net,
    feeds: LabelledFeeds,
    options: Options | None = None,
    tuning: TuneOptions | None = None,
    *,
    progress: Progress | None = None,
    meta: Mapping[str, Any] = MappingProxyType({}),
) -> Tuning:
    """Search the table (and with `change_model` the weights) that loses least in INT8.

    `feeds()` gives the images as in `evaluate`, with labels or without; the first `images` of
    them are used. `options` say what `calibrate` would do: which layers, which weights. Ctrl-C
    and the time limit end the search early, with the best result so far; before there is one,
    Ctrl-C is raised. Raises `OptionError` for a target that cannot be told, `ImageError` for
    fewer than two feeds, and what `calibrate` and `evaluate` raise.
    """
    options, tuning = options or Options(), tuning or TuneOptions()
    job = prepare(net, options)
    fitted, held = _split(_taken(feeds(), tuning.images), tuning, job, net)
    judge = Judge(net, held, scores=tuning.scores, workers=options.workers)
    _check_targets(tuning, held)
    clock = _clock(progress, tuning.seconds)
    images = sum(batch_of(feed) for feed in fitted)
    run = _Run(net, job, options, tuning, fitted, images, judge, clock, meta)
    statistics = run_job(job, lambda: fitted, options, total=images, progress=progress).statistics
    plain = {m: _plain_table(job, statistics, options, m, meta) for m in PLAIN}
    state = _State(net, plain[PLAIN[0]], PLAIN[0])
    stopped = None
    try:
        run.search(state, plain)
    except KeyboardInterrupt:
        stopped = "interrupted"
    except _OutOfTimeError:
        stopped = "time"
    return run.result(state, stopped)


def _taken(given: Iterable[Feed | Labelled], images: int) -> list[Feed | Labelled]:
    """The first feeds, with about so many images."""
    taken: list[Feed | Labelled] = []
    count = 0
    for each in given:
        taken.append(each)
        count += batch_of(_feed(each))
        if count >= images:
            break
    if len(taken) < 2:
        raise ImageError(
            f"{len(taken)} feeds of images: tuning needs two at least, one to tune and one to "
            "validate; give more images, or smaller batches"
        )
    return taken


def _feed(given: Feed | Labelled) -> Feed:
    return given.feed if isinstance(given, Labelled) else given


def _split(
    given: Sequence[Feed | Labelled], tuning: TuneOptions, job: Job, net: Net
) -> tuple[list[Feed], list[Feed | Labelled]]:
    """The feeds to tune on, and those to validate with, spread evenly; memory limits the first."""
    fitted: list[Feed] = []
    held: list[Feed | Labelled] = []
    for i, each in enumerate(given):
        if int((i + 1) * tuning.validation) > int(i * tuning.validation):
            held.append(each)
        else:
            fitted.append(_feed(each))
    if not held:
        held = [fitted.pop()]
    elif not fitted:
        fitted = [_feed(held.pop())]
    size = bytes_per_image(job.graph, net.input_shapes) * batch_of(fitted[0])
    return fitted[: max(1, tuning.memory // max(size, 1))], held


def _check_targets(tuning: TuneOptions, held: Sequence[Feed | Labelled]) -> None:
    if tuning.max_drop is not None and not all(isinstance(each, Labelled) for each in held):
        raise OptionError("a largest drop of top-1 needs labels; give them, or a least agreement")


def _clock(progress: Progress | None, seconds: float | None) -> Progress:
    """`progress` that also ends the search when the time is over."""
    end = None if seconds is None else time.monotonic() + seconds

    def tell(stage: str, done: int, total: int) -> None:
        if progress is not None:
            progress(stage, done, total)
        if end is not None and time.monotonic() > end:
            raise _OutOfTimeError

    return tell


def _plain_table(
    job: Job, statistics: Statistics, options: Options, method: str, meta: Mapping[str, Any]
) -> CalibrationTable:
    """The table of one method, the layers' own methods left aside."""
    chosen = replace(options, method=method, layer_methods=())
    return make_table(job, statistics, chosen, meta).table


@dataclass(frozen=True, eq=False)
class _Run:
    """What one search works with."""

    net: Net
    job: Job
    options: Options
    tuning: TuneOptions
    fitted: Sequence[Feed]
    images: int
    judge: Judge
    clock: Progress
    meta: Mapping[str, Any]

    def search(self, state: _State, plain: Mapping[str, CalibrationTable]) -> None:
        """Improve `state` step by step."""
        judged = {
            name: simulate(self.net, table, fold_bn=self.options.fold_bn)
            for name, table in plain.items()
        }
        state.evaluation = self.judge(judged, self.clock)
        best = max(state.evaluation.tables, key=nearness)
        state.table, state.name = plain[best.name], best.name
        tuned = self._tuned(state, plain[PLAIN[0]])
        found = self.judge({TUNED: self._int8(*tuned)}, self.clock)
        tables = (*state.evaluation.tables, *found.tables)
        state.evaluation = replace(found, tables=tables)
        if nearness(found.tables[0]) >= nearness(best):
            state.net, state.table, state.name = *tuned, TUNED
            state.changed = self.tuning.change_model
        else:
            state.net, state.table, state.name = self.net, plain[best.name], best.name
            state.changed = False
        self._reach_target(state)

    def _int8(self, net: Net, table: CalibrationTable) -> Net:
        return simulate(net, table, fold_bn=self.options.fold_bn)

    def _tuned(self, state: _State, start: CalibrationTable) -> tuple[Net, CalibrationTable]:
        """Tune layer by layer; `state` has what is done at any time."""
        net, job = self.net, self.job
        levels = {layer.name: self.options.weights.levels(layer) for layer in job.described}
        levels = {rows.name: levels[rows.name] for rows in start.layers}
        shapes = infer_shapes(job.graph, net.input_shapes)
        techniques = self.tuning.techniques if self.tuning.change_model else ()
        if self.tuning.change_model:
            net = Net(job.graph, net.input_shapes)
        if "equalise" in techniques:
            with single_threaded_blas():
                evened = equalise(
                    centre_scores(job.graph),
                    shapes,
                    self.fitted,
                    levels,
                    workers=self.options.workers,
                    progress=self.clock,
                )
            state.left = dict(evened.left)
            net = Net(evened.graph, net.input_shapes)
            job = prepare(net, replace(self.options, fold_bn=False))
            again = run_job(
                job,
                lambda: self.fitted,
                self.options,
                total=self.images,
                progress=self.clock,
            )
            start = _plain_table(job, again.statistics, self.options, PLAIN[0], self.meta)
        changes = Changes(
            rounding="rounding" in techniques,
            refit="refit" in techniques,
            bias="bias" in techniques,
        )
        rows = {layer.name: layer for layer in start.layers}
        with single_threaded_blas():
            for settled in settle_layers(
                job.graph, shapes, self.fitted, rows, levels, changes, workers=self.options.workers
            ):
                state.settled[settled.layer.name] = settled
                state.net, state.table = self._merged(net, job, start, state.settled)
                state.name, state.changed = TUNED, self.tuning.change_model
                self.clock("layers", len(state.settled), len(rows))
        return state.net, state.table

    def _merged(
        self, net: Net, job: Job, start: CalibrationTable, settled: Mapping[str, SettledLayer]
    ) -> tuple[Net, CalibrationTable]:
        """The net and the table with what is settled, and the start for all other layers."""
        rows: list[LayerScales] = [
            settled[layer.name].rows if layer.name in settled else layer for layer in start.layers
        ]
        table = replace(start, layers=tuple(rows))
        if not self.tuning.change_model:
            return self.net, table
        layers = tuple(
            settled[layer.name].layer if layer.name in settled else layer
            for layer in job.graph.layers
        )
        return Net(replace(job.graph, layers=layers), net.input_shapes), table

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
            lambda table: self.judge({_float_name(table, state): self._int8(state.net, table)},
                                     self.clock),
        ):  # fmt: skip
            result = trial.evaluation.tables[0]
            state.evaluation = replace(
                state.evaluation or trial.evaluation,
                tables=(*(state.evaluation.tables if state.evaluation else ()), result),
            )
            state.floats, state.name = trial.left, result.name
            state.target_met = meets(trial.evaluation, result, tuning)
        state.table = without(state.table, state.floats)

    def _ranked(self, state: _State) -> list[str]:
        """The layers in INT8, the one that costs the outputs most first."""
        graph = (prepare(state.net, self.options) if not state.changed else None) or None
        base = state.net if graph is None else Net(graph.graph, state.net.input_shapes)
        twins = int8_layers(base.graph, state.table, optimised=self.options.fold_bn)
        effects, _ = single_layer_effects(
            base,
            twins,
            lambda: self.fitted,
            images=RANKING_IMAGES,
            scores=self.tuning.scores,
            workers=self.options.workers,
            progress=self.clock,
        )
        return sorted(effects, key=lambda name: effects[name].sqnr)

    def result(self, state: _State, stopped: str | None) -> Tuning:
        """The state as what `tune` returns."""
        choices = choices_of(state.table, state.settled, state.left, state.floats, state.changed)
        notes = []
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


def _float_name(table: CalibrationTable, state: _State) -> str:
    count = len(state.table.layers) - len(table.layers)
    return f"{count} in float"
