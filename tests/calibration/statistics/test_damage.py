"""Files that are sound archives with wrong content: each is refused in one line at the door."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import int8calib
from int8calib import Options
from int8calib.caffe.engine.run import Net
from int8calib.calibration.assemble import assemble
from int8calib.calibration.collected import Collected, load_collected, save_collected
from int8calib.calibration.pipeline import prepare
from int8calib.calibration.statistics.checkpoint import Checkpoint
from int8calib.calibration.statistics.collect import collect_statistics
from int8calib.calibration.statistics.file import load_statistics
from int8calib.errors import Int8CalibError, OptionError, StatisticsError
from tests.caffe.engine.test_engine import NET
from tests.calibration.statistics.changes import (
    COMMON,
    EXACT,
    LAYERS,
    ONCE,
    RUN,
    Content,
    at,
    put,
    rewritten,
)
from tests.generated import make_model

IMAGES = np.random.default_rng(41).normal(0, 60, (7, 3, 37, 29)).astype(np.float32)
JOB = {"model": "abc", "batch": 2}


class AccidentError(Exception):
    """The accident."""


def batches(stop: int | None = None) -> Any:
    given = 0

    def start() -> Any:
        nonlocal given
        for first in range(0, len(IMAGES), 2):
            if given == stop:
                raise AccidentError
            given += 1
            yield {"data": IMAGES[first : first + 2]}

    return start


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Net:
    return int8calib.load_caffe(*make_model(tmp_path_factory.mktemp("net"), NET))


@pytest.fixture(scope="module")
def collected(net: Net, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of `int8calib collect`."""
    path = tmp_path_factory.mktemp("collected") / "s.npz"
    return save(net, path, exact=True)


