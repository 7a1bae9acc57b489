"""Convolution, Deconvolution, InnerProduct and Embed against OpenCV and naive loops."""

from __future__ import annotations

import numpy as np
import pytest

from caffe_proto import LayerParameter
from int8calib.caffe.layers.registry import find_type
from int8calib.errors import ModelError, ShapeError, UnsupportedLayerError
from tests.layer_cases import Case, check, opencv
from tests.ncnn_layer import FLOAT32, ncnn_layer, stacked

ODD = (
    "kernel_h: 3 kernel_w: 5 pad_h: 2 pad_w: 1 stride_h: 1 stride_w: 2",
    "kernel_size: 3 pad: 1 dilation: 2",
    "kernel_size: 3 pad: 1 stride: 5",
    "kernel_size: 2 stride: 3",
    "kernel_size: 1 stride: 2",
    "kernel_size: 3 bias_term: false",
)


def sides(param, pad):
    """The padding above and left, and below and right."""
    own = (param.pad_t, param.pad_l), (param.pad_b, param.pad_r)
    return own if any((*own[0], *own[1])) else (pad, pad)


def in_ncnn(params, weights, bottoms):
    """The layer in ncnn's runtime, which knows each side's padding."""
    param = params.convolution_param
    weight, group, kind = weights[0], param.group, params.type
    options = {0: param.num_output, 1: weight.shape[3], 11: weight.shape[2], 6: weight.size,
               3: param.stride[0] if param.stride else 1, 4: param.pad_l, 15: param.pad_r,
               14: param.pad_t, 16: param.pad_b, 5: len(weights) - 1}  # fmt: skip
    if kind == "Deconvolution":
        # ncnn has outputs before inputs, in each group.
        inputs = len(weight) // group
        weight = weight.reshape(group, inputs, -1, *weight.shape[2:]).swapaxes(1, 2)
    else:
        group = param.num_output if "Depthwise" in kind else group
        kind = "Convolution"
    if group != 1:
        kind, options[7] = kind + "DepthWise", group
    text = " ".join(f"{key}={value}" for key, value in options.items())
    binary = FLOAT32 + np.ascontiguousarray(weight).tobytes()
    return stacked(ncnn_layer(kind, text, bottoms, binary + b"".join(map(bytes, weights[1:]))))


