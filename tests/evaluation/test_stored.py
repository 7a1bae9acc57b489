"""JSON of `analyze` and `evaluate` read back; anything else is refused in one line."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from int8calib.analysis.results import read_analysis
from int8calib.errors import OptionError
from int8calib.evaluation.average_precision import BoxAccuracy
from int8calib.evaluation.kinds import NetworkKind
from int8calib.evaluation.measures import BoxAgreement, Share
from int8calib.evaluation.results import Accuracy, Evaluation
from int8calib.evaluation.stored import read_evaluation
from tests.reporting_cases import TABLES, case

READERS = {"evaluation": read_evaluation, "analysis": read_analysis}


def full_evaluation() -> Evaluation:
    """One with boxes and a confusion matrix, and a table without accuracy's companions."""
    found = case().evaluation
    assert found.float_accuracy is not None
    first = replace(
        found.tables[0],
        boxes=BoxAgreement(3, 5, 7),
        agreement=None,
        blobs=(replace(found.tables[0].blobs[0], psnr=31.5), *found.tables[0].blobs[1:]),
        against_float=BoxAccuracy(0.75, Share(3, 5)),
        against_labels=BoxAccuracy(math.nan, Share(0, 0)),
    )
    accuracy = Accuracy(found.float_accuracy.topk, np.arange(25).reshape(5, 5))
    return replace(
        found,
        tables=(first, *found.tables[1:]),
        float_accuracy=accuracy,
        notes=("output x is left out: it cannot run",),
        kind=NetworkKind("detector", "x is made by DetectionOutput", True),
        float_boxes=BoxAccuracy(0.5, Share(2, 4)),
    )


def values(kind: str) -> dict[str, Any]:
    """A good file's content."""
    whole = full_evaluation() if kind == "evaluation" else case().analyses[TABLES[0]]
    plain: dict[str, Any] = json.loads(json.dumps(whole.as_dict()))
    return plain


def refused(kind: str, path: Path) -> str:
    """The message with which a file is refused, which must be one short line that names it."""
    with pytest.raises(OptionError) as raised:
        READERS[kind](path)
    message = str(raised.value)
    assert "\n" not in message
    assert len(message) < 300 + len(str(path))
    message.encode("utf-8")
    assert path.name in message
    return message


def test_an_analysis_comes_back(tmp_path: Path) -> None:
    found = case().analyses[TABLES[0]]
    (tmp_path / "a.json").write_text(json.dumps(found.as_dict()))
    assert read_analysis(tmp_path / "a.json") == found
    assert len(found.network) == 64


def test_an_evaluation_comes_back(tmp_path: Path) -> None:
    found = full_evaluation()
    (tmp_path / "e.json").write_text(json.dumps(found.as_dict()))
    again = read_evaluation(tmp_path / "e.json")
    assert again.as_dict() == found.as_dict()
    assert again.tables[0].boxes == BoxAgreement(3, 5, 7)
    assert found.float_accuracy is not None
    assert again.float_accuracy is not None
    np.testing.assert_array_equal(again.float_accuracy.confusion, found.float_accuracy.confusion)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 12.5])
def test_every_sqnr_comes_back(value: float, tmp_path: Path) -> None:
    found = case().analyses[TABLES[0]]
    layers = (replace(found.layers[0], accumulated_sqnr=value), *found.layers[1:])
    text = json.dumps(replace(found, layers=layers).as_dict(), allow_nan=False)
    (tmp_path / "a.json").write_text(text)
    again = read_analysis(tmp_path / "a.json").layers[0].accumulated_sqnr
    assert again == value or (math.isnan(again) and math.isnan(value))


