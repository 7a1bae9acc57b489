"""Networks on a device: every layer's case, whole networks, what travels, and what memory it takes.

The device allows only what CuPy has and has numpy inside; with a GPU the same runs on that.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

import int8calib
from caffe_proto import LayerParameter
from int8calib.arrays import to_host
from int8calib.caffe.engine.run import Net, Runner
from int8calib.caffe.layers import registry
from int8calib.caffe.layers.registry import find_type, is_built_in, type_names
from int8calib.caffe.network.graph import Blob, Graph, Layer
from int8calib.device import Device
from int8calib.errors import ModelError, OptionError, WeightsError
from tests.caffe.layers.families import CASES
from tests.generated import make_model
from tests.layer_cases import Case, by_type, check_each, deviation
from tests.network_styles import STYLES, conv, conv_bn, data, head, layer
from tests.random_networks import Network, networks
from tests.strict_arrays import STRICT, Transfers, strict_device

HOST = "DetectionOutput PSROIPooling ROIAlign ROIPooling YoloDetectionOutput Yolov3DetectionOutput"
ROUNDING = 1e-5
"""Of the largest value, where a GPU adds up in another order."""


def case_net(case: Case, device: Device | None) -> tuple[Net, dict[str, np.ndarray]]:
    """A network of one layer and inputs, and arrays for these."""
    weights, bottoms = case.arrays(seed=7)
    inputs = {f"in{i}": bottom for i, bottom in enumerate(bottoms)}
    rule = case.kind.weights
    for i, shape in enumerate(rule(case.message(), case.bottoms) if rule else ()):
        weights[i] = weights[i].reshape(shape)  # as a loaded network has them
    layers = [
        Layer(name, "Input", LayerParameter(name=name, type="Input"), (), (Blob(name),))
        for name in inputs
    ]
    tops = tuple(Blob(f"out{i}") for i in range(case.tops))
    blobs = tuple(Blob(name) for name in inputs)
    layers.append(Layer("op", case.type, case.message(), blobs, tops, tuple(weights)))
    shapes = {name: bottom.shape for name, bottom in inputs.items()}
    return Net(Graph("case", "case.prototxt", tuple(layers), shapes, tops), shapes, device), inputs


def types_made(net: Net, inputs: dict[str, np.ndarray]) -> set[type]:
    """The types of a network's outputs where they are made."""
    kinds = set()
    runner = Runner(net.graph, net.graph.outputs, net.device)
    runner.run(inputs, lambda blob, top: kinds.add(type(top)))
    return kinds


def test_types_that_run_on_the_host() -> None:
    names = filter(is_built_in, type_names())
    assert [name for name in names if find_type(name).host] == HOST.split()


@pytest.mark.parametrize("cases", by_type(CASES).values(), ids=by_type(CASES))
def test_layer(cases: list[Case], device: Device) -> None:
    check_each(cases, check, device)


def check(case: Case, device: Device) -> None:
    net, inputs = case_net(case, device)
    got = net.forward(inputs)
    weights, bottoms = case.arrays(seed=7)
    expected = case.kind.run(case.message(), weights, bottoms)
    assert list(got) == [f"out{i}" for i in range(len(expected))]
    if inputs and expected:
        assert types_made(net, inputs) == {type(device.asarray(np.zeros(1, np.float32)))}
    for top, wanted in zip(got.values(), expected, strict=True):
        assert isinstance(top, np.ndarray)
        assert top.dtype == np.float32
        if device.xp is STRICT:
            np.testing.assert_array_equal(top, wanted)
        else:
            assert deviation(top, wanted) <= max(ROUNDING, case.tolerance)


@pytest.mark.parametrize("style", STYLES)
def test_network(style: str, device: Device, tmp_path: Path) -> None:
    files = make_model(tmp_path, STYLES[style](), opening=1.0)
    cpu = int8calib.load_caffe(*files)
    net = int8calib.load_caffe(*files, device=device)
    shape = (3, *cpu.input_shapes["data"][1:])
    images = np.random.default_rng(5).normal(0, 60, shape).astype(np.float32)
    seen: dict[tuple[str, str], np.ndarray] = {}
    tops = net.forward({"data": images}, lambda name, blob, top: seen.update({(name, blob): top}))
    expected: dict[tuple[str, str], np.ndarray] = {}
    outputs = cpu.forward(
        {"data": images}, lambda name, blob, top: expected.update({(name, blob): top.copy()})
    )
    assert list(seen) == list(expected)
    for key, wanted in expected.items():
        if seen[key].shape == wanted.shape:
            assert deviation(seen[key], wanted) <= 20 * ROUNDING, key
    assert tops.keys() == outputs.keys()
    for name, top in tops.items():
        assert isinstance(top, np.ndarray)
        assert top.shape[-1] == outputs[name].shape[-1]


