"""Whole evaluations against the same figures worked out from plain forward passes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

import int8calib
from int8calib.errors import ImageError, OptionError
from tests.caffe.engine.test_engine import NET
from tests.evaluation_cases import coarse_table, loader_of
from tests.generated import make_model


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> int8calib.Net:
    return int8calib.load_caffe(*make_model(tmp_path_factory.mktemp("odd"), NET))


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(5).normal(0, 60, (23, 3, 37, 29)).astype(np.float32)


def test_evaluation_is_what_forward_passes_give(net: int8calib.Net, images: np.ndarray) -> None:
    labels = np.random.default_rng(9).integers(0, 11, len(images))
    tables = {"fine": coarse_table(net, 0.4), "coarse": coarse_table(net, 0.04)}
    found = int8calib.evaluate(net, tables, loader_of(images, labels), topk=(1, 3), workers=3)
    assert found.images == 23
    (expected,) = net.forward({"data": images}).values()
    hits = [
        (np.argsort(-expected, axis=1)[:, :k] == labels[:, None]).any(axis=1).sum() for k in (1, 3)
    ]
    assert found.float_accuracy is not None
    assert [share.hits for share in found.float_accuracy.topk.values()] == hits
    assert [table.name for table in found.tables] == ["fine", "coarse"]
    for result, table in zip(found.tables, tables.values(), strict=True):
        (top,) = int8calib.simulate(net, table).forward({"data": images}).values()
        assert result.agreement is not None
        assert result.accuracy is not None
        same = (top.argmax(axis=1) == expected.argmax(axis=1)).sum()
        assert (result.agreement.hits, result.agreement.total) == (same, 23)
        assert result.accuracy.topk[1].hits == (top.argmax(axis=1) == labels).sum()
        confusion = np.zeros((11, 11), int)
        for label, said in zip(labels, top.argmax(axis=1), strict=True):
            confusion[label, said] += 1
        np.testing.assert_array_equal(result.accuracy.confusion, confusion)
        x, y = expected.astype(float), top.astype(float)
        (blob,) = result.blobs
        assert blob.blob == "prob"
        assert blob.sqnr == pytest.approx(10 * math.log10((x**2).sum() / ((x - y) ** 2).sum()))
        assert result.boxes is None
    agreements = [table.agreement.value for table in found.tables if table.agreement]
    assert agreements[1] < agreements[0] <= 1
    assert json.loads(json.dumps(found.as_dict()))["tables"][1]["name"] == "coarse"


def test_workers_and_batches_change_nothing(net: int8calib.Net, images: np.ndarray) -> None:
    table = coarse_table(net, 0.2)
    one = int8calib.evaluate(net, table, loader_of(images), workers=1)
    many = int8calib.evaluate(net, table, loader_of(images), workers=4)
    assert one.as_dict() == many.as_dict()
    small = int8calib.evaluate(net, table, loader_of(images, batch=1))
    assert small.tables[0].agreement == one.tables[0].agreement
    assert small.tables[0].blobs[0].sqnr == pytest.approx(one.tables[0].blobs[0].sqnr)
    assert one.float_accuracy is None


def test_progress_hears_of_every_image(net: int8calib.Net, images: np.ndarray) -> None:
    heard: list[tuple[str, int, int]] = []
    int8calib.evaluate(
        net, {}, loader_of(images), total=23, progress=lambda *said: heard.append(said)
    )
    assert heard[-1] == ("evaluation", 23, 23)
    assert [done for _, done, _ in heard] == sorted(done for _, done, _ in heard)


@pytest.mark.parametrize(
    ("labels", "words"), [([11] * 23, "none of the 11 classes"), ([-1] * 23, "none of the")]
)
def test_labels_must_be_classes(
    net: int8calib.Net, images: np.ndarray, labels: list[int], words: str
) -> None:
    with pytest.raises(ImageError, match=words):
        int8calib.evaluate(net, {}, loader_of(images, np.array(labels)))


def test_bad_requests_are_refused(net: int8calib.Net, images: np.ndarray) -> None:
    with pytest.raises(OptionError, match="top-k"):
        int8calib.evaluate(net, {}, loader_of(images), topk=(0,))
    with pytest.raises(ImageError, match="no images"):
        int8calib.evaluate(net, {}, list)
    with pytest.raises(ImageError, match="4 labels for 5 images"):
        int8calib.evaluate(net, {}, lambda: [int8calib.Labeled({"data": images[:5]}, [0, 1, 2, 3])])


REGRESSOR = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 7 dim: 11 } } }
layer { name: "a" type: "Convolution" bottom: "data" top: "a"
  convolution_param { num_output: 5 kernel_size: 3 } }
layer { name: "b" type: "InnerProduct" bottom: "a" top: "b" inner_product_param { num_output: 4 } }
layer { name: "c" type: "InnerProduct" bottom: "a" top: "c" inner_product_param { num_output: 2 } }
"""


def test_several_outputs_are_compared_blob_by_blob(tmp_path: Path) -> None:
    net = int8calib.load_caffe(*make_model(tmp_path, REGRESSOR))
    x = np.random.default_rng(5).normal(0, 60, (6, 3, 7, 11)).astype(np.float32)
    table = coarse_table(net, 0.3)
    (result,) = int8calib.evaluate(net, table, loader_of(x)).tables
    assert [blob.blob for blob in result.blobs] == ["b", "c"]
    assert result.agreement is None
    (named,) = int8calib.evaluate(net, table, loader_of(x), scores="c").tables
    tops = [each.forward({"data": x})["c"] for each in (net, int8calib.simulate(net, table))]
    assert named.agreement is not None
    assert named.agreement.hits == (tops[0].argmax(axis=1) == tops[1].argmax(axis=1)).sum()
    with pytest.raises(OptionError, match="b, c"):
        int8calib.evaluate(net, table, loader_of(x, np.zeros(6, int)))


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interruption_reaches_the_caller(
    error: type[BaseException], net: int8calib.Net, images: np.ndarray
) -> None:
    def batches():  # type: ignore[no-untyped-def]
        yield {"data": images[:5]}
        raise error

    with pytest.raises(error):
        int8calib.evaluate(net, {}, batches, workers=2)
    with pytest.raises(error):
        int8calib.analyze(net, coarse_table(net, 0.2), batches)
