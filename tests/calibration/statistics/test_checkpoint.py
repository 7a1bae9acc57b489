"""Runs that are killed and go on: nothing lost, nothing counted twice, the same bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

import int8calib
from int8calib.caffe.engine.run import Net
from int8calib.caffe.network.quantized import quantized_layers
from int8calib.calibration.statistics.checkpoint import Checkpoint
from int8calib.calibration.statistics.collect import collect_statistics, image_checksums
from int8calib.calibration.statistics.store import Statistics
from int8calib.cli.main import main
from int8calib.errors import ImageError, OptionError, StatisticsError
from tests.caffe.engine.test_engine import NET
from tests.generated import make_model

ROOT = Path(__file__).resolve().parents[3]
IMAGES = np.random.default_rng(23).normal(0, 60, (7, 3, 37, 29)).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("job")
    make_model(folder, NET)
    return folder


@pytest.fixture(scope="module")
def net(folder: Path) -> Net:
    return int8calib.load_caffe(folder / "net.prototxt", folder / "net.caffemodel")


class AccidentError(Exception):
    """The accident."""


class Loader:
    """Images one by one; the accident happens before item `stop`, counted over all passes."""

    def __init__(self, batch: int, stop: int | None = None) -> None:
        self.batch, self.stop, self.given = batch, stop, 0

    def __call__(self) -> Iterator[dict[str, np.ndarray]]:
        for start in range(0, len(IMAGES), self.batch):
            if self.given == self.stop:
                raise AccidentError
            self.given += 1
            yield {"data": IMAGES[start : start + self.batch]}


def collect(
    net: Net, batches: Loader, checkpoint: Checkpoint | None, exact: bool = True, **options: int
) -> Statistics:
    return collect_statistics(
        net.executor(fold_bn=False),
        batches,
        ["data", "pool1", "sum#1"],  # with negative values, without, and of a name used twice
        exact=exact,
        checkpoint=checkpoint,
        **options,  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def exact(net: Net) -> Statistics:
    """Those of a run that nothing stopped, of two passes."""
    return collect(net, Loader(3), None)


@pytest.fixture(scope="module")
def once(net: Net) -> Statistics:
    """The same of one pass."""
    return collect(net, Loader(3), None, exact=False)


def assert_same(a: Statistics, b: Statistics) -> None:
    assert a.ranges == b.ranges
    np.testing.assert_array_equal(a.checksums, b.checksums)
    for x, y in ((a.histograms, b.histograms), (a.halves, b.halves)):
        assert list(x) == list(y)
        for blob in x:
            np.testing.assert_array_equal(x[blob].positive, y[blob].positive)
            np.testing.assert_array_equal(x[blob].negative, y[blob].negative)
            assert (x[blob].zeros, x[blob].images) == (y[blob].zeros, y[blob].images)
            a, b = x[blob].fine, y[blob].fine
            assert (a is None) == (b is None)
            if a is not None and b is not None:
                np.testing.assert_array_equal(a.positive, b.positive)
                np.testing.assert_array_equal(a.negative, b.negative)
                assert a.exponent == b.exponent


@pytest.mark.parametrize(("batch", "cache"), [(1, 0), (2, 80_000), (1, 1 << 30), (2, 0)])
@pytest.mark.parametrize("stops", [(2,), (3, 6), (7, 2, 1)])
def test_a_run_goes_on_where_it_was(
    net: Net, exact: Statistics, tmp_path: Path, cache: int, batch: int, stops: tuple[int, ...]
) -> None:
    path, accidents = tmp_path / "run.npz", 0
    for stop in stops:
        # A later stop is reached in the second pass, or with a large cache not at all.
        try:
            checkpoint = Checkpoint(path, {"job": 1}, every=0)
            collect(net, Loader(batch, stop), checkpoint, cache_bytes=cache)
        except AccidentError:
            accidents += 1
    assert accidents
    checkpoint = Checkpoint(path, {"job": 1}, every=0)
    left = checkpoint.load()
    assert left is not None
    assert left.measured
    found = collect(net, Loader(batch), checkpoint, cache_bytes=cache, workers=2)
    assert_same(found, exact)
    assert found.images == len(IMAGES)
    checkpoint.remove()
    assert not path.exists()


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("stops", [(2,), (3, 2), (1, 2, 3)])
def test_one_pass_goes_on_where_it_was(
    net: Net, once: Statistics, tmp_path: Path, batch: int, stops: tuple[int, ...]
) -> None:
    path, accidents = tmp_path / "run.npz", 0
    for stop in stops:
        with suppress(AccidentError):
            collect(net, Loader(batch, stop), Checkpoint(path, {}, every=0), exact=False)
            accidents -= 1
        accidents += 1
    assert accidents == len(stops)
    checkpoint = Checkpoint(path, {}, every=0)
    left = checkpoint.load()
    assert left is not None
    assert left.counted
    assert not left.exact
    assert_same(collect(net, Loader(batch), checkpoint, exact=False, workers=2), once)


def test_a_checkpoint_of_two_passes_is_none_of_one(net: Net, tmp_path: Path) -> None:
    for exact, told in (
        (True, "a job with --exact, this one is without"),
        (False, "a job without"),
    ):
        path = tmp_path / f"{exact}.npz"
        collect(net, Loader(2), Checkpoint(path, {}, every=0), exact=exact)
        with pytest.raises(OptionError, match=told):
            collect(net, Loader(2), Checkpoint(path, {}), exact=not exact)


@pytest.mark.parametrize("exact", [True, False])
def test_a_finished_checkpoint_gives_the_same_again(net: Net, tmp_path: Path, exact: bool) -> None:
    checkpoint = Checkpoint(tmp_path / "run.npz", {}, every=0)
    first = collect(net, Loader(2), checkpoint, exact=exact)
    assert_same(collect(net, Loader(2), checkpoint, exact=exact), first)


def test_the_network_is_the_fingerprint_where_none_is_given(
    net: Net, folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "run.npz"
    with pytest.raises(AccidentError):
        int8calib.calibrate(net, Loader(2, 3), checkpoint=Checkpoint(path, every=0))
    before = path.read_bytes()
    unfolded = int8calib.Options(fold_bn=False)
    with pytest.raises(OptionError, match=r"another job \(its network differs\)"):
        int8calib.calibrate(net, Loader(2), unfolded, checkpoint=Checkpoint(path))
    other = int8calib.load_caffe(*make_model(tmp_path, NET, seed=2))
    with pytest.raises(OptionError, match=r"another job \(its network differs\)"):
        int8calib.calibrate(other, Loader(2), checkpoint=Checkpoint(path))
    assert path.read_bytes() == before
    same = int8calib.load_caffe(folder / "net.prototxt", folder / "net.caffemodel")
    done = int8calib.calibrate(same, Loader(2), checkpoint=Checkpoint(path))
    assert_same(done.statistics, int8calib.calibrate(net, Loader(2)).statistics)


def test_halves_follow_from_the_pixels(net: Net) -> None:
    found = collect(net, Loader(1), None)
    codes = [image_checksums({"data": image[None]})[0] for image in IMAGES]
    half = IMAGES[[code % 2 == 0 for code in codes]]
    assert 0 < len(half) < len(IMAGES)
    part = found.halves["data"]
    assert part.images == len(half)
    assert part.nonzero == np.count_nonzero(half)
    assert part.positive.sum() == (half > 0).sum()
    both = {"data": IMAGES[:2], "extra": IMAGES[3:5]}
    assert image_checksums(both) != image_checksums({"data": IMAGES[:2]})


def test_another_jobs_checkpoint_is_refused(net: Net, tmp_path: Path) -> None:
    path = tmp_path / "run.npz"
    collect(net, Loader(1), Checkpoint(path, {"model": "a", "batch": 1}, every=0))
    with pytest.raises(OptionError, match=r"run\.npz: is the checkpoint of another job .*model"):
        collect(net, Loader(1), Checkpoint(path, {"model": "b", "batch": 1}))
    from int8calib.calibration.statistics.file import save_statistics

    save_statistics(path, collect(net, Loader(1), None))
    with pytest.raises(StatisticsError, match="no checkpoint"):
        Checkpoint(path, {}).load()


def test_ranges_that_do_not_cover_the_images_are_refused(net: Net) -> None:
    blobs = [layer.blob for layer in quantized_layers(net.graph)]

    def few() -> list[dict[str, np.ndarray]]:
        return [{"data": IMAGES[:3] * np.float32(0.1)}]

    known = collect_statistics(net.executor(fold_bn=False), few, blobs, ranges_only=True)
    assert not known.histograms
    assert known.images == 3
    with pytest.raises(
        ImageError, match="image 1 of batch 1 is none of the images that the ranges"
    ):
        collect_statistics(net.executor(fold_bn=False), Loader(1), blobs, known=known)
    unknown = Statistics(known.ranges, {})
    with pytest.raises(StatisticsError, match="beyond its absmax"):
        collect_statistics(net.executor(fold_bn=False), Loader(1), blobs, known=unknown)
    with pytest.raises(StatisticsError, match="ranges given do not have it"):
        collect_statistics(net.executor(fold_bn=False), Loader(1), blobs, known=Statistics({}, {}))
    with pytest.raises(ImageError, match="no images"):
        collect_statistics(net.executor(fold_bn=False), lambda: [], blobs, known=known)


KILLED = """
import os, signal, sys
import numpy as np
from int8calib.cli.main import main