@settings(max_examples=60)
@given(network=networks())
def test_random_network(network: Network) -> None:
    graph = network.graph()
    net = Net(graph, {"data": network.images[0].shape}, strict_device())
    for image in network.images:
        heard: list[tuple[str, str, np.ndarray]] = []
        net.forward({"data": image}, lambda *top, heard=heard: heard.append(top))
        expected = network.expected(image)
        names = [top[:2] for top in heard]
        wanted = [top for top in expected if top[:2] in names]
        assert names == [top[:2] for top in wanted]
        for (_, _, top), (_, _, value) in zip(heard, wanted, strict=True):
            assert deviation(top, value) <= ROUNDING


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    text = data(1, 3, 23, 29) + conv_bn("conv1", "data", "num_output: 5 kernel_size: 3")
    text += conv("conv2", "conv1", "num_output: 7 kernel_size: 3 group: 1") + head("conv2", 11)
    return make_model(tmp_path_factory.mktemp("small"), text)


def test_an_executor_hands_out_what_is_on_the_device(
    small: tuple[Path, Path], device: Device
) -> None:
    executor = int8calib.load_caffe(*small, device=device).executor()
    cpu = int8calib.load_caffe(*small).executor()
    assert executor.device is device
    assert cpu.device is None
    blobs = [layer.bottom for layer in executor.layers]
    keys = list(map(str, blobs))
    images = np.random.default_rng(3).normal(0, 60, (2, 3, 23, 29)).astype(np.float32)
    heard = {}
    kind = type(device.asarray(images))

    def listen(blob: str, top: object) -> None:
        assert type(top) is kind
        heard[blob] = to_host(top)

    executor.runner(keys)({"data": images}, listen)
    expected = cpu.run({"data": images}, keys)
    copied = executor.run({"data": images}, keys)
    assert heard.keys() == expected.keys() == copied.keys()
    for key, wanted in expected.items():
        assert isinstance(copied[key], np.ndarray)
        assert deviation(heard[key], wanted) <= ROUNDING
        np.testing.assert_array_equal(copied[key], heard[key])


def test_inputs_may_be_on_the_device(small: tuple[Path, Path], device: Device) -> None:
    images = np.random.default_rng(3).normal(0, 60, (2, 3, 23, 29)).astype(np.float32)
    for net in (int8calib.load_caffe(*small), int8calib.load_caffe(*small, device=device)):
        expected = net.forward({"data": images})["prob"]
        found = net.forward({"data": device.asarray(images)})["prob"]
        np.testing.assert_array_equal(found, expected)


def test_weights_go_there_once(small: tuple[Path, Path]) -> None:
    device = strict_device()
    executor = int8calib.load_caffe(*small, device=device).executor()
    images = {"data": np.ones((2, 3, 23, 29), np.float32)}
    keys = [str(layer.bottom) for layer in executor.layers]
    Transfers.reset()
    executor.runner(keys)(images, lambda blob, top: None)
    # The input, and weight and bias of two convolutions (BatchNorm is folded); Pooling's counts of
    # pixels. The last bottom is the InnerProduct's, whose own weights are not needed.
    assert (Transfers.uploads, Transfers.downloads) == (1 + 4 + 1, 0)
    executor.runner(keys)(images, lambda blob, top: None)
    assert (Transfers.uploads, Transfers.downloads) == (6 + 2, 0)
    copied = Net(executor.graph, executor.inputs, device)
    Transfers.reset()
    assert list(copied.forward(images)) == ["prob"]
    # The input, the counts, and weight and bias of the InnerProduct; the output.
    assert (Transfers.uploads, Transfers.downloads) == (1 + 1 + 2, 1)


def _double(params: object, weights: object, bottoms: list[np.ndarray]) -> list[np.ndarray]:
    assert all(isinstance(bottom, np.ndarray) for bottom in bottoms)
    return [bottoms[0] * np.float32(2)]


