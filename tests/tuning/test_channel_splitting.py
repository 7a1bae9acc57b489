"""Copies of channels: the same net in float, finer rounding in INT8, as much work as allowed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from int8calib import TuneOptions, tune
from int8calib.caffe.engine.run import Net, load_caffe
from int8calib.caffe.export import write_model
from int8calib.caffe.network.fold import fold_batch_norm
from int8calib.caffe.network.graph import Blob
from int8calib.caffe.network.shapes import infer_shapes, multiply_adds
from int8calib.calibration.options import Options
from int8calib.calibration.pipeline import prepare, run_job
from int8calib.evaluation.outputs import ComparedBlobs
from int8calib.simulation.build import simulate
from int8calib.tuning.channel_splitting import (
    MAX_COPIES,
    SplitNetwork,
    split_channels,
    splittable,
    with_copies,
)
from int8calib.tuning.channels import copyable_channels, scalable_channels
from int8calib.tuning.execution import reference_outputs
from tests.generated import make_model
from tests.opencv import deviation, opencv_tops
from tests.tuning_nets import batches, chain, loss_of, sqnr

FIRE = """
name: "fire"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 20 dim: 18 } } }
layer { name: "c1" type: "Convolution" bottom: "data" top: "c1"
  convolution_param { num_output: 16 kernel_size: 3 stride: 2 } }
layer { name: "r1" type: "ReLU" bottom: "c1" top: "c1" }
layer { name: "p1" type: "Pooling" bottom: "c1" top: "p1"
  pooling_param { pool: MAX kernel_size: 2 stride: 2 } }
layer { name: "s" type: "Convolution" bottom: "p1" top: "s"
  convolution_param { num_output: 8 kernel_size: 1 bias_term: false } }
layer { name: "rs" type: "ReLU" bottom: "s" top: "s" }
layer { name: "a" type: "Convolution" bottom: "s" top: "a"
  convolution_param { num_output: 12 kernel_size: 1 } }
layer { name: "ra" type: "ReLU" bottom: "a" top: "a" }
layer { name: "b" type: "Convolution" bottom: "s" top: "b"
  convolution_param { num_output: 16 kernel_size: 3 pad: 1 } }
layer { name: "rb" type: "ReLU" bottom: "b" top: "b" }
layer { name: "cat" type: "Concat" bottom: "a" bottom: "b" top: "cat" }
layer { name: "hidden" type: "InnerProduct" bottom: "cat" top: "hidden"
  inner_product_param { num_output: 10 } }
layer { name: "rh" type: "ReLU" bottom: "hidden" top: "hidden" }
layer { name: "fc" type: "InnerProduct" bottom: "hidden" top: "fc"
  inner_product_param { num_output: 6 } }
layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }
"""
SCORES = Blob("fc")


def images(count: int, seed: int = 5) -> list[dict[str, np.ndarray]]:
    return batches(count, seed, (3, 20, 18))


@pytest.fixture(scope="module")
def net(tmp_path_factory) -> Net:
    return load_caffe(*make_model(tmp_path_factory.mktemp("fire"), FIRE))


@pytest.fixture(autouse=True)
def few_images_will_do(monkeypatch) -> None:
    monkeypatch.setattr("int8calib.tuning.execution.MIN_IMAGES", 1)


@pytest.fixture
def any_gain_is_worth_it(monkeypatch) -> None:
    monkeypatch.setattr("int8calib.tuning.channel_splitting.WORTH", 0.0)


def split(net: Net, more_work: float, told: list | None = None) -> SplitNetwork:
    given = images(6)
    options = Options(method="minmax", fold_bn=False)
    table = run_job(prepare(net, options), lambda: given, options).table
    reference = reference_outputs(net.graph, given, ComparedBlobs(SCORES, (SCORES,), ()), workers=1)
    return split_channels(
        net.graph,
        net.input_shapes,
        given,
        table,
        reference,
        more_work,
        workers=2,
        progress=lambda *step: told.append(step) if told is not None else None,
    )


def copied(net: Net, counts: dict[str, np.ndarray], steps: float) -> Net:
    """The net with so many copies of the channels that a layer makes."""
    shapes = infer_shapes(net.graph, net.input_shapes)
    channels = scalable_channels(net.graph, shapes)
    copies = np.ones(200, np.intp)
    for layer in net.graph.layers:
        if layer.name in counts:
            copies[channels.of[layer.tops[0]]] = counts[layer.name]
    layers = []
    for layer in net.graph.layers:
        if layer.weights:
            below, above = (channels.of[b] for b in (layer.bottoms[0], layer.tops[0]))
            layer = with_copies(layer, copies[below], copies[above], np.full(len(above), steps))
        layers.append(layer)
    return Net(replace(net.graph, layers=tuple(layers)), net.input_shapes)


@pytest.mark.parametrize("names", [("c1",), ("s",), ("a", "b"), ("hidden",), ("c1", "s", "b")])
def test_a_net_with_copies_computes_the_same(net, tmp_path, names) -> None:
    rng = np.random.default_rng(len(names))
    made = {layer.name: layer.weights[0].shape[0] for layer in net.graph.layers if layer.weights}
    counts = {name: rng.integers(1, 5, made[name]) for name in names}
    wider = copied(net, counts, steps=0.0)
    write_model(wider, tmp_path / "n.prototxt", tmp_path / "n.caffemodel")
    image = images(1, seed=77)[0]
    other = opencv_tops(tmp_path / "n.prototxt", tmp_path / "n.caffemodel", image)
    for blob in ("fc", "prob"):
        assert deviation(other[blob], net.forward(image, outputs=[blob])[blob]) < 1e-5
    read = load_caffe(tmp_path / "n.prototxt", tmp_path / "n.caffemodel")
    for layer in read.graph.layers:
        if layer.name in counts:
            assert layer.weights[0].shape[0] == counts[layer.name].sum()


@pytest.mark.parametrize("count", [2, 3, 4])
def test_copies_are_rounded_as_by_finer_steps(net, count) -> None:
    step = float(net.forward(images(1)[0], outputs=["s"])["s"].max()) / 15
    counts = {"s": np.full(8, count)}
    wider = copied(net, counts, steps=step)
    plain_error, error = 0.0, 0.0
    for batch in images(20):
        (one,) = net.forward(batch, outputs=["s"]).values()
        (many,) = wider.forward(batch, outputs=["s"]).values()
        assert many.shape[1] == 8 * count
        away = one > step  # near 0 the ReLU cuts copies off
        back = (step * np.rint(many / step)).reshape(1, 8, count, *one.shape[2:]).mean(axis=2)
        plain_error += float(np.square(step * np.rint(one / step) - one)[away].sum())
        error += float(np.square(back - one)[away].sum())
    assert error == pytest.approx(plain_error / count**2, rel=0.25)


def test_which_channels_can_be_split(net, tmp_path) -> None:
    def free(net: Net) -> dict[str, bool]:
        shapes = infer_shapes(net.graph, net.input_shapes)
        channels = copyable_channels(net.graph, shapes)
        can = splittable(net.graph, channels)
        return {
            layer.name: bool(can[channels.of[layer.tops[0]]].all())
            for layer in net.graph.layers
            if layer.weights
        }

    assert free(net) == {"c1": True, "s": True, "a": True, "b": True, "hidden": True, "fc": False}
    # A BatchNorm that is not folded reads c1; a and b, by a Concat, and d are summed.
    net = chain(tmp_path)
    assert {name for name, can in free(net).items() if can} == {"e"}
    folded = Net(fold_batch_norm(net.graph), net.input_shapes)
    assert {name for name, can in free(folded).items() if can} == {"c1", "dw", "e"}


def losses_by_hand(net: Net, name: str, scale: float) -> float:
    """What is lost where one layer's bottom is rounded, by plain functions."""
    return loss_of(net, images(6), SCORES.name, {name: lambda x: np.rint(x * scale) / scale})


