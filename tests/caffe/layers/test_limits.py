"""Options that ask for more than there is: one line that names the layer, before any memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import int8calib
from int8calib.errors import ModelError

MOST = 2**32 - 1
HEAD = 'input: "data" input_shape { dim: 1 dim: 4 dim: 13 dim: 11 }\n'
TWO = 'input: "boxes" input_shape { dim: 2 dim: 5 }\n'


def layer(kind: str, options: str = "", bottoms: str = 'bottom: "data"') -> str:
    return f'{HEAD}layer {{ name: "big" type: "{kind}" {bottoms} top: "top" {options} }}\n'


GREEDY = (
    layer("Convolution", f"convolution_param {{ num_output: {MOST} kernel_size: 1 }}"),
    layer("Convolution", f"convolution_param {{ num_output: 4 kernel_size: {MOST} }}"),
    layer("Convolution", f"convolution_param {{ num_output: 4 kernel_size: 3 pad: {MOST} }}"),
    layer("Convolution", f"convolution_param {{ num_output: 4 kernel_size: 3 pad_r: {MOST} }}"),
    layer("Convolution", f"convolution_param {{ num_output: 4 kernel_size: 3 group: {MOST} }}"),
    layer("Convolution", f"convolution_param {{ num_output: 4 kernel_size: 3 dilation: {MOST} }}"),
    layer("ConvolutionDepthwise", f"convolution_param {{ num_output: {MOST} kernel_size: 1 }}"),
    layer("Deconvolution", f"convolution_param {{ num_output: 4 kernel_size: {MOST} }}"),
    layer("Deconvolution", f"convolution_param {{ num_output: 4 kernel_size: 2 stride: {MOST} }}"),
    layer("InnerProduct", f"inner_product_param {{ num_output: {MOST} }}"),
    layer("Embed", f"embed_param {{ num_output: {MOST} input_dim: {MOST} }}"),
    layer("Pooling", f"pooling_param {{ kernel_size: {MOST} pad: {MOST - 1} }}"),
    layer("SPP", f"spp_param {{ pyramid_height: {MOST} }}"),
    layer("Tile", f"tile_param {{ tiles: {2**31 - 1} }}"),
    layer("Interp", f"interp_param {{ height: {2**31 - 1} width: {2**31 - 1} }}"),
    layer("Interp", f"interp_param {{ zoom_factor: {2**31 - 1} }}"),
    layer("Upsample", f"upsample_param {{ scale: {MOST} }}"),
    layer("UpsampleDarknet", f"upsample_darknet_param {{ stride: {2**31 - 1} }}"),
    layer("ResizeNearestNeighbor", "resize_nearest_neighbor_param { scale_height: 3e38 }"),
    layer("ResizeNearestNeighbor", "resize_nearest_neighbor_param { "
          f"output_height: {2**31 - 1} output_width: {2**31 - 1} }}"),
    layer("Reorg", f"reorg_param {{ stride: {MOST} }}"),
    layer("CropCenter", f"crop_center_param {{ crop_size: {MOST} }}"),
    layer("Slice", f"slice_param {{ slice_point: {MOST} }}"),
    layer("ArgMax", f"argmax_param {{ top_k: {MOST} }}"),
    layer("Reshape", f"reshape_param {{ shape {{ dim: {2**62} dim: {2**62} }} }}"),
    layer("Permute", f"permute_param {{ order: {MOST} }}"),
    layer("ShuffleChannel", f"shuffle_channel_param {{ group: {MOST} }}"),
    layer("Scale", f"scale_param {{ axis: {2**31 - 1} }}"),
    layer("YoloDetectionOutput", f"yolo_detection_output_param {{ num_classes: {MOST} "
          f"num_box: {MOST} }}"),
    TWO + layer("ROIPooling", f"roi_pooling_param {{ pooled_h: {MOST} pooled_w: {MOST} }}",
                'bottom: "data" bottom: "boxes"'),
    TWO + layer("ROIAlign", f"roi_align_param {{ pooled_h: {MOST} pooled_w: 1 }}",
                'bottom: "data" bottom: "boxes"'),
    TWO + layer("PSROIPooling", f"psroi_pooling_param {{ group_size: {2**31 - 1} spatial_scale: 1 "
                f"output_dim: {2**31 - 1} }}", 'bottom: "data" bottom: "boxes"'),
    TWO + layer("PriorBox", "prior_box_param { " + "min_size: 3 " * 9 + f"img_size: {MOST} "
                "step: inf }", 'bottom: "data" bottom: "data"'),
)  # fmt: skip


@pytest.mark.parametrize("text", GREEDY, ids=lambda text: text.split('type: "')[1][:60])
def test_greedy_layers_are_refused(text: str, tmp_path: Path) -> None:
    proto = tmp_path / "net.prototxt"
    proto.write_text(text, encoding="utf-8")
    inputs = {"data": np.ones((1, 4, 13, 11), np.float32), "boxes": np.ones((2, 5), np.float32)}

    def run() -> None:
        net = int8calib.load_caffe(proto, None)
        net.forward({name: inputs[name] for name in net.input_shapes}, outputs=["top"])

    with pytest.raises(ModelError) as refused:
        run()
    message = str(refused.value)
    assert "layer 'big'" in message
    assert "\n" not in message
    assert len(message) < 500


@pytest.mark.parametrize(
    "text",
    [
        layer("LRN", f"lrn_param {{ local_size: {MOST} }}"),
        layer("LRN", f"lrn_param {{ local_size: {MOST} norm_region: WITHIN_CHANNEL }}"),
        layer("Pooling", f"pooling_param {{ kernel_size: 2 stride: {2**31} }}"),
        layer("Pooling", f"pooling_param {{ pool: AVE kernel_size: {MOST} stride: {MOST} }}"),
    ],
    ids=lambda text: text.split('type: "')[1][:60],
)
def test_layers_that_only_look_greedy_run(text: str, tmp_path: Path) -> None:
    proto = tmp_path / "net.prototxt"
    proto.write_text(text, encoding="utf-8")
    net = int8calib.load_caffe(proto, None)
    (top,) = net.forward({"data": np.ones((1, 4, 13, 11), np.float32)}).values()
    assert top.size