def _same(params: object, bottoms: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    return [bottoms[0]]


def test_a_host_layer_stands_between_two_transfers(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_types", dict(registry._types))
    int8calib.register_layer("TwiceOnHost", _double, _same, replace=True)
    text = data(1, 2, 5, 7) + layer("ReLU", "relu", "data") + layer("TwiceOnHost", "a", "relu")
    text += layer("TwiceOnHost", "b", "a") + layer("Eltwise", "sum", "b relu")
    net = int8calib.load_caffe(*make_model(tmp_path, text), device=device)
    images = np.random.default_rng(3).normal(0, 1, (3, 2, 5, 7)).astype(np.float32)
    Transfers.reset()
    top = net.forward({"data": images})["sum"]
    np.testing.assert_allclose(top, 5 * np.maximum(images, 0), rtol=1e-6)
    if device.xp is STRICT:
        # Up: the input, `a`, `b`, and Eltwise's coefficients. Down: `relu` (`a` is here), `sum`.
        assert (Transfers.uploads, Transfers.downloads) == (4, 2)


def test_layers_and_listeners_run_where_the_device_is_current(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered: list[str] = []

    @contextmanager
    def current() -> Iterator[None]:
        entered.append("here")
        yield
        entered.pop()

    def run(params: object, weights: object, bottoms: list[Any]) -> list[Any]:
        # The test's own weights are made by a run on the CPU.
        assert entered or isinstance(bottoms[0], np.ndarray)
        return [bottoms[0] + 1]

    monkeypatch.setattr(registry, "_types", dict(registry._types))
    registry.add_type(registry.LayerType("Here", run, _same, host=False))
    model = make_model(tmp_path, data(1, 2, 5, 7) + layer("Here", "a", "data"))
    net = int8calib.load_caffe(*model, device=Device("strict:0", STRICT, current))
    images = {"data": np.ones((3, 2, 5, 7), np.float32)}
    heard = []
    Runner(net.graph, net.graph.outputs, net.device).run(
        images, lambda blob, top: heard.append((entered[:], top.get()))
    )
    ((where, top),) = heard
    assert where
    assert not entered
    np.testing.assert_array_equal(top, 2)
    np.testing.assert_array_equal(net.forward(images)["a"], 2)


def test_default_boxes_need_no_bottom_on_the_host(tmp_path: Path) -> None:
    net = int8calib.load_caffe(*make_model(tmp_path, STYLES["ssd"]()), device=strict_device())
    boxes = [layer for layer in net.graph.layers if layer.type == "PriorBox"]
    assert boxes
    Transfers.reset()
    names = [box.tops[0].name for box in boxes]
    net.forward({"data": np.ones((1, 3, 61, 67), np.float32)}, outputs=names)
    assert Transfers.downloads == len(boxes)


def test_errors_name_the_layer(device: Device) -> None:
    case = Case("Embed", "embed_param { num_output: 3 input_dim: 5 }", ((2, 7),))
    net, inputs = case_net(case, device)
    inputs["in0"] = np.full((2, 7), 5, np.float32)
    with pytest.raises(ModelError) as caught:
        net.forward(inputs)
    assert str(caught.value) == (
        "case.prototxt: layer 'op' (Embed): the indices are 5 to 5; expected 0 to 4"
    )


def test_memory_that_is_not_there_is_told_in_our_words(small: tuple[Path, Path]) -> None:
    class Full:
        def asarray(self, x: object) -> object:
            raise MemoryError("Out of memory allocating 8,008 bytes")

    net = int8calib.load_caffe(*small, device=Device("full:0", Full()))
    images = {"data": np.ones((1, 3, 23, 29), np.float32)}
    message = r"net\.prototxt: full:0: Out of memory allocating .*; give fewer images"
    with pytest.raises(ModelError, match=message):
        net.forward(images)
    executor = net.executor()
    with pytest.raises(ModelError, match=message):
        executor.run(images, [str(executor.layers[1].bottom)])


def test_missing_weights_are_told(small: tuple[Path, Path]) -> None:
    net = int8calib.load_caffe(small[0], None, device=strict_device())
    with pytest.raises(
        WeightsError, match=r"layer 'conv1' .* load the network with its caffemodel"
    ):
        net.forward({"data": np.ones((1, 3, 23, 29), np.float32)})


def test_a_device_that_is_not_there(small: tuple[Path, Path]) -> None:
    for device in ("gpu", "cuda:999"):
        with pytest.raises(OptionError, match=f"^device '?{device}'?: "):
            int8calib.load_caffe(*small, device=device)


def test_a_copy_of_a_net_runs(small: tuple[Path, Path]) -> None:
    net = int8calib.load_caffe(*small, device=strict_device())
    images = {"data": np.ones((2, 3, 23, 29), np.float32)}
    wanted = net.forward(images)["prob"]
    same = Net(net.graph, net.input_shapes, net.device).forward(images)["prob"]
    np.testing.assert_array_equal(same, wanted)
    cpu = Net(net.graph, net.input_shapes).forward(images)["prob"]
    assert deviation(cpu, wanted) <= ROUNDING
