"""Thresholds judged by the outputs: against a plain loop over all layers, and for being better."""

from __future__ import annotations

import numpy as np
import pytest

from int8calib.caffe.engine.run import Net
from int8calib.caffe.network.fold import fold_batch_norm
from int8calib.caffe.network.graph import Blob
from int8calib.evaluation.outputs import ComparedBlobs
from int8calib.tuning import thresholds
from int8calib.tuning.execution import Layerwise, SuffixNetwork, reference_outputs
from int8calib.tuning.thresholds import Consumer, threshold_by_layers, threshold_by_network
from tests.tuning_nets import batches, chain, loss_of, plain_scores

SCORES = Blob("fc")


@pytest.fixture(autouse=True)
def any_number_of_images(monkeypatch) -> None:
    monkeypatch.setattr("int8calib.tuning.execution.MIN_IMAGES", 1)


@pytest.fixture(scope="module")
def net(tmp_path_factory) -> Net:
    net = chain(tmp_path_factory.mktemp("chain"))
    return Net(fold_batch_norm(net.graph), net.input_shapes)


def rounded(x: np.ndarray, threshold: float) -> np.ndarray:
    """Rounded half away from zero, and clipped."""
    step = threshold / 127
    return np.sign(x) * np.minimum(np.floor(np.abs(x) / step + 0.5), 127) * step


def loss(
    net: Net, given: list, expected: list[np.ndarray], readers: set[str], threshold: float
) -> float:
    """What is lost where `readers` take their bottom rounded and clipped, by plain functions."""
    changed = dict.fromkeys(readers, lambda x: rounded(x, threshold))
    return loss_of(net, given, SCORES.name, changed, expected)


CASES = {"a and b share it": {"a", "b"}, "a sum reads it too": {"d"}, "first": {"c1"}}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("factor", [2.0, 0.3])
def test_threshold_is_near_the_best_of_a_plain_search(net, case, factor) -> None:
    readers = CASES[case]
    given = batches(12)
    expected = [plain_scores(net, batch, SCORES.name) for batch in given]
    layers = net.graph.layers
    done = next(i for i, layer in enumerate(layers) if layer.name in readers)
    blob = layers[done].bottoms[0]
    nets = Layerwise(net.graph, given, workers=1)
    for layer in layers[:done]:
        nets.step(layer, layer)
    reference = reference_outputs(net.graph, given, ComparedBlobs(SCORES, (SCORES,), ()), workers=2)
    absmax = max(float(np.abs(x).max()) for x in nets.live[blob])
    start = factor * absmax
    suffix = SuffixNetwork(nets, blob, readers, reference, workers=2)
    arrays = [rounded(x, start).astype(np.float32) for x in suffix.bottoms]
    by_hand = loss(net, given, expected, readers, start)
    assert suffix.loss(arrays) == pytest.approx(by_hand, rel=1e-3)
    found = threshold_by_network(suffix, start, 5 * absmax, headroom=False)
    losses = [loss(net, given, expected, readers, t) for t in absmax * np.geomspace(0.2, 4, 25)]
    mine = loss(net, given, expected, readers, found)
    assert mine <= by_hand
    assert mine < 3 * min(losses)  # the loss of so small a net is no smooth curve


def naive_error(consumers: list[Consumer], threshold: float) -> float:
    """By the definition, with doubles: all columns at once, each output by itself."""
    total = 0.0
    for each in consumers:
        step, low, high = threshold / 127, -127, 127
        if each.unsigned:
            step, low, high = step / 2, 0, 254
        whole = each.int8_columns.astype(np.float64)
        levels = np.clip(np.sign(whole) * np.floor(np.abs(whole) / step + 0.5), low, high)
        wanted = each.weights.astype(np.float64) @ each.float_columns
        error = each.weights.astype(np.float64) @ (levels * step) - wanted
        for group, output in np.ndindex(each.sensitivity.shape):
            total += each.sensitivity[group, output] * (error[group, output] ** 2).mean()
    return total


@pytest.mark.parametrize("unsigned", [False, True])
@pytest.mark.parametrize("part", [1, 1 << 9, 1 << 17])
def test_threshold_by_layers_is_the_best_of_those_tried(monkeypatch, unsigned, part) -> None:
    monkeypatch.setattr(thresholds, "PART", part)
    rng = np.random.default_rng(8)
    for heavy in (1, 3):
        consumers = []
        for group, outputs, size, count in ((1, 5, 7, 113), (3, 2, 4, 97)):
            columns = np.abs(rng.normal(0, 2, (group, size, count))) ** heavy
            columns = columns if unsigned else columns * rng.choice([-1, 1], columns.shape)
            columns = columns.astype(np.float32)
            arrived = columns * np.float32(1.02)
            weights = rng.normal(0, 1, (group, outputs, size)).astype(np.float32)
            sensitivity = rng.uniform(0.1, 3, (group, outputs))
            consumers.append(Consumer(weights, columns, arrived, sensitivity, unsigned))
        absmax = max(float(np.abs(each.int8_columns).max()) for each in consumers)
        start = 0.47 * absmax
        found = threshold_by_layers(consumers, absmax, [start])
        tried = [start, *(absmax * share for share in thresholds.COARSE)]
        best = min(tried, key=lambda threshold: naive_error(consumers, threshold))
        tried += [best * share for share in thresholds.FINE]
        assert found == min(tried, key=lambda threshold: naive_error(consumers, threshold))
        assert threshold_by_layers(consumers, absmax, [], max_share=0.2) <= 0.2 * absmax


def test_outputs_that_do_not_follow_leave_the_threshold(net) -> None:
    given = batches(2)
    layers = net.graph.layers
    done = next(i for i, layer in enumerate(layers) if layer.name == "fc")
    nets = Layerwise(net.graph, given, workers=1)
    for layer in layers[:done]:
        nets.step(layer, layer)
    reference = reference_outputs(
        net.graph, given, ComparedBlobs(None, (Blob("a", 1),), ()), workers=1
    )
    blob = layers[done].bottoms[0]
    suffix = SuffixNetwork(nets, blob, {"fc"}, reference, workers=1)
    assert threshold_by_network(suffix, 3.0, 9.0, headroom=True) == 3


def test_few_images_have_no_say(net, monkeypatch) -> None:
    watched = ComparedBlobs(SCORES, (SCORES,), ())
    assert reference_outputs(net.graph, batches(2), watched, workers=1) is not None
    monkeypatch.setattr("int8calib.tuning.execution.MIN_IMAGES", 3)
    assert reference_outputs(net.graph, batches(2), watched, workers=1) is None
    assert reference_outputs(net.graph, batches(3), ComparedBlobs(None, (), ()), workers=1) is None
