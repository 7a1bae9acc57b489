"""Statistics of values on a device: the counts of a loop over the values, and those of the CPU.

The device is a stand-in whose arrays refuse what CuPy's refuse; with a GPU the same runs on that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

import int8calib
from int8calib.arrays import namespace
from int8calib.calibration.statistics import on_device
from int8calib.calibration.statistics.checkpoint import CollectionState
from int8calib.calibration.statistics.counters import (
    ExactCounters,
    OnePassCounters,
    by_image,
    image_checksums,
)
from int8calib.calibration.statistics.fine import FINE_BINS, FineBuilder, FineHistogram
from int8calib.calibration.statistics.histogram import BINS, Histogram, HistogramBuilder
from int8calib.calibration.statistics.on_device import DeviceCounts
from int8calib.calibration.statistics.ranges import Range, measure_range
from int8calib.device import Device
from int8calib.errors import StatisticsError
from tests.strict_arrays import Transfers, strict_device

RNG = np.random.default_rng(29)


def values(shape: tuple[int, ...], scale: float) -> np.ndarray:
    """Of both signs, a third of them zeros, and some subnormal."""
    x = (RNG.standard_normal(shape) * scale).astype(np.float32)
    x[RNG.random(shape) < 0.3] = 0
    x[RNG.random(shape) < 0.05] *= np.float32(1e-41) / np.float32(max(scale, 1))
    return x


def assert_same(a: Any, b: Any) -> None:
    """Two ranges or histograms, bit for bit and type for type."""
    assert type(a) is type(b)
    if isinstance(a, Range):
        assert a == b
        return
    for side in ("positive", "negative"):
        assert getattr(a, side).dtype == getattr(b, side).dtype
        np.testing.assert_array_equal(getattr(a, side), getattr(b, side))
    ends = ("exponent",) if isinstance(a, FineHistogram) else ("absmax",)
    for name in (*ends, "zeros", "images"):
        assert getattr(a, name) == getattr(b, name), name


def test_counts_are_those_of_a_loop(monkeypatch: pytest.MonkeyPatch, device: Device) -> None:
    monkeypatch.setattr(on_device, "CHUNK", 37)  # the last chunk is not full
    x = values((101,), 2.0)
    counts = DeviceCounts(device.xp, 8)
    counts.add(device.asarray(x), lambda sizes: device.xp.minimum(sizes * 2, 7))
    expected = [0] * 17
    for v in x.tolist():
        place = min(int(abs(v) * 2), 7)
        expected[16 if v == 0 else place + (8 if v < 0 else 0)] += 1
    found = counts.result()
    assert [*found[:16].tolist(), int(found[16:].sum())] == expected
    counts.widen(1)
    pairs = [a + b for a, b in zip(expected[:16:2], expected[1:16:2], strict=True)]
    wide = counts.result()
    assert wide[:4].tolist() == pairs[:4]
    assert wide[8:12].tolist() == pairs[4:]
    assert not wide[4:8].any()
    assert not wide[12:16].any()
    assert int(wide[16:].sum()) == expected[16]


@pytest.mark.parametrize("scales", [(1.0,), (1e-3, 7.0, 0.2), (1e-39, 1e-30, 1e37), (3e37, 1e-44)])
def test_builders_count_as_on_the_cpu(scales: Sequence[float], device: Device) -> None:
    batches = [values((3, 5, 701), scale) for scale in scales]
    batches.append(np.zeros((2, 3), np.float32))
    here, there = FineBuilder("b"), FineBuilder("b")
    for x in batches:
        here.add(x)
        there.add(device.asarray(x))
        assert measure_range(device.asarray(x)) == measure_range(x)
    for a, b in zip(here.result(), there.result(), strict=True):
        assert_same(a, b)
    limits = here.result()[0]
    assert limits is not None
    exact, counted = (HistogramBuilder(limits.absmax, "b") for _ in range(2))
    for x in batches:
        exact.add(x)
        counted.add(device.asarray(x))
    assert_same(exact.result(), counted.result())


def test_positive_values_have_no_negative_side(device: Device) -> None:
    x = np.abs(values((2, 7), 3.0))
    builder = FineBuilder()
    builder.add(device.asarray(x))
    assert not builder.result()[1].negative.flags.writeable  # the one that all such blobs share


def test_a_dead_blob(device: Device) -> None:
    zeros = np.zeros((3, 5), np.float32)
    builder = HistogramBuilder(0.0)
    builder.add(device.asarray(zeros))
    found = builder.result()
    assert (found.zeros, found.nonzero, found.images) == (15, 0, 3)
    assert FineBuilder().result()[0] is None


def test_values_from_elsewhere_join_those_counted_first(device: Device) -> None:
    a, b = values((2, 31), 1.0), values((3, 31), 50.0)
    builders = [FineBuilder() for _ in range(3)]
    for builder, (first, second) in zip(
        builders,
        [(a, b), (a, device.asarray(b)), (device.asarray(a), b)],
        strict=True,
    ):
        builder.add(first)
        builder.add(second)
    exact = [HistogramBuilder(300.0) for _ in range(2)]
    for x in (a, b):
        exact[0].add(x)
    exact[1].add(a)
    exact[1].add(device.asarray(b))
    assert_same(exact[0].result(), exact[1].result())
    for builder in builders[1:]:
        assert_same(builders[0].result()[0], builder.result()[0])
        assert_same(builders[0].result()[1], builder.result()[1])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("make", [FineBuilder, lambda name: HistogramBuilder(9.0, name)])
def test_bad_values_are_refused_in_the_same_words(
    bad: float, make: Callable[[str], Any], device: Device
) -> None:
    x = values((2, 13), 1.0)
    x[1, 5] = bad
    said = []
    for array in (x, device.asarray(x)):
        builder = make("conv1")
        with pytest.raises(StatisticsError, match="blob 'conv1': ") as caught:
            builder.add(array)
        said.append(str(caught.value))
    assert said[0] == said[1]
    builder.add(device.asarray(x[:1]))
    found = builder.result()
    histogram = found[1] if isinstance(found, tuple) else found
    assert histogram.images == 1  # nothing of the bad batch


def test_other_mistakes_too(device: Device) -> None:
    x = values((2, 13), 1.0)
    for array in (x, device.asarray(x)):
        with pytest.raises(StatisticsError, match=r"a value of .* beyond its absmax of 0\.5"):
            HistogramBuilder(0.5, "b").add(array)
    for wrong in (x.astype(np.float64), x[:0]):
        with pytest.raises(StatisticsError, match="expected float32 with at least one value"):
            FineBuilder("b").add(device.asarray(wrong))


@pytest.mark.parametrize("images", [1, 2, 7])
@pytest.mark.parametrize("axes", [(5, 3), ()])
def test_images_are_counted_in_their_halves(
    images: int, axes: tuple[int, ...], device: Device
) -> None:
    batches = [values((images, 3, 11), 4.0) for _ in range(5)]
    # Without an axis of images, all of a blob goes with the first image.
    tops = [x * 3 if axes else x.reshape(-1)[:13] for x in batches]
    ranges = {"top": Range(-400.0, 400.0, 0)}
    for make in (lambda: OnePassCounters(["top"]), lambda: ExactCounters(ranges)):
        states = []
        for put in (np.asarray, device.asarray):
            counters: Any = make()
            for x, top in zip(batches, tops, strict=True):
                counters.add(image_checksums({"data": x}), "top", put(top))
            states.append(counters.add_to(CollectionState()))
        assert_same(states[0].histograms["top"], states[1].histograms["top"])
        assert_same(states[0].halves["top"], states[1].halves["top"])
        assert states[0].ranges == states[1].ranges


def test_only_extremes_and_counts_travel() -> None:
    device = strict_device()
    tops = [device.asarray(values((7, 3, 11), 2.0)) for _ in range(5)]
    counters = OnePassCounters(["top"])
    Transfers.reset()
    for top in tops:
        counters.add((3, 4, 5, 6, 7, 8, 9), "top", top)
    # Extremes of each half; up go which images these are.
    assert (Transfers.downloads, Transfers.uploads) == (10, 10)
    state = counters.add_to(CollectionState())
    assert (Transfers.downloads, Transfers.uploads) == (12, 10)
    assert state.ranges["top"].images == 35


def test_a_batch_takes_two_counts_at_most(device: Device) -> None:
    top = device.asarray(values((7, 3), 1.0))
    assert len(list(by_image((3, 4, 5, 6, 7, 8, 9), top))) == 2
    (whole,) = by_image((1, 3, 5, 7, 9, 11, 13), top)
    assert whole[1] is top
    assert all(namespace(part) is device.xp for _, part in by_image((1, 2, 3, 4, 5, 6, 7), top))


LAYERS = (
    int8calib.QuantLayer("conv", "Convolution", "data", np.ones((5, 3, 1, 1)), reads_input=True),
    int8calib.QuantLayer("fc", "InnerProduct", "top", np.ones((2, 7))),
)


class TwoLayers:
    """An executor that hands out arrays of one kind."""

    layers = LAYERS
    inputs = ("data",)

    def __init__(self, put: Callable[[np.ndarray], Any]) -> None:
        self.put = put
        self.runs = 0

    def run(self, inputs: Any, blobs: Sequence[str], /) -> dict[str, Any]:
        self.runs += 1
        x = inputs["data"]
        return {"data": self.put(x), "top": self.put(np.maximum(x[:, :2], -0.5).astype("f8"))}


@pytest.mark.parametrize("exact", [False, True])
def test_a_calibration_from_end_to_end(exact: bool, device: Device) -> None:
    batches = [{"data": values((4, 3, 5, 7), scale)} for scale in (1.0, 0.1, 8.0)]
    options = int8calib.Options(exact=exact, method="kl", workers=3)
    made = []
    for put in (np.asarray, device.asarray):
        executor = TwoLayers(put)
        made.append(int8calib.calibrate(executor, lambda: batches, options))
        assert executor.runs == len(batches) * (1 + (exact and put is not np.asarray))
    here, there = made
    for blob in ("data", "top"):
        assert_same(here.statistics.histograms[blob], there.statistics.histograms[blob])
        assert_same(here.statistics.halves[blob], there.statistics.halves[blob])
        assert_same(here.statistics.ranges[blob], there.statistics.ranges[blob])
    for a, b in zip(here.table.layers, there.table.layers, strict=True):
        assert a.bottom_scale == b.bottom_scale


def test_an_observer_counts_where_the_activations_are(device: Device) -> None:
    batches = [{"data": values((4, 3, 5, 7), 2.0), "top": values((4, 7), 1.0)} for _ in range(3)]
    observers = [int8calib.Observer(LAYERS, method="kl") for _ in range(2)]
    for batch in batches:
        observers[0].observe(batch)
        observers[1].observe({blob: device.asarray(x) for blob, x in batch.items()})
    for blob in ("data", "top"):
        first, second = (observer.statistics for observer in observers)
        assert_same(first.histograms[blob], second.histograms[blob])
        assert_same(first.halves[blob], second.halves[blob])
    with pytest.raises(StatisticsError, match="of type int32; expected"):
        observers[1].observe({blob: device.asarray(x.astype("i4")) for blob, x in batch.items()})


def test_large_and_small_values_have_their_bins(device: Device) -> None:
    top = np.nextafter(np.float32(2), np.float32(0))  # in the last bin of a range of 2
    x = np.array([[top, -1.0, 2.0**-16, 0.0]], np.float32)
    builder = FineBuilder()
    builder.add(device.asarray(x))
    _, found = builder.result()
    assert found.exponent == 1
    width = 2.0**found.exponent / FINE_BINS
    for v in (x[0, 0], x[0, 2]):
        assert found.positive[int(float(v) / width)] == 1
    assert found.negative[int(1.0 / width)] == 1
    assert Histogram.from_fine(found, float(x.max())).positive[BINS - 1] == 1


@pytest.mark.parametrize("absmax", [0.7321, 1.0, 113.7])
def test_values_at_the_edges_of_bins_round_as_on_the_cpu(absmax: float, device: Device) -> None:
    edges = (np.arange(1, BINS + 1) * (absmax / BINS)).astype(np.float32)
    near = [edges, np.nextafter(edges, np.float32(0)), np.nextafter(edges, np.float32(np.inf))]
    x = np.concatenate([*near, -edges]).clip(-np.float32(absmax), np.float32(absmax))[None]
    here, there = (HistogramBuilder(float(np.float32(absmax)), "b") for _ in range(2))
    here.add(x)
    there.add(device.asarray(x))
    assert_same(here.result(), there.result())