images, replace = 0, os.replace

def replace_or_die(source, target):
    global images
    if images >= 5:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
    with np.load(target) as archive:
        images = len(archive[sys.argv[1]])

os.replace = replace_or_die
main(sys.argv[2:])
"""
"""The command, killed as it writes the next checkpoint after one with 5 images in it."""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
@pytest.mark.parametrize("phase", ["ranges", "histograms", "one pass"])
def test_sigkill_and_resume_give_the_same_table(folder: Path, tmp_path: Path, phase: str) -> None:
    np.save(tmp_path / "images.npy", np.concatenate([IMAGES, IMAGES[::-1] / 2]))
    words = [
        *("calibrate", "--proto", str(folder / "net.prototxt"), "--quiet", "--cache", "0"),
        *("--model", str(folder / "net.caffemodel"), "--images", str(tmp_path / "images.npy")),
        *("--workers", "2"),
        "--no-exact" if phase == "one pass" else "--exact",
    ]
    checkpoint = tmp_path / "run.npz"
    resumable = [*words, "--output", str(tmp_path / "b.table"), "--checkpoint", str(checkpoint)]
    resumable += ["--checkpoint-every", "0"]
    done = "extra/measured" if phase == "ranges" else "extra/counted"
    process = subprocess.run([sys.executable, "-c", KILLED, done, *resumable], cwd=ROOT)
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "b.table").exists()
    with np.load(checkpoint) as archive:
        assert len(archive[done]) >= 5
    assert main(resumable) == 0
    assert not checkpoint.exists()
    assert main([*words, "--output", str(tmp_path / "a.table")]) == 0
    assert (tmp_path / "a.table").read_bytes() == (tmp_path / "b.table").read_bytes()
