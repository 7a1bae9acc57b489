"""The upgrade of a ``NetParameter`` of any age to today's form.

The rules are those of BVLC Caffe, src/caffe/util/upgrade_proto.cpp. What layers themselves read
(``concat_dim``, ``slice_dim``, BatchNorm's three blobs) stays as it is. A V0 layer is one flat
message; it becomes a V1 layer first, and the place of each of its options depends on its type.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.message import Message

from caffe_proto.caffe_pb2 import (
    LayerParameter,
    NetParameter,
    ParamSpec,
    UnreadField,
    V0LayerParameter,
    V1LayerParameter,
)
from caffe_proto.errors import CaffeFormatError

__all__ = [
    "upgrade_net",
    "upgrade_v0_layers",
]

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


_V0_TYPES = {
    "accuracy": "ACCURACY",
    "bnll": "BNLL",
    "concat": "CONCAT",
    "conv": "CONVOLUTION",
    "data": "DATA",
    "dropout": "DROPOUT",
    "euclidean_loss": "EUCLIDEAN_LOSS",
    "flatten": "FLATTEN",
    "hdf5_data": "HDF5_DATA",
    "hdf5_output": "HDF5_OUTPUT",
    "im2col": "IM2COL",
    "images": "IMAGE_DATA",
    "infogain_loss": "INFOGAIN_LOSS",
    "innerproduct": "INNER_PRODUCT",
    "lrn": "LRN",
    "multinomial_logistic_loss": "MULTINOMIAL_LOGISTIC_LOSS",
    "pool": "POOLING",
    "relu": "RELU",
    "sigmoid": "SIGMOID",
    "softmax": "SOFTMAX",
    "softmax_loss": "SOFTMAX_LOSS",
    "split": "SPLIT",
    "tanh": "TANH",
    "window_data": "WINDOW_DATA",
}
_CONV = "convolution_param"
_FC = "inner_product_param"
_POOL = "pooling_param"
_IMAGES = "image_data_param"
_WINDOWS = "window_data_param"

# V0 field -> {V0 type: where its value goes}; "*" stands for every type.
_MOVES: dict[str, dict[str, str]] = {
    "num_output": {"conv": f"{_CONV}.num_output", "innerproduct": f"{_FC}.num_output"},
    "biasterm": {"conv": f"{_CONV}.bias_term", "innerproduct": f"{_FC}.bias_term"},
    "weight_filler": {"conv": f"{_CONV}.weight_filler", "innerproduct": f"{_FC}.weight_filler"},
    "bias_filler": {"conv": f"{_CONV}.bias_filler", "innerproduct": f"{_FC}.bias_filler"},
    "pad": {"conv": f"{_CONV}.pad", "pool": f"{_POOL}.pad"},
    "kernelsize": {"conv": f"{_CONV}.kernel_size", "pool": f"{_POOL}.kernel_size"},
    "group": {"conv": f"{_CONV}.group"},
    "stride": {"conv": f"{_CONV}.stride", "pool": f"{_POOL}.stride"},
    "pool": {"pool": f"{_POOL}.pool"},
    "dropout_ratio": {"dropout": "dropout_param.dropout_ratio"},
    "local_size": {"lrn": "lrn_param.local_size"},
    "alpha": {"lrn": "lrn_param.alpha"},
    "beta": {"lrn": "lrn_param.beta"},
    "k": {"lrn": "lrn_param.k"},
    "source": {
        "data": "data_param.source",
        "hdf5_data": "hdf5_data_param.source",
        "images": f"{_IMAGES}.source",
        "window_data": f"{_WINDOWS}.source",
        "infogain_loss": "infogain_loss_param.source",
    },
    "batchsize": {
        "data": "data_param.batch_size",
        "hdf5_data": "hdf5_data_param.batch_size",
        "images": f"{_IMAGES}.batch_size",
        "window_data": f"{_WINDOWS}.batch_size",
    },
    "rand_skip": {"data": "data_param.rand_skip", "images": f"{_IMAGES}.rand_skip"},
    "shuffle_images": {"images": f"{_IMAGES}.shuffle"},
    "new_height": {"images": f"{_IMAGES}.new_height"},
    "new_width": {"images": f"{_IMAGES}.new_width"},
    "concat_dim": {"concat": "concat_param.concat_dim"},
    "det_fg_threshold": {"window_data": f"{_WINDOWS}.fg_threshold"},
    "det_bg_threshold": {"window_data": f"{_WINDOWS}.bg_threshold"},
    "det_fg_fraction": {"window_data": f"{_WINDOWS}.fg_fraction"},
    "det_context_pad": {"window_data": f"{_WINDOWS}.context_pad"},
    "det_crop_mode": {"window_data": f"{_WINDOWS}.crop_mode"},
    "hdf5_output_param": {"hdf5_output": "hdf5_output_param"},
    "scale": {"*": "transform_param.scale"},
    "meanfile": {"*": "transform_param.mean_file"},
    "cropsize": {"*": "transform_param.crop_size"},
    "mirror": {"*": "transform_param.mirror"},
    "name": {"*": "name"},
    "blobs": {"*": "blobs"},
    "blobs_lr": {"*": "blobs_lr"},
    "weight_decay": {"*": "weight_decay"},
}


def upgrade_v0_layers(net: NetParameter, name: str) -> None:
    """Turn the V0 layers of a net into V1 layers, in place.

    A layer of a type that V0 does not have keeps the name of its type, and loses its options.

    Parameters
    ----------
    net
        The net; without V0 layers nothing happens.
    name
        How messages call it, such as its file.

    Raises
    ------
    CaffeFormatError
        A padding layer before something other than a convolution or a pooling.
    """
    if not any(layer.HasField("layer") for layer in net.layers):
        return
    _fold_padding(net, name)
    for layer in net.layers:
        if layer.HasField("layer"):
            _upgrade_v0_layer(layer)


def _fold_padding(net: NetParameter, name: str) -> None:
    """Take padding layers out; the layer that reads one gets its padding and its bottom."""
    padded_by: dict[str, V1LayerParameter] = {}  # blob -> the padding layer that wrote it last
    paddings = []
    for index, layer in enumerate(net.layers):
        for i, bottom in enumerate(layer.bottom):
            padding = padded_by.get(bottom)
            if padding is None:
                continue
            if layer.layer.type not in ("conv", "pool"):
                raise CaffeFormatError(
                    f"{name}: layer {layer.layer.name!r}: only conv and pool can follow the "
                    f"padding layer {padding.layer.name!r}, found {layer.layer.type!r}"
                )
            layer.layer.pad = padding.layer.pad
            layer.unread.extend(padding.unread)
            layer.bottom[i] = padding.bottom[0]
        for top in layer.top:
            padded_by.pop(top, None)
        if layer.layer.type == "padding":
            if len(layer.bottom) != 1 or len(layer.top) != 1:
                raise CaffeFormatError(
                    f"{name}: padding layer {layer.layer.name!r} needs one bottom and one top, "
                    f"found {len(layer.bottom)} and {len(layer.top)}"
                )
            padded_by[layer.top[0]] = layer
            paddings.append(index)
    for index in reversed(paddings):
        del net.layers[index]


def _upgrade_v0_layer(layer: V1LayerParameter) -> None:
    """Spread the nested flat message over the fields of the V1 layer around it."""
    old = V0LayerParameter()
    old.CopyFrom(layer.layer)
    layer.ClearField("layer")
    if old.type in _V0_TYPES:
        _put(layer, "type", V1LayerParameter.LayerType.Value(_V0_TYPES[old.type]))
    else:
        layer.unread.add(name="type", kind=UnreadField.LAYER_TYPE, value=old.type)
    for field, value in old.ListFields():
        moves = _MOVES.get(field.name, {})
        place = moves.get(old.type) or moves.get("*")
        if place:  # Caffe, too, passes over an option that the type does not have
            _put(layer, place, value)


def _put(layer: V1LayerParameter, place: str, value: Any) -> None:
    """Set a field, add to it where it is repeated, or copy into it where it is a message."""
    *parents, last = place.split(".")
    target: Any = layer
    for parent in parents:
        target = getattr(target, parent)
    scalars = (bool, int, float, str)
    current = getattr(target, last)
    if isinstance(current, Message):
        current.CopyFrom(value)
    elif isinstance(current, scalars):
        setattr(target, last, value)
    else:
        current.extend([value] if isinstance(value, scalars) else value)
