"""ncnn's layers that pool, join, split and reorder, as Caffe's where these do the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from caffe_proto import caffe_pb2
from int8calib.arrays import Array
from int8calib.errors import ShapeError, UnsupportedLayerError
from int8calib.ncnn.translate.context import Translation, Translator
from int8calib.ncnn.translate.layers.pooling import FULL, MAX, VALID

_Pooling = caffe_pb2.PoolingParameter
_Code = caffe_pb2.PriorBoxParameter
_PERMUTE = {
    2: ("hw", "wh"),
    3: ("chw", "cwh", "hcw", "hwc", "wch", "whc"),
    4: (
        *("cdhw", "cdwh", "chdw", "chwd", "cwdh", "cwhd"),
        *("dchw", "dcwh", "dhcw", "dhwc", "dwch", "dwhc"),
        *("hcdw", "hcwd", "hdcw", "hdwc", "hwcd", "hwdc"),
        *("wcdh", "wchd", "wdch", "wdhc", "whcd", "whdc"),
    ),
}
"""For each number of axes, the order that each `order_type` gives them, the outermost first."""


def pooling(t: Translation) -> None:
    """Pooling: Caffe's where it has windows and divisors as ncnn's."""
    options = t.options
    if options.integer("global_pooling"):
        _global_pooling(t)
    elif fields := _as_caffe(t):
        t.add("Pooling", pooling_param=fields)
    else:
        t.add_ncnn()


def _method(t: Translation) -> int:
    kind = t.options.integer("pooling_type")
    if kind not in (0, 1):
        raise UnsupportedLayerError(f"pooling_type {kind} is not supported")
    return int(_Pooling.MAX if kind == MAX else _Pooling.AVE)


def _global_pooling(t: Translation) -> None:
    """One value a channel, as a vector."""
    if len(t.shape()) != 4:
        raise UnsupportedLayerError(f"bottom has shape {t.shape()}; images are supported")
    pooled = t.between(":pooled")
    t.add("Pooling", tops=(pooled,), pooling_param={"pool": _method(t), "global_pooling": True})
    t.add("Flatten", suffix=":as_vector", bottoms=(pooled,))


def _as_caffe(t: Translation) -> dict[str, Any] | None:
    """The fields of a PoolingParameter that give the same for images of any size, or None."""
    options, mode = t.options, t.options.integer("pad_mode")
    if options.integer("adaptive_pooling") or mode not in (FULL, VALID) or len(t.shape()) != 4:
        return None
    kernel = options.integer("kernel_h"), options.integer("kernel_w")
    stride = options.integer("stride_h"), options.integer("stride_w")
    begin = options.integer("pad_top"), options.integer("pad_left")
    end = options.integer("pad_bottom"), options.integer("pad_right")
    usual = zip(kernel, stride, begin, end, strict=True)
    # Otherwise Caffe leaves out a last window that begins in the padding.
    if not all(0 <= b < k and 0 <= e < k and 1 <= s <= k - e for k, s, b, e in usual):
        return None
    fields: dict[str, Any] = {
        "pool": _method(t),
        "kernel_h": kernel[0],
        "kernel_w": kernel[1],
        "stride_h": stride[0],
        "stride_w": stride[1],
    }
    if mode == VALID:
        fields["round_mode"] = _Pooling.FLOOR
    if begin == end:
        fields |= {"pad_h": begin[0], "pad_w": begin[1]}
    else:
        fields |= {"pad_t": begin[0], "pad_l": begin[1], "pad_b": end[0], "pad_r": end[1]}
    if fields["pool"] == _Pooling.AVE:
        if not options.integer("avgpool_count_include_pad"):
            padded = any((*begin, *end))
            fields["pool"] = _Pooling.AVE_EXC_PAD if padded or mode == FULL else _Pooling.AVE
        elif mode == FULL:
            return None  # ncnn counts what a last window hangs over, too
    return fields


def concat(t: Translation) -> None:
    """Concat along one axis."""
    t.add("Concat", concat_param={"axis": t.axis()})


def split(t: Translation) -> None:
    """Split, and Noop: the same values under other names."""
    t.add("Split")


def eltwise(t: Translation) -> None:
    """Eltwise: products, sums or maxima; coefficients count for sums alone."""
    operation = t.options.integer("op_type")
    fields: dict[str, Any] = {"operation": operation}
    if operation == caffe_pb2.EltwiseParameter.SUM:
        fields["coeff"] = t.options.numbers("coeffs")
    t.add("Eltwise", eltwise_param=fields)


_ELTWISE = {
    0: caffe_pb2.EltwiseParameter.SUM,
    2: caffe_pb2.EltwiseParameter.PROD,
    4: caffe_pb2.EltwiseParameter.MAX,
}
"""Operations of BinaryOp that Eltwise has, too."""


def binary_op(t: Translation) -> None:
    """BinaryOp: Eltwise for a sum, product or maximum of two blobs of one shape."""
    operation = _ELTWISE.get(t.options.integer("op_type"))
    pair = not t.options.integer("with_scalar") and len(t.layer.bottoms) == 2
    if operation is not None and pair and t.shape(0) == t.shape(1):
        t.add("Eltwise", eltwise_param={"operation": operation})
    else:
        t.add_ncnn()


def flatten(t: Translation) -> None:
    """Flatten to a vector."""
    t.add("Flatten")


def softmax(t: Translation) -> None:
    """Softmax over one axis."""
    if t.options.integer("axis") and not t.options.integer("fixbug0"):
        raise UnsupportedLayerError("its axis is counted as ncnn of 2020 did; convert it anew")
    t.add("Softmax", softmax_param={"axis": t.axis()})


def permute(t: Translation) -> None:
    """Permute, whose orders have numbers."""
    number, dims = t.options.integer("order_type"), len(t.shape()) - 1
    orders = _PERMUTE.get(dims, ("w",))
    if not 0 <= number < len(orders):
        raise ShapeError(f"order_type {number} of {dims} axes; 0 to {len(orders) - 1} are right")
    places = [orders[0].index(axis) + 1 for axis in orders[number]]
    t.add("Permute", permute_param={"order": [0, *places]})


def shuffle_channel(t: Translation) -> None:
    """ShuffleChannel; `reverse` takes it back."""
    group, channels = t.options.integer("group"), t.shape()[1]
    if group < 1 or channels % group:
        raise ShapeError(f"{channels} channels do not divide into {group} groups")
    chosen = channels // group if t.options.integer("reverse") else group
    t.add("ShuffleChannel", shuffle_channel_param={"group": chosen})


def lrn(t: Translation) -> None:
    """LRN across channels, or within them, where Caffe adds 1 always."""
    options = t.options
    region, bias = options.integer("region_type"), options.number("bias")
    if region and bias != 1:
        raise UnsupportedLayerError(f"bias {bias:g} within channels is not supported")
    fields = {"alpha": options.number("alpha"), "beta": options.number("beta"), "k": bias}
    size = options.integer("local_size")
    t.add("LRN", lrn_param={**fields, "norm_region": region, "local_size": size})


def mvn(t: Translation) -> None:
    """MVN: the mean taken off, and the deviation divided by."""
    if len(t.shape()) != 4:
        raise UnsupportedLayerError(f"bottom has shape {t.shape()}; images are supported")
    names = ("normalize_variance", "across_channels")
    fields: dict[str, Any] = {name: bool(t.options.integer(name)) for name in names}
    t.add("MVN", mvn_param={**fields, "eps": t.options.number("eps")})


def memory_data(t: Translation) -> None:
    """A stored blob, once for each image."""
    from int8calib.ncnn.translate.layers.rearranging import memory_data_shape

    t.add_ncnn(t.weights(memory_data_shape(t.options)), bottoms=(t.batch,))


def detection_output(t: Translation) -> None:
    """DetectionOutput, whose rows begin with the image's number as Caffe's do."""
    options = t.options
    classes = options.integer("num_class")
    if classes < 1:
        raise UnsupportedLayerError(f"num_class {classes} is not supported")
    t.add(
        "DetectionOutput",
        detection_output_param={
            "num_classes": classes,
            "nms_param": {
                "nms_threshold": options.number("nms_threshold"),
                "top_k": options.integer("nms_top_k"),
            },
            "keep_top_k": options.integer("keep_top_k"),
            "confidence_threshold": options.number("confidence_threshold"),
            "code_type": _Code.CENTER_SIZE,
        },
    )


def yolo_detection_output(t: Translation) -> None:
    """YoloDetectionOutput, whose rows begin with the image's number as those of Caffe's do."""
    t.add("YoloDetectionOutput", yolo_detection_output_param=_yolo(t))


def yolov3_detection_output(t: Translation) -> None:
    """Yolov3DetectionOutput, likewise."""
    mask, scales = t.options.integers("mask"), t.options.integers("anchors_scale")
    fields = {**_yolo(t), "mask": mask, "anchors_scale": scales}
    t.add("Yolov3DetectionOutput", yolov3_detection_output_param=fields)


def _yolo(t: Translation) -> dict[str, Any]:
    options = t.options
    return {
        "num_classes": options.integer("num_class"),
        "num_box": options.integer("num_box"),
        "confidence_threshold": options.number("confidence_threshold"),
        "nms_threshold": options.number("nms_threshold"),
        "biases": options.numbers("biases"),
    }


def own(t: Translation) -> None:
    """A layer with ncnn's own function, weights in the shapes that its rule asks for."""
    from int8calib.caffe.layers.registry import find_type
    from int8calib.ncnn.translate.options import PREFIX, pack_options

    kind = find_type(PREFIX + t.layer.type)
    blobs: tuple[Array, ...] = ()
    if kind.weights is not None:
        params = pack_options(t.layer, t.layer.name, t.layer.bottoms, t.layer.tops)
        bottoms = [t.shape(i) for i in range(len(t.layer.bottoms))]
        blobs = t.weights(*kind.weights(params, bottoms))
    t.add_ncnn(blobs)


SHAPING: Mapping[str, Translator] = {
    "Pooling": pooling,
    "Concat": concat,
    "Split": split,
    "Noop": split,
    "Eltwise": eltwise,
    "BinaryOp": binary_op,
    "Flatten": flatten,
    "Softmax": softmax,
    "Permute": permute,
    "ShuffleChannel": shuffle_channel,
    "LRN": lrn,
    "MVN": mvn,
    "MemoryData": memory_data,
    "DetectionOutput": detection_output,
    "YoloDetectionOutput": yolo_detection_output,
    "Yolov3DetectionOutput": yolov3_detection_output,
}
"""Translators by ncnn type."""
