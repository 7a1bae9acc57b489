"""The candidates that a search compares, and the changes to a network that precede tuning."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from int8calib.caffe.engine.executor import CaffeExecutor
from int8calib.caffe.engine.run import Net
from int8calib.caffe.network.shapes import infer_shapes
from int8calib.calibration.options import Options
from int8calib.calibration.pipeline import Job, prepare, run_job
from int8calib.calibration.statistics.store import Statistics
from int8calib.evaluation.measures import format_decibels
from int8calib.evaluation.outputs import ComparedBlobs
from int8calib.evaluation.results import Evaluation
from int8calib.levels import LEVELS
from int8calib.ncnn.rounded import RoundedWeights
from int8calib.table.model import CalibrationTable, LayerScales
from int8calib.tuning.channel_splitting import split_channels
from int8calib.tuning.class_scores import center_scores
from int8calib.tuning.equalization import equalize
from int8calib.tuning.execution import ReferenceOutputs, reference_outputs
from int8calib.tuning.layer_solver import LayerSolution
from int8calib.tuning.results import Choice, TuneOptions
from int8calib.workers import Batch, Progress, batch_size, single_threaded_blas

TableMaker = Callable[[Job[CaffeExecutor], Statistics], CalibrationTable]


@dataclass(frozen=True, eq=False)
class PreparedNetwork:
    """A network before its layers are solved.

    Attributes
    ----------
    net
        The network, with equalized and split channels where that was allowed.
    job
        Its calibration job.
    start
        The table that tuning starts from.
    reference
        The network's outputs for some images; None for too few images.
    error_left
        What share of its error equalizing leaves, by family of layers.
    grown
        num_output before and after, of the layers whose channels were split.
    work
        The multiply-adds that split channels add, as a share.
    """

    net: Net
    job: Job[CaffeExecutor]
    start: CalibrationTable
    reference: ReferenceOutputs | None = None
    error_left: Mapping[tuple[str, ...], float] = field(default_factory=dict)
    grown: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    work: float = 0.0

    def with_solutions(
        self, solutions: Mapping[str, LayerSolution], *, changed: bool
    ) -> tuple[Net, CalibrationTable]:
        """The network and the table with what is solved, and the start for all other layers."""
        rows: list[LayerScales] = [
            solutions[layer.name].rows if layer.name in solutions else layer
            for layer in self.start.layers
        ]
        table = replace(self.start, layers=tuple(rows))
        if not changed:
            return self.net, table
        graph = self.job.executor.graph
        layers = tuple(
            solutions[layer.name].layer if layer.name in solutions else layer
            for layer in graph.layers
        )
        return Net(replace(graph, layers=layers), self.net.input_shapes), table


@dataclass(frozen=True, eq=False)
class Candidate:
    """One network with its table, as good as a search has it at some time.

    Attributes
    ----------
    net, table
        The float network and its table.
    name
        What the result is called.
    changed
        Whether weights of the network changed.
    evaluation
        All results over the validation images so far; None where there are none yet.
    prepared
        What the layers were solved in; None for a plain table.
    solutions
        The solved layers by name.
    float_layers
        The layers that were left in float to meet a target.
    target_met
        Whether the targets hold; None without a target.
    """

    net: Net
    table: CalibrationTable
    name: str
    changed: bool = False
    evaluation: Evaluation | None = None
    prepared: PreparedNetwork | None = None
    solutions: Mapping[str, LayerSolution] = field(default_factory=dict)
    float_layers: tuple[str, ...] = ()
    target_met: bool | None = None

    @property
    def rounded(self) -> dict[str, RoundedWeights]:
        """The levels of the weights that changed, by layer in INT8."""
        return {
            name: solution.rounded
            for name, solution in self.solutions.items()
            if solution.rounded is not None and self.changed and name in self.table
        }

    def without(self, layers: Sequence[str], name: str) -> Candidate:
        """Leave `layers` in float; `name` is what this is called."""
        rows = tuple(rows for rows in self.table.layers if rows.name not in layers)
        table = replace(self.table, layers=rows)
        return replace(self, table=table, name=name, float_layers=tuple(layers))


def prepare_network(
    prepared: PreparedNetwork,
    batches: Sequence[Batch],
    compared: ComparedBlobs,
    options: Options,
    tuning: TuneOptions,
    *,
    make_table: TableMaker,
    progress: Progress,
) -> PreparedNetwork:
    """Equalize and split channels as far as `tuning` allows it, and take the reference outputs.

    Parameters
    ----------
    prepared
        The network as it is, BatchNorm folded where weights may change.
    batches
        The images to tune on.
    compared
        The blobs that are the outputs.
    options
        Those of the calibration.
    tuning
        What may change.
    make_table
        Makes the table to start from, from a job and its statistics: what was collected of the
        old network is collected anew.
    progress
        Called as ``progress(stage, done, total)``.
    """
    techniques = tuning.techniques if tuning.change_model else ()

    def calibrated(changed: PreparedNetwork) -> PreparedNetwork:
        job = prepare(changed.net, replace(options, fold_bn=False))
        total = sum(batch_size(batch) for batch in batches)
        result = run_job(job, lambda: batches, options, total=total, progress=progress)
        return replace(changed, job=job, start=make_table(job, result.statistics))

    if "equalize" in techniques:
        prepared = calibrated(_equalized(prepared, batches, options, progress))
    with single_threaded_blas():
        reference = reference_outputs(
            prepared.job.executor.graph, batches, compared, options.workers
        )
    prepared = replace(prepared, reference=reference)
    if "copies" in techniques and reference is not None:
        with single_threaded_blas():
            split = split_channels(
                prepared.job.executor.graph,
                prepared.net.input_shapes,
                batches,
                prepared.start,
                reference,
                tuning.more_work,
                workers=options.workers,
                progress=progress,
            )
        if split.grown:
            net = Net(split.graph, prepared.net.input_shapes)
            prepared = replace(prepared, net=net, grown=split.grown, work=split.work)
            prepared = calibrated(prepared)
    return prepared


def _equalized(
    prepared: PreparedNetwork, batches: Sequence[Batch], options: Options, progress: Progress
) -> PreparedNetwork:
    """With equalized channels, and class scores that have no common part."""
    graph, inputs = prepared.job.executor.graph, prepared.net.input_shapes
    grids = {layer.name: options.weights.grid(layer) for layer in prepared.job.candidates}
    with single_threaded_blas():
        equalized = equalize(
            center_scores(graph),
            infer_shapes(graph, inputs),
            batches,
            {rows.name: grids[rows.name] for rows in prepared.start.layers},
            unsigned=[rows.name for rows in prepared.start.layers if rows.unsigned],
            workers=options.workers,
            progress=progress,
        )
    return replace(prepared, net=Net(equalized.graph, inputs), error_left=equalized.left)


def explain_choices(candidate: Candidate) -> tuple[Choice, ...]:
    """Say for each layer of a candidate, in one short sentence, what was chosen and why."""
    prepared = candidate.prepared if candidate.changed else None
    families = prepared.error_left if prepared else {}
    grown = prepared.grown if prepared else {}
    equalized = {name: left for names, left in families.items() if left < 1 for name in names}
    choices = [
        Choice(name, "float", "leaving it in float does most for the outputs")
        for name in candidate.float_layers
    ]
    for rows in candidate.table.layers:
        threshold = LEVELS / rows.bottom_scale
        solution = candidate.solutions.get(rows.name)
        if solution is None:
            method = rows.evidence.method if rows.evidence else "plain"
            choices.append(Choice(rows.name, f"{method} {threshold:.5g}", "not tuned"))
            continue
        why = f"its outputs err by {_decibels(solution.error)} of their energy{_clip(rows)}"
        if rows.name in equalized:
            left = 100 * equalized[rows.name]
            why += f"; equalized channels leave {left:.0f} % of the error"
        if rows.name in grown:
            before, after = grown[rows.name]
            why += f"; {after} outputs in place of {before} are rounded more finely"
        choices.append(Choice(rows.name, f"threshold {threshold:.5g}", why))
    return tuple(choices)


def _decibels(error: float) -> str:
    return f"{format_decibels(10 * math.log10(error), 1)} dB" if error > 0 else "nothing"


def _clip(rows: LayerScales) -> str:
    evidence = rows.evidence
    if evidence is None or evidence.absmax <= 0:
        return ""
    share = 100 * evidence.threshold / evidence.absmax
    return f", with the threshold at {share:.0f} % of the largest"
