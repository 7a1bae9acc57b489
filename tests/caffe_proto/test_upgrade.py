"""V1 and legacy inputs -> today's form, against hand-written nets and OpenCV's own upgrade."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from caffe_proto import (
    CaffeFormatError,
    LayerParameter,
    caffe_pb2,
    parse_prototxt,
    read_prototxt,
    read_weights,
    write_caffemodel,
    write_prototxt,
)
from caffe_proto.upgrade import _MOVES, _V0_TYPES, _V1_TYPES
from tests.proto_helpers import expected, forward


def test_real_v1_files_run_alike_in_opencv(shared: Path, tmp_path: Path) -> None:
    for name in ("lenet_everpeace", "cifar10_full_everpeace", "cifar10_quick_everpeace"):
        (prototxt,) = (shared / "models" / name).glob("*.prototxt")
        (model,) = (shared / "models" / name).glob("*.caffemodel")
        net = read_prototxt(prototxt)
        write_prototxt(tmp_path / "new.prototxt", net)
        write_caffemodel(tmp_path / "new.caffemodel", net, read_weights(model))
        shape = list(net.layer[0].input_param.shape[0].dim)
        data = np.random.default_rng(2).standard_normal(shape).astype(np.float32)
        old = forward(prototxt, model, data)
        new = forward(tmp_path / "new.prototxt", tmp_path / "new.caffemodel", data)
        np.testing.assert_array_equal(new, old)


def test_v1_layers_keep_everything() -> None:
    net = parse_prototxt(
        """
        state { phase: TEST }
        layers {
          name: "conv" type: CONVOLUTION bottom: "data" top: "conv"
          blobs_lr: 1 blobs_lr: 2 weight_decay: 1 weight_decay: 0 weight_decay: 3
          param: "w" param: "b" blob_share_mode: PERMISSIVE blob_share_mode: STRICT
          include { phase: TRAIN stage: "s" } exclude { min_level: 2 } loss_weight: 0.5
          convolution_param { num_output: 7 kernel_size: 3 }
        }
        layers { name: "cat" type: CONCAT concat_param { concat_dim: 2 } }
        layers { name: "cut" type: SLICE slice_param { slice_dim: 0 slice_point: 3 } }
        layers { name: "none" bottom: "cat" }
        """
    )
    assert net == expected(
        """
        state { phase: TEST }
        layer {
          name: "conv" type: "Convolution" bottom: "data" top: "conv"
          param { name: "w" share_mode: PERMISSIVE lr_mult: 1 decay_mult: 1 }
          param { name: "b" share_mode: STRICT lr_mult: 2 decay_mult: 0 }
          param { decay_mult: 3 }
          include { phase: TRAIN stage: "s" } exclude { min_level: 2 } loss_weight: 0.5
          convolution_param { num_output: 7 kernel_size: 3 }
        }
        layer { name: "cat" type: "Concat" concat_param { concat_dim: 2 } }
        layer { name: "cut" type: "Slice" slice_param { slice_dim: 0 slice_point: 3 } }
        layer { name: "none" type: "" bottom: "cat" }
        """
    )


def test_v1_data_layers_hand_over_their_transformation() -> None:
    options = 'source: "s" scale: 0.25 mean_file: "m" crop_size: 5 mirror: true'
    old = (("DATA", "data"), ("IMAGE_DATA", "image_data"), ("WINDOW_DATA", "window_data"))
    text = "".join(f"layers {{ type: {t} {p}_param {{ {options} }} }}\n" for t, p in old)
    moved = 'transform_param { scale: 0.25 mean_file: "m" crop_size: 5 mirror: true }'
    new = (("Data", "data"), ("ImageData", "image_data"), ("WindowData", "window_data"))
    today = "".join(
        f'layer {{ type: "{t}" {p}_param {{ source: "s" }} {moved} }}\n' for t, p in new
    )
    assert parse_prototxt(text) == expected(today)


def test_every_option_of_v1_layers_arrives() -> None:
    """Each *_param of V1 is a message of the same name and type in today's layers."""
    old = caffe_pb2.V1LayerParameter.DESCRIPTOR.fields_by_name
    new = LayerParameter.DESCRIPTOR.fields_by_name
    params = [name for name in old.keys() if name.endswith("_param")]  # noqa: SIM118
    assert len(params) > 25
    for name in params:
        assert new[name].message_type is old[name].message_type
        net = parse_prototxt(f"layers {{ {name} {{ }} }}")
        assert [field.name for field, _ in net.layer[0].ListFields()] == ["type", name]


