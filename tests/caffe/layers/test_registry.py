"""The registry: every type has cases, unknown and taken names are explained, real pairs agree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import int8calib
from int8calib.caffe.layers.registry import add_type, find_type, has_type, type_names
from int8calib.errors import OptionError, UnsupportedLayerError
from tests.caffe.layers.families import CASES
from tests.layer_cases import Case, deviation

# What Caffe networks in the field are made of, data and loss layers aside.
FIELD = (
    "Convolution ConvolutionDepthwise DepthwiseConvolution InnerProduct ReLU PReLU Pooling "
    "BatchNorm Scale Eltwise Concat Slice Split Softmax Dropout Flatten Reshape Permute LRN "
    "Silence Deconvolution Sigmoid TanH ReLU6 ELU Power Bias Normalize Crop ShuffleChannel "
    "Upsample Interp BN Axpy Reorg HardSwish AbsVal Exp Log BNLL Threshold MVN ArgMax Reduction "
    "Tile Swish Clip SPP CReLU PriorBox DetectionOutput ROIPooling ROIAlign PSROIPooling Embed "
    "Add SeLU CropCenter ResizeNearestNeighbor UpsampleDarknet YoloDetectionOutput "
    "Yolov3DetectionOutput"
)

PAIRS = (
    "convolution", "deconvolution", "inner_product", "lrn_channels", "lrn_spatial", "mvn",
    "pooling_ave", "pooling_max", "softmax",
)  # fmt: skip


def test_every_type_has_a_case() -> None:
    tested = {case.type for case in CASES}
    assert sorted(tested, key=lambda name: (name.lower(), name)) == type_names()


@pytest.mark.parametrize("name", FIELD.split())
def test_type_of_the_field_runs(name: str) -> None:
    assert has_type(name)
    assert "Source:" in (find_type(name).run.__doc__ or "").replace("Sources:", "Source:")


def test_unknown_type_names_the_ways_out_and_no_list() -> None:
    with pytest.raises(UnsupportedLayerError, match=r"'LSTM'.*register_layer.*--layers") as caught:
        find_type("LSTM")
    assert "AbsVal" not in str(caught.value)
    assert not has_type("LSTM")


def test_taken_name_is_refused() -> None:
    with pytest.raises(OptionError, match=r"'ReLU'.*replace=True"):
        add_type(find_type("ReLU"))


@pytest.mark.parametrize("name", type_names())
def test_a_view_has_no_fast_path_and_in_place_needs_one(name: str) -> None:
    kind = find_type(name)
    assert not (kind.view and kind.plan)
    assert not (kind.inplace and kind.plan is None)


def test_multiply_adds_are_those_of_the_weights() -> None:
    for case, expected in (
        (Case("Convolution", "convolution_param { num_output: 6 group: 3 kernel_size: 5 }",
              ((2, 3, 7, 11),)), 2 * 6 * 3 * 7 * 25),
        (Case("Deconvolution", "convolution_param { num_output: 6 group: 3 kernel_size: 5 }",
              ((2, 3, 7, 11),)), 2 * 3 * 7 * 11 * 2 * 25),
        (Case("InnerProduct", "inner_product_param { num_output: 13 }", ((2, 3, 7),)), 2 * 21 * 13),
    ):  # fmt: skip
        tops = case.kind.shape(case.message(), case.bottoms)
        assert case.kind.macs is not None
        assert case.kind.macs(case.message(), case.bottoms, tops) == expected


@pytest.mark.parametrize("name", PAIRS)
def test_recorded_pair(name: str, shared: Path) -> None:
    folder = shared / "models" / f"ocv_layer_{name}"
    model = folder / f"layer_{name}.caffemodel"
    net = int8calib.load_caffe(folder / f"layer_{name}.prototxt", model if model.exists() else None)
    images = np.load(folder / "input.npy")
    (top,) = net.forward({next(iter(net.input_shapes)): images}).values()
    expected = np.load(folder / "expected_output.npy")
    assert deviation(top, expected.reshape(top.shape)) <= 4e-6
