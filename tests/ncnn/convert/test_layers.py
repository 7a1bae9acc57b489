"""Every case of every Caffe layer as an ncnn model: what the runtime gives, against the engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import caffe_proto
from caffe_proto import caffe_pb2
from int8calib.caffe.engine.run import Net, load_caffe
from int8calib.caffe.layers.registry import type_names
from int8calib.errors import Int8CalibError, ModelError
from int8calib.ncnn.convert.network import CONVERTERS, DROPPED, convert_network
from int8calib.ncnn.optimize import optimize_model
from tests.caffe.layers.families import FAMILIES
from tests.layer_cases import Case, by_type, check_each
from tests.ncnn.runtime import run_blobs

# What ncnn has no layer for, or another meaning.
WITHOUT = {
    "ArgMax": "the runtime's packages leave it out",
    "BatchReindex": "there is no batch",
    "Embed": "reads integers, Caffe's bottoms are floats",
    "PSROIPooling": "one region a call",
    "ROIAlign": "one region a call",
    "ROIPooling": "one region a call",
    "Reorg": "another order of channels",
}
CASES = [
    case
    for family in FAMILIES
    for case in family.CASES
    if case.type not in WITHOUT and case.type not in DROPPED and case.bottoms
]
REFUSED = (
    "no batch axis",
    "second top",
    "rounding of its size",
    "does not divide by",
    "mask of maxima",
    "ncnn scales channels only",
    "ncnn adds to channels only",
    "statistics of the batch",
    "keeps the batch first",
    "last window without any pixel",
    "repeats pixels whole times",
    "ncnn has no such activation",
    "ncnn adds eps",
    "code_type",
    "share_location",
    "background_label_id",
    "variance_encoded_in_target",
    "keeps one threshold",
    "ncnn's tools drop its parameters",
    "ncnn counts in 31 bits",
    "ncnn sums up equal shapes only",
)
"""What a refusal may say."""
NOT_FOR_ONE = (
    "from axis",
    "the prototxt asks for",
    "leaves nothing of",
    "too short for",
    "do not divide among",
)
"""What keeps a case of a batch from being one of an image."""


def one_layer(case: Case, folder: Path) -> tuple[Net, dict[str, np.ndarray]]:
    """A network of the case's layer, and one image for it."""
    message = case.message()
    weights, bottoms = case.arrays(seed=7)
    structure = caffe_pb2.NetParameter(name="one layer")
    for name, bottom in zip(message.bottom, bottoms, strict=True):
        data = structure.layer.add(name=name, type="Input")
        data.top.append(name)
        data.input_param.shape.add().dim.extend((1, *bottom.shape[1:]))
    structure.layer.add().CopyFrom(message)
    caffe_proto.write_prototxt(folder / "n.prototxt", structure)
    stored = {message.name: weights} if weights else {}
    caffe_proto.write_caffemodel(folder / "n.caffemodel", structure, stored)
    net = load_caffe(folder / "n.prototxt", folder / "n.caffemodel")
    return net, {n: x[:1] for n, x in zip(message.bottom, bottoms, strict=True)}


def shares(scores: np.ndarray, net: Net) -> np.ndarray:
    """Scores that add up to 1 over the classes, as ncnn takes for granted when it skips boxes."""
    layer = next(layer for layer in net.graph.layers if layer.name == "op")
    rows = np.abs(scores).reshape(-1, int(layer.params.detection_output_param.num_classes))
    return (rows / rows.sum(axis=1, keepdims=True)).reshape(scores.shape).astype(np.float32)


def test_every_type_is_converted_or_named_here() -> None:
    types = set(type_names())
    assert types - CONVERTERS.keys() - DROPPED == WITHOUT.keys()


@pytest.mark.parametrize("cases", by_type(CASES).values(), ids=by_type(CASES))
def test_the_runtime_gives_what_the_engine_gives(cases: list[Case], tmp_path: Path) -> None:
    pytest.importorskip("ncnn")
    check_each(cases, check_case, tmp_path)


def check_case(case: Case, folder: Path) -> None:
    try:
        net, images = one_layer(case, folder)
        if case.type == "DetectionOutput":
            images["in1"] = shares(images["in1"], net)
        expected = net.forward(images)
    except Int8CalibError as error:
        alone = str(error)
    else:
        alone = ""
    if alone:
        assert any(reason in alone for reason in NOT_FOR_ONE), alone
        return
    try:
        model = convert_network(net)
    except ModelError as error:
        refusal = str(error)
    else:
        refusal = ""
    if refusal:
        assert any(reason in refusal for reason in REFUSED), refusal
        assert "layer 'op'" in refusal
        return
    if case.type == "PriorBox" and model.notes:
        assert "whole pixels" in model.notes[0]
        return
    inputs = {name: image[0] for name, image in images.items()}
    plain, optimized = model.layers, optimize_model(model.layers)
    check(case, expected, run_blobs(plain, inputs, list(expected), folder=folder))
    if [layer.params for layer in optimized] != [layer.params for layer in plain]:
        check(case, expected, run_blobs(optimized, inputs, list(expected), folder=folder))


def check(case: Case, expected: dict[str, np.ndarray], tops: list[np.ndarray]) -> None:
    """What ncnn gives has the engine's sizes and values."""
    for wanted, found in zip(expected.values(), tops, strict=True):
        if case.type.endswith("DetectionOutput"):
            # Caffe's rows begin with the image's number, and one row of -1 stands for none; ncnn's
            # YOLO v2 hands its bottom on where it finds nothing.
            wanted = wanted.reshape(-1, 7)[:, 1:]
            wanted = wanted[wanted[:, 0] >= 0]
            found = found.reshape(-1, 6) if len(wanted) else wanted
            order = [np.lexsort(np.round(rows, 3).T) for rows in (wanted, found)]
            wanted, found = wanted[order[0]], found[order[1]]
        sizes = [[size for size in array.shape if size != 1] for array in (wanted, found)]
        assert sizes[0] == sizes[1]
        largest = max(float(np.abs(wanted).max(initial=0)), 1e-30)
        assert np.abs(found.ravel() - wanted.ravel()).max(initial=0) <= 1e-4 * largest
