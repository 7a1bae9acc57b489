"""The tables and lists of the page on the whole network, as HTML."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping

import numpy as np

import int8calib
from int8calib.analysis.results import LayerError
from int8calib.evaluation.average_precision import BoxAccuracy
from int8calib.evaluation.measures import BoxAgreement
from int8calib.evaluation.results import Evaluation, TableResult
from int8calib.reporting import markup
from int8calib.reporting.advice import WEAK
from int8calib.reporting.content import Content
from int8calib.reporting.markup import breakable, decibels, pairs, percent, share, table, text

_BAR = 60
_FULL = 50.0
"""The SQNR in dB of a full bar."""


def summary(content: Content) -> str:
    """The cards, and the facts of the run."""
    cards = "".join(
        f"<div><b>{value}</b><span>{what}</span></div>" for value, what in _cards(content)
    )
    statistics = content.statistics
    facts = [
        ("model", breakable(content.source)),
        ("tables", breakable(", ".join(content.tables))),
        ("calibration images", "" if statistics is None else str(statistics.images)),
        *((text(name), breakable(value)) for name, value in content.facts.items()),
        ("options", text(_options(content))),
        ("int8calib", text(int8calib.__version__)),
        ("Python, numpy", text(f"{platform.python_version()}, {np.__version__}")),
    ]
    return f'<div class="cards">{cards}</div>{pairs(facts)}'


def _options(content: Content) -> str:
    """The plain options of the first table; all of them stand at the end of the page."""
    options = content.tables[content.main].meta.get("options")
    if not isinstance(options, Mapping):
        return ""
    plain = {k: v for k, v in options.items() if k in ("method", "input_method", "fold_bn")}
    return " · ".join(f"{key.replace('_', ' ')} {_plain(value)}" for key, value in plain.items())


def _cards(content: Content) -> list[tuple[str, str]]:
    mine = content.tables[content.main].layers
    total = len(content.layers) + len(content.in_float)
    cards = [(f"{len(mine)} of {total}", "layers in INT8")]
    evaluation = content.evaluation
    if evaluation is not None:
        cards.insert(0, (str(evaluation.images), "images evaluated"))
        first = next((t for t in evaluation.tables if t.name == content.main), None)
        cards += _result_cards(evaluation, first) if first is not None else []
    ranking = content.ranking()
    if ranking and content.main in ranking[0].errors:
        worst = ranking[0]
        value = decibels(worst.errors[content.main].isolated_sqnr, " dB")
        cards.append((value, f"worst layer, {markup.link(worst.name)}"))
    return cards


def _result_cards(evaluation: Evaluation, table: TableResult) -> list[tuple[str, str]]:
    cards = []
    if evaluation.float_accuracy is not None and table.accuracy is not None:
        k = min(evaluation.float_accuracy.topk)
        before, after = evaluation.float_accuracy.topk[k], table.accuracy.topk[k]
        cards.append(
            (f"{100 * after.value:.1f} %", f"top-{k} in INT8 (float: {100 * before.value:.1f} %)")
        )
    if table.agreement is not None and table.agreement.total:
        cards.append((f"{100 * table.agreement.value:.1f} %", "same best class as float"))
    cards += _box_cards(evaluation, table)
    psnr = [blob.psnr for blob in table.blobs if blob.psnr is not None]
    if psnr:
        cards.append((decibels(min(psnr), " dB"), "PSNR against float"))
    return cards


def _box_cards(evaluation: Evaluation, table: TableResult) -> list[tuple[str, str]]:
    cards = []
    before, after = evaluation.float_boxes, table.against_labels
    if before is not None and after is not None and not math.isnan(after.mean_precision):
        what = f"mAP in INT8 (float: {100 * before.mean_precision:.1f} %)"
        cards.append((f"{100 * after.mean_precision:.1f} %", what))
    kept = table.against_float
    if kept is not None and not math.isnan(kept.mean_precision):
        cards.append((f"{100 * kept.mean_precision:.1f} %", "mAP on the float net's boxes"))
        cards.append((f"{100 * kept.recall.value:.1f} %", "of them found"))
    return cards


def accuracy(content: Content) -> str:
    """The float net and each table side by side, and their outputs."""
    evaluation = content.evaluation
    if evaluation is None:
        return '<p class="soft">No evaluation was given.</p>'
    float_accuracy = evaluation.float_accuracy
    ks = [] if float_accuracy is None else sorted(float_accuracy.topk)
    boxes = any(result.boxes is not None for result in evaluation.tables)
    agreed = any(result.agreement is not None for result in evaluation.tables)
    columns = ["", *(f"top-{k}" for k in ks)]
    labeled = evaluation.float_boxes is not None
    columns += ["same best class"] * agreed + ["mAP", "recall"] * labeled
    columns += ["mAP on float's boxes", "recall of them", "same boxes"] * boxes
    rows = []
    if float_accuracy is not None or labeled:
        tops = [share(float_accuracy.topk[k]) for k in ks] if float_accuracy else []
        mine = _found(evaluation.float_boxes) * labeled
        rows.append(["float", *tops, *[""] * agreed, *mine, *[""] * 3 * boxes])
    for result in evaluation.tables:
        row = [breakable(content.short.get(result.name, result.name))]
        row += [share(result.accuracy.topk[k]) if result.accuracy else "" for k in ks]
        row += [share(result.agreement)] * agreed
        row += _found(result.against_labels) * labeled
        row += [*_found(result.against_float), _boxes(result.boxes)] * boxes
        rows.append(row)
    html = table(columns, rows, "accuracy") if len(columns) > 1 else ""
    images = any(blob.psnr is not None for result in evaluation.tables for blob in result.blobs)
    outputs = [
        [
            breakable(content.short.get(result.name, result.name)),
            text(blob.blob),
            decibels(blob.sqnr),
            percent(blob.relative_error),
            f"{blob.cosine:.5f}",
            *[decibels(blob.psnr)] * images,
        ]
        for result in evaluation.tables
        for blob in result.blobs
    ]
    heads = ("", "output", "SQNR in dB", "relative error", "cosine", *["PSNR in dB"] * images)
    kind = (
        ""
        if evaluation.kind is None
        else f'<p class="soft">{text(f"Compared as {evaluation.kind}")}.</p>'
    )
    return kind + html + table(heads, outputs, "outputs")


def _found(accuracy: BoxAccuracy | None) -> list[str]:
    """Cells of mean average precision and recall."""
    if accuracy is None or math.isnan(accuracy.mean_precision):
        return ["", ""]
    return [percent(accuracy.mean_precision), share(accuracy.recall)]


def _boxes(boxes: BoxAgreement | None) -> str:
    if boxes is None:
        return ""
    counts = f"{boxes.matched} of {boxes.float_boxes} and {boxes.int8_boxes}"
    value = "" if math.isnan(boxes.value) else f"{100 * boxes.value:.1f} % "
    return f'{value}<span class="interval">({counts})</span>'


def ranking(content: Content) -> str:
    """The layers of the first table, the worst isolated SQNR first."""
    others = [name for name in content.analyses if name != content.main]
    views = [view for view in content.ranking() if view.errors]
    if not views:
        return '<p class="soft">No analysis was given, so layers are in network order.</p>'
    effects = any(e.output_sqnr is not None for view in views for e in view.errors.values())
    columns = [
        *("layer", "isolated dB", "accumulated dB"),
        *(_wider("clipped values"), "error by clipping", _wider("by rounding")),
        *["outputs, this layer alone"] * effects,
        *(f"isolated dB, {breakable(content.short[name])}" for name in others),
    ]
    rows = [
        [
            markup.link(view.name),
            *_error_cells(view.errors.get(content.main), effects=effects),
            *(
                decibels(view.errors[name].isolated_sqnr) if name in view.errors else ""
                for name in others
            ),
        ]
        for view in views
    ]
    explained = (
        '<p class="soft">Isolated: this layer alone in INT8. Accumulated: behind it, with all '
        "layers before it in INT8 too. Clipping and rounding share the squared error of what the "
        f"layer reads. First table: {text(content.short[content.main])}.</p>"
    )
    return explained + table(columns, rows, "ranking")


def _error_cells(error: LayerError | None, *, effects: bool) -> list[str]:
    """A layer's figures with the first table; empty cells where it is in float."""
    if error is None:
        return ["", "", _wider(""), "", _wider(""), *[""] * effects]
    return [
        _bar(error.isolated_sqnr),
        decibels(error.accumulated_sqnr),
        _wider(percent(error.clipped_values)),
        percent(error.clipped_error),
        _wider(percent(error.rounding_error)),
        *[decibels(error.output_sqnr)] * effects,
    ]