def test_null_is_no_error_where_effects_were_measured(tmp_path: Path) -> None:
    content = values("analysis")
    content["layers"][0] |= {"isolated_sqnr": None, "output_sqnr": None, "agreement": None}
    (tmp_path / "a.json").write_text(json.dumps(content))
    first = read_analysis(tmp_path / "a.json").layers[0]
    assert math.isinf(first.isolated_sqnr)
    assert first.output_sqnr == math.inf
    content["sensitivity_images"] = 0
    for layer in content["layers"]:
        layer["output_sqnr"] = None
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert read_analysis(tmp_path / "a.json").layers[0].output_sqnr is None


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a JSON document."""
    yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*path, key))
    if isinstance(value, list):
        for i, inner in enumerate(value):
            yield from places(inner, (*path, i))


# What is worked out anew from other fields, and so not read.
DERIVED = {"by_sensitivity", "value", "low", "high", "relative_error"}
NEVER_RIGHT: tuple[Any, ...] = (True, [[]], {"x": {}}, "half \ud800 pair", 10**400, -(10**30))


@pytest.mark.parametrize("kind", READERS)
def test_no_place_takes_another_type(kind: str, tmp_path: Path) -> None:
    good = values(kind)
    path = tmp_path / "x.json"
    tried = 0
    for place in places(good):
        # `agreement` of boxes follows from their counts.
        if DERIVED.intersection(place) or place[-2:] == ("boxes", "agreement"):
            continue
        for wrong in NEVER_RIGHT:
            if place[-1:] == ("sure",) and wrong is True:
                continue
            changed = copy.deepcopy(good)
            target: Any = changed
            for key in place[:-1]:
                target = target[key]
            if place:
                target[place[-1]] = wrong
            else:
                changed = wrong
            path.write_text(json.dumps(changed))
            refused(kind, path)
            tried += 1
    assert tried > 300


@pytest.mark.parametrize("kind", READERS)
def test_no_field_may_be_missing(kind: str, tmp_path: Path) -> None:
    good = values(kind)
    path = tmp_path / "x.json"
    for place in places(good):
        if not place or not isinstance(place[-1], str) or DERIVED.intersection(place):
            continue
        if place[-2:] == ("boxes", "agreement") or place[-2:-1] == ("topk",):
            continue
        changed = copy.deepcopy(good)
        target: Any = changed
        for key in place[:-1]:
            target = target[key]
        del target[place[-1]]
        path.write_text(json.dumps(changed))
        assert repr(place[-1]) in refused(kind, path)


@pytest.mark.parametrize(
    ("kind", "place", "value", "words"),
    [
        ("evaluation", ("images",), 0, "images is 0; expected a whole number from 1"),
        ("evaluation", ("format",), "int8calib-analysis", "expected 'int8calib-evaluation'"),
        ("evaluation", ("schema",), 1, "another version"),
        ("evaluation", ("network",), "abc", "network is 'abc'; expected a SHA-256"),
        ("evaluation", ("float",), None, "different top-k"),
        ("evaluation", ("float", "topk"), {}, "at least one k"),
        ("evaluation", ("float", "topk"), {"0": {"hits": 1, "total": 1}}, "the key '0'"),
        ("evaluation", ("float", "confusion"), [[1, 2]], "as many columns as rows"),
        ("evaluation", ("tables", 1, "name"), TABLES[0], "twice"),
        ("evaluation", ("tables", 1, "agreement", "hits"), 8, "from 0 to 7"),
        ("evaluation", ("tables", 0, "boxes", "matched"), 6, "from 0 to 5"),
        ("evaluation", ("tables", 0, "blobs", 0, "cosine"), 1.5, "tables[0].blobs[0].cosine"),
        ("analysis", ("layers", 0, "clipped_values"), -0.1, "from 0 to 1"),
        ("analysis", ("layers", 1, "name"), "fc", "twice"),
        ("analysis", ("sensitivity_images",), 0, "since sensitivity_images is 0"),
        ("analysis", ("sensitivity_images",), 99, "from 0 to 7"),
    ],
)
def test_values_that_mean_nothing_are_refused(
    kind: str, place: tuple[Any, ...], value: Any, words: str, tmp_path: Path
) -> None:
    content = values(kind)
    if kind == "analysis" and place[-1] == "name":
        content["layers"][0]["name"] = "fc"
    target: Any = content
    for key in place[:-1]:
        target = target[key]
    target[place[-1]] = value
    path = tmp_path / "x.json"
    path.write_text(json.dumps(content))
    assert words in refused(kind, path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "is no JSON"),
        (b"", "is no JSON"),
        (b"\xff\xfe\x00", "is no JSON"),
        (b"[]", "expected an object"),
        (b'{"images": 3}', "has no 'format'"),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deep"),
        (b'{"images": ' + b"9" * 5000 + b"}", "is no JSON"),
        (b'{"images": NaN}', "NaN is no JSON number"),
        (b'{"images": 1, "images": 2}', "stands twice"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    for kind in READERS:
        assert words in refused(kind, path)


def test_a_number_beyond_all_floats_is_refused(tmp_path: Path) -> None:
    text = json.dumps(values("analysis"))
    cost = json.dumps(values("analysis")["cost"])
    assert f'"cost": {cost}' in text
    path = tmp_path / "x.json"
    path.write_text(text.replace(f'"cost": {cost}', '"cost": 1e999'))
    assert "the number 1e999 is too large" in refused("analysis", path)


def test_files_that_cannot_be_read_or_are_huge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "cannot be read" in refused("analysis", tmp_path / "none.json")
    assert "cannot be read" in refused("analysis", tmp_path)
    path = tmp_path / "x.json"
    path.write_text(json.dumps(values("analysis")))
    monkeypatch.setattr("int8calib.evaluation.stored.MAX_BYTES", 100)
    assert "more than 100 bytes (the limit)" in refused("analysis", path)
