"""What a tuning settled comes in; one short sentence for each layer goes out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from int8calib.evaluation.measures import format_decibels
from int8calib.levels import LEVELS
from int8calib.table.model import CalibrationTable, LayerScales
from int8calib.tuning.results import Choice
from int8calib.tuning.sequence import SettledLayer
from int8calib.tuning.suited import Suited


def choices_of(
    table: CalibrationTable,
    settled: Mapping[str, SettledLayer],
    suited: Suited | None,
    floats: Sequence[str],
) -> tuple[Choice, ...]:
    """A choice for each row of `table`, and for each layer of `floats`.

    `suited`: how channels were changed, None where they were not.
    """
    left = suited.left if suited else {}
    grown = suited.grown if suited else {}
    evened = {name: share for names, share in left.items() if share < 1 for name in names}
    choices = [
        Choice(name, "float", "leaving it in float does most for the outputs") for name in floats
    ]
    for rows in table.layers:
        threshold = LEVELS / rows.bottom_scale
        found = settled.get(rows.name)
        if found is None:
            method = rows.evidence.method if rows.evidence else "plain"
            choices.append(Choice(rows.name, f"{method} {threshold:.5g}", "not tuned"))
            continue
        why = f"its outputs err by {_decibels(found.error)} of their energy{_reach(rows)}"
        if rows.name in evened:
            why += f"; even channels leave {100 * evened[rows.name]:.0f} % of the error"
        if rows.name in grown:
            before, after = grown[rows.name]
            why += f"; {after} outputs in place of {before} are rounded more finely"
        choices.append(Choice(rows.name, f"threshold {threshold:.5g}", why))
    return tuple(choices)


def _decibels(error: float) -> str:
    return f"{format_decibels(10 * math.log10(error), 1)} dB" if error > 0 else "nothing"


def _reach(rows: LayerScales) -> str:
    found = rows.evidence
    if found is None or found.absmax <= 0:
        return ""
    return f", with the threshold at {100 * found.threshold / found.absmax:.0f} % of the largest"
