"""Statistics of a run: against numpy, and the same bit for bit however the work is cut."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import int8calib
from int8calib.caffe.engine.run import Net
from int8calib.caffe.network.quantized import quantized_layers
from int8calib.calibration.statistics.checkpoint import Checkpoint, CollectionState
from int8calib.calibration.statistics.collect import collect_statistics
from int8calib.calibration.statistics.counters import ExactCounters, OnePassCounters
from int8calib.calibration.statistics.ranges import Range
from int8calib.calibration.statistics.store import Statistics, merge_statistics
from int8calib.errors import ImageError, StatisticsError
from tests.caffe.engine.test_engine import NET
from tests.generated import make_model

IMAGES = np.random.default_rng(11).normal(0, 60, (13, 3, 37, 29)).astype(np.float32)


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Net:
    return int8calib.load_caffe(*make_model(tmp_path_factory.mktemp("odd"), NET))


class Loader:
    """Images in batches, and how often a pass was started."""

    def __init__(self, images: np.ndarray, batch: int) -> None:
        self.images, self.batch, self.passes = images, batch, 0

    def __call__(self) -> Iterator[dict[str, np.ndarray]]:
        self.passes += 1
        for start in range(0, len(self.images), self.batch):
            yield {"data": self.images[start : start + self.batch]}


def collect(
    net: Net, batches: Loader, workers: int = 1, cache: int = 0, *, exact: bool = True
) -> Statistics:
    blobs = [layer.blob for layer in quantized_layers(net.graph)]
    return collect_statistics(
        net.executor(fold_bn=False), batches, blobs, exact=exact, workers=workers, cache_bytes=cache
    )


@pytest.fixture(scope="module")
def plain(net: Net) -> Statistics:
    return collect(net, Loader(IMAGES, 1))


@pytest.fixture(scope="module")
def once(net: Net) -> Statistics:
    return collect(net, Loader(IMAGES, 1), exact=False)


def assert_equal(found: Statistics, expected: Statistics) -> None:
    """Bit for bit the same, fine bins included."""
    assert list(found.histograms) == list(expected.histograms)
    assert found.ranges == expected.ranges
    np.testing.assert_array_equal(found.checksums, expected.checksums)
    for mine, theirs in (
        (found.histograms, expected.histograms),
        (found.halves, expected.halves),
    ):
        for blob, b in theirs.items():
            a = mine[blob]
            np.testing.assert_array_equal(a.positive, b.positive)
            np.testing.assert_array_equal(a.negative, b.negative)
            assert (a.absmax, a.zeros, a.images) == (b.absmax, b.zeros, b.images)
            assert (a.fine is None) == (b.fine is None)
            if a.fine is not None and b.fine is not None:
                np.testing.assert_array_equal(a.fine.positive, b.fine.positive)
                np.testing.assert_array_equal(a.fine.negative, b.fine.negative)


def test_statistics_are_what_numpy_counts(net: Net, plain: Statistics) -> None:
    tops: dict[str, np.ndarray] = {}
    net.forward({"data": IMAGES}, on_top=lambda layer, blob, top: tops.update({blob: top.copy()}))
    names = {"data": "data", "pool1": "pool1", "dw": "dw", "sum#1": "sum", "flat": "flat"}
    assert set(plain.histograms) == set(names)
    for key, blob in names.items():
        values, found = tops[blob], plain.histograms[key]
        absmax = np.abs(values).max()
        assert found.absmax == absmax
        bins = np.minimum((np.abs(values) / absmax * np.float32(2048)).astype(np.int64), 2047)
        expected = np.bincount(bins[values != 0], minlength=2048)
        np.testing.assert_array_equal(found.counts, expected, err_msg=key)
        assert found.zeros == np.count_nonzero(values == 0)
        assert found.images == len(IMAGES)


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("cache", [0, 100_000, 1 << 30])
def test_nothing_depends_on_how_the_work_is_cut(
    net: Net, plain: Statistics, workers: int, batch: int, cache: int
) -> None:
    batches = Loader(IMAGES, batch)
    found = collect(net, batches, workers, cache)
    assert batches.passes == (1 if cache == 1 << 30 else 2)
    assert_equal(found, plain)


@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)])
@pytest.mark.parametrize(("workers", "batch"), [(1, 5), (2, 1), (3, 2)])
def test_one_pass_does_not_depend_on_how_the_work_is_cut(
    net: Net, once: Statistics, workers: int, batch: int, order: slice
) -> None:
    batches = Loader(IMAGES[order], batch)
    assert_equal(collect(net, batches, workers, exact=False), once)
    assert batches.passes == 1


def test_parts_of_one_pass_merge_to_the_whole(net: Net, once: Statistics) -> None:
    # The parts have ranges of their own, so their fine bins differ in width.
    parts = [IMAGES[:1] / 1000, IMAGES[1:6], IMAGES[6:], IMAGES[:1]]
    counted = [collect(net, Loader(part, 2), exact=False) for part in parts]
    whole = collect(net, Loader(np.concatenate(parts), 1), exact=False)
    assert_equal(merge_statistics(counted), whole)
    assert_equal(merge_statistics(counted[::-1]), whole)
    assert_equal(merge_statistics([merge_statistics(counted[1:3]), counted[3]]), once)


def test_one_pass_and_two_do_not_merge(plain: Statistics, once: Statistics) -> None:
    with pytest.raises(StatisticsError, match="blob data: one histogram was counted in one pass"):
        merge_statistics([plain, once])


def test_one_pass_counts_what_two_passes_count(plain: Statistics, once: Statistics) -> None:
    assert once.ranges == plain.ranges
    for blob, exact in plain.histograms.items():
        found = once.histograms[blob]
        assert (found.zeros, found.images, found.absmax) == (
            exact.zeros,
            exact.images,
            exact.absmax,
        )
        # The counts below each edge differ by what one fine bin holds, of which 32 make a bin.
        fine = found.fine
        assert fine is not None
        largest = max(int(fine.positive.max()), int(fine.negative.max()))
        for side in ("positive", "negative"):
            gap = np.cumsum(getattr(found, side)) - np.cumsum(getattr(exact, side))
            assert abs(gap).max() <= largest
            assert getattr(found, side).sum() == getattr(exact, side).sum()


def test_order_of_images_does_not_matter(net: Net, plain: Statistics) -> None:
    assert_equal(collect(net, Loader(IMAGES[::-1], 2)), plain)


def test_nan_names_the_blob(net: Net) -> None:
    images = IMAGES[:2].copy()
    images[1, 0, 3, 3] = np.nan
    with pytest.raises(StatisticsError, match="blob 'data': 1 NaN"):
        collect(net, Loader(images, 1), workers=2)


def test_no_images_is_an_error(net: Net) -> None:
    with pytest.raises(ImageError, match="no images"):
        collect(net, Loader(IMAGES[:0], 1))


def test_an_error_in_the_batches_reaches_the_caller(net: Net) -> None:
    def batches() -> Iterator[dict[str, np.ndarray]]:
        yield {"data": IMAGES[:1]}
        raise ImageError("broken.jpg: cannot be read")

    with pytest.raises(ImageError, match=r"broken\.jpg"):
        collect_statistics(
            net.executor(fold_bn=False),
            batches,
            [layer.blob for layer in quantized_layers(net.graph)],
            workers=2,
        )


@pytest.mark.parametrize(
    ("exact", "stages"), [(False, ["statistics"]), (True, ["ranges", "histograms"])]
)
def test_progress_counts_images(net: Net, exact: bool, stages: list[str]) -> None:
    told: list[tuple[str, int, int]] = []
    collect_statistics(
        net.executor(fold_bn=False),
        Loader(IMAGES, 4),
        [quantized_layers(net.graph)[0].blob],
        exact=exact,
        total=13,
        progress=lambda *state: told.append(state),
    )
    assert {state[0] for state in told} == set(stages)
    for stage in stages:
        assert [state for state in told if state[0] == stage][-1] == (stage, 13, 13)


@pytest.mark.parametrize("exact", [False, True])
def test_images_go_to_their_half_and_other_tops_with_the_first(exact: bool) -> None:
    ranges = {"x": Range(-1, 2, 4), "y": Range(0, 1, 4)}
    counters = ExactCounters(ranges) if exact else OnePassCounters(ranges)
    x = np.array([[0.5, 2], [1, -1], [1, 0]], np.float32)
    counters.add((2, 3, 4), "x", x)
    counters.add((3, 2, 2), "y", np.array([[1, 1, 1, 1]], np.float32))
    result = counters.add_to(CollectionState())
    assert result.histograms["x"].nonzero == 5
    assert result.histograms["x"].zeros == 1
    assert result.halves["x"].nonzero == 3
    assert result.halves["x"].negative.sum() == 0
    assert (result.halves["y"].nonzero, result.histograms["y"].nonzero) == (0, 4)
    twice = counters.add_to(result)
    assert twice.histograms["x"].nonzero == 10
    assert result.histograms["x"].nonzero == 5


class Changing:
    """Two passes that are not the same: `changes` makes the second out of the first."""

    def __init__(self, images: np.ndarray, changes: Callable[[np.ndarray], np.ndarray]) -> None:
        self.passes, self.images, self.changes = 0, images, changes

    def __call__(self) -> Iterator[dict[str, np.ndarray]]:
        self.passes += 1
        images = self.images if self.passes == 1 else self.changes(self.images)
        for start in range(0, len(images), 3):
            yield {"data": images[start : start + 3]}


def one_value(images: np.ndarray) -> np.ndarray:
    """The images with one value of the eighth a little nearer to zero."""
    changed = images.copy()
    changed[7, 2, 5, 3] *= np.float32(0.999)
    return changed


CHANGES = {
    "a value": (one_value, "image 2 of batch 3 is not the one that was measured"),
    "another order": (lambda images: images[::-1], "image 1 of batch 1 is not the one"),
    "an image deleted": (
        lambda images: np.delete(images, 4, 0),
        "image 2 of batch 2 is not the one",
    ),
    "the last image deleted": (lambda images: images[:-1], "batch 5 is gone"),
    "images deleted in a batch": (lambda images: images[:11], "batch 4 has 2 images, and had 3"),
    "images more": (
        lambda images: np.concatenate([images, images[:3]]),
        "batch 5 has 3 images, and had 1",
    ),
    "a batch more": (
        lambda images: np.concatenate([images, images[:5]]),
        "(batch 5 has 3 images, and had 1|batch 6 was not there in the first pass)",
    ),
    "all deleted": (lambda images: images[:0], "there are no images|batch 1 is gone"),
}


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.parametrize(("workers", "cache"), [(1, 0), (3, 60_000)])
def test_images_that_change_between_the_passes_are_noticed(
    net: Net, what: str, workers: int, cache: int
) -> None:
    change, message = CHANGES[what]
    batches = Changing(IMAGES, change)
    # Of several workers any may be the first to find one of several batches changed.
    with pytest.raises(ImageError, match=message if workers == 1 else "batch|there are no images"):
        collect(net, batches, workers, cache)
    assert batches.passes == 2


@pytest.mark.parametrize("exact", [False, True])
def test_images_that_change_before_a_run_goes_on_are_noticed(
    net: Net, tmp_path: Path, exact: bool
) -> None:
    def go_on(batches: Callable[[], Iterator[dict[str, np.ndarray]]], path: Path) -> Statistics:
        checkpoint = Checkpoint(path, {}, every=0)
        return collect_statistics(
            net.executor(fold_bn=False), batches, blobs, exact=exact, checkpoint=checkpoint
        )

    def stopped() -> Iterator[dict[str, np.ndarray]]:
        yield from itertools.islice(Changing(IMAGES, lambda images: images)(), 5)
        raise ValueError("stopped")

    blobs = [layer.blob for layer in quantized_layers(net.graph)]
    with pytest.raises(ValueError, match="stopped"):
        go_on(stopped, tmp_path / "stopped.npz")
    for what, (change, message) in CHANGES.items():
        if what in ("a batch more", "all deleted"):
            continue
        path = shutil.copy(tmp_path / "stopped.npz", tmp_path / f"{what}.npz")
        batches = Changing(change(IMAGES), lambda images: images)
        with pytest.raises(ImageError, match=message):
            go_on(batches, path)
