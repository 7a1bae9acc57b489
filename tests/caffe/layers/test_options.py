"""Every option in the schema of a layer that runs is read, or does not matter to its results."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from caffe_proto import LayerParameter
from int8calib.caffe.layers import registry

FOLDER = Path(registry.__file__).parent
SOURCES = {path.stem: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.py")}
# Geometry that several families read in one place.
HELPERS = SOURCES["windows"] + SOURCES["shapes"]

WITHOUT_INFLUENCE = {
    "engine": "CAFFE and CUDNN compute the same",
    "filler": "weights come from the caffemodel",
    "weight_filler": "weights come from the caffemodel",
    "bias_filler": "weights come from the caffemodel",
    "scale_filler": "weights come from the caffemodel",
    "shift_filler": "weights come from the caffemodel",
    "convolution_param.force_nd_im2col": "another way to the same result",
    "eltwise_param.stable_prod_grad": "for training",
    "batch_norm_param.moving_average_fraction": "for training",
    "batch_norm_param.use_global_stats": "the network warns of it",
    "bn_param.momentum": "for training",
    "bn_param.frozen": "for training",
    "detection_output_param.save_output_param": "writes files",
    "detection_output_param.save_file": "writes files",
    "detection_output_param.visualize": "shows pictures",
    "detection_output_param.visualize_threshold": "shows pictures",
    "yolo_detection_output_param.side": "the size of the grid, which the bottom has",
    "yolo_detection_output_param.label_map_file": "names of labels",
    "yolov3_detection_output_param.mask_group_num": "the number of bottoms",
}


def read_messages() -> list[tuple[str, str]]:
    """Each file of layers with each message of options that it reads."""
    known = {field.name for field in LayerParameter.DESCRIPTOR.fields}
    found = []
    for name, text in sorted(SOURCES.items()):
        messages = set(re.findall(r"params\.(\w+_param)\b", text)) & known
        found += [(name, message) for message in sorted(messages)]
    return found


@pytest.mark.parametrize(("file", "message"), read_messages())
def test_every_option_is_read(file: str, message: str) -> None:
    text = SOURCES[file] + HELPERS
    others = "".join(SOURCES[name] for name, other in read_messages() if other == message)
    descriptor = LayerParameter.DESCRIPTOR.fields_by_name[message].message_type
    unread = [
        field.name
        for field in descriptor.fields
        if field.name not in WITHOUT_INFLUENCE
        and f"{message}.{field.name}" not in WITHOUT_INFLUENCE
        and not re.search(rf"""\.{field.name}\b|["']{field.name}["']""", text + others)
    ]
    assert not unread, f"{message}: {unread} could be given and would be passed over in silence"


def test_what_has_no_influence_is_in_the_schema_and_not_read() -> None:
    for name in WITHOUT_INFLUENCE:
        message, dot, field = name.partition(".")
        if dot:
            descriptor = LayerParameter.DESCRIPTOR.fields_by_name[message].message_type
            assert field in descriptor.fields_by_name


def test_every_type_that_runs_is_covered() -> None:
    """A type whose options are read in no file of layers would be left out above."""
    covered = {message for _, message in read_messages()}
    options = {
        field.name
        for field in LayerParameter.DESCRIPTOR.fields
        if field.name.endswith("_param") and field.message_type is not None
    }
    ignored = {name for name in options - covered if _may_run(name)}
    assert ignored == {"sigmoid_param", "tanh_param"}, "these hold nothing but `engine`"


def _may_run(message: str) -> bool:
    """Whether a type of the message's name is registered."""
    plain = {re.sub(r"[^a-z0-9]", "", name.lower()) for name in registry.type_names()}
    return message.removesuffix("_param").replace("_", "") in plain
