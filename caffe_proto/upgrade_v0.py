"""The upgrade of nested V0 layers to V1 layers.

The rules are those of BVLC Caffe, src/caffe/util/upgrade_proto.cpp. A V0 layer is one flat message,
and each of its options goes to a place that depends on the layer's type.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.message import Message

from caffe_proto.caffe_pb2 import NetParameter, UnreadField, V0LayerParameter, V1LayerParameter
from caffe_proto.errors import CaffeFormatError

__all__ = ["upgrade_v0_layers"]

_TYPES = {
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
            _upgrade_layer(layer)


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


def _upgrade_layer(layer: V1LayerParameter) -> None:
    """Spread the nested flat message over the fields of the V1 layer around it."""
    old = V0LayerParameter()
    old.CopyFrom(layer.layer)
    layer.ClearField("layer")
    if old.type in _TYPES:
        _put(layer, "type", V1LayerParameter.LayerType.Value(_TYPES[old.type]))
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
