"""Caffe layers that map each value by itself or along an axis, and detection outputs, for ncnn."""

from __future__ import annotations

from typing import Any

from caffe_proto import caffe_pb2
from int8calib.caffe.layers.activation import dropout_factor, relu_limits
from int8calib.ncnn.convert.context import Conversion, Converter, real, reals
from int8calib.ncnn.param import Value

MUL = 2
"""Multiplication in BinaryOp."""
NEGATE = 1
"""Negation in UnaryOp."""
ABSENT = -233
_UNBOUNDED = 3.4e38
MOST_SIZE = 2**15
"""A window's side whose square is still a number of 31 bits."""


def plain(kind: str) -> Converter:
    """A layer of the same name or meaning without parameters."""

    def convert(c: Conversion) -> None:
        c.add(kind)

    return convert


def relu(c: Conversion) -> None:
    """ReLU; a fork's limits as Clip."""
    param = c.params.relu_param
    lower, upper = relu_limits(c.params)
    if lower is upper is None:
        slope = param.negative_slope
        c.add("ReLU", {0: real(slope)} if param.HasField("negative_slope") else {})
        return
    if param.negative_slope:
        raise c.refused("negative_slope with a limit", "ncnn has no such activation")
    low = max(0.0, lower or 0.0)
    c.add("Clip", {0: real(low), 1: real(max(low, upper or _UNBOUNDED))})


def relu6(c: Conversion) -> None:
    """ReLU6 as Clip to 0 .. 6."""
    c.add("Clip", {0: real(0.0), 1: real(6.0)})


def clip(c: Conversion) -> None:
    """Clip to a range."""
    param = c.params.clip_param
    c.add("Clip", {0: real(param.min), 1: real(param.max)})


def selu(c: Conversion) -> None:
    """SELU with the constants of its paper, which ncnn's tools put in place of others."""
    if c.params.selu_param.ListFields():
        raise c.refused("selu_param", "ncnn's tools drop its parameters")
    c.add("SELU")


def dropout(c: Conversion) -> None:
    """Dropout, with the factor that a fork multiplies with where training did not scale."""
    factor = dropout_factor(c.params)
    c.add("Dropout", {} if factor == 1 else {0: real(factor)})


def elu(c: Conversion) -> None:
    """ELU."""
    c.add("ELU", {0: real(c.params.elu_param.alpha)})


def hard_swish(c: Conversion) -> None:
    """x * clip(x / 6 + 1 / 2, 0, 1)."""
    c.add("HardSwish", {0: real(1 / 6), 1: real(0.5)})


def swish(c: Conversion) -> None:
    """x * sigmoid(beta * x)."""
    beta = c.params.swish_param.beta
    if beta == 1:
        c.add("Swish")
        return
    x, y, scaled, gate = (c.between(f"_{name}") for name in ("x", "y", "scaled", "gate"))
    c.add("Split", tops=(x, y), suffix="_split")
    c.add("BinaryOp", {0: MUL, 1: 1, 2: real(beta)}, bottoms=(x,), tops=(scaled,), suffix="_beta")
    c.add("Sigmoid", bottoms=(scaled,), tops=(gate,), suffix="_gate")
    c.add("BinaryOp", {0: MUL}, bottoms=(y, gate))


def crelu(c: Conversion) -> None:
    """max(x, 0) and max(-x, 0), joined along the channels."""
    x, y, negated, positive, negative = (
        c.between(f"_{name}") for name in ("x", "y", "negated", "positive", "negative")
    )
    c.add("Split", tops=(x, y), suffix="_split")
    c.add("ReLU", bottoms=(x,), tops=(positive,), suffix="_relu")
    c.add("UnaryOp", {0: NEGATE}, bottoms=(y,), tops=(negated,), suffix="_negate")
    c.add("ReLU", bottoms=(negated,), tops=(negative,), suffix="_relu_negated")
    c.add("Concat", {0: 0}, bottoms=(positive, negative))


def threshold(c: Conversion) -> None:
    """1 above the threshold, else 0."""
    c.add("Threshold", {0: real(c.params.threshold_param.threshold)})


def power(c: Conversion) -> None:
    """(shift + scale * x) ** power."""
    param = c.params.power_param
    c.add("Power", {0: real(param.power), 1: real(param.scale), 2: real(param.shift)})


def exp(c: Conversion) -> None:
    """base ** (shift + scale * x), base -1 meaning e."""
    param = c.params.exp_param
    c.add("Exp", {0: real(param.base), 1: real(param.scale), 2: real(param.shift)})


def log(c: Conversion) -> None:
    """log of shift + scale * x, base -1 meaning e."""
    param = c.params.log_param
    c.add("Log", {0: real(param.base), 1: real(param.scale), 2: real(param.shift)})


def softmax(c: Conversion) -> None:
    """Softmax along an axis."""
    c.add("Softmax", {0: c.axis(c.params.softmax_param.axis), 1: 1})


