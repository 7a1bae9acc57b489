"""Check and diff: every kind of finding once, and ratios against numpy's."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from int8calib.table import (
    CalibrationTable,
    DiffRow,
    Finding,
    LayerScales,
    Requirement,
    check_table,
    diff_tables,
    read_table,
)
from int8calib.table.rules import grouped_problem
from tests.table_helpers import layer, table, tables

TEXT = "conv1_param_0 2 3 5\nip1_param_0 7 11\nconv1 0.5\nip1 0.25\n"
CONV = Requirement("conv1", "Convolution", 3)
IP = Requirement("ip1", "InnerProduct", 2)


def found(source: str | CalibrationTable, *requirements: Requirement, **options: Any) -> list[Any]:
    findings = check_table(source, requirements=requirements, **options)
    return [(f.severity, f.line, f.layer) for f in findings]


def test_a_good_table_has_no_findings() -> None:
    assert check_table(TEXT) == []
    assert found(TEXT, CONV, IP) == []


@given(made=tables())
@pytest.mark.long
def test_tables_that_can_be_written_are_clean(made: CalibrationTable) -> None:
    wanted = [Requirement(x.name, "Convolution", x.weight_scales.size) for x in made.layers]
    assert check_table(made, requirements=wanted) == []


def test_missing_extra_and_wrong_counts() -> None:
    assert found(TEXT, CONV) == [("warning", 2, "ip1")]
    other = Requirement("fc", "InnerProduct", 2)
    assert found(TEXT, CONV, IP, other) == [("warning", None, "fc")]
    assert found(TEXT, replace(CONV, weight_count=4), IP) == [("error", 1, "conv1")]
    assert found(TEXT, other) == [("error", None, None)]
    message = check_table(TEXT, requirements=[replace(CONV, weight_count=4), IP])[0].message
    assert message == "conv1: 3 weight scales, Convolution needs 4"


def test_a_broken_row_is_not_also_missing() -> None:
    broken = TEXT.replace("7 11", "7 x")
    assert found(broken, CONV, IP) == [("error", 2, "ip1")]


def weights(
    *,
    folded: list[float] | None,
    raw: list[float] | None = None,
    applied: bool = True,
    levels: int = 127,
) -> Requirement:
    made = [None if x is None else np.array(x) for x in (folded, raw)]
    return Requirement("conv1", "Convolution", 3, made[0], made[1], levels=levels, folded=applied)


OTHER = [2.5, 1.0, 9.0]


@pytest.mark.parametrize(
    ("requirement", "severity", "message"),
    [
        (weights(folded=[2, 3, 5]), None, ""),
        (weights(folded=[2, 3, 5], raw=OTHER), None, ""),
        (weights(folded=[2.0019, 2.9971, 5]), None, ""),
        (weights(folded=OTHER, raw=[2, 3, 5]), "error", "made from unfolded .* are folded"),
        (weights(folded=[2, 3, 5], raw=OTHER, applied=False), "error", "made from folded weights"),
        (weights(folded=OTHER, raw=[2, 3, 5], applied=False), None, ""),
        (weights(folded=[2, 3.01, 5]), "warning", "channel 1 is 0.9967 times"),
        (weights(folded=[2, 3 * 127 / 126, 5 * 127 / 125]), None, ""),
        (weights(folded=[2, 3 * 127 / 124, 5]), "warning", "channel 1 is 0.9764 times .* wasted"),
        (weights(folded=[2, 3 * 127 / 128, 5]), "warning", "channel 1 is 1.008 times .* saturate"),
        (weights(folded=[2, 3, 2.4]), "error", "channel 2 is 2.083 times .* saturate"),
        (weights(folded=[2, 6.1, 5]), "error", "channel 1 is 0.4918 times .* wasted"),
        (weights(folded=[2, 3, 3]), "warning", "channel 2 is 1.667 times"),
        (weights(folded=[2 * 127 / 31, 3 * 127 / 31, 5 * 127 / 31]), "warning", "31 levels, 127"),
        (weights(folded=[2 * 31 / 127, 3 * 31 / 127, 5 * 31 / 127], levels=31), "warning",
         "127 levels, 31"),
        (weights(folded=None, raw=[9, 9, 9]), None, ""),
    ],
)  # fmt: skip
def test_scales_against_the_weights(
    requirement: Requirement, severity: str | None, message: str
) -> None:
    findings = check_table(TEXT, requirements=[requirement, IP])
    assert [f.severity for f in findings] == ([] if severity is None else [severity])
    for finding in findings:
        assert finding.line == 1
        assert re.search(message, finding.message)


def test_more_levels_than_31_are_fine_up_to_what_winograd_holds() -> None:
    def sums(scales: np.ndarray) -> np.ndarray:
        return np.array([5000, 5000, 5600]) * scales

    whole = np.array([2.0, 3.0, 5.0])  # the scales of 127 levels
    winograd = Requirement("conv1", "Convolution", 3, whole, None, level_sums=sums)
    assert found(TEXT, winograd, IP) == []
    more = replace(winograd, weight_scales_folded=whole * 127 / 31)
    assert found(TEXT, more, IP) == []  # exactly 31 levels
    few = replace(winograd, weight_scales_folded=whole * 127 / 20)
    assert found(TEXT, few, IP) == [("error", 1, "conv1")]
    full = replace(few, level_sums=lambda scales: np.full(3, 29000.0))
    assert found(TEXT, full, IP) == []  # so few, since not one more fits
    (finding,) = check_table(TEXT.replace(" 5", " 5.3"), requirements=[winograd, IP])
    assert finding.severity == "error"
    assert "channel 2 add up to 29680, int8 winograd holds 29356" in finding.message
    assert "about 5.242 is right in place of 5.3" in finding.message
    other = replace(winograd, weight_scales_folded=whole / 1.2)
    (finding,) = check_table(TEXT, requirements=[other, IP])
    assert finding.severity == "warning"
    assert "channel 0 is 1.2 times" in finding.message


@pytest.mark.parametrize(
    ("group", "outputs", "wrong"),
    [(2, 16, True), (3, 24, True), (4, 96, True), (2, 8, False), (3, 18, False), (16, 16, False),
     (1, 16, False), (5, 80, True)],
)  # fmt: skip
def test_groups_of_8_outputs_are_a_problem(group: int, outputs: int, wrong: bool) -> None:
    problem = grouped_problem(group, outputs)
    assert (problem is not None) == wrong
    if problem is not None:
        assert f"{group} groups with {outputs // group} outputs each" in problem


def test_layers_that_had_better_stay_in_float() -> None:
    trap = replace(CONV, caution="ncnn returns nonsense")
    (finding,) = check_table(TEXT, requirements=[trap, IP])
    assert (finding.severity, finding.line) == ("warning", 1)
    assert "conv1: had better stay in float, without rows: ncnn returns nonsense" in finding.message
    alone = "ip1_param_0 7 11\nip1 0.25\n"
    (finding,) = check_table(alone, requirements=[trap, IP])
    assert "stays in float, and that is right: ncnn returns nonsense" in finding.message


def test_tolerance_is_a_factor() -> None:
    requirement = weights(folded=[2, 3, 3])
    assert found(TEXT, requirement, IP, tolerance=1.6) == [("error", 1, "conv1")]


@pytest.mark.parametrize("dead", ["1", "inf"])
@pytest.mark.parametrize("expected", [1.0, np.inf, 0.0])
def test_dead_channels_agree_however_they_are_written(dead: str, expected: float) -> None:
    text = TEXT.replace("2 3 5", f"2 {dead} 5")
    findings = check_table(text, requirements=[weights(folded=[2, expected, 5]), IP])
    assert [f for f in findings if "channels without weights" not in f.message] == []


def test_consumers_of_one_blob_share_one_bottom_scale() -> None:
    conv, ip = replace(CONV, bottom="x"), replace(IP, bottom="x")
    assert found(TEXT, conv, ip) == [("error", 2, "ip1")]
    assert found(TEXT.replace("0.25", "0.5"), conv, ip) == []
    assert found(TEXT, conv, replace(ip, bottom="y")) == []


def test_formats_keyed_by_blob_are_checked_for_their_blobs() -> None:
    text = "TRT-8601-EntropyCalibration2\nx: 3c010a14\n"
    assert found(text, replace(CONV, bottom="x"), replace(IP, bottom="y")) == [
        ("error", None, "ip1")
    ]


def test_the_format_may_be_named() -> None:
    assert [f.line for f in check_table(TEXT, format="tensorrt")] == [1]
    assert [f.line for f in check_table("c_param_0 0 1\nc 1\n")] == [1]
    assert [f.severity for f in check_table("c_param_0 0 1\nc 1\n")] == ["warning"]
    assert [f.severity for f in check_table("c_param_0 0 1\nc 1\n", format="ncnn")] == ["error"]


def test_a_table_in_memory_is_linted_by_ncnns_rules() -> None:
    findings = check_table(table(layer("b", [0], 1), layer("a b", [1], 1), layer("c", [1], 1)))
    assert [(f.severity, f.line, f.layer) for f in findings] == [
        ("error", None, "a b"),
        ("error", None, "b"),
    ]


def test_findings_are_sorted_errors_first() -> None:
    text = "z_param_0 inf\ny_param_0 x\nz 1\ny 1\n\nx 3\n"
    lines = [(f.severity, f.line) for f in check_table(text)]
    assert lines == [("error", 2), ("error", 5), ("error", 6), ("warning", 1)]
    assert Finding("error", 7, None, "bad").located("t") == "t:7: bad"
    assert Finding("error", None, None, "bad").located("t") == "t: bad"


# ---- diff


@given(made=tables())
def test_a_table_does_not_differ_from_itself(made: CalibrationTable) -> None:
    rows = diff_tables(made, made)
    assert [row.distance for row in rows] == [0.0] * (2 * len(made.layers))
    assert list(dict.fromkeys(row.layer for row in rows)) == [x.name for x in made.layers]


def test_worst_first_and_one_sided_layers_on_top() -> None:
    a = table(layer("p", [1, 2, 4], 8), layer("q", [1, 1], 1), layer("gone", [1], 3))
    b = table(layer("p", [1, 5, 4], 6), layer("q", [1, 1, 1], 1), layer("new", [1], 5))
    assert diff_tables(a, b) == [
        DiffRow("q", "weights", None, None, None, note="2 weight scales against 3"),
        DiffRow("gone", "layer", 3, None, None, note="only in a"),
        DiffRow("new", "layer", None, 5, None, note="only in b"),
        DiffRow("p", "weights", 2, 5, 2.5, channel=1),
        DiffRow("p", "bottom", 8, 6, 0.75),
        DiffRow("q", "bottom", 1, 1, 1),
    ]


def test_blob_scales_and_missing_bottoms() -> None:
    a = CalibrationTable((layer("c", [2], math.nan),), {"x": 2.0, "y": 1.0})
    b = CalibrationTable((layer("c", [2], 3.0),), {"x": 1.0, "z": 1.0})
    assert diff_tables(a, b) == [
        DiffRow("c", "bottom", None, 3.0, None, note="only in b"),
        DiffRow("y", "blob", 1.0, None, None, note="only in a"),
        DiffRow("z", "blob", None, 1.0, None, note="only in b"),
        DiffRow("x", "blob", 2.0, 1.0, 0.5),
        DiffRow("c", "weights", 2.0, 2.0, 1.0, channel=0),
    ]


def test_scales_that_are_none_are_the_worst() -> None:
    a = table(LayerScales("c", np.array([1.0, 0.0, 2.0]), 1.0))
    rows = diff_tables(a, table(layer("c", [1, 1, 4], 1)))
    assert rows[0] == DiffRow("c", "weights", 0.0, 1.0, None, channel=1)


def test_real_tables_side_by_side(shared: Path) -> None:
    golden = shared / "golden"
    kl, aciq = (
        read_table(golden / f"squeezenet_v1.0.ncnn2table_{method}.table")
        for method in ("kl", "aciq")
    )
    rows = diff_tables(kl, aciq)
    assert len(rows) == 2 * len(kl.layers)
    distances = [row.distance for row in rows]
    assert distances == sorted(distances, reverse=True)
    for row in rows:
        x, y = kl[row.layer], aciq[row.layer]
        if row.kind == "bottom":
            assert row.ratio == y.bottom_scale / x.bottom_scale
        else:
            ratios = y.weight_scales.astype(float) / x.weight_scales.astype(float)
            worst = int(np.argmax(np.maximum(ratios, 1 / ratios)))
            assert row.ratio == pytest.approx(ratios[worst])
            assert max(ratios.max(), 1 / ratios.min()) == pytest.approx(math.exp(row.distance))