@pytest.fixture(scope="module")
def once(net: Net, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, counted in one pass."""
    return save(net, tmp_path_factory.mktemp("once") / "s.npz", exact=False)


def save(net: Net, path: Path, *, exact: bool) -> Path:
    job = prepare(net, Options())
    statistics = collect_statistics(job.executor, batches(), job.blobs, exact=exact)
    save_collected(path, Collected(statistics, job.candidates, job.named, "net", JOB))
    return path


@pytest.fixture(scope="module")
def checkpoint(net: Net, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint from the middle of the second pass."""
    path = tmp_path_factory.mktemp("checkpoint") / "run.npz"
    job = prepare(net, Options())
    with pytest.raises(AccidentError):
        collect_statistics(
            job.executor,
            batches(6),
            job.blobs,
            exact=True,
            checkpoint=Checkpoint(path, JOB, every=0),
        )
    return path


@pytest.mark.parametrize("what", ONCE)
@pytest.mark.parametrize("digest", [True, False])
def test_statistics_of_one_pass_that_do_not_fit_are_refused(
    once: Path, tmp_path: Path, what: str, digest: bool
) -> None:
    check_refused(rewritten(once, tmp_path / "s.npz", ONCE[what], digest=digest))


@pytest.mark.parametrize("what", COMMON)
def test_files_of_one_pass_are_held_to_the_same_rules(
    once: Path, tmp_path: Path, what: str
) -> None:
    check_refused(rewritten(once, tmp_path / "s.npz", COMMON[what], digest=True))


def test_files_of_the_version_before_are_read(collected: Path, once: Path, tmp_path: Path) -> None:
    def older(arrays: Content, head: dict[str, Any]) -> None:
        head["schema"] = 2
        del head["kind"]

    path = rewritten(collected, tmp_path / "s.npz", older, digest=True)
    found, expected = load_statistics(path).statistics, load_statistics(collected).statistics
    assert found.ranges == expected.ranges
    for blob, histogram in expected.histograms.items():
        np.testing.assert_array_equal(found.histograms[blob].counts, histogram.counts)
    check_refused(rewritten(once, tmp_path / "s.npz", older, digest=True))


@pytest.mark.parametrize("what", COMMON | EXACT)
@pytest.mark.parametrize("digest", [True, False])
def test_statistics_that_do_not_fit_are_refused(
    collected: Path, tmp_path: Path, what: str, digest: bool
) -> None:
    check_refused(rewritten(collected, tmp_path / "s.npz", (COMMON | EXACT)[what], digest=digest))


def check_refused(path: Path) -> None:
    with pytest.raises(StatisticsError, match=r"s\.npz: ") as caught:
        load_statistics(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_content_that_fits_but_was_changed_is_refused(collected: Path, tmp_path: Path) -> None:
    change = at("all/positive", (0, 3), 10**9)
    for digest in (np.zeros(3, np.int64), np.zeros(32, np.uint8)):
        with pytest.raises(StatisticsError, match=r"s\.npz: .*(digest|its content was changed)"):
            load_statistics(
                rewritten(collected, tmp_path / "s.npz", put("digest", digest), digest=False)
            )
    with pytest.raises(StatisticsError, match="its content was changed after it was written"):
        load_statistics(rewritten(collected, tmp_path / "s.npz", change, digest=False))
    same = rewritten(collected, tmp_path / "t.npz", lambda arrays, head: None, digest=False)
    assert load_statistics(same).statistics.images == len(IMAGES)


@pytest.mark.parametrize("what", LAYERS)
def test_layers_that_do_not_fit_are_refused(collected: Path, tmp_path: Path, what: str) -> None:
    path = rewritten(collected, tmp_path / "s.npz", LAYERS[what], digest=True)
    with pytest.raises(StatisticsError, match=r"s\.npz: .*collect") as caught:
        load_collected(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("what", RUN)
def test_checkpoints_that_do_not_fit_are_refused(
    checkpoint: Path, tmp_path: Path, what: str
) -> None:
    path = rewritten(checkpoint, tmp_path / "run.npz", RUN[what], digest=True)
    with pytest.raises(StatisticsError, match=r"run\.npz: "):
        Checkpoint(path, JOB).load()


def test_a_checkpoint_of_other_blobs_is_refused(net: Net, checkpoint: Path, tmp_path: Path) -> None:
    path = rewritten(checkpoint, tmp_path / "run.npz", lambda arrays, head: None, digest=True)
    job = prepare(net, Options(only=("conv1",)))
    with pytest.raises(StatisticsError, match=r"run\.npz: .* other blobs"):
        collect_statistics(
            job.executor,
            batches(),
            job.blobs,
            exact=True,
            checkpoint=Checkpoint(path, JOB, every=0),
        )


def test_sizes_are_refused_before_memory_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bomb.npz"
    limit, row = 1 << 25, b"\0" * (1 << 22)
    monkeypatch.setattr("int8calib.calibration.statistics.file.MAX_STATISTICS_BYTES", limit)
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("meta.npy", "w", force_zip64=True) as member,
    ):
        for _ in range(limit // len(row) + 1):
            member.write(row)
    assert path.stat().st_size < 1 << 17
    with pytest.raises(StatisticsError, match=r"bomb\.npz: .*unpacks to more than 33554432 bytes"):
        load_statistics(path)


def test_a_shape_that_the_data_does_not_have_is_refused(collected: Path, tmp_path: Path) -> None:
    for shape in ((1 << 60,), (1 << 40, 1 << 40), (5, 2**62), (-1,), (3.5,), (True,), "x"):
        buffer = io.BytesIO()
        header = {"descr": "<f8", "fortran_order": False, "shape": (1,)}
        np.lib.format.write_array_header_1_0(buffer, header)  # type: ignore[arg-type]
        text = buffer.getvalue().replace(b"(1,)", repr(shape).encode())
        text = text[:8] + (len(text) - 10).to_bytes(2, "little") + text[10:]
        path = tmp_path / "s.npz"
        with zipfile.ZipFile(collected) as source, zipfile.ZipFile(path, "w") as target:
            for name in source.namelist():
                data = source.read(name)
                target.writestr(name, text + data[128:] if name == "ranges.npy" else data)
        with pytest.raises(StatisticsError, match=r"s\.npz: .*damaged file"):
            load_statistics(path)


@pytest.mark.parametrize("every", [float("inf"), float("nan"), -1.0])
def test_a_time_that_never_comes_is_refused(tmp_path: Path, every: float) -> None:
    with pytest.raises(OptionError, match=f"checkpoint every {every} s; expected"):
        Checkpoint(tmp_path / "run.npz", {}, every)


def test_random_changes_end_in_one_line_or_a_table(
    net: Net, collected: Path, once: Path, checkpoint: Path, tmp_path: Path
) -> None:
    rng = np.random.default_rng(43)
    job = prepare(net, Options())
    values = [0, -1, 1, 2**31, 2**62, np.nan, np.inf, -np.inf, 1e300, 0.5]

    def change(arrays: Content, head: dict[str, Any]) -> None:
        name = str(rng.choice(sorted(arrays)))
        array = arrays[name]
        match rng.integers(6):
            case 0:
                del arrays[name]
            case 1:
                arrays[name] = array.astype(rng.choice(["i8", "f8", "u1", "f4", "i4"]))
            case 2:
                arrays[name] = array[: rng.integers(len(array) + 1)]
            case 3:
                arrays[name] = array.reshape(-1)
            case _:
                arrays[name] = array = array.copy()
                value = np.array(values[rng.integers(len(values))])
                with np.errstate(all="ignore"):
                    array.reshape(-1)[rng.integers(array.size)] = value.astype(array.dtype)

    refused: list[str] = []
    for i in range(120):
        source = checkpoint if i % 2 else (collected, once)[i // 2 % 2]
        with np.errstate(all="ignore"):
            path = rewritten(source, tmp_path / "s.npz", change, digest=i % 4 < 2)
        try:
            if i % 2:
                collect_statistics(
                    job.executor,
                    batches(),
                    job.blobs,
                    exact=True,
                    checkpoint=Checkpoint(path, JOB, every=9),
                )
            else:
                stored = load_collected(path)
                assemble(stored.layers, stored.statistics, Options(), source=stored.source)
        except Int8CalibError as error:
            refused.append(str(error))
    assert 60 < len(refused) < 120
    assert not any("\n" in line for line in refused)


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/full"])
@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs devices")
def test_a_device_is_no_file_of_statistics(path: str) -> None:
    with pytest.raises(StatisticsError, match="it is a device; expected a file"):
        load_statistics(path)
