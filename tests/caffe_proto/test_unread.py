"""Values of another type than the schema has: kept for their layer, as unknown values are."""

from __future__ import annotations

import pytest
from google.protobuf import text_format

import caffe_proto
from caffe_proto import NetParameter, Unread, parse_prototxt, unread_fields

WRONG = [
    ("loss_weight: big", "loss_weight", ["big"]),
    ("loss_weight: 010", "loss_weight", ["010"]),
    ("propagate_down: [ true, yes ]", "propagate_down", ["yes"]),
    ("convolution_param { num_output: -1 }", "convolution_param.num_output", ["-1"]),
    ("convolution_param { pad: 1.0 }", "convolution_param.pad", ["1.0"]),
    ("convolution_param { bias_term: [ true ] }", "convolution_param.bias_term", ["true"]),
    ('pooling_param { pool: "MAX" }', "pooling_param.pool", ["MAX"]),
    ("loss_param { ignore_label { a: 1 } }", "loss_param.ignore_label", [""]),
    ("loss_param { ignore_label: < a: 1 > }", "loss_param.ignore_label", [""]),
    ("transform_param: 3", "transform_param", ["3"]),
    ("data_param { source: lmdb batch_size: 99999999999 }", "data_param.source", ["lmdb"]),
]


@pytest.mark.filterwarnings("ignore::caffe_proto.UnknownFieldWarning")
@pytest.mark.parametrize(("option", "field", "values"), WRONG)
def test_values_of_another_type_are_kept(option: str, field: str, values: list[str]) -> None:
    text = f'layer {{ name: "a"\n {option} top: "b" }}'
    with pytest.raises(text_format.ParseError):  # as Caffe's reader refuses them
        text_format.Parse(text, NetParameter())
    (layer,) = parse_prototxt(text).layer
    expected = [Unread(field, 2, "enum", value) for value in values]
    assert list(unread_fields(layer))[: len(values)] == expected
    assert (layer.name, list(layer.top)) == ("a", ["b"])


@pytest.mark.filterwarnings("ignore::caffe_proto.UnknownFieldWarning")
def test_the_right_values_beside_them_are_read() -> None:
    text = "layer { convolution_param { pad: 1 pad: x kernel_size: 3 bias_term: no stride: 2 } }"
    param = parse_prototxt(text).layer[0].convolution_param
    right = text.replace(" pad: x", "").replace(" bias_term: no", "")
    expected = text_format.Parse(right, NetParameter()).layer[0].convolution_param
    assert param == expected


@pytest.mark.parametrize(
    "text",
    [
        "layer { type: ReLU }",
        "layer { bottom: 5 }",
        "layer { include { phase: 'TEST' } }",
        "layer { input_param { shape { dim: x } } }",
        "layer { loss_weight 3 }",
        "layer { convolution_param { pad: } }",
        "force_backward: yes",
    ],
)
def test_what_a_layer_is_and_reads_has_to_be_read(text: str) -> None:
    with pytest.raises(text_format.ParseError):
        text_format.Parse(text, NetParameter())
    with pytest.raises(caffe_proto.CaffeFormatError, match="expected"):
        parse_prototxt(text)