def _wider(cell: str) -> str:
    """A cell whose column a narrow screen leaves out."""
    return f'<span class="wider">{cell}</span>'


def _bar(value: float) -> str:
    shown = decibels(value)
    if not math.isfinite(value):
        return shown
    width = round(_BAR * min(max(value, 0.0), _FULL) / _FULL)
    kind = "bar weak" if value < WEAK else "bar"
    return f'{shown}<span class="{kind}" style="width:{width}px"></span>'


def tables_section(content: Content) -> str:
    """What each table says of itself: versions, options, files."""
    parts = []
    for name, table_ in content.tables.items():
        rows = [
            (text(f"{key}: {inner}" if inner else key), text(value))
            for key, entry in table_.meta.items()
            if key != "warnings"
            for inner, value in _flat(entry)
        ]
        body = pairs(rows) if rows else '<p class="soft">A table file without a report.</p>'
        parts.append(
            f'<details><summary><span class="name">{text(name)}</span></summary>'
            f'<div class="body">{body}</div></details>'
        )
    return "".join(parts)


def _flat(value: object) -> list[tuple[str, str]]:
    """The values of a report's entry, one level deep."""
    if isinstance(value, Mapping):
        return [(str(key), _plain(inner)) for key, inner in value.items()]
    return [("", _plain(value))]


def _plain(value: object) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, default=str, ensure_ascii=False)
