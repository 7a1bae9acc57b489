"""A Dask cluster of processes: the same bits as one machine, through faults too."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import int8calib
from int8calib.calibration.statistics.cluster import collect_on_cluster
from int8calib.calibration.statistics.collect import collect_statistics
from int8calib.calibration.statistics.file import save_statistics
from int8calib.cli.loader import ImageLoader
from int8calib.cli.main import main
from int8calib.cluster import connect
from int8calib.errors import OptionError
from tests.caffe.engine.test_engine import NET
from tests.generated import make_model

distributed = pytest.importorskip("distributed", reason="needs the extra dask")
pytestmark = [
    pytest.mark.long,
    # Dask's event loop and sockets outlive a worker that is killed.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
RNG = np.random.default_rng(37)
ARRAYS = RNG.normal(0, 60, (11, 3, 37, 29)).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cluster")
    make_model(folder, NET)
    np.save(folder / "all.npy", ARRAYS)
    np.save(folder / "part.npy", ARRAYS[2:9])
    (folder / "photos").mkdir()
    (folder / "labels.txt").write_text("".join(f"{i}.png {i % 5}\n" for i in range(13)))
    for i in range(13):
        image = RNG.integers(0, 256, (41, 31, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / "photos" / f"{i}.png"), image)
    (folder / "photos" / "5.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with (
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            dashboard_address="127.0.0.1:0",
            silence_logs=50,
            memory_limit=0,
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def run(folder: Path, command: str, images: str, *more: str, code: int = 0) -> None:
    words = ["--proto", str(folder / "net.prototxt"), "--model", str(folder / "net.caffemodel")]
    quiet = () if command == "evaluate" else ("--quiet",)
    assert main([command, *words, "--images", str(folder / images), *more, *quiet]) == code


@pytest.fixture(scope="module")
def photos_here(folder: Path) -> bytes:
    """What one machine collects of the photos."""
    run(folder, "collect", "photos", "--output", str(folder / "photos-here"))
    return (folder / "photos-here").read_bytes()


@pytest.fixture(scope="module")
def table(folder: Path) -> Path:
    """The table that one machine makes of the photos."""
    run(folder, "calibrate", "photos", "--output", str(folder / "here.table"))
    return folder / "here.table"


@pytest.mark.parametrize(
    ("images", "exact"),
    [("all.npy", ()), ("all.npy", ("--exact",)), ("photos", ("--exact",))],
    ids=["all.npy-one-pass", "all.npy-exact", "photos-exact"],
)
def test_collects_the_same_file(
    folder: Path, tmp_path: Path, client: Any, images: str, exact: tuple[str, ...]
) -> None:
    run(folder, "collect", images, "--output", str(tmp_path / "one"), *exact)
    check_collected(folder, tmp_path, client, images, exact, (tmp_path / "one").read_bytes())


def test_collects_the_same_file_of_photos(
    folder: Path, tmp_path: Path, client: Any, photos_here: bytes
) -> None:
    check_collected(folder, tmp_path, client, "photos", (), photos_here)


def check_collected(
    folder: Path, tmp_path: Path, client: Any, images: str, exact: tuple[str, ...], one: bytes
) -> None:
    """Workers that read the images, and workers that are sent them, collect the same."""
    scheduler = ("--cluster", client.scheduler.address)
    run(folder, "collect", images, "--output", str(tmp_path / "many"), *exact, *scheduler)
    sent = ("--send-images", "--batch", "2")
    run(folder, "collect", images, "--output", str(tmp_path / "sent"), *exact, *scheduler, *sent)
    assert one == (tmp_path / "many").read_bytes()
    assert one == (tmp_path / "sent").read_bytes()


def test_both_passes_of_exact_apart(folder: Path, tmp_path: Path, client: Any) -> None:
    scheduler = ("--cluster", client.scheduler.address)
    for name, more in (("one", ()), ("many", scheduler)):
        ranges, counts = str(tmp_path / f"{name}-ranges"), str(tmp_path / name)
        run(folder, "collect", "all.npy", "--output", ranges, "--ranges-only", *more)
        run(folder, "collect", "part.npy", "--output", counts, "--ranges", ranges, *more)
    assert (tmp_path / "one-ranges").read_bytes() == (tmp_path / "many-ranges").read_bytes()
    assert (tmp_path / "one").read_bytes() == (tmp_path / "many").read_bytes()


def test_calibrates_the_same(folder: Path, tmp_path: Path, client: Any, table: Path) -> None:
    many = tmp_path / "many"
    run(folder, "calibrate", "photos", "--output", str(many), "--cluster", client.scheduler.address)
    assert many.read_bytes() == table.read_bytes()


@pytest.mark.parametrize("labels", [False, True], ids=["plain", "labels"])
def test_processes_evaluate_the_same(
    folder: Path,
    table: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    client: Any,
    labels: bool,
) -> None:
    # Once with a scheduler that is there, once with processes for this run alone.
    address = client.scheduler.address if labels else "local:2"
    monkeypatch.setattr("int8calib.cluster.chunks.MIN_CHUNK_IMAGES", 5)
    words = ["--table", str(table), "--json", "--batch", "3"]
    words += ["--labels", str(folder / "labels.txt")] if labels else []
    capsys.readouterr()
    run(folder, "evaluate", "photos", *words)
    one = capsys.readouterr().out
    run(folder, "evaluate", "photos", *words, "--cluster", address)
    assert one
    assert capsys.readouterr().out == one


def test_weights_are_rounded_the_same(folder: Path, tmp_path: Path, client: Any) -> None:
    for name, more in (("one", ()), ("many", ("--cluster", client.scheduler.address))):
        where = ("--output", str(tmp_path / f"{name}.table"), "--ncnn", str(tmp_path / name))
        run(folder, "calibrate", "photos", *where, *more)
    for end in (".table", ".param", ".bin", "-int8.param", "-int8.bin"):
        assert (tmp_path / f"one{end}").read_bytes() == (tmp_path / f"many{end}").read_bytes()


class Dying:
    """An executor whose process is killed the first time that it sees a certain image."""

    def __init__(self, executor: Any, flag: Path) -> None:
        self.layers, self.inputs = executor.layers, tuple(executor.inputs)
        self.executor, self.flag = executor, flag

    def run(self, inputs: Any, blobs: Sequence[str]) -> Any:
        if (inputs["data"][0] == ARRAYS[7]).all() and not self.flag.exists():
            self.flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.executor.run(inputs, blobs)


@pytest.mark.parametrize("exact", [False, True], ids=["one-pass", "exact"])
def test_a_worker_killed_in_mid_run_counts_nothing_twice(
    folder: Path, tmp_path: Path, client: Any, exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("int8calib.cluster.chunks.MAX_SENT_BYTES", 2 * ARRAYS[0].nbytes)
    net = int8calib.load_caffe(folder / "net.prototxt", folder / "net.caffemodel")
    executor = net.executor(fold_bn=True)
    blobs = tuple(layer.blob for layer in executor.layers)

    def batches() -> Iterator[Any]:
        return ({"data": image[None]} for image in ARRAYS)

    one = collect_statistics(executor, batches, blobs, exact=exact)
    dying: Any = Dying(executor, tmp_path / "died")
    many = collect_on_cluster(client, dying, batches, blobs, exact=exact)
    assert (tmp_path / "died").exists()
    for name, statistics in (("one", one), ("many", many)):
        save_statistics(tmp_path / name, statistics)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "many").read_bytes()


def test_ctrl_c_ends_the_run_and_leaves_the_cluster(folder: Path, client: Any) -> None:
    net = int8calib.load_caffe(folder / "net.prototxt", folder / "net.caffemodel")

    def stop(stage: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        int8calib.calibrate(net, lambda: [{"data": ARRAYS}], progress=stop, cluster=client)
    done = int8calib.calibrate(net, lambda: [{"data": ARRAYS}], cluster=client)
    here = int8calib.calibrate(net, lambda: [{"data": ARRAYS}])
    for many, one in zip(done.table.layers, here.table.layers, strict=True):
        assert (many.bottom_scale, many.name) == (one.bottom_scale, one.name)


def failing(folder: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    """The one line that a run ends with."""
    capsys.readouterr()
    run(folder, "collect", "photos", "--output", str(folder / "none"), *more, code=2)
    (line,) = capsys.readouterr().err.splitlines()
    assert not (folder / "none").exists()
    return line


def test_an_image_that_a_worker_cannot_read(
    folder: Path, client: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def divide(loader: ImageLoader, images: int) -> Any:
        (folder / "photos" / "11.png").rename(folder / "away")
        return original(loader, images)

    original = ImageLoader.divide
    monkeypatch.setattr(ImageLoader, "divide", divide)
    try:
        line = failing(folder, capsys, "--cluster", client.scheduler.address)
    finally:
        (folder / "away").rename(folder / "photos" / "11.png")
    path = re.escape(str(folder / "photos" / "11.png"))
    assert re.search(rf"{path}: worker tcp://\S+ on \S+ cannot read it: No such file", line)


def test_a_shared_place_by_url(
    folder: Path,
    tmp_path: Path,
    client: Any,
    photos_here: bytes,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("fsspec")
    scheduler = ("--cluster", client.scheduler.address)
    words = ["collect", "--proto", str(folder / "net.prototxt"), "--quiet", *scheduler]
    words += ["--model", str(folder / "net.caffemodel"), "--images"]
    assert main([*words, f"file://{folder}/photos", "--output", str(tmp_path / "url")]) == 0
    assert (tmp_path / "url").read_bytes() == photos_here
    import fsspec

    fsspec.filesystem("memory").pipe("/here/only.png", b"")  # which no other process sees
    capsys.readouterr()
    assert main([*words, "memory://here", "--output", str(tmp_path / "none")]) == 2
    assert re.search(r"only\.png: worker tcp://\S+ on \S+ cannot read", capsys.readouterr().err)


def test_other_versions_are_refused(
    folder: Path, client: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def pretend(version: str) -> None:
        import int8calib

        int8calib.__version__ = version

    client.wait_for_workers(2, timeout=60)  # one may have been killed
    address = list(client.scheduler_info()["workers"])[1]
    client.run(pretend, "0.0.7", workers=[address])
    try:
        line = failing(folder, capsys, "--cluster", client.scheduler.address)
    finally:
        client.run(pretend, int8calib.__version__, workers=[address])
    expected = f"worker {address} has int8calib 0.0.7, and this machine {int8calib.__version__}"
    assert expected in line


def test_clusters_that_are_none(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "expected local:N" in failing(folder, capsys, "--cluster", "local:0")
    assert "--checkpoint" in failing(folder, capsys, "--cluster", "local:2", "--checkpoint", "c")
    assert "--send-images" in failing(folder, capsys, "--send-images")
    monkeypatch.setattr(connect, "START_SECONDS", 0.1)
    line = failing(folder, capsys, "--cluster", "tcp://127.0.0.1:9")
    assert "no scheduler answers" in line
    net = int8calib.load_caffe(folder / "net.prototxt", folder / "net.caffemodel")
    with pytest.raises(OptionError, match=r"str; expected a dask\.distributed\.Client"):
        int8calib.calibrate(net, lambda: [{"data": ARRAYS}], cluster="tcp://here:8786")
    monkeypatch.setitem(sys.modules, "distributed", None)
    line = failing(folder, capsys, "--cluster", "local:2")
    assert line.endswith("pip install 'int8calib[dask]'")
