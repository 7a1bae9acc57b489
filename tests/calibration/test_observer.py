"""The observer: what `calibrate` finds, from activations that the test computes itself."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

import int8calib
from int8calib.calibration.collected import load_collected
from int8calib.errors import ModelError, OptionError, StatisticsError, WeightsError

RNG = np.random.default_rng(19)
CONV = RNG.normal(size=(7, 3, 1, 1))
FC = RNG.normal(size=(11, 7 * 5 * 3))
LAYERS = [
    int8calib.QuantLayer("conv", "Convolution", "data", CONV, reads_input=True, first=True),
    int8calib.QuantLayer("fc", "InnerProduct", "relu", FC, last=True),
]
IMAGES = (RNG.normal(0, 40, (61, 3, 5, 3)) * RNG.lognormal(size=(61, 1, 1, 1))).astype(np.float32)


def activations(images):
    conv = np.einsum("ockl,nchw->nohw", CONV.astype(np.float32), images)
    return {"data": images, "relu": np.maximum(conv, 0)}


class Numpy:
    """The same network as an executor, for `calibrate`."""

    layers, inputs = LAYERS, ("data",)

    def run(self, inputs, blobs):
        return {blob: activations(inputs["data"])[blob] for blob in blobs}


def loader(size=4):
    return [{"data": IMAGES[i : i + size]} for i in range(0, len(IMAGES), size)]


def observed(observer, images=IMAGES, size=3):
    for start in range(0, len(images), size):
        observer.observe(activations(images[start : start + size]))
    return observer


def rows(calibration):
    table = calibration.table
    return [
        (r.name, r.weight_scales.tolist(), r.bottom_scale, r.evidence.threshold, r.evidence.spread)
        for r in table.layers
    ]


@pytest.mark.parametrize("method", ["mse", "kl", "kl-tool", "percentile", "minmax", "aciq"])
@pytest.mark.parametrize("exact", [False, True])
def test_the_table_is_that_of_calibrate(method, exact):
    options = int8calib.Options(method=method, exact=exact)
    expected = int8calib.calibrate(Numpy(), loader, options)
    observer = observed(int8calib.Observer(LAYERS, options, exact=exact))
    if exact:
        observer.next_pass()
        observed(observer, size=5)
    found = observer.calibrate()
    assert rows(found) == rows(expected)
    assert observer.images == len(IMAGES)
    kept = [w for w in found.warnings if "two passes" not in w]
    assert kept == [w for w in expected.warnings if "two passes" not in w]


def test_order_batches_threads_and_float_types_do_not_matter():
    expected = rows(observed(int8calib.Observer(LAYERS)).calibrate())
    observer = int8calib.Observer(LAYERS)
    order = np.random.default_rng(5).permutation(len(IMAGES))

    def give(index):
        tops = activations(IMAGES[order[index : index + 1]])
        kinds = (np.float64, np.float32)
        observer.observe({blob: top.astype(kinds[index % 2]) for blob, top in tops.items()})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(give, range(len(IMAGES))))
    assert rows(observer.calibrate()) == expected


def test_half_floats_are_counted_as_they_are():
    tops = {blob: top.astype(np.float16) for blob, top in activations(IMAGES).items()}
    observer = int8calib.Observer(LAYERS, method="minmax")
    observer.observe(tops)
    for row in observer.calibrate().table.layers:
        assert row.evidence.threshold == float(np.abs(tops[row.evidence.blob]).max())


@pytest.mark.parametrize("exact", [False, True])
def test_parts_merge_and_files_go_on(tmp_path, exact):
    whole = int8calib.Observer(LAYERS, exact=exact)
    parts = [int8calib.Observer(LAYERS, exact=exact) for _ in range(2)]
    observed(whole)
    observed(parts[0], IMAGES[:20])
    observed(parts[1], IMAGES[20:])
    if exact:
        parts[1].merge(parts[0])
        path = tmp_path / "ranges.npz"
        parts[1].save(path)
        parts = [int8calib.Observer(LAYERS, exact=True) for _ in range(2)]
        for part, images in zip(parts, (IMAGES[:20], IMAGES[20:]), strict=True):
            part.load(path)
            part.next_pass()
            observed(part, images)
        whole.next_pass()
        observed(whole)
    expected = rows(whole.calibrate())
    saved = tmp_path / "part.npz"
    parts[0].save(saved)
    again = int8calib.Observer(LAYERS, exact=exact)
    again.load(saved)
    again.merge(parts[1])
    assert rows(again.calibrate()) == expected
    if not exact:
        going_on = int8calib.Observer(LAYERS)
        going_on.load(saved)
        assert rows(observed(going_on, IMAGES[20:]).calibrate()) == expected


def test_its_files_serve_the_command_line(tmp_path, capsys):
    from int8calib.cli.main import main

    stats, table = tmp_path / "s.npz", tmp_path / "net.table"
    observer = observed(int8calib.Observer(LAYERS, method="kl"))
    observer.save(stats)
    assert main(["thresholds", str(stats), "--method", "kl", "--output", str(table)]) == 0
    capsys.readouterr()
    read = int8calib.read_table(table)
    for row, expected in zip(read.layers, observer.calibrate().table.layers, strict=True):
        assert row.bottom_scale == pytest.approx(expected.bottom_scale, rel=1e-6)
    assert load_collected(stats).statistics.images == len(IMAGES)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"data": IMAGES[:1]}, "blob 'relu', which layer 'fc' reads, is not given; given are data"),
        ({}, "given are none"),
        (activations(IMAGES[:1]) | {"relu": [[1.0]]}, "blob 'relu': list; expected a numpy array"),
        (activations(IMAGES[:1]) | {"relu": np.ones((1, 2), int)}, "of type int64"),
        (activations(IMAGES[:1]) | {"relu": np.full((1, 7), np.nan)}, "blob 'relu': 7 NaN"),
        (activations(IMAGES[:1]) | {"relu": np.full((1, 7), 1e39)}, "0 NaN and 7 infinite"),
        (activations(IMAGES[:1]) | {"relu": np.ones(())}, "at least one value"),
    ],
)
@pytest.mark.parametrize("exact", [False, True])
def test_bad_activations_are_refused_and_leave_nothing(given, message, exact):
    observer = observed(int8calib.Observer(LAYERS, exact=exact))
    if exact:
        observer.next_pass()
        observed(observer)
    before = rows(observer.calibrate())
    with pytest.raises(StatisticsError, match=message):
        observer.observe(given)
    assert rows(observer.calibrate()) == before


def test_passes_are_held_apart():
    with pytest.raises(OptionError, match="no further pass"):
        int8calib.Observer(LAYERS).next_pass()
    observer = int8calib.Observer(LAYERS, exact=True)
    with pytest.raises(StatisticsError, match="observe some before next_pass"):
        observer.next_pass()
    observed(observer, IMAGES[:9])
    with pytest.raises(StatisticsError, match="call next_pass"):
        observer.calibrate()
    observer.next_pass()
    with pytest.raises(OptionError, match="no further pass"):
        observer.next_pass()
    with pytest.raises(StatisticsError, match="observe some before calibrate"):
        observer.calibrate()
    with pytest.raises(StatisticsError, match="beyond its absmax"):
        observer.observe(activations(IMAGES[:1] * 50))
    observed(observer, IMAGES[:8])
    with pytest.raises(StatisticsError, match=r"other images than the first \(8 and 9\)"):
        observer.calibrate()
    observer.observe(activations(IMAGES[8:9]))
    assert observer.calibrate().statistics.images == 9


def test_other_networks_and_kinds_are_refused(tmp_path):
    path = tmp_path / "s.npz"
    observed(int8calib.Observer(LAYERS)).save(path)
    other = int8calib.Observer([LAYERS[0]])
    with pytest.raises(StatisticsError, match="do not belong together"):
        other.load(path)
    with pytest.raises(StatisticsError, match="do not belong together"):
        other.merge(observed(int8calib.Observer(LAYERS)))
    with pytest.raises(StatisticsError, match="statistics of one pass"):
        int8calib.Observer(LAYERS, exact=True).load(path)
    with pytest.raises(OptionError, match="unknown option 'methods'; expected one of method"):
        int8calib.Observer(LAYERS, methods="kl")
    with pytest.raises(ModelError, match="nothing to calibrate"):
        int8calib.Observer([])


def test_nothing_heavy_is_loaded_before_the_first_count():
    code = (
        "import sys, numpy, int8calib\n"
        "w = numpy.ones((2, 3, 1, 1))\n"
        "layer = int8calib.QuantLayer('a', 'Convolution', 'x', w)\n"
        "int8calib.Observer([layer])\n"
        "print([m for m in ('cv2', 'google.protobuf', 'numba', 'llvmlite') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_layers_may_come_from_a_generator():
    observer = int8calib.Observer(layer for layer in LAYERS)
    assert observer.blobs == int8calib.Observer(LAYERS).blobs


@pytest.mark.parametrize(
    ("layers", "error", "message"),
    [
        (LAYERS[0], OptionError, "layers of type QuantLayer; expected a list"),
        ([("c", "Convolution")], OptionError, "a layer of type tuple"),
        ([LAYERS[0]] * 2, ModelError, "two layers are called"),
    ],
)
def test_layers_are_a_list_of_quant_layers(layers, error, message):
    with pytest.raises(error, match=message):
        int8calib.Observer(layers)


def test_weights_are_looked_at_before_the_first_image():
    weights = np.where(LAYERS[0].weights > 0, np.nan, LAYERS[0].weights)
    with pytest.raises(WeightsError, match="are NaN or infinite"):
        int8calib.Observer([replace(LAYERS[0], weights=weights)])


def test_mistakes_of_a_call_are_named():
    observer = int8calib.Observer(LAYERS)
    with pytest.raises(StatisticsError, match="activations of type list; expected a map"):
        observer.observe([IMAGES])
    with pytest.raises(StatisticsError, match="str cannot be merged"):
        observer.merge("observed.npz")
    with pytest.raises(OptionError, match="options of type dict; expected Options"):
        int8calib.Observer(LAYERS, {"method": "kl"})
    with pytest.raises(OptionError, match="percentile '99'; expected a number"):
        int8calib.Observer(LAYERS, method="percentile", percentile="99")
