"""The demo's trainer: what it writes is what OpenCV runs. Needs torch, which no extra installs."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from caffe_proto import caffe_pb2, read_prototxt
from int8calib.demo import CAFFEMODEL, MEAN, NORM, PROTOTXT, train
from int8calib.demo.draw import draw_images

torch = pytest.importorskip("torch", reason="torch is needed to train, and only for that")


def test_a_written_network_gives_opencv_the_outputs_of_torch(tmp_path: Path) -> None:
    torch.manual_seed(3)
    definition = read_prototxt(PROTOTXT)
    net = train.TorchNet(definition)
    train.train(net, epochs=1, pictures=256)
    path = tmp_path / CAFFEMODEL.name
    train.write(net, definition, path)

    images = np.stack([image for image, _ in draw_images(23, 19)]).astype(np.float32)
    data = ((images - np.array(MEAN, np.float32)) * np.float32(NORM)).transpose(0, 3, 1, 2).copy()
    net.modules.eval()
    with torch.no_grad():
        expected = net.logits(torch.from_numpy(data)).softmax(1).numpy()
    reader = cv2.dnn.readNetFromCaffe(str(PROTOTXT), str(path))
    reader.setInput(data, "data")
    np.testing.assert_allclose(reader.forward(), expected, atol=1e-4)
    assert np.ptp(expected, axis=0).max() > 1e-3, "the answer must depend on the picture"


def test_training_lowers_the_loss_and_repeats_itself(caplog: pytest.LogCaptureFixture) -> None:
    definition = read_prototxt(PROTOTXT)
    nets = []
    for _ in range(2):
        torch.manual_seed(5)
        nets.append(train.TorchNet(definition))
        with caplog.at_level("INFO"):
            train.train(nets[-1], epochs=3, pictures=320)
    losses = [record.getMessage().rpartition(" ")[2] for record in caplog.records]
    assert losses[:3] == losses[3:]
    assert float(losses[2]) < float(losses[0])
    for name, of_layer in nets[0].weights().items():
        for first, second in zip(of_layer, nets[1].weights()[name], strict=True):
            np.testing.assert_array_equal(first, second)


def test_a_layer_type_that_the_trainer_lacks_is_named() -> None:
    definition = caffe_pb2.NetParameter()
    definition.layer.add(name="odd", type="LRN", bottom=["data"], top=["odd"])
    definition.layer.insert(0, caffe_pb2.LayerParameter(name="data", type="Input", top=["data"]))
    definition.layer[0].input_param.shape.add(dim=[1, 3, 5, 7])
    with pytest.raises(ValueError, match=r"'odd'.*'LRN'"):
        train.TorchNet(definition)
