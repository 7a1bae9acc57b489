"""The upgrade of a ``NetParameter`` of any age to today's form.

The rules are those of BVLC Caffe, src/caffe/util/upgrade_proto.cpp. What layers themselves read
(``concat_dim``, ``slice_dim``, BatchNorm's three blobs) stays as it is.
"""

from __future__ import annotations

from caffe_proto.caffe_pb2 import (
    LayerParameter,
    NetParameter,
    ParamSpec,
    UnreadField,
    V1LayerParameter,
)
from caffe_proto.errors import CaffeFormatError
from caffe_proto.upgrade_v0 import upgrade_v0_layers

__all__ = ["upgrade_net"]

_V1_TYPES = {
    "NONE": "",
    "ABSVAL": "AbsVal",
    "ACCURACY": "Accuracy",
    "ARGMAX": "ArgMax",
    "BNLL": "BNLL",
    "CONCAT": "Concat",
    "CONTRASTIVE_LOSS": "ContrastiveLoss",
    "CONVOLUTION": "Convolution",
    "DATA": "Data",
    "DECONVOLUTION": "Deconvolution",
    "DROPOUT": "Dropout",
    "DUMMY_DATA": "DummyData",
    "ELTWISE": "Eltwise",
    "EUCLIDEAN_LOSS": "EuclideanLoss",
    "EXP": "Exp",
    "FLATTEN": "Flatten",
    "HDF5_DATA": "HDF5Data",
    "HDF5_OUTPUT": "HDF5Output",
    "HINGE_LOSS": "HingeLoss",
    "IM2COL": "Im2col",
    "IMAGE_DATA": "ImageData",
    "INFOGAIN_LOSS": "InfogainLoss",
    "INNER_PRODUCT": "InnerProduct",
    "LRN": "LRN",
    "MEMORY_DATA": "MemoryData",
    "MULTINOMIAL_LOGISTIC_LOSS": "MultinomialLogisticLoss",
    "MVN": "MVN",
    "POOLING": "Pooling",
    "POWER": "Power",
    "RELU": "ReLU",
    "SIGMOID": "Sigmoid",
    "SIGMOID_CROSS_ENTROPY_LOSS": "SigmoidCrossEntropyLoss",
    "SILENCE": "Silence",
    "SLICE": "Slice",
    "SOFTMAX": "Softmax",
    "SOFTMAX_LOSS": "SoftmaxWithLoss",
    "SPLIT": "Split",
    "TANH": "TanH",
    "THRESHOLD": "Threshold",
    "WINDOW_DATA": "WindowData",
}
_RESHAPED = ("type", "unread", "param", "blob_share_mode", "blobs_lr", "weight_decay", "layer")
_SAME_LISTS = ("bottom", "top", "include", "exclude", "blobs", "loss_weight")
_DATA_PARAMS = {
    "DATA": "data_param",
    "IMAGE_DATA": "image_data_param",
    "WINDOW_DATA": "window_data_param",
}
_TRANSFORM_FIELDS = ("scale", "mean_file", "crop_size", "mirror")


def upgrade_net(net: NetParameter, name: str) -> None:
    """Bring a net into today's form, in place.

    Parameters
    ----------
    net
        The net; afterwards it has ``layer`` entries only, and no ``input`` fields.
    name
        How messages call it, such as its file.

    Raises
    ------
    CaffeFormatError
        Old and new layers are mixed, a V0 layer cannot be translated, or the inputs and their
        shapes do not go together.
    """
    if net.layers and net.layer:
        raise CaffeFormatError(
            f"{name}: both layer (today's form) and layers (the older form) are given; use one"
        )
    upgrade_v0_layers(net, name)
    for old in net.layers:
        _move_transform_fields(old)
        _upgrade_v1_layer(old, net.layer.add())
    net.ClearField("layers")
    _upgrade_inputs(net, name)


def _move_transform_fields(layer: V1LayerParameter) -> None:
    """Move what a data layer does to a picture into ``transform_param``."""
    param = _DATA_PARAMS.get(V1LayerParameter.LayerType.Name(layer.type))
    if param is None or not layer.HasField(param):
        return
    source = getattr(layer, param)
    for field in _TRANSFORM_FIELDS:
        if source.HasField(field):
            setattr(layer.transform_param, field, getattr(source, field))
            source.ClearField(field)


def _upgrade_v1_layer(old: V1LayerParameter, new: LayerParameter) -> None:
    """Fill a layer of today's form; the options' messages are the same in both forms."""
    for field, value in old.ListFields():
        if field.name in _RESHAPED:
            continue
        if field.name in _SAME_LISTS:
            getattr(new, field.name).extend(value)
        elif field.name == "name":
            new.name = value
        else:
            getattr(new, field.name).CopyFrom(value)
    _take_type(old, new)
    multipliers = max(len(old.blobs_lr), len(old.weight_decay))
    for i in range(max(len(old.param), len(old.blob_share_mode), multipliers)):
        spec = new.param.add()
        if i < len(old.param):
            spec.name = old.param[i]
        if i < len(old.blob_share_mode):
            mode = V1LayerParameter.DimCheckMode.Name(old.blob_share_mode[i])
            spec.MergeFrom(ParamSpec(share_mode=mode))
        if i < len(old.blobs_lr):
            spec.lr_mult = old.blobs_lr[i]
        if i < len(old.weight_decay):
            spec.decay_mult = old.weight_decay[i]


def _take_type(old: V1LayerParameter, new: LayerParameter) -> None:
    """Give the type its name of today; one that is not known keeps its own."""
    unknown = [e.value for e in old.unread if e.kind == UnreadField.LAYER_TYPE]
    new.type = (*unknown, _V1_TYPES[V1LayerParameter.LayerType.Name(old.type)])[0]
    new.unread.extend(e for e in old.unread if e.kind != UnreadField.LAYER_TYPE)


def _upgrade_inputs(net: NetParameter, name: str) -> None:
    """Turn the net's input fields into one ``Input`` layer at the front.

    Inputs without any shape keep none: whoever runs the net says how large they are.
    """
    count = len(net.input)
    shapes = [list(shape.dim) for shape in net.input_shape]
    dims = list(net.input_dim)
    if shapes and len(shapes) != count:
        raise CaffeFormatError(f"{name}: {len(shapes)} input_shape for {count} input; give as many")
    if dims and not shapes:
        if len(dims) != 4 * count:
            raise CaffeFormatError(f"{name}: {len(dims)} input_dim for {count} input; give 4 each")
        shapes = [dims[i : i + 4] for i in range(0, len(dims), 4)]
    if count:
        rest = NetParameter(layer=net.layer)
        net.ClearField("layer")
        first = net.layer.add(name="input", type="Input", top=net.input)
        for shape in shapes:
            first.input_param.shape.add(dim=shape)
        net.layer.extend(rest.layer)
    for field in ("input", "input_shape", "input_dim"):
        net.ClearField(field)
