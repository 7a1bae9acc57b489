"""The benchmark of accuracy: intervals, figures by image, and a run on the demo's networks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import accuracy, cases, detectors, stages
from int8calib.demo import CAFFEMODEL, draw, scenes


def test_the_interval_is_that_of_a_mean() -> None:
    # For many independent values the bootstrap's is the normal one.
    values = np.random.default_rng(3).normal(0.7, 0.2, 400)
    mean, low, high = stages.interval(values)
    half = 1.96 * values.std(ddof=1) / np.sqrt(400)
    assert mean == values.mean()
    assert low == pytest.approx(mean - half, abs=0.1 * half)
    assert high == pytest.approx(mean + half, abs=0.1 * half)


def test_an_image_counts_once_however_often_it_is_held_out() -> None:
    results = [
        {"kl": {"images": ["b", "a"], "same": np.array([1.0, 0.5])}},
        {"kl": {"images": ["a", "c"], "same": np.array([1.0, 0.0])}},
    ]
    assert accuracy._by_image(results, "kl", "same").tolist() == [0.75, 1.0, 0.0]


@pytest.mark.long
def test_without_models_the_demo_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ncnn")
    monkeypatch.setenv("INT8CALIB_SHARED", str(tmp_path / "nothing"))
    # A fifth of the pictures, of which fewer still are used.
    for module, name in ((draw, "write_images"), (scenes, "write_scenes")):
        write = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *x, write=write: write(x[0], x[1] // 5, x[2]))
    for module in (accuracy, detectors):
        monkeypatch.setattr(module, "STAGES", (stages.KL, stages.MSE))
    words = ["--limit", "12", "--splits", "2", "--dry-run", "--work", str(tmp_path / "work")]
    for more in ([], ["--detectors"]):
        assert accuracy.main([*words, *more]) == 0
        shown = capsys.readouterr().out
        rows = [line for line in shown.splitlines() if line.startswith("| ")]
        names = [row.split("|")[2].strip() for row in rows[1:]]
        assert names == ["float"] * (not more) + [stages.KL.name, stages.MSE.name]
    # What is done is not done again.
    monkeypatch.setattr(accuracy, "make", None)
    assert accuracy.main(words) == 0
    (case,) = cases.classifiers(tmp_path / "work")
    assert case.model == CAFFEMODEL
    assert all(path.parent.name for path in case.labels)


def test_the_page_has_a_place_for_both_tables() -> None:
    page = accuracy.PAGE.read_text(encoding="utf-8")
    for name in ("accuracy", "detectors"):
        assert page.count(f"<!-- {name}:begin -->") == page.count(f"<!-- {name}:end -->") == 1
