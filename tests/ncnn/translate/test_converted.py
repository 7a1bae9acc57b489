"""Every case of every Caffe layer as an ncnn model, and back in numpy: what Caffe's engine gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from int8calib.errors import Int8CalibError, ModelError
from int8calib.ncnn.convert.network import convert_network
from int8calib.ncnn.model import NcnnModel
from int8calib.ncnn.optimize import optimize_model
from int8calib.ncnn.translate.network import obstacles, translate_model
from tests.layer_cases import Case, by_type, check_each
from tests.ncnn.convert.test_layers import CASES, one_layer, shares


@pytest.mark.parametrize("cases", by_type(CASES).values(), ids=by_type(CASES))
def test_a_converted_layer_gives_what_it_gave(cases: list[Case], tmp_path: Path) -> None:
    check_each(cases, check, tmp_path)


def check(case: Case, folder: Path) -> None:
    try:
        net, images = one_layer(case, folder)
        if case.type == "DetectionOutput":
            images["in1"] = shares(images["in1"], net)
        expected = net.forward(images)
        model = convert_network(net)
    except (Int8CalibError, ModelError):
        return  # not for one image, or not in ncnn; the conversion's own test says which
    if case.type == "PriorBox" and model.notes:
        return  # ncnn does not cut sizes to whole pixels
    optimized = NcnnModel(optimize_model(model.layers), model.source)
    for each in (model, optimized):
        translated = translate_model(each)
        assert not obstacles(translated)
        found = translated.forward(images, outputs=list(expected))
        for name, wanted in expected.items():
            top = found[name]
            assert [n for n in top.shape if n != 1] == [n for n in wanted.shape if n != 1]
            largest = max(float(np.abs(wanted).max(initial=0)), 1e-30)
            difference = np.abs(top.ravel() - wanted.ravel()).max(initial=0)
            assert difference <= 1e-4 * largest