def test_the_tables_cover_the_schema() -> None:
    v1 = caffe_pb2.V1LayerParameter
    assert _V1_TYPES.keys() == set(v1.LayerType.keys())
    assert set(_V0_TYPES.values()) <= _V1_TYPES.keys()
    fields = {field.name for field in caffe_pb2.V0LayerParameter.DESCRIPTOR.fields}
    assert fields - _MOVES.keys() == {"type", "new_num", "new_channels"}
    for moves in _MOVES.values():
        assert moves.keys() <= _V0_TYPES.keys() | {"*"}
        for place in moves.values():
            scope = v1.DESCRIPTOR
            for part in place.split("."):
                field = scope.fields_by_name[part]
                scope = field.message_type


def test_type_names_are_those_that_opencv_knows() -> None:
    cv2 = pytest.importorskip("cv2")
    for old in ("CONVOLUTION", "POOLING", "RELU", "LRN", "SIGMOID", "TANH", "ABSVAL", "BNLL",
                "FLATTEN", "SOFTMAX", "MVN", "POWER", "EXP"):  # fmt: skip
        head = f'input: "x" input_dim: [1, 2, 5, 7] layers {{ type: {old} bottom: "x" top: "y" '
        params = {"CONVOLUTION": "num_output: 3", "POOLING": ""}
        extra = "".join(f"{p.lower()}_param {{ {o} kernel_size: 1 }}" for p, o in params.items())
        text = head + f'name: "y" {extra} }}'
        net = cv2.dnn.readNetFromCaffe(np.frombuffer(text.encode(), np.uint8))
        layer = parse_prototxt(text).layer[1]
        assert net.getLayer("y").type.lower() == layer.type.lower()


def test_inputs_with_input_dim() -> None:
    net = parse_prototxt(
        'input: "a" input: "b" input_dim: [1, 3, 5, 7, 2, 4, 6, 8] layer { name: "r" }'
    )
    assert net == expected(
        """
        layer { name: "input" type: "Input" top: "a" top: "b" input_param {
          shape { dim: [1, 3, 5, 7] } shape { dim: [2, 4, 6, 8] } } }
        layer { name: "r" }
        """
    )


def test_inputs_with_input_shape_win_over_input_dim() -> None:
    net = parse_prototxt(
        'input: "a" input_dim: 9 input_shape { dim: [1, 3] } '
        'layer { name: "r" } layer { name: "s" }'
    )
    assert net == expected(
        """
        layer { name: "input" type: "Input" top: "a" input_param { shape { dim: [1, 3] } } }
        layer { name: "r" } layer { name: "s" }
        """
    )


def test_inputs_without_a_shape_stay_inputs() -> None:
    net = parse_prototxt('input: "a" layer { name: "r" bottom: "a" }')
    assert net == expected(
        'layer { name: "input" type: "Input" top: "a" } layer { name: "r" bottom: "a" }'
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("layer { } layers { }", "both layer .* and layers"),
        ('input: "a" input_dim: 1 input_dim: 3', "2 input_dim for 1 input; give 4 each"),
        ('input: "a" input: "b" input_shape { }', "1 input_shape for 2 input"),
        (
            'layers { layer { name: "p" type: "padding" } bottom: "a" top: "b" }'
            'layers { layer { name: "r" type: "relu" } bottom: "b" top: "c" }',
            "layer 'r': only conv and pool can follow the padding layer 'p', found 'relu'",
        ),
        ('layers { layer { name: "p" type: "padding" } top: "b" }', "'p' needs one bottom and"),
    ],
)
def test_what_cannot_be_upgraded(text: str, words: str) -> None:
    with pytest.raises(CaffeFormatError, match=f"^net: .*{words}"):
        parse_prototxt(text, "net")