def per_axis(params, weights, bottoms):
    """Convolution by its definition: every window of every image, tap by tap."""
    param = params.convolution_param
    kernel, stride, pad, dilation = (
        list(values) * (3 - len(values)) if values else [default] * 2
        for values, default in (
            (param.kernel_size, 0), (param.stride, 1), (param.pad, 0), (param.dilation, 1)
        )
    )  # fmt: skip
    if param.kernel_h:
        kernel = [param.kernel_h, param.kernel_w]
    x, weight = np.asarray(bottoms[0], np.float64), np.asarray(weights[0], np.float64)
    group = param.num_output if params.type != "Convolution" else param.group
    n, channels, height, width = x.shape
    inputs, outputs = channels // group, param.num_output // group
    begin, end = sides(param, pad)
    size = [
        (length + p + q - (d * (k - 1) + 1)) // s + 1
        for length, p, q, d, k, s in zip(
            (height, width), begin, end, dilation, kernel, stride, strict=True
        )
    ]
    top = np.zeros((n, param.num_output, *size))
    for o, i, j, a, b, c in np.ndindex(*top.shape[1:], *kernel, inputs):
        y = i * stride[0] - begin[0] + a * dilation[0]
        z = j * stride[1] - begin[1] + b * dilation[1]
        if 0 <= y < height and 0 <= z < width:
            top[:, o, i, j] += weight[o, c, a, b] * x[:, o // outputs * inputs + c, y, z]
    if param.bias_term:
        top += np.asarray(weights[1]).reshape(-1, 1, 1)
    return [top]


def deconvolution(params, weights, bottoms):
    """Deconvolution by its definition: every pixel adds its window to the padded top."""
    param = params.convolution_param
    x, weight = np.asarray(bottoms[0], np.float64), np.asarray(weights[0], np.float64)
    kernel = weight.shape[2:]
    stride, dilation, pad = (
        [values[0] if values else default] * 2
        for values, default in ((param.stride, 1), (param.dilation, 1), (param.pad, 0))
    )
    if param.stride_h:
        stride = [param.stride_h, param.stride_w]
    if param.pad_h or param.pad_w:
        pad = [param.pad_h, param.pad_w]
    n, channels, height, width = x.shape
    inputs, outputs = channels // param.group, param.num_output // param.group
    full = [
        (length - 1) * s + d * (k - 1) + 1
        for length, s, d, k in zip((height, width), stride, dilation, kernel, strict=True)
    ]
    top = np.zeros((n, param.num_output, *full))
    for c, o, i, j, a, b in np.ndindex(channels, outputs, height, width, *kernel):
        y, z = i * stride[0] + a * dilation[0], j * stride[1] + b * dilation[1]
        top[:, c // inputs * outputs + o, y, z] += weight[c, o, a, b] * x[:, c, i, j]
    begin, end = sides(param, pad)
    top = top[:, :, begin[0] : full[0] - end[0], begin[1] : full[1] - end[1]]
    return [top + np.asarray(weights[1]).reshape(-1, 1, 1) if param.bias_term else top]


def embed(params, weights, bottoms):
    index = bottoms[0].astype(int)
    top = np.empty((*index.shape, params.embed_param.num_output))
    for place in np.ndindex(*index.shape):
        top[place] = weights[0][index[place]] + (weights[1] if len(weights) > 1 else 0)
    return [top]


def indices(rng, shape):
    return rng.integers(0, 11, shape)


def as_dilation(params, weights, bottoms):
    """OpenCV's answer to DeepLab's `hole`, written as today's `dilation`."""
    today = LayerParameter()
    today.CopyFrom(params)
    param = today.convolution_param
    sizes = [param.hole, param.hole] if param.HasField("hole") else [param.hole_h, param.hole_w]
    param.dilation.extend(sizes)
    for name in ("hole", "hole_h", "hole_w"):
        param.ClearField(name)
    return opencv(today, weights, bottoms)


SIDES = (
    "kernel_size: 3 stride: 2 pad_l: 0 pad_r: 1 pad_t: 0 pad_b: 1",
    "kernel_size: 3 pad_l: 2 pad_r: 1 pad_t: 1 pad_b: 0",
    "kernel_h: 2 kernel_w: 5 pad_r: 3",
    "kernel_size: 1 pad_t: 2",
)

CONVOLUTIONS = (
    *(Case("Convolution", f"convolution_param {{ num_output: {outputs} {o} }}", ((2, 6, 11, 13),),
           oracle=oracle)
      for o in SIDES for outputs in ("5", "10 group: 2", "6 group: 6")
      for oracle in (per_axis, in_ncnn)),
    *(Case("ConvolutionDepthwise", f"convolution_param {{ num_output: 7 {o} bias_term: false }}",
           ((2, 7, 11, 13),), oracle=oracle) for o in SIDES for oracle in (per_axis, in_ncnn)),
    *(Case("Convolution", f"convolution_param {{ num_output: 10 {o} }}", ((2, 6, 11, 13),),
           oracle=as_dilation)
      for o in ("kernel_size: 3 pad: 2 hole: 2", "kernel_size: 3 hole_h: 2 hole_w: 3 group: 2",
                "kernel_size: 3 stride: 2 hole_w: 4", "kernel_size: 2 hole: 1")),
    *(Case("Convolution", f"convolution_param {{ num_output: 5 {o} }}", ((2, 3, 11, 13),))
      for o in (*ODD, "kernel_size: 1")),
    *(Case("Convolution", f"convolution_param {{ num_output: 10 group: 2 {o} }}", ((2, 6, 11, 13),))
      for o in (*ODD, "kernel_size: 1")),
    # OpenCV 4.14 takes a dilated depthwise convolution wrong.
    *(Case("Convolution", f"convolution_param {{ num_output: 7 group: 7 {o} }}", ((2, 7, 11, 13),),
           oracle=per_axis if "dilation" in o else None) for o in ODD),
    Case("Convolution", "convolution_param { num_output: 14 group: 7 kernel_size: 3 pad: 1 }",
         ((2, 7, 11, 13),)),
    Case("Convolution", "convolution_param { num_output: 5 kernel_size: 3 kernel_size: 2 "
         "stride: 2 stride: 3 pad: 0 pad: 1 dilation: 2 dilation: 1 }", ((2, 3, 11, 13),),
         oracle=per_axis),
    Case("Convolution", "convolution_param { num_output: 5 kernel_size: 3 pad: 4 }",
         ((2, 3, 2, 1),), oracle=per_axis, label="larger than the image"),
    Case("Convolution", "convolution_param { num_output: 3 group: 3 kernel_size: 5 pad: 7 }",
         ((2, 3, 2, 1),), oracle=per_axis, label="depthwise taps beyond the image"),
    Case("ConvolutionDepthwise", "convolution_param { num_output: 7 kernel_size: 3 pad: 1 }",
         ((2, 7, 11, 13),), oracle=per_axis),
    Case("DepthwiseConvolution",
         "convolution_param { num_output: 7 kernel_size: 3 stride: 2 bias_term: false }",
         ((2, 7, 11, 13),), oracle=per_axis),
)  # fmt: skip

DECONVOLUTIONS = (
    *(Case("Deconvolution", f"convolution_param {{ num_output: 10 group: {group} {o} }}",
           ((2, 6, 5, 7),), oracle=oracle)
      for o in ("kernel_size: 4 stride: 2 pad_l: 1 pad_r: 2 pad_t: 0 pad_b: 3",
                "kernel_size: 3 pad_b: 2") for group in (1, 2)
      for oracle in (deconvolution, in_ncnn)),
    Case("Deconvolution", "convolution_param { num_output: 5 kernel_size: 4 stride: 2 pad: 1 }",
         ((2, 3, 7, 11),)),
    Case("Deconvolution", "convolution_param { num_output: 10 group: 2 kernel_size: 3 }",
         ((2, 6, 7, 11),)),
    Case("Deconvolution", "convolution_param { num_output: 7 group: 7 kernel_size: 4 stride: 2 "
         "pad: 1 bias_term: false }", ((2, 7, 5, 11),)),
    *(Case("Deconvolution", f"convolution_param {{ num_output: 10 {o} }}", ((2, 6, 5, 7),),
           oracle=deconvolution)
      for o in ("group: 2 kernel_h: 3 kernel_w: 2 stride_h: 2 stride_w: 5 pad_h: 0 pad_w: 1",
                "kernel_size: 3 dilation: 2 stride: 3 pad: 2",
                "group: 2 kernel_size: 2 stride: 3 bias_term: false")),
)  # fmt: skip

INNER_PRODUCTS = (
    Case("InnerProduct", "inner_product_param { num_output: 13 }", ((3, 5, 2, 7),)),
    Case("InnerProduct", "inner_product_param { num_output: 13 bias_term: false }", ((3, 11),)),
    Case("InnerProduct", "inner_product_param { num_output: 13 axis: 2 }", ((3, 5, 2, 7),)),
    Case("InnerProduct", "inner_product_param { num_output: 13 axis: -1 }", ((3, 5, 2, 7),)),
    Case("InnerProduct", "inner_product_param { num_output: 13 transpose: true }", ((3, 5, 2, 7),),
         oracle=lambda p, w, b: [np.einsum("nk,ko->no", b[0].reshape(3, 70), w[0]) + w[1]]),
    Case("Embed", "embed_param { num_output: 7 input_dim: 11 }", ((2, 5),), oracle=embed,
         makers=(indices,)),
    Case("Embed", "embed_param { num_output: 7 input_dim: 11 bias_term: false }", ((2, 5, 3),),
         oracle=embed, makers=(indices,)),
    Case("Parameter", "parameter_param { shape { dim: 3 dim: 5 } }", (),
         oracle=lambda p, w, b: [w[0]]),
)  # fmt: skip

CASES = (*CONVOLUTIONS, *DECONVOLUTIONS, *INNER_PRODUCTS)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_layer(case: Case) -> None:
    check(case)


def test_several_bottoms_share_the_weights() -> None:
    options = "convolution_param { num_output: 5 kernel_size: 3 }"
    for name in ("Convolution", "Deconvolution"):
        single = Case(name, options, ((2, 3, 7, 5),))
        double = Case(name, options, ((2, 3, 7, 5), (2, 3, 11, 13)), tops=2,
                      oracle=lambda p, w, b: find_type(p.type).run(p, w, b))  # fmt: skip
        check(double)
        weights, bottoms = double.arrays(seed=7)
        run = double.kind.run
        alone = [run(single.message(), weights, [bottom])[0] for bottom in bottoms]
        for top, expected in zip(run(double.message(), weights, bottoms), alone, strict=True):
            np.testing.assert_array_equal(top, expected)


@pytest.mark.parametrize(
    ("name", "options", "found"),
    [
        ("Convolution", "num_output: 5 kernel_size: 3 group: 2", "groups"),
        ("Convolution", "num_output: 5 kernel_size: 13", "smaller than"),
        ("Convolution", "num_output: 5", "at least 1"),
        ("Deconvolution", "num_output: 5 kernel_size: 3 group: 2", "groups"),
        ("Deconvolution", "num_output: 5 kernel_size: 3 pad: 9", "leaves nothing"),
        ("Deconvolution", "num_output: 5 kernel_size: 3 pad_l: 9", "leaves nothing"),
        ("Convolution", "num_output: 5 kernel_size: 3 pad: 1 pad_l: 1", "one or the other"),
        ("Convolution", "num_output: 5 kernel_size: 3 kernel_h: 2 kernel_w: 3", "one or the other"),
        ("Convolution", "num_output: 5 kernel_size: 3 kernel_size: 3 kernel_size: 2", "3-d"),
        ("Convolution", "num_output: 5 kernel_size: 3 axis: 2", "axis 2"),
        ("Deconvolution", "num_output: 5 kernel_size: 3 axis: 2", "axis 2"),
        ("Convolution", "num_output: 5 kernel_size: 3 hole: 2 dilation: 2", "one way of"),
        ("Convolution", "num_output: 5 kernel_size: 3 hole: 2 hole_w: 2", "one way of"),
        ("Deconvolution", "num_output: 5 kernel_size: 3 hole_h: 0", "at least 1"),
        ("Convolution", "num_output: 5 kernel_size: 3 hole: 4294967295", "smaller than"),
        ("Convolution", "num_output: 5 kernel_size: 3 pad: 2147483648", "the limit"),
        ("Convolution", "num_output: 5 kernel_size: 40000 pad: 40000", "the limit"),
        ("Convolution", "num_output: 5 kernel_size: 3 stride: 1 pad_b: 4294967295", "the limit"),
        ("Deconvolution", "num_output: 5 kernel_size: 3 stride: 2147483648", "the limit"),
        ("Deconvolution", "num_output: 5 kernel_size: 65536 pad: 65530", "the limit"),
    ],
)
def test_impossible_geometry(name: str, options: str, found: str) -> None:
    case = Case(name, f"convolution_param {{ {options} }}", ((2, 3, 7, 5),))
    with pytest.raises((ShapeError, UnsupportedLayerError), match=found):
        case.kind.shape(case.message(), case.bottoms)


def test_embed_names_an_index_outside_its_weight() -> None:
    case = Case("Embed", "embed_param { num_output: 7 input_dim: 5 }", ((2, 3),))
    weights, _ = case.arrays(seed=1)
    with pytest.raises(ModelError, match=r"'op'.*0 to 4"):
        case.kind.run(case.message(), weights, [np.full((2, 3), 5, np.float32)])


@pytest.mark.parametrize("name", ["Convolution", "ConvolutionDepthwise", "Deconvolution"])
def test_three_axes_of_places_are_named(name: str) -> None:
    case = Case(name, "convolution_param { num_output: 3 kernel_size: 3 }", ((1, 3, 5, 7, 11),))
    with pytest.raises(UnsupportedLayerError, match="3-d convolution is not supported"):
        case.kind.shape(case.message(), case.bottoms)


def test_the_channel_axis_may_be_counted_from_behind() -> None:
    check(Case("Convolution", "convolution_param { num_output: 5 kernel_size: 3 axis: -3 }",
               ((2, 3, 7, 11),), oracle=per_axis))  # fmt: skip


@pytest.mark.parametrize("name", ["Convolution", "ConvolutionDepthwise"])
@pytest.mark.parametrize("stride", [67, 2**31])
def test_a_stride_beyond_the_image_leaves_one_window(name: str, stride: int) -> None:
    check(Case(name, f"convolution_param {{ num_output: 3 kernel_size: 2 stride: {stride} }}",
               ((2, 3, 7, 11),), oracle=per_axis))  # fmt: skip


def test_a_depthwise_window_of_many_taps_runs_as_well() -> None:
    check(Case("ConvolutionDepthwise", "convolution_param { num_output: 2 kernel_size: 67 }",
               ((1, 2, 71, 73),), oracle=lambda p, w, b: [wide_windows(w, b[0])]))  # fmt: skip


def wide_windows(weights, images):
    """Windows cut out one by one, as whole blocks."""
    n, channels, height, width = images.shape
    kernel = weights[0].shape[2]
    top = np.empty((n, channels, height - kernel + 1, width - kernel + 1))
    for i, j in np.ndindex(*top.shape[2:]):
        block = images[:, :, i : i + kernel, j : j + kernel].astype(np.float64)
        top[:, :, i, j] = (block * weights[0][:, 0]).sum(axis=(2, 3)) + weights[1]
    return top