@pytest.mark.usefixtures("any_gain_is_worth_it")
def test_work_is_what_was_allowed(net) -> None:
    before = multiply_adds(net.graph, net.input_shapes)
    grown = {}
    for more_work in (0.05, 0.2, 1.0):
        found = split(net, more_work)
        work = multiply_adds(found.graph, net.input_shapes) / before - 1
        assert found.work == pytest.approx(work)
        assert work <= more_work
        assert found.grown
        for name, (old, new) in found.grown.items():
            layer = next(layer for layer in found.graph.layers if layer.name == name)
            assert layer.weights[0].shape[0] == new > old
            assert new % 2 == 0 or old % 4  # as even as it was
            assert not any(old % pack == 0 and new % pack for pack in (4, 8))
        grown[more_work] = sum(new - old for old, new in found.grown.values())
    assert grown[0.05] < grown[0.2] < grown[1.0]
    assert split(net, 0.0).grown == {}


def test_copies_that_gain_too_little_are_not_made(net, monkeypatch) -> None:
    grown = {}
    for worth in (0.0, 0.3, 1e9):
        monkeypatch.setattr("int8calib.tuning.channel_splitting.WORTH", worth)
        grown[worth] = split(net, 1.0).work
    assert grown[0.0] > grown[0.3] > grown[1e9] == 0


def test_layers_are_judged_by_what_the_outputs_lose(net, monkeypatch) -> None:
    seen = {}

    def choose(products, makers, noise, most, least):
        seen.update({name: float(noise[own].sum()) for name, own in makers.items()})
        return np.ones(len(noise), np.intp)

    monkeypatch.setattr("int8calib.tuning.channel_splitting._choose_copies", choose)
    told: list = []
    assert split(net, 0.5, told).grown == {}
    options = Options(method="minmax", fold_bn=False)
    table = run_job(prepare(net, options), lambda: images(6), options).table
    scales = {rows.name: rows.bottom_scale for rows in table.layers}
    readers = {"c1": ("s",), "s": ("a", "b"), "hidden": ("fc",)}
    for name, layers in readers.items():
        expected = sum(losses_by_hand(net, layer, scales[layer]) for layer in layers)
        assert seen[name] == pytest.approx(expected, rel=1e-3)
    both = losses_by_hand(net, "hidden", scales["hidden"])
    assert seen["a"] + seen["b"] == pytest.approx(both, rel=1e-3)
    assert told[-1] == ("channels", 6, 6)


@pytest.mark.usefixtures("any_gain_is_worth_it")
def test_channels_that_nobody_uses_get_no_copies(tmp_path: Path) -> None:
    net = load_caffe(*make_model(tmp_path, FIRE))
    layers = []
    for layer in net.graph.layers:
        if layer.name in ("a", "b"):
            weight = layer.weights[0].copy()
            weight[:, 1::2] = 0
            layer = replace(layer, weights=(weight, *layer.weights[1:]))
        layers.append(layer)
    net = Net(replace(net.graph, layers=tuple(layers)), net.input_shapes)
    found = split(net, 1.0)
    old, new = found.grown["s"]
    reads = next(layer for layer in found.graph.layers if layer.name == "a").weights[0]
    unused = (reads == 0).all(axis=(0, 2, 3))
    assert old == 8
    assert unused.sum() == 4 + max(0, new - 4 - 4 * MAX_COPIES)


@pytest.mark.usefixtures("few_columns")
@pytest.mark.long
def test_copies_are_worth_it(tmp_path) -> None:
    net, given, fresh = chain(tmp_path), batches(24), batches(40, seed=71)
    found = {}
    for more_work in (0.0, 0.3):
        tuning = TuneOptions(change_model=True, more_work=more_work)
        done = tune(net, lambda: given, tuning=tuning)
        found[more_work] = sqnr(net, simulate(done.net, done.table), fresh)
        assert any("more multiply-adds" in note for note in done.notes) == (more_work > 0)
    assert found[0.3] > found[0.0] + 1
