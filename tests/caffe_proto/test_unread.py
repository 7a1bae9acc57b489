"""What the schema does not know, or knows with another type: kept for the layer that has it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from google.protobuf import text_format

import caffe_proto
from caffe_proto import (
    NetParameter,
    UnknownFieldWarning,
    Unread,
    parse_prototxt,
    unknown_fields,
    unread_fields,
)

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


UNKNOWN = (
    'name: "n" odd: -inf\n'
    'layer { name: "a" type: "ReLU" odd_param { a: 1 b < c: [1, {}] > d { e: "}" } } }\n'
    'layer { name: "b" type: "Convolution" odd_param { } fork: SOME_VALUE\n'
    '  convolution_param { num_output: 7 odd: "x" "y" odd_list: [1, 2] } [pkg.ext] { z: 1 }\n'
    "}\n"
)


def test_unknown_fields_are_left_out_and_named_once() -> None:
    with pytest.warns(UnknownFieldWarning) as caught:
        net = parse_prototxt(UNKNOWN, "fork.prototxt")
    assert [str(w.message) for w in caught] == [
        "fork.prototxt: not understood and left out: odd (line 1), odd_param (line 2, 2 times), "
        "fork (line 3), convolution_param.odd (line 4), "
        "convolution_param.odd_list (line 4, 2 times), [pkg.ext] (line 4)"
    ]
    assert Path(caught[0].filename).name == Path(__file__).name
    for message in (net, *net.layer):
        message.ClearField("unread")
    reference = text_format.Parse(re.sub(r"odd_list|\[pkg.ext\]", "odd", UNKNOWN), NetParameter(),
                                  allow_unknown_field=True)  # fmt: skip
    assert net == reference


def test_a_warning_names_ten_fields_and_counts_the_rest() -> None:
    text = "layer { " + "".join(f"odd{i}: {i}\n" for i in range(23)) + "}"
    with pytest.warns(UnknownFieldWarning, match=r"odd9 \(line 10\), 13 more$"):
        parse_prototxt(text)


def test_what_is_not_known_is_kept_as_it_was_written() -> None:
    net = parse_prototxt(UNKNOWN, warn=False)
    assert unread_fields(net) == (Unread("odd", 1, "field", "-inf"),)
    assert unread_fields(net.layer[0]) == (Unread("odd_param", 2, "field", ""),)
    assert unknown_fields(net.layer[0]) == {
        "odd_param": [{"a": ["1"], "b": [{"c": ["1", {}]}], "d": [{"e": ["}"]}]}]
    }
    assert [(u.field, u.value) for u in unread_fields(net.layer[1])] == [
        ("odd_param", ""),
        ("fork", "SOME_VALUE"),
        ("convolution_param.odd", "xy"),
        ("convolution_param.odd_list", "1"),
        ("convolution_param.odd_list", "2"),
        ("[pkg.ext]", ""),
    ]
    assert unknown_fields(net.layer[1]) == {
        "odd_param": [{}],
        "fork": ["SOME_VALUE"],
        "convolution_param": [{"odd": ["xy"], "odd_list": ["1", "2"]}],
        "[pkg.ext]": [{"z": ["1"]}],
    }


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("pooling_param { pool: FOO }", Unread("pooling_param.pool", 2, "enum", "FOO")),
        ("pooling_param { pool: 77 }", Unread("pooling_param.pool", 2, "enum", "77")),
        ("include { phase: VAL }", Unread("include.phase", 2, "enum", "VAL")),
        (
            "pooling_param { kernel_size: 3 kernel_size: 5 }",
            Unread("pooling_param.kernel_size", 2, "repeated", "5"),
        ),
        ("relu_param { } relu_param { }", Unread("relu_param", 2, "repeated", "")),
        ('type: "A" type: "B"', Unread("type", 2, "repeated", "B")),
    ],
)
def test_other_things_that_are_not_understood(text: str, kept: Unread) -> None:
    net = parse_prototxt(f'input: "x"\nlayer {{ name: "a" {text} }}', warn=False)
    assert unread_fields(net.layer[1]) == (kept,)
    assert net.layer[1].pooling_param.kernel_size in (0, 3)  # the first value stands
    assert not net.layer[1].pooling_param.HasField("pool")


def test_older_layers_keep_what_is_not_understood() -> None:
    net = parse_prototxt(
        'layers { name: "a" type: UNPOOLING bottom: "x" odd: 1 }\n'
        'layers { name: "b" type: 99 }\n'
        'layers { bottom: "b" top: "p" layer { name: "p" type: "padding" pad: 2 odd_pad: 3 } }\n'
        'layers { bottom: "p" top: "c" layer { name: "c" type: "conv" odd_conv: 4 } }\n'
        'layers { layer { name: "d" type: "odd" } }\n',
        warn=False,
    )
    assert [layer.type for layer in net.layer] == ["UNPOOLING", "99", "Convolution", "odd"]
    assert [unread_fields(layer) for layer in net.layer] == [
        (Unread("odd", 1, "field", "1"),),
        (),
        (Unread("odd_conv", 4, "field", "4"), Unread("odd_pad", 3, "field", "3")),
        (),
    ]
    assert list(net.layer[2].convolution_param.pad) == [2]
