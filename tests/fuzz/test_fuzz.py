"""A few thousand damaged files of every kind; `python -m tests.fuzz --cases 100000` runs more."""

from __future__ import annotations

import io
import random
from pathlib import Path

import numpy as np
import pytest

from int8calib.calibration.statistics.file import _digest
from int8calib.errors import StatisticsError
from tests.fuzz import run
from tests.fuzz.run import cases_of, damaged, run_case, run_cases
from tests.fuzz.seeds import Seeds, make_seeds
from tests.fuzz.targets import TARGETS, Target, refusing

CASES = 100  # of each kind; three times as many of those with the most code behind them
LIMIT = 60.0  # seconds a case may take on a machine that is busy with other tests


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Seeds:
    return make_seeds(tmp_path_factory.mktemp("seeds"))


@pytest.mark.parametrize("kind", TARGETS)
def test_damaged_files_end_in_a_result_or_in_our_own_error(
    seeds: Seeds, tmp_path: Path, kind: str
) -> None:
    count = CASES * (3 if kind in run.KEPT else 1)
    report = run_cases(seeds, cases_of([kind], count), tmp_path, limit=LIMIT)
    assert not report.failures, report.table()
    # Damage that nothing survives, or that nothing notices, would test little.
    assert report.counts[kind, "success"] >= count // 50
    assert report.counts[kind, "refused"] >= count // 50 or kind == "list"


def test_sound_files_are_read(seeds: Seeds, tmp_path: Path) -> None:
    for kind, files in seeds.files.items():
        for data in files:
            path = tmp_path / f"file{TARGETS[kind].suffix}"
            path.write_bytes(data)
            TARGETS[kind].read(path, seeds.folder, random.Random(1))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('bottom: "c2" top: "c2"', 'bottom: "c2" name: "c2"'),
        ('name: "p1" type: "Pooling" bottom: "c1" top: "p1"', 'name: "p1" type: "Pooling"'),
        (
            'bottom: "data" top: "c1" convolution_param { num_output: 5 kernel_size: 3',
            'bottom: "data" convolution_param { num_output: 5 kernel_size: 33',
        ),
    ],
)
@pytest.mark.filterwarnings("ignore::caffe_proto.UnknownFieldWarning")
def test_layers_without_tops_or_bottoms(seeds: Seeds, tmp_path: Path, old: str, new: str) -> None:
    """What the mutation test found once, as whole files."""
    text = seeds.files["prototxt"][0].decode()
    assert old in text
    path = tmp_path / "net.prototxt"
    path.write_text(text.replace(old, new, 1))
    refusing(lambda: TARGETS["prototxt"].read(path, seeds.folder, random.Random(1)))


@pytest.mark.parametrize("part", ["measured", "counted"])
def test_parts_of_a_checkpoint_without_axes(seeds: Seeds, tmp_path: Path, part: str) -> None:
    with np.load(io.BytesIO(seeds.files["checkpoint"][0])) as archive:
        arrays = {name: archive[name] for name in archive.files if name != "digest"}
    (name,) = [name for name in arrays if name.split("/")[-1].startswith(part)][:1]
    arrays[name] = np.zeros((), arrays[name].dtype)
    arrays["digest"] = _digest(arrays)
    np.savez(tmp_path / "file.npz", **arrays)
    with pytest.raises(StatisticsError):
        TARGETS["checkpoint"].read(tmp_path / "file.npz", seeds.folder, random.Random(1))


def test_a_case_is_the_same_in_every_run(seeds: Seeds) -> None:
    for kind in TARGETS:
        assert damaged(seeds, kind, 7)[0] == damaged(seeds, kind, 7)[0]
        assert len({damaged(seeds, kind, case)[0] for case in range(30)}) > 20


@pytest.mark.parametrize(
    ("does", "outcome"),
    [
        (lambda: 1 / 0, "error"),
        (lambda: bytearray(1 << 36), "memory"),
        (lambda: sum(0 for _ in iter(int, 1)), "slow"),
    ],
)
def test_what_goes_wrong_is_told_apart(
    seeds: Seeds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, does: object, outcome: str
) -> None:
    target = Target(TARGETS["labels"].damage, ".txt", lambda *_: does())
    monkeypatch.setitem(TARGETS, "labels", target)
    limit = 0.1 if outcome == "slow" else LIMIT
    with run.limited_memory():
        found, failure = run_case(seeds, "labels", 0, tmp_path, limit=limit)
    assert found == outcome
    assert failure is not None
    assert failure.outcome == outcome
