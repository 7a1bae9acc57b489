"""ncnn's layers on a device: every case's own function, on arrays that allow what CuPy has."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from int8calib.caffe.engine.run import Net, Runner
from int8calib.caffe.layers.registry import find_type
from int8calib.device import Device
from int8calib.ncnn.model import NcnnModel
from int8calib.ncnn.param import parse_param
from int8calib.ncnn.translate.layers.registry import OWN
from int8calib.ncnn.translate.network import translate_model
from int8calib.ncnn.translate.options import PREFIX
from tests.layer_cases import by_type, check_each, deviation
from tests.ncnn.translate.cases import CASES, Case
from tests.ncnn.translate.layers.test_layers import images_of
from tests.ncnn.translate.models import model_of
from tests.strict_arrays import STRICT


@pytest.mark.parametrize("cases", by_type(CASES).values(), ids=by_type(CASES))
def test_layer(cases: list[Case], device: Device) -> None:
    check_each(cases, check, device)


def check(case: Case, device: Device) -> None:
    images = images_of(case)
    shapes = {name: (1, *x.shape[1:]) for name, x in images.items()}
    cpu = translate_model(model_of(case), shapes)
    expected = cpu.forward(images)
    net = Net(cpu.graph, cpu.input_shapes, device)
    kinds = set()
    runner = Runner(net.graph, net.graph.outputs, device)
    runner.run(images, lambda blob, top: kinds.add(type(top)))
    assert kinds == {type(device.asarray(np.zeros(1, np.float32)))}
    found = net.forward(images)
    assert list(found) == list(expected)
    for name, top in found.items():
        assert top.dtype == np.float32
        # Where the CPU has a fast path, that adds up in another order.
        tolerance = 2e-6 if device.xp is STRICT else 1e-4
        np.testing.assert_array_equal(np.isfinite(top), np.isfinite(expected[name]))
        assert deviation(np.nan_to_num(top), np.nan_to_num(expected[name])) <= tolerance


def test_all_types_of_ncnn_run_there() -> None:
    assert OWN
    assert not [name for name in OWN if find_type(PREFIX + name).host]


def test_stored_blobs_are_there_for_each_image(device: Device) -> None:
    lines = ["Input in0 0 1 in0 0=3 1=5", "MemoryData m 0 1 m 0=3 1=5", "MatMul op 2 1 in0 m t 0=1"]
    layers = parse_param("\n".join(["7767517", "3 3", *lines]), "case")
    stored = np.arange(15, dtype=np.float32)
    layers = tuple(
        replace(layer, weights=(stored,)) if layer.type == "MemoryData" else layer
        for layer in layers
    )
    images = np.random.default_rng(3).normal(size=(2, 5, 3)).astype(np.float32)
    cpu = translate_model(NcnnModel(layers, "case"), {"in0": (1, 5, 3)})
    top = Net(cpu.graph, cpu.input_shapes, device).forward({"in0": images})["t"]
    np.testing.assert_allclose(top, images @ stored.reshape(5, 3).T, rtol=1e-4, atol=1e-4)
