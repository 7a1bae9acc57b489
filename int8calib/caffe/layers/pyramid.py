"""SPP: an image of any size pooled into a fixed number of values, level by level."""

from __future__ import annotations

from collections.abc import Sequence

from caffe_proto import LayerParameter, caffe_pb2
from int8calib.arrays import Array, Shape, namespace
from int8calib.caffe.layers.pooling import pooled_size, pooling, pooling_windows
from int8calib.caffe.layers.registry import layer
from int8calib.caffe.layers.shapes import need_ndim
from int8calib.errors import ShapeError

_METHODS = {
    caffe_pb2.SPPParameter.MAX: caffe_pb2.PoolingParameter.MAX,
    caffe_pb2.SPPParameter.AVE: caffe_pb2.PoolingParameter.AVE,
    caffe_pb2.SPPParameter.STOCHASTIC: caffe_pb2.PoolingParameter.STOCHASTIC,
}


def _levels(params: LayerParameter, shape: Shape) -> list[LayerParameter]:
    """One Pooling layer per level: 1, 2, 4, ... windows each way, as large as they must be."""
    if params.spp_param.pyramid_height < 1:
        raise ShapeError("spp_param gives no pyramid_height")
    levels = []
    for level in range(params.spp_param.pyramid_height):
        bins = 2**level
        if bins > min(shape[2:]):
            raise ShapeError(
                f"pyramid_height {params.spp_param.pyramid_height} cuts a {shape[2]}x{shape[3]} "
                f"bottom into {bins} and more parts"
            )
        pooled = LayerParameter(name=params.name, type="Pooling", top=["level"])
        param = pooled.pooling_param
        param.pool = _METHODS[params.spp_param.pool]
        param.kernel_h, param.kernel_w = (-(-length // bins) for length in shape[2:])
        param.stride_h, param.stride_w = param.kernel_h, param.kernel_w
        param.pad_h = (param.kernel_h * bins - shape[2] + 1) // 2
        param.pad_w = (param.kernel_w * bins - shape[3] + 1) // 2
        levels.append(pooled)
    return levels


def _shape(params: LayerParameter, bottoms: Sequence[Shape]) -> list[Shape]:
    need_ndim(bottoms, 4)
    n, channels, height, width = bottoms[0]
    values = 0
    for level in _levels(params, bottoms[0]):
        size = pooled_size(pooling_windows(level, height, width), height, width)
        values += channels * size[0] * size[1]
    return [(n, values)]


@layer("SPP", shape=_shape)
def spp(params: LayerParameter, weights: Sequence[Array], bottoms: Sequence[Array]) -> list[Array]:
    """Pooling into 1 x 1, 2 x 2, ... 2^(pyramid_height - 1) squared windows, all flattened.

    At a level of b windows the kernel and stride are ceil(length / b), and half of what is then
    missing, rounded up, is padding. Source: Caffe's SPPLayer, arXiv 1406.4729.
    """
    images = bottoms[0]
    pooled = [pooling(level, (), [images])[0] for level in _levels(params, images.shape)]
    flat = [values.reshape(len(images), -1) for values in pooled]
    return [namespace(images).concatenate(flat, axis=1)]
