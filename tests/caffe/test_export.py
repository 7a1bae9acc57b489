"""Networks written as Caffe models: OpenCV computes from the files what the network in memory does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import caffe_proto
import int8calib
from int8calib.caffe.engine.run import Net
from int8calib.caffe.export import write_model
from int8calib.caffe.network.fold import fold_batch_norm
from int8calib.errors import OutputError
from tests.generated import make_model
from tests.network_styles import STYLES, conv, conv_bn, data, head, layer
from tests.opencv import deviation, opencv_tops

IMAGES = np.random.default_rng(13).normal(0, 60, (1, 3, 23, 19)).astype(np.float32)
NETS = {
    "folded": data(1, 3, 23, 19) + conv_bn("c", "data", "num_output: 7 kernel_size: 3") + head("c", 5),
    "out of order": head("c", 5) + conv("c", "data", "num_output: 7 kernel_size: 3") + data(1, 3, 23, 19),
    "a data layer with labels": layer(
        "MemoryData", "data", "",
        param="memory_data_param { batch_size: 1 channels: 3 height: 23 width: 19 }",
    ).replace('top: "data"', 'top: "data" top: "label"')
    + conv("c", "data", "num_output: 7 kernel_size: 3") + head("c", 5)
    + layer("SoftmaxWithLoss", "loss", "fc label"),
    "shared weights": data(1, 3, 23, 19) + "".join(
        layer("Convolution", name, bottom, param='param { name: "w" } param { name: "b" } '
              "convolution_param { num_output: 3 kernel_size: 3 pad: 1 }")
        for name, bottom in (("a", "data"), ("b", "a")))
    + head("b", 5),
}  # fmt: skip


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("fold", [False, True])
def test_files_compute_what_the_network_does(name: str, fold: bool, tmp_path: Path) -> None:
    net = int8calib.load_caffe(*make_model(tmp_path, NETS[name]))
    graph = fold_batch_norm(net.graph) if fold else net.graph
    proto, model = tmp_path / "out.prototxt", tmp_path / "out.caffemodel"
    write_model(Net(graph, net.input_shapes), proto, model)
    expected = net.forward({"data": IMAGES})["prob"]
    top = opencv_tops(proto, model, {"data": IMAGES})["prob"]
    assert deviation(top.reshape(expected.shape), expected) < 2e-5
    again = int8calib.load_caffe(proto, model)
    np.testing.assert_array_equal(again.forward({"data": IMAGES})["prob"], (
        Net(graph, net.input_shapes).forward({"data": IMAGES})["prob"]
    ))  # fmt: skip
    types = [message.type for message in caffe_proto.read_prototxt(proto).layer]
    assert ("BatchNorm" in types) is (name == "folded" and not fold)
    assert not {"MemoryData", "SoftmaxWithLoss"}.intersection(types)


def test_layers_that_cannot_run_are_written_as_they_are(tmp_path: Path) -> None:
    proto, model = make_model(tmp_path, NETS["folded"])
    odd = layer("Odd", "odd", "prob", param="odd_param { size: 7 size: 11 }")
    proto.write_text(NETS["folded"] + odd, encoding="utf-8")
    out = tmp_path / "out.prototxt"
    write_model(int8calib.load_caffe(proto, model), out, tmp_path / "out.caffemodel")
    last = caffe_proto.read_prototxt(out, warn=False).layer[-1]
    assert (last.name, last.type) == ("odd", "Odd")
    assert caffe_proto.unknown_fields(last) == {"odd_param": [{"size": ["7", "11"]}]}


def test_files_that_cannot_be_written_are_errors(tmp_path: Path) -> None:
    net = int8calib.load_caffe(*make_model(tmp_path, STYLES["fire"]()))
    with pytest.raises(OutputError, match="gone"):
        write_model(net, tmp_path / "out.prototxt", tmp_path / "gone/out.caffemodel")
