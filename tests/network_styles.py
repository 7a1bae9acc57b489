"""Small networks in the styles of the field, as prototxt text; sizes are odd and differ."""

from __future__ import annotations


def layer(kind: str, name: str, bottoms: str, top: str = "", param: str = "") -> str:
    """One layer; `bottoms` is a list of names in one string, `top` the name by default."""
    reads = " ".join(f'bottom: "{bottom}"' for bottom in bottoms.split())
    return f'layer {{ name: "{name}" type: "{kind}" {reads} top: "{top or name}" {param} }}\n'


def data(*dims: int) -> str:
    shape = " ".join(f"dim: {dim}" for dim in dims)
    return layer("Input", "data", "", param=f"input_param {{ shape {{ {shape} }} }}")


def conv(name: str, bottom: str, options: str, *, relu: bool = True) -> str:
    text = layer("Convolution", name, bottom, param=f"convolution_param {{ {options} }}")
    return text + (layer("ReLU", f"{name}/relu", name, name) if relu else "")


def conv_bn(name: str, bottom: str, options: str, *, relu: bool = True) -> str:
    """Convolution without bias, BatchNorm, Scale and ReLU, in place."""
    text = conv(name, bottom, f"{options} bias_term: false", relu=False)
    text += layer("BatchNorm", f"{name}/bn", name, name, "batch_norm_param { eps: 1e-5 }")
    text += layer("Scale", f"{name}/scale", name, name, "scale_param { bias_term: true }")
    return text + (layer("ReLU", f"{name}/relu", name, name) if relu else "")


def pool(name: str, bottom: str, options: str) -> str:
    return layer("Pooling", name, bottom, param=f"pooling_param {{ {options} }}")


def head(bottom: str, classes: int) -> str:
    """Global pooling, InnerProduct and Softmax."""
    return (
        pool("pool", bottom, "pool: AVE global_pooling: true")
        + layer(
            "InnerProduct", "fc", "pool", param=f"inner_product_param {{ num_output: {classes} }}"
        )
        + layer("Softmax", "prob", "fc")
    )


def fire() -> str:
    """SqueezeNet: squeeze, two expands joined, pooling that rounds up."""
    text = data(1, 3, 47, 37) + conv("conv1", "data", "num_output: 13 kernel_size: 3 stride: 2")
    text += pool("pool1", "conv1", "pool: MAX kernel_size: 3 stride: 2")
    bottom = "pool1"
    for i, (squeeze, expand) in enumerate([(5, 7), (3, 11)], 2):
        text += conv(f"fire{i}/squeeze1x1", bottom, f"num_output: {squeeze} kernel_size: 1")
        for size, pad in ((1, 0), (3, 1)):
            text += conv(
                f"fire{i}/expand{size}x{size}",
                f"fire{i}/squeeze1x1",
                f"num_output: {expand} kernel_size: {size} pad: {pad}",
            )
        bottom = f"fire{i}/concat"
        text += layer("Concat", bottom, f"fire{i}/expand1x1 fire{i}/expand3x3")
    text += layer("Dropout", "drop", bottom, bottom)
    text += conv("conv10", bottom, "num_output: 17 kernel_size: 1")
    return (
        text
        + pool("pool10", "conv10", "pool: AVE global_pooling: true")
        + layer("Softmax", "prob", "pool10")
    )


def inverted_residual() -> str:
    """MobileNet v2: expand, depthwise, linear projection, shortcut."""
    text = data(1, 3, 43, 31) + conv_bn(
        "conv1", "data", "num_output: 11 kernel_size: 3 stride: 2 pad: 1"
    )
    bottom = "conv1"
    for i, (expand, stride, output) in enumerate([(23, 1, 11), (29, 2, 13), (31, 1, 13)]):
        text += conv_bn(f"b{i}/expand", bottom, f"num_output: {expand} kernel_size: 1")
        options = f"num_output: {expand} group: {expand} kernel_size: 3 pad: 1 stride: {stride}"
        text += conv_bn(f"b{i}/dw", f"b{i}/expand", options)
        text += conv_bn(
            f"b{i}/linear", f"b{i}/dw", f"num_output: {output} kernel_size: 1", relu=False
        )
        shortcut = stride == 1
        text += layer("Eltwise", f"b{i}/sum", f"{bottom} b{i}/linear") if shortcut else ""
        bottom = f"b{i}/sum" if shortcut else f"b{i}/linear"
    return text + head(bottom, 7)


def bottleneck() -> str:
    """ResNet: three convolutions and a shortcut, projected or plain, ReLU after the sum."""
    text = data(1, 3, 41, 53) + conv_bn(
        "conv1", "data", "num_output: 11 kernel_size: 7 stride: 2 pad: 3"
    )
    text += pool("pool1", "conv1", "pool: MAX kernel_size: 3 stride: 2")
    bottom = "pool1"
    for name, stride, project in (("2a", 1, True), ("2b", 1, False), ("3a", 2, True)):
        shortcut = bottom
        if project:
            shortcut = f"res{name}_1"
            text += conv_bn(
                shortcut, bottom, f"num_output: 29 kernel_size: 1 stride: {stride}", relu=False
            )
        text += conv_bn(f"res{name}_2a", bottom, f"num_output: 7 kernel_size: 1 stride: {stride}")
        text += conv_bn(f"res{name}_2b", f"res{name}_2a", "num_output: 7 kernel_size: 3 pad: 1")
        text += conv_bn(
            f"res{name}_2c", f"res{name}_2b", "num_output: 29 kernel_size: 1", relu=False
        )
        bottom = f"res{name}"
        text += layer("Eltwise", bottom, f"{shortcut} res{name}_2c")
        text += layer("ReLU", f"{bottom}_relu", bottom, bottom)
    return text + head(bottom, 13)


