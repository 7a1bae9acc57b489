"""Advice: each sentence for results made to call for it, and not for others."""

from __future__ import annotations

from dataclasses import replace

import pytest

import int8calib
from int8calib.analysis.results import Analysis, LayerError
from int8calib.evaluation.average_precision import BoxAccuracy
from int8calib.evaluation.measures import Share
from int8calib.evaluation.results import Accuracy, Evaluation, TableResult
from int8calib.reporting.advice import Advice
from int8calib.reporting.plots import accuracy_plot
from tests.reporting_cases import TABLES, case


def said(part: str, advice: tuple[Advice, ...]) -> Advice:
    """The only sentence with `part`."""
    found = [item for item in advice if part in item.text]
    assert len(found) == 1, f"{part!r} in {[item.text for item in advice]}"
    return found[0]


def evaluated(before: int, after: int, agreed: int, total: int) -> Evaluation:
    def accuracy(hits: int) -> Accuracy:
        return Accuracy({1: Share(hits, total)}, None)

    table = TableResult(TABLES[0], accuracy(after), Share(agreed, total), (), None)
    return Evaluation(total, accuracy(before), (table,))


@pytest.mark.parametrize(("hits", "level"), [(46, "good"), (45, "warn")])
def test_boxes_in_words(hits: int, level: str) -> None:
    boxes = BoxAccuracy(0.97, Share(hits, 50))
    table = TableResult(TABLES[0], None, None, (), None, against_float=boxes)
    made = case().report(evaluation=Evaluation(7, None, (table,)))
    found = said("float net's 50 boxes", made.advice)
    assert found.level == level
    assert f"{2 * hits:.1f} % are found (mean average precision 97.0 %)" in found.text
    assert ("tune" in found.text) == (level == "warn")
    plot = accuracy_plot(made.content)
    assert plot is not None
    assert plot.series[0].value == 2 * hits
    assert "boxes" in plot.x_label


def analyzed(**changes: float) -> Analysis:
    """All layers good, the last one changed."""
    good = LayerError("", 40.0, 1.0, 35.0, 1.0, 0.0, 0.1, 0.9, 30.0, Share(10, 10))
    names = [layer.name for layer in case().tables[TABLES[0]].layers]
    layers = [replace(good, name=name) for name in names]
    layers[-2] = replace(layers[-2], **changes)
    return Analysis(10, 10, 1.0, tuple(sorted(layers, key=lambda x: x.isolated_sqnr)))


@pytest.mark.parametrize(
    ("before", "after", "agreed", "total", "level", "words"),
    [
        (700, 640, 900, 1000, "warn", "falls by 6.0 points (70.0 to 64.0 %)"),
        (700, 690, 930, 1000, "note", "1000 images place a single value only within about 2.9"),
        (700, 700, 950, 1000, "good", "stays the same"),
        (700, 703, 950, 1000, "good", "is 0.3 points higher"),
        (700, 700, 800, 1000, "warn", "80.0 % of the images: far too few"),
        (700, 700, 900, 1000, "warn", "90.0 % of the images: fewer than usual"),
    ],
)
def test_accuracy_in_words(
    before: int, after: int, agreed: int, total: int, level: str, words: str
) -> None:
    advice = case().report(evaluation=evaluated(before, after, agreed, total)).advice
    found = said("best class is the float net's", advice)
    assert found.level == level
    assert words in found.text


def test_a_layer_that_clips() -> None:
    advice = (
        case()
        .report(
            analysis=analyzed(
                isolated_sqnr=12.5, clipped_error=0.75, rounding_error=0.25, clipped_values=0.02
            )
        )
        .advice
    )
    found = said("12.5 dB on its own", advice)
    assert found.level == "warn"
    assert "75 % of its bottom's error comes from the 2 % of values" in found.text
    assert f"--layer-method {found.layer}=mse" in found.text


def test_a_layer_of_six_bits() -> None:
    found = said("12.5 dB on its own", case().report(analysis=analyzed(isolated_sqnr=12.5)).advice)
    assert "--no-winograd" in found.text


def test_layers_that_are_fine_and_the_one_that_matters() -> None:
    advice = case().report(analysis=analyzed(agreement=Share(7, 10))).advice
    assert said("No layer on its own is below 20 dB", advice).level == "good"
    found = said("depend on most", advice)
    assert "changes on 3 of 10 images" in found.text
    assert f"--exclude {found.layer}" in found.text


def test_warnings_of_tables_are_repeated_once_for_each_kind() -> None:
    names = [layer.name for layer in case().tables[TABLES[0]].layers]
    warnings = ["few images: 7", *(f"{n}: {i} of 9 rows are zero" for i, n in enumerate(names))]
    table = replace(case().tables[TABLES[0]], meta={"warnings": warnings})
    report = int8calib.report(case().net, {"a.table": table})
    assert said("few images", report.advice).text == "a: few images: 7."
    grouped = said("rows are zero", report.advice)
    assert grouped.layer == names[0]
    assert all(name in grouped.text for name in names)


def test_costly_thresholds_are_found_by_their_squared_error() -> None:
    table = case().tables[TABLES[0]]
    wide = replace(table.layers[0], bottom_scale=table.layers[0].bottom_scale / 9)
    made = case().report(analysis=None)
    assert not [item for item in made.advice if "squared error" in item.text]
    changed = replace(table, layers=(wide, *table.layers[1:]))
    found = said(
        "squared error",
        int8calib.report(case().net, changed, statistics=case().statistics).advice,
    )
    assert found.layer == wide.name
    assert "1 of 4 layers" in found.text
