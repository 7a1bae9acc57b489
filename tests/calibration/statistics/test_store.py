"""Statistics merged and written to files, against numpy over all values at once."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from int8calib.calibration.statistics.file import load_statistics, save_statistics
from int8calib.calibration.statistics.histogram import HistogramBuilder
from int8calib.calibration.statistics.ranges import Range, measure_range
from int8calib.calibration.statistics.store import Statistics, common_images, merge_statistics
from int8calib.errors import OutputError, StatisticsError

RNG = np.random.default_rng(17)
VALUES = {
    "a": RNG.normal(0, 3, (11, 5, 7)).astype(np.float32),
    "b#1": np.maximum(RNG.normal(0, 1, (11, 13)), 0).astype(np.float32),
}
CODES = np.arange(100, 111, dtype=np.uint32)


def ranges(images: slice) -> dict[str, Range]:
    return {blob: measure_range(x[images]) for blob, x in VALUES.items()}


def statistics(images: slice, known: dict[str, Range] | None = None) -> Statistics:
    """What a collection over some of the images gives; even images are the half."""
    known = known or ranges(images)
    whole, half = {}, {}
    for blob, x in VALUES.items():
        builders = [HistogramBuilder(known[blob].absmax) for _ in range(2)]
        for i in range(*images.indices(len(x))):
            for builder in builders[: 1 if i % 2 else 2]:
                builder.add(x[i : i + 1])
        whole[blob], half[blob] = (builder.result() for builder in builders)
    return Statistics(known, whole, halves=half, checksums=CODES[images])


def same(a: Statistics, b: Statistics) -> bool:
    """Every number, and the order of the blobs."""
    return (
        list(a.ranges.items()) == list(b.ranges.items())
        and all(
            list(x) == list(y)
            and all(
                np.array_equal(x[k].positive, y[k].positive)
                and np.array_equal(x[k].negative, y[k].negative)
                and (x[k].absmax, x[k].zeros, x[k].images) == (y[k].absmax, y[k].zeros, y[k].images)
                for k in x
            )
            for x, y in ((a.histograms, b.histograms), (a.halves, b.halves))
        )
        and np.array_equal(a.checksums, b.checksums)
    )


@pytest.mark.parametrize("cuts", [(0, 4, 11), (0, 1, 2, 10, 11)])
def test_two_phases_over_shards_give_the_whole(cuts: tuple[int, ...]) -> None:
    shards = [slice(a, b) for a, b in pairwise(cuts)]
    measured = merge_statistics([Statistics(ranges(s), {}, checksums=CODES[s]) for s in shards])
    assert measured.ranges == ranges(slice(11))
    assert measured.images == 11
    merged = merge_statistics([statistics(s, dict(measured.ranges)) for s in shards])
    assert same(merged, statistics(slice(11)))
    assert merged.images == 11
    for blob, x in VALUES.items():
        absmax = np.abs(x).max()
        bins = np.minimum((np.abs(x) / absmax * np.float32(2048)).astype(int), 2047)
        counts = np.bincount(bins[x != 0], minlength=2048)
        np.testing.assert_array_equal(merged.histograms[blob].counts, counts)


def test_what_does_not_merge_is_refused() -> None:
    one, two = statistics(slice(0, 5)), statistics(slice(5, 11))
    with pytest.raises(StatisticsError, match=r"blob a: .*merge the ranges first"):
        merge_statistics([one, two])
    with pytest.raises(StatisticsError, match="some of the statistics hold"):
        merge_statistics([one, Statistics(ranges(slice(5, 11)), {})])
    other = Statistics({"a": two.ranges["a"]}, {"a": two.histograms["a"]})
    with pytest.raises(StatisticsError, match="the blob b#1"):
        merge_statistics([one, other])


def test_common_images_are_counted_once_each() -> None:
    assert common_images([statistics(slice(0, 5)), statistics(slice(5, 11))]) == 0
    assert common_images([statistics(slice(0, 7)), statistics(slice(4, 11))]) == 3


@pytest.mark.parametrize("kind", ["full", "ranges"])
def test_a_file_gives_back_every_bit(tmp_path: Path, kind: str) -> None:
    found = statistics(slice(11)) if kind == "full" else Statistics(ranges(slice(11)), {})
    found = Statistics(
        found.ranges, found.histograms, {"x": [1, "y"]}, found.halves, found.checksums
    )
    arrays = {"rows": np.array([1.5, 0.1], np.float32)}
    for name in ("one.npz", "two.npz"):
        save_statistics(tmp_path / name, found, arrays)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    back = load_statistics(tmp_path / "one.npz")
    assert same(back.statistics, found)
    assert back.statistics.meta == {"x": [1, "y"]}
    np.testing.assert_array_equal(back.arrays["rows"], arrays["rows"])
    assert back.arrays["rows"].dtype == np.float32


def test_every_cut_and_foreign_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.npz"
    save_statistics(path, statistics(slice(11)))
    data = path.read_bytes()
    for size in (0, 1, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(StatisticsError, match=r"s\.npz"):
            load_statistics(path)
    for middle in range(40, len(data) - 40, 997):
        path.write_bytes(data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :])
        try:
            changed = load_statistics(path)
        except StatisticsError:
            continue
        # A flipped byte that nothing reads, such as a time stamp, must change nothing.
        assert same(changed.statistics, statistics(slice(11)))
    np.savez(path, x=np.zeros(3))
    with pytest.raises(StatisticsError, match="no statistics of int8calib"):
        load_statistics(path)
    np.save(tmp_path / "plain.npy", np.zeros(3))
    with pytest.raises(StatisticsError, match=r"plain\.npy"):
        load_statistics(tmp_path / "plain.npy")
    with pytest.raises(StatisticsError, match=r"gone\.npz: cannot be read"):
        load_statistics(tmp_path / "gone.npz")
    with pytest.raises(OutputError, match="no folder"):
        save_statistics(tmp_path / "no" / "s.npz", statistics(slice(11)))


def test_another_schema_is_named(tmp_path: Path) -> None:
    path = tmp_path / "s.npz"
    save_statistics(path, statistics(slice(11)))
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    head = json.loads(arrays["meta"].tobytes()) | {"schema": 1}
    arrays["meta"] = np.frombuffer(json.dumps(head).encode(), np.uint8)
    np.savez(path, **arrays)
    with pytest.raises(StatisticsError, match="schema 1, this version reads 2"):
        load_statistics(path)
