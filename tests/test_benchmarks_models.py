"""What the benchmarks compare with: the same models for other engines, and the rendition."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from benchmarks import ncnn2table, ncnn_forward, reference, report  # noqa: E402
from benchmarks.engines import noise  # noqa: E402
from benchmarks.ncnn_forward import NcnnForward, save  # noqa: E402
from benchmarks.networks import Material, gather  # noqa: E402
from benchmarks.settings import QUICK  # noqa: E402
from int8calib.caffe.network.fold import fold_batch_norm  # noqa: E402
from int8calib.caffe.network.shapes import multiply_adds  # noqa: E402
from int8calib.ncnn.model import load_model  # noqa: E402
from int8calib.ncnn.runtime import RuntimeNet  # noqa: E402
from tests.histogram_cases import golden_histograms  # noqa: E402


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    return gather(tmp_path_factory.mktemp("benchmarks"), ["demo"], lambda text: None)


def test_rendition_finds_the_tools_thresholds(shared: Path) -> None:
    for layer in ("fire2/conv1x1_1", "fire9/conv3x3_2", "conv_final"):
        _, kept, counts = golden_histograms(shared)[layer]
        assert reference.threshold_bin(counts) == kept, layer


def test_rendition_counts_positive_values_of_every_bottom(material: Material) -> None:
    tool = reference.Reference(material.networks[0])
    paths = [str(path) for path in material.images[:2]]
    blobs = [tool.blobs(path) for path in paths]
    for name, counts in tool.histograms(paths).items():
        values = np.concatenate([blob[name].reshape(-1) for blob in blobs])
        assert counts.sum() == (values >= 0).sum(), name


def test_multiply_adds_are_taps_times_pixels(material: Material) -> None:
    net = material.networks[0].load()
    (name, shape), *_ = net.input_shapes.items()
    sizes: dict[str, int] = {}
    net.forward(
        {name: np.zeros((1, *shape[1:]), np.float32)},
        lambda layer, _, top: sizes.update({layer: int(np.prod(top.shape[2:]))}),
    )
    counted = ("Convolution", "InnerProduct")
    layers = [layer for layer in net.graph.layers if layer.type in counted]
    expected = sum(layer.weights[0].size * sizes[layer.name] for layer in layers)
    assert multiply_adds(net.graph, {name: (1, *shape[1:])}) == expected


def test_ncnn_runs_the_demo_network(material: Material, tmp_path: Path) -> None:
    pytest.importorskip("ncnn")
    network = material.networks[0]
    with NcnnForward(network, noise(network), QUICK, tmp_path, processes=1) as forward:
        cost = forward()
    assert cost.cpu > 0
    assert cost.wall > 0
    model = load_model(*save(network, tmp_path))
    images = noise(network)
    found = RuntimeNet(model, float32=True).run({n: x[0] for n, x in images.items()}, ["prob"])
    (expected,) = network.load().forward(images).values()
    np.testing.assert_allclose(found["prob"].reshape(-1), expected.reshape(-1), atol=1e-5)


def test_a_model_that_ncnn_refuses_is_no_crash(
    material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ncnn")
    monkeypatch.setattr(ncnn_forward, "save", lambda network, folder: None)
    (tmp_path / "net.param").write_text("nonsense")
    (tmp_path / "net.bin").write_bytes(b"")
    with pytest.raises(ncnn_forward.NcnnMissingError):
        ncnn_forward.NcnnForward(material.networks[0], {}, QUICK, tmp_path)


def test_ncnn2table_runs_in_turn_where_it_is_at_hand(
    material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program of that name, which takes its options and a known time."""
    tool = tmp_path / "ncnn2table"
    tool.write_text(
        "#!/bin/sh\nsleep 0.3\ntest -s $1 && test -s $2 && test -s $3 || exit 1\n"
        'test "$8" = pixel=BGR && test "$9" = thread=2 || exit 2\n'
    )
    tool.chmod(0o755)
    monkeypatch.setenv("INT8CALIB_NCNN_TOOLS", str(tmp_path))
    found = ncnn2table.measure(material, QUICK, lambda text: None)
    assert found["measured"]
    run = found["networks"]["demo"]["4"]
    assert run["tool_seconds"]["median"] >= 0.3
    assert run["ratio"]["median"] == pytest.approx(
        run["seconds"]["median"] / run["tool_seconds"]["median"], rel=0.5
    )
    assert run["peak_bytes"] > 1e7
    table = report.beside_table({"ncnn2table": found})
    assert "ran in turn" in table
    assert f"| {run['ratio']['median']:.2f} (" in table


def test_onnx_model_computes_the_same(material: Material) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    from benchmarks.onnx_model import convert

    net = material.networks[0].load()
    (data, shape), *_ = net.input_shapes.items()
    images = np.random.default_rng(5).normal(0, 1, (1, *shape[1:])).astype(np.float32)
    model = convert(fold_batch_norm(net.graph), {data: images.shape})
    session = runtime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (found,) = session.run(None, {data: images})
    (expected,) = net.forward({data: images}).values()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_opencv_runs_the_demo_network_as_the_engine_does(material: Material) -> None:
    """The unit of all ratios does the same work."""
    network = material.networks[0]
    net = network.load()
    (data, shape), *_ = net.input_shapes.items()
    images = np.random.default_rng(7).normal(0, 1, (1, *shape[1:])).astype(np.float32)
    other = cv2.dnn.readNetFromCaffe(str(network.proto), str(network.model))
    other.setInput(images, data)
    (expected,) = net.forward({data: images}).values()
    np.testing.assert_allclose(other.forward(), expected, rtol=1e-3, atol=1e-5)
