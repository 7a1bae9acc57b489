"""Errors per layer against the same figures from separate runs of the nets."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

import int8calib
from int8calib.analysis.results import LayerError
from int8calib.caffe.layers.registry import find_type
from int8calib.caffe.network.fold import fold_batch_norm
from int8calib.table.model import CalibrationTable
from tests.caffe.engine.test_engine import NET
from tests.evaluation_cases import coarse_table, loader_of
from tests.generated import make_model


def decibels(a: np.ndarray, b: np.ndarray) -> float:
    x, y = a.astype(float), b.astype(float)
    return 10 * math.log10((x**2).sum() / ((x - y) ** 2).sum())


def versions(net: int8calib.Net, images: np.ndarray) -> dict[str, np.ndarray]:
    """Every top of the net, by the name of the layer that makes it."""
    seen: dict[str, np.ndarray] = {}
    net.forward({"data": images}, lambda name, blob, top: seen.update({name: top.copy()}))
    return seen


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> int8calib.Net:
    return int8calib.load_caffe(*make_model(tmp_path_factory.mktemp("odd"), NET))


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(5).normal(0, 60, (23, 3, 37, 29)).astype(np.float32)


@pytest.fixture(scope="module")
def table(net: int8calib.Net) -> CalibrationTable:
    return coarse_table(net, 0.4)


@pytest.fixture(scope="module")
def found(net: int8calib.Net, table: CalibrationTable, images: np.ndarray) -> int8calib.Analysis:
    return int8calib.analyze(
        net, table, loader_of(images, batch=3), sensitivity_images=6, workers=2
    )


def by_name(found: int8calib.Analysis) -> dict[str, LayerError]:
    return {layer.name: layer for layer in found.layers}


def test_errors_are_those_of_separate_runs(
    net: int8calib.Net,
    table: CalibrationTable,
    images: np.ndarray,
    found: int8calib.Analysis,
) -> None:
    graph = fold_batch_norm(net.graph)
    floats = versions(int8calib.Net(graph, net.input_shapes), images)
    simulated = int8calib.simulate(net, table)
    chained = versions(simulated, images)
    assert set(by_name(found)) == {"conv1", "dw", "pw", "left", "fc"}
    for layer in simulated.graph.layers:
        if not layer.type.startswith("Int8"):
            continue
        error = by_name(found)[layer.name]
        bottom = floats[graph.producer(layer.bottoms[0]).name]
        (alone,) = find_type(layer.type).run(layer.params, layer.weights, [bottom])
        top = floats[layer.name]
        assert error.isolated_sqnr == pytest.approx(decibels(top, alone), abs=1e-6)
        assert error.accumulated_sqnr == pytest.approx(decibels(top, chained[layer.name]), abs=1e-6)
        cosines = [
            np.vdot(a, b) / np.linalg.norm(a) / np.linalg.norm(b)
            for a, b in zip(top.astype(float), alone.astype(float), strict=True)
        ]
        assert error.isolated_cosine == pytest.approx(np.mean(cosines), abs=1e-9)
        scale = table[layer.name].bottom_scale
        steps = np.clip(np.floor(np.abs(bottom.astype(float)) * scale + 0.5), None, 127)
        errors = np.square(np.abs(bottom.astype(float)) - steps / scale)
        beyond = np.abs(bottom) * scale >= 127.5
        assert error.clipped_values == pytest.approx(beyond.mean())
        share = errors[beyond].sum() / errors.sum()
        assert error.clipped_error == pytest.approx(share, abs=1e-5)
        assert error.clipped_error + error.rounding_error == pytest.approx(1)
    own = [layer.isolated_sqnr for layer in found.layers]
    assert own == sorted(own)
    assert by_name(found)["conv1"].isolated_sqnr == by_name(found)["conv1"].accumulated_sqnr
    assert by_name(found)["fc"].isolated_sqnr > by_name(found)["fc"].accumulated_sqnr


def test_sensitivity_is_one_layer_at_a_time(
    net: int8calib.Net,
    table: CalibrationTable,
    images: np.ndarray,
    found: int8calib.Analysis,
) -> None:
    assert found.sensitivity_images == 6
    assert found.cost == pytest.approx((3 * 23 + 6 * (5 + 1)) / (2 * 23))
    few = images[:6]
    (expected,) = net.forward({"data": few}).values()
    for name, error in by_name(found).items():
        one = CalibrationTable((table[name],))
        (top,) = int8calib.simulate(net, one).forward({"data": few}).values()
        assert error.output_sqnr == pytest.approx(decibels(expected, top), abs=0.01)
        assert error.agreement is not None
        assert error.agreement.hits == (expected.argmax(axis=1) == top.argmax(axis=1)).sum()
    ranked = [(e.agreement.value, e.output_sqnr) for e in found.by_sensitivity() if e.agreement]  # type: ignore[operator]
    assert ranked == sorted(ranked)
    assert len(ranked) == 5


def test_sensitivity_can_be_left_out(
    net: int8calib.Net,
    table: CalibrationTable,
    images: np.ndarray,
    found: int8calib.Analysis,
) -> None:
    plain = int8calib.analyze(net, table, loader_of(images, batch=3), sensitivity_images=0)
    assert plain.cost == 1.5
    assert plain.by_sensitivity() == ()
    assert [e.isolated_sqnr for e in plain.layers] == [e.isolated_sqnr for e in found.layers]
    assert json.loads(json.dumps(plain.as_dict()))["layers"][0]["output_sqnr"] is None


def test_a_table_of_nothing_has_no_errors(net: int8calib.Net, images: np.ndarray) -> None:
    with pytest.raises(int8calib.Int8CalibError, match="no layer"):
        int8calib.analyze(net, CalibrationTable(()), loader_of(images))
