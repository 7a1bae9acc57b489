"""Plain sentences on what to look at in a report, from all that it was given."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from int8calib.evaluation.results import Evaluation, TableResult
from int8calib.reporting.content import Content, LayerView
from int8calib.reporting.plot_data import SQUARED, cost_curve
from int8calib.words import listed

LEVELS = ("good", "note", "warn")
"""From fine to bad."""
LOST = 0.5
"""Points of top-1 from which a loss is worth work."""
LOST_MUCH = 2.0
"""Points from which a loss is a warning even where few images make it uncertain."""
AGREES = 0.92
"""The share of equal best classes that good tables reach."""
AGREES_BADLY = 0.85
"""Below this share something is wrong with the table or the images."""
WEAK = 20.0
"""An SQNR in dB below which a layer is worth a look: the error is a tenth of the signal."""
COSTLY = 2.0
"""A squared error of so many times the smallest is worth another method."""
_SHOWN = 5
_NUMBER = re.compile(r"\d[\d.e+-]*|(?<=of )\S+$")
"""What differs between warnings of one kind: numbers, and the blob that ends a sentence."""


@dataclass(frozen=True)
class Advice:
    """One sentence or two; `level` is good, note or warn; `layer` names whom it is about."""

    level: str
    text: str
    layer: str = ""


def advise(content: Content) -> tuple[Advice, ...]:
    """Say what to look at, the whole net first, then layers."""
    advice = [
        *_accuracy(content),
        *_blocked(content),
        *_run_warnings(content),
        *_errors(content),
        *_methods(content),
    ]
    if not advice:
        advice = [Advice("note", "Nothing stands out in what this report was given.")]
    return tuple(advice)


def _accuracy(content: Content) -> Iterator[Advice]:
    evaluation = content.evaluation
    if evaluation is None:
        text = "Accuracy was not measured: give the report an evaluation, best with labels."
        yield Advice("note", text)
        return
    for table in evaluation.tables:
        said = [*_drop(evaluation, table), *_agreement(table), *_boxes(table)]
        if said:
            level = max((level for level, _ in said), key=LEVELS.index)
            name = content.short.get(table.name, table.name)
            yield Advice(level, f"{name}: {' '.join(text for _, text in said)}")


def _blocked(content: Content) -> Iterator[Advice]:
    """Why other blobs than the outputs are compared, once for all results."""
    results = [content.evaluation, *content.analyses.values()]
    for note in dict.fromkeys(note for result in results if result for note in result.notes):
        yield Advice("note", f"{note[0].upper()}{note[1:]}.")


def _agreement(table: TableResult) -> Iterator[tuple[str, str]]:
    share = table.agreement
    if share is None or not share.total:
        return
    text = f"The best class is the float net's on {100 * share.value:.1f} % of the images"
    if share.value >= AGREES:
        yield "good", f"{text}."
        return
    how = "far too few" if share.value < AGREES_BADLY else "fewer than usual"
    reach = f"since good tables reach {100 * AGREES:.0f} %"
    yield "warn", f"{text}: {how}, {reach}. Try int8calib tune with --write-model."


def _boxes(table: TableResult) -> Iterator[tuple[str, str]]:
    found = table.against_float
    if found is None or not found.recall.total:
        return
    text = (
        f"Of the float net's {found.recall.total} boxes {100 * found.recall.value:.1f} % are found "
        f"(mean average precision {100 * found.mean_precision:.1f} %)"
    )
    if found.recall.value >= AGREES:
        yield "good", f"{text}."
        return
    cause = "where layers are depthwise, channels of very different ranges are the usual cause"
    yield "warn", f"{text}: {cause}. Try int8calib tune with --ncnn or --write-model."


def _drop(evaluation: Evaluation, table: TableResult) -> Iterator[tuple[str, str]]:
    if evaluation.float_accuracy is None or table.accuracy is None:
        return
    k = min(evaluation.float_accuracy.topk)
    before, after = evaluation.float_accuracy.topk[k], table.accuracy.topk[k]
    if not before.total or not after.total:
        return
    lost = 100 * (before.value - after.value)
    low, high = after.interval
    sure = 50 * (high - low)
    change = f"falls by {lost:.1f} points" if lost > 0 else f"is {-lost:.1f} points higher"
    text = (
        f"Top-{k} {change if abs(lost) >= 0.05 else 'stays the same'} "
        f"({100 * before.value:.1f} to {100 * after.value:.1f} %)."
    )
    if abs(lost) < sure and abs(lost) >= 0.05:
        text += (
            f" {after.total} images place a single value only within about {sure:.1f} points; "
            "more images tell more."
        )
    level = "good" if lost < LOST else "note" if lost < min(sure, LOST_MUCH) else "warn"
    yield level, text


def _run_warnings(content: Content) -> Iterator[Advice]:
    """What the calibrations had to say: on the run by table, on layers by kind."""
    names = {view.name for view in content.layers}
    kinds: dict[str, dict[str, str]] = {}
    for name, table in content.tables.items():
        for text in map(str, table.meta.get("warnings", ())):
            layer, _, rest = text.partition(": ")
            if rest and layer in names:
                kinds.setdefault(_NUMBER.sub("", rest), {}).setdefault(layer, rest)
            else:
                yield Advice("warn", f"{content.short[name]}: {text}.")
    for texts in kinds.values():
        (layer, rest), *more = texts.items()
        others = listed([other for other, _ in more])
        also = f" So it is, with other numbers, in {others}." if more else ""
        yield Advice("warn", f"{layer}: {rest}.{also}", layer)
    if content.in_float:
        shown = listed(content.in_float)
        yield Advice("note", f"No table has rows for {shown}: ncnn runs them in float.")


def _errors(content: Content) -> Iterator[Advice]:
    """The layers of the first table with the largest isolated error, and the most harmful one."""
    main = content.main
    ranking = [view for view in content.ranking() if main in view.errors]
    weak = [view for view in ranking if view.errors[main].isolated_sqnr < WEAK]
    for view in weak[:_SHOWN]:
        yield Advice("warn", _weak(view, main), view.name)
    if len(weak) > _SHOWN:
        yield Advice(
            "note", f"{len(weak) - _SHOWN} more layers are below {WEAK:.0f} dB on their own."
        )
    if ranking and not weak:
        worst = ranking[0]
        text = (
            f"No layer on its own is below {WEAK:.0f} dB; the worst is {worst.name} with "
            f"{worst.errors[main].isolated_sqnr:.1f} dB."
        )
        yield Advice("good", text, worst.name)
    yield from _harmful(content)


def _weak(view: LayerView, table: str) -> str:
    error = view.errors[table]
    text = f"{view.name}: {error.isolated_sqnr:.1f} dB on its own."
    if error.clipped_error > 0.5:
        return (
            f"{text} {100 * error.clipped_error:.0f} % of its bottom's error comes from the "
            f"{100 * error.clipped_values:.2g} % of values beyond the threshold: let it clip less, "
            f"with --layer-method {view.name}=mse or =minmax."
        )
    if view.six_bit(table) and view.winograd:
        return (
            f"{text} Its weights have 31 levels at most, for ncnn's int8 winograd: calibrate with "
            "--winograd safe for as many as it holds, or if you switch winograd off in ncnn's "
            "options, with --no-winograd for 127."
        )
    return (
        f"{text} {100 * error.rounding_error:.0f} % of its bottom's error is rounding: most values "
        f"are small beside the threshold {view.threshold(table):.4g}. If the outputs depend on "
        f"this layer, keep it in float with --exclude {view.name}."
    )


def _harmful(content: Content) -> Iterator[Advice]:
    analysis = content.analyses.get(content.main)
    ranked = analysis.by_sensitivity() if analysis is not None else ()
    if analysis is None or not ranked:
        return
    worst = ranked[0]
    share = worst.agreement
    if share is not None and share.total and share.hits < share.total:
        effect = f"the best class changes on {share.total - share.hits} of {share.total} images"
    elif worst.output_sqnr is None or math.isinf(worst.output_sqnr):
        return
    else:
        effect = f"the outputs have {worst.output_sqnr:.1f} dB"
    yield Advice(
        "note",
        f"{worst.name} is the layer that the outputs depend on most: with it alone in INT8, "
        f"{effect}. The first candidate to keep in float: --exclude {worst.name}.",
        worst.name,
    )


def _methods(content: Content) -> Iterator[Advice]:
    """Where another threshold would round and clip with a much smaller squared error."""
    main = content.main
    ratios = {
        view.name: (ratio, best)
        for view in content.layers
        if main in view.rows and view.histogram is not None
        for ratio, best in [_squared_ratio(view, main)]
        if ratio >= COSTLY
    }
    if not ratios:
        return
    worst = max(ratios, key=lambda name: ratios[name][0])
    ratio, best = ratios[worst]
    yield Advice(
        "note",
        f"At {len(ratios)} of {len(content.tables[main].layers)} layers the threshold costs over "
        f"{COSTLY:.0f} times the smallest squared error, most at {worst} ({ratio:.1f} times; the "
        f"least is at {best:.4g}). Compare a table by --method mse.",
        worst,
    )


def _squared_ratio(view: LayerView, table: str) -> tuple[float, float]:
    curve = None if view.histogram is None else cost_curve(view.histogram, SQUARED)
    return (1.0, 0.0) if curve is None else (curve.ratio(view.threshold(table)), curve.best)
