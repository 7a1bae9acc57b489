"""JSON of `analyze` and `evaluate` read back; what is wrong with other files."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from int8calib.errors import OptionError
from int8calib.evaluation.boxes import BoxAgreement
from int8calib.evaluation.results import Accuracy
from int8calib.reporting.files import read_analysis, read_evaluation
from tests.reporting_cases import TABLES, case


def test_an_analysis_comes_back(tmp_path: Path) -> None:
    found = case().analyzes[TABLES[0]]
    (tmp_path / "a.json").write_text(json.dumps(found.as_dict()))
    assert read_analysis(tmp_path / "a.json") == found


def test_an_evaluation_comes_back(tmp_path: Path) -> None:
    found = case().evaluation
    confusion = np.arange(25).reshape(5, 5)
    first = replace(found.tables[0], boxes=BoxAgreement(3, 5, 7), agreement=None, accuracy=None)
    accuracy = Accuracy(found.float_accuracy.topk, confusion)
    found = replace(found, tables=(first, *found.tables[1:]), float_accuracy=accuracy)
    (tmp_path / "e.json").write_text(json.dumps(found.as_dict()))
    again = read_evaluation(tmp_path / "e.json")
    assert again.as_dict() == found.as_dict()
    assert again.tables[0].boxes == BoxAgreement(3, 5, 7)
    np.testing.assert_array_equal(again.float_accuracy.confusion, confusion)


def test_null_is_no_error(tmp_path: Path) -> None:
    values = case().analyzes[TABLES[0]].as_dict()
    values["layers"][0] |= {"own_sqnr": None, "output_sqnr": None}
    values["layers"][1] |= {"output_sqnr": None, "agreement": None}
    (tmp_path / "a.json").write_text(json.dumps(values))
    first, second, *_ = read_analysis(tmp_path / "a.json").layers
    assert math.isinf(first.own_sqnr)
    assert math.isinf(first.output_sqnr)
    assert second.output_sqnr is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no JSON"),
        ("[]", "not what `int8calib"),
        ('{"images": 3}', "lacks"),
        ('{"images": 3, "float": 4, "tables": 5, "layers": 1, "cost": 1}', "not what"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    for read in (read_analysis, read_evaluation):
        with pytest.raises(OptionError, match=message) as raised:
            read(path)
        assert "x.json" in str(raised.value)
    with pytest.raises(OptionError, match="cannot be read"):
        read_analysis(tmp_path / "none.json")