def lrn(c: Conversion) -> None:
    """Local response normalization, across channels or within one."""
    param = c.params.lrn_param
    if param.local_size > MOST_SIZE:
        raise c.refused(f"local_size {param.local_size}", "ncnn counts in 31 bits")
    within = param.norm_region == type(param).WITHIN_CHANNEL
    params: dict[int, Value] = {
        0: int(within),
        1: int(param.local_size),
        2: real(param.alpha),
        3: real(param.beta),
    }
    if param.k != 1 and not within:
        params[4] = real(param.k)
    c.add("LRN", params)


def mvn(c: Conversion) -> None:
    """Mean and variance normalization."""
    param = c.params.mvn_param
    if param.add_eps_before_sqrt:
        raise c.refused("add_eps_before_sqrt", "ncnn adds eps to the deviation")
    params: dict[int, Value] = {
        0: int(param.normalize_variance),
        1: int(param.across_channels),
        2: real(param.eps),
    }
    c.add("MVN", params)


def prior_box(c: Conversion) -> None:
    """PriorBox, without the aspect ratios that Caffe drops as doubles."""
    param = c.params.prior_box_param
    flip = bool(param.flip)
    known, ratios = [1.0], []
    for ratio in param.aspect_ratio:
        if all(abs(ratio - other) >= 1e-6 for other in known):
            known += [ratio, 1 / ratio] if flip else [ratio]
            ratios.append(ratio)
    if any(size % 1 for size in (*param.min_size, *param.max_size)):
        c.note("min_size and max_size: Caffe cuts them to whole pixels, ncnn does not")
    variance = list(param.variance) or [0.1]
    width = param.img_w or param.img_size or ABSENT
    height = param.img_h or param.img_size or ABSENT
    step_w, step_h = (each or param.step or float(ABSENT) for each in (param.step_w, param.step_h))
    c.add(
        "PriorBox",
        {
            0: reals(param.min_size),
            1: reals(param.max_size),
            2: reals(ratios),
            **{3 + i: real(variance[i % len(variance)]) for i in range(4)},
            7: int(flip),
            8: int(param.clip),
            9: int(width),
            10: int(height),
            11: real(step_w),
            12: real(step_h),
            13: real(param.offset),
        },
    )


def detection_output(c: Conversion) -> None:
    """DetectionOutput of the usual kind: shared boxes, CENTER_SIZE, background 0."""
    param = c.params.detection_output_param
    if not param.share_location:
        raise c.refused("share_location: false", "ncnn shares boxes between classes")
    if param.code_type != caffe_pb2.PriorBoxParameter.CENTER_SIZE:
        raise c.refused("code_type", "ncnn decodes CENTER_SIZE only")
    if param.variance_encoded_in_target:
        raise c.refused("variance_encoded_in_target", "ncnn multiplies by the variances")
    if param.background_label_id != 0:
        raise c.refused(f"background_label_id {param.background_label_id}", "ncnn's is 0")
    nms = param.nms_param
    if nms.eta != 1:
        raise c.refused(f"nms_param eta {nms.eta:g}", "ncnn's suppression keeps one threshold")
    c.top_axes = 2
    c.add(
        "DetectionOutput",
        {
            0: int(param.num_classes),
            1: real(nms.nms_threshold),
            2: int(nms.top_k) if nms.HasField("top_k") else MOST_BOXES,
            3: int(param.keep_top_k) if param.keep_top_k >= 0 else MOST_BOXES,
            4: real(param.confidence_threshold),
        },
    )


def yolo_detection_output(c: Conversion) -> None:
    """Detections of YOLO v2, which ncnn computes alike."""
    param = c.params.yolo_detection_output_param
    c.top_axes = 2
    c.add("YoloDetectionOutput", _yolo(param))


def yolov3_detection_output(c: Conversion) -> None:
    """Detections of YOLO v3, which ncnn computes alike."""
    param = c.params.yolov3_detection_output_param
    c.top_axes = 2
    arrays: dict[int, Value] = {5: reals(param.mask), 6: reals(param.anchors_scale)}
    c.add("Yolov3DetectionOutput", {**_yolo(param), **arrays})


def _yolo(param: Any) -> dict[int, Value]:
    return {
        0: int(param.num_classes),
        1: int(param.num_box),
        2: real(param.confidence_threshold),
        3: real(param.nms_threshold),
        4: reals(param.biases),
    }


MOST_BOXES = 1_000_000
"""No limit, for counts that Caffe leaves open."""
POINTWISE: dict[str, Converter] = {
    "ReLU": relu,
    "ReLU6": relu6,
    "Clip": clip,
    "ELU": elu,
    "Sigmoid": plain("Sigmoid"),
    "TanH": plain("TanH"),
    "BNLL": plain("BNLL"),
    "AbsVal": plain("AbsVal"),
    "Mish": plain("Mish"),
    "SeLU": selu,
    "SeLu": selu,
    "Swish": swish,
    "HardSwish": hard_swish,
    "CReLU": crelu,
    "Threshold": threshold,
    "Power": power,
    "Exp": exp,
    "Log": log,
    "Softmax": softmax,
    "LRN": lrn,
    "MVN": mvn,
    "Dropout": dropout,
    "PriorBox": prior_box,
    "DetectionOutput": detection_output,
    "YoloDetectionOutput": yolo_detection_output,
    "Yolov3DetectionOutput": yolov3_detection_output,
}
"""Converters by Caffe type."""
