"""A tuned table that misses a target comes in; which layers to leave in float goes out.

Layers are ranked by what each of them alone does to the outputs, and left in float one after the
other, until the target holds on the validation images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from int8calib.evaluation.results import Evaluation, TableResult
from int8calib.table.model import CalibrationTable
from int8calib.tuning.judge import drop
from int8calib.tuning.results import TuneOptions


@dataclass(frozen=True, eq=False)
class Trial:
    """A table with some layers left out, in the order in which they were, and its validation."""

    table: CalibrationTable
    left: tuple[str, ...]
    evaluation: Evaluation


def meets(evaluation: Evaluation, result: TableResult, options: TuneOptions) -> bool:
    """Whether one result holds all targets of `options`; a target that cannot be told fails."""
    if options.min_agreement is not None:
        share = result.agreement
        if share is None or not share.value >= options.min_agreement:
            return False
    if options.max_drop is not None:
        lost = drop(evaluation, result)
        if lost is None or lost > options.max_drop + 1e-9:
            return False
    return True


def without(table: CalibrationTable, names: Sequence[str]) -> CalibrationTable:
    """`table` without the rows of `names`."""
    return replace(table, layers=tuple(rows for rows in table.layers if rows.name not in names))


def leave_float(
    table: CalibrationTable,
    ranked: Sequence[str],
    options: TuneOptions,
    judge: Callable[[CalibrationTable], Evaluation],
) -> list[Trial]:
    """The trials, each with one more of `ranked` in float; the last one holds the target.

    Where none does, the last one is as far as `max_float_layers` allows; one layer stays INT8.
    """
    most = len(table.layers) - 1
    if options.max_float_layers is not None:
        most = min(most, options.max_float_layers)
    trials: list[Trial] = []
    for count in range(1, most + 1):
        left = tuple(ranked[:count])
        tried = without(table, left)
        trials.append(Trial(tried, left, judge(tried)))
        if meets(trials[-1].evaluation, trials[-1].evaluation.tables[0], options):
            break
    return trials
