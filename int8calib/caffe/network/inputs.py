"""What a data layer feeds: its tops as inputs, with as much of their shape as it says."""

from __future__ import annotations

from caffe_proto import LayerParameter
from int8calib.arrays import Shape

INPUT_TYPES = frozenset(
    {
        "Input",
        "Data",
        "ImageData",
        "MemoryData",
        "HDF5Data",
        "WindowData",
        "DummyData",
        "AnnotatedData",
        "VideoData",
    }
)
"""Types whose tops come from outside the network."""


def input_shapes(layer: LayerParameter) -> dict[str, Shape | None]:
    """The shape of each top of a data layer, None where the prototxt does not say.

    A dimension that is not given (the channels of a Data layer, say) is 0. Only the first top
    of a data layer holds images; what follows are labels, one value each.
    """
    if layer.type == "Input":
        return _from_shapes(layer, [tuple(s.dim) for s in layer.input_param.shape])
    if layer.type == "DummyData":
        return _from_shapes(layer, _dummy_shapes(layer))
    images, *labels = layer.top
    return {images: _image_shape(layer), **dict.fromkeys(labels)}


def _from_shapes(layer: LayerParameter, shapes: list[Shape]) -> dict[str, Shape | None]:
    """One shape per top, or one for all of them."""
    if len(shapes) == 1:
        shapes = shapes * len(layer.top)
    return {top: shapes[i] if i < len(shapes) else None for i, top in enumerate(layer.top)}


def _dummy_shapes(layer: LayerParameter) -> list[Shape]:
    param = layer.dummy_data_param
    if param.shape:
        return [tuple(s.dim) for s in param.shape]
    return list(zip(param.num, param.channels, param.height, param.width, strict=False))


def _image_shape(layer: LayerParameter) -> Shape | None:
    """(1, channels or 0, H, W) from what the layer says of size, or None."""
    if layer.type == "MemoryData":
        param = layer.memory_data_param
        return (param.batch_size or 1, param.channels, param.height, param.width)
    transform = layer.transform_param
    channels = 1 if transform.force_gray else 3 if transform.force_color else 0
    if len(transform.mean_value) == 3:
        channels = 3
    if transform.crop_size:
        return (1, channels, transform.crop_size, transform.crop_size)
    for height, width in (
        (transform.crop_h, transform.crop_w),
        (layer.image_data_param.new_height, layer.image_data_param.new_width),
        (transform.resize_param.height, transform.resize_param.width),
    ):
        if height and width:
            return (1, channels, height, width)
    return None