def inception() -> str:
    """GoogLeNet: LRN on both sides of a stem, four branches joined, grouped convolution."""
    text = data(1, 3, 59, 43) + conv(
        "conv1", "data", "num_output: 10 kernel_size: 5 stride: 2 pad: 2"
    )
    text += layer(
        "LRN", "norm1", "conv1", param="lrn_param { local_size: 5 alpha: 1e-2 beta: 0.75 }"
    )
    text += conv("conv2", "norm1", "num_output: 14 kernel_size: 3 pad: 1 group: 2")
    text += layer("LRN", "norm2", "conv2", param="lrn_param { local_size: 3 alpha: 0.1 beta: 0.5 }")
    text += pool("pool2", "norm2", "pool: MAX kernel_size: 3 stride: 2")
    text += conv("i/1x1", "pool2", "num_output: 7 kernel_size: 1")
    text += conv("i/3x3_reduce", "pool2", "num_output: 5 kernel_size: 1")
    text += conv("i/3x3", "i/3x3_reduce", "num_output: 11 kernel_size: 3 pad: 1")
    text += conv("i/5x5_reduce", "pool2", "num_output: 3 kernel_size: 1")
    text += conv("i/5x5", "i/5x5_reduce", "num_output: 5 kernel_size: 5 pad: 2")
    text += pool("i/pool", "pool2", "pool: MAX kernel_size: 3 stride: 1 pad: 1")
    text += conv("i/pool_proj", "i/pool", "num_output: 2 kernel_size: 1")
    text += layer("Concat", "i/output", "i/1x1 i/3x3 i/5x5 i/pool_proj")
    return text + head("i/output", 19)


def ssd() -> str:
    """A detector: two feature maps with depthwise stems, default boxes, scores, detections."""
    text = data(1, 3, 61, 67) + conv_bn(
        "conv1", "data", "num_output: 7 kernel_size: 3 stride: 2 pad: 1"
    )
    text += conv_bn("map1", "conv1", "num_output: 7 group: 7 kernel_size: 3 stride: 4 pad: 1")
    text += conv_bn("map2", "map1", "num_output: 13 kernel_size: 3 stride: 2 pad: 1")
    parts: dict[str, list[str]] = {"loc": [], "conf": [], "prior": []}
    for name, boxes, sizes in (
        ("map1", 2, "min_size: 11"),
        ("map2", 3, "min_size: 19 max_size: 31"),
    ):
        for part, outputs in (("loc", 4 * boxes), ("conf", 3 * boxes)):
            own = f"{name}_{part}"
            text += conv(own, name, f"num_output: {outputs} kernel_size: 3 pad: 1", relu=False)
            order = "permute_param { order: 0 order: 2 order: 3 order: 1 }"
            text += layer("Permute", f"{own}_perm", own, param=order)
            text += layer(
                "Flatten", f"{own}_flat", f"{own}_perm", param="flatten_param { axis: 1 }"
            )
            parts[part].append(f"{own}_flat")
        options = (
            f"{sizes} aspect_ratio: 2 flip: false clip: false offset: 0.5 "
            "variance: 0.1 variance: 0.1 variance: 0.2 variance: 0.2"
        )
        text += layer(
            "PriorBox", f"{name}_prior", f"{name} data", param=f"prior_box_param {{ {options} }}"
        )
        parts["prior"].append(f"{name}_prior")
    for part, axis in (("loc", 1), ("conf", 1), ("prior", 2)):
        join = f"concat_param {{ axis: {axis} }}"
        text += layer("Concat", f"mbox_{part}", " ".join(parts[part]), param=join)
    shape = "reshape_param { shape { dim: 0 dim: -1 dim: 3 } }"
    text += layer("Reshape", "conf_reshape", "mbox_conf", param=shape)
    text += layer("Softmax", "conf_softmax", "conf_reshape", param="softmax_param { axis: 2 }")
    text += layer("Flatten", "conf_flat", "conf_softmax", param="flatten_param { axis: 1 }")
    detect = (
        "num_classes: 3 share_location: true background_label_id: 0 code_type: CENTER_SIZE "
        "nms_param { nms_threshold: 0.45 top_k: 50 } keep_top_k: 20 confidence_threshold: 0.3"
    )
    return text + layer(
        "DetectionOutput",
        "detections",
        "mbox_loc conf_flat mbox_prior",
        param=f"detection_output_param {{ {detect} }}",
    )


STYLES = {
    "fire": fire,
    "inverted_residual": inverted_residual,
    "bottleneck": bottleneck,
    "inception": inception,
    "ssd": ssd,
}
