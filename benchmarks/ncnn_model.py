"""A graph to ncnn's two model files: structure as text (.param) and weights as bytes (.bin).

Only what the measured networks need. The numbers of the parameters are those documented in
ncnn's docs/developer-guide/operators.md; a convolution's weights stand behind a 32-bit 0, which
says float32. As ncnnoptimize does, a ReLU goes into the convolution or inner product before it,
and a convolution of the single pixel behind a global pooling becomes an inner product.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from caffe_proto import caffe_pb2
from int8calib.arrays import Array, Shape
from int8calib.caffe.layers.convolution import groups
from int8calib.caffe.layers.pooling import pooling_windows
from int8calib.caffe.layers.windows import convolution_windows
from int8calib.caffe.network.graph import Blob, Graph, Layer
from int8calib.caffe.network.inputs import INPUT_TYPES

MAGIC = 7767517
FLOAT32 = b"\0\0\0\0"
NCNN_POOLING = {caffe_pb2.PoolingParameter.MAX: 0, caffe_pb2.PoolingParameter.AVE: 1}
Params: TypeAlias = dict[int, int | float | list[float]]
Converted: TypeAlias = tuple[str, Params, bytes]


@dataclass(frozen=True)
class NcnnModel:
    """The two files' contents, the blob names of inputs and outputs, and the layers left out."""

    param: str
    binary: bytes
    inputs: dict[str, str]
    outputs: dict[Blob, str]
    left_out: tuple[str, ...]


def convert(graph: Graph, shapes: dict[str, Shape]) -> NcnnModel:
    """`graph` for ncnn; layers of other types, and those behind them, are left out."""
    layers, left_out = _supported(graph)
    layers, fused = _fuse_relu(layers)
    writer = _Writer(layers)
    single = _single_pixels(layers)
    for layer in layers:
        if layer.type in INPUT_TYPES:
            for top in layer.tops:
                _, channels, height, width = shapes[top.name]
                writer.add("Input", top.name, (), (top,), {0: width, 1: height, 2: channels})
            continue
        pixel = layer.type == "Convolution" and layer.bottoms[0] in single
        convert_layer = _single_convolution if pixel else _CONVERTERS[layer.type]
        kind, params, weights = convert_layer(layer)
        if layer.name in fused:
            params[9] = 1
        writer.add(kind, layer.name, layer.bottoms, layer.tops, params, weights)
    read = {bottom for layer in layers for bottom in layer.bottoms}
    tops = [top for layer in layers for top in layer.tops]
    inputs = {
        top.name: str(top) for layer in layers if layer.type in INPUT_TYPES for top in layer.tops
    }
    outputs = {top: str(top) for top in tops if top not in read}
    return NcnnModel(writer.text(), b"".join(writer.weights), inputs, outputs, left_out)


def _supported(graph: Graph) -> tuple[list[Layer], tuple[str, ...]]:
    made: set[Blob] = set()
    kept, left_out = [], []
    for layer in graph.layers:
        known = layer.type in INPUT_TYPES or layer.type in _CONVERTERS
        if known and made.issuperset(layer.bottoms):
            made.update(layer.tops)
            kept.append(layer)
        else:
            left_out.append(layer.name)
    return kept, tuple(left_out)


def _fuse_relu(layers: list[Layer]) -> tuple[list[Layer], set[str]]:
    """Layers without the ReLUs that go into the layer before, and the names of those layers."""
    readers: dict[Blob, list[Layer]] = {}
    for layer in layers:
        for bottom in layer.bottoms:
            readers.setdefault(bottom, []).append(layer)
    fused: dict[str, Layer] = {}
    for layer in layers:
        behind = readers.get(layer.tops[0], [])
        if layer.type in _FUSING and len(behind) == 1 and _is_plain_relu(behind[0]):
            fused[layer.name] = behind[0]
    gone = {relu.name for relu in fused.values()}
    kept = [
        Layer(layer.name, layer.type, layer.params, layer.bottoms, relu.tops, layer.weights)
        if (relu := fused.get(layer.name))
        else layer
        for layer in layers
        if layer.name not in gone
    ]
    return kept, set(fused)


def _is_plain_relu(layer: Layer) -> bool:
    return layer.type == "ReLU" and layer.params.relu_param.negative_slope == 0


def _single_pixels(layers: list[Layer]) -> set[Blob]:
    """Blobs that are one pixel an image because a global pooling stands before them."""
    found: set[Blob] = set()
    for layer in layers:
        pooled = layer.type == "Pooling" and layer.params.pooling_param.global_pooling
        passed = layer.type in ("ReLU", "Dropout") and layer.bottoms[0] in found
        if pooled or passed:
            found.update(layer.tops)
    return found


class _Writer:
    """Lines of the structure; a blob with several readers goes through a Split first."""

    def __init__(self, layers: list[Layer]) -> None:
        self._uses: dict[Blob, int] = {}
        for layer in layers:
            for bottom in layer.bottoms:
                self._uses[bottom] = self._uses.get(bottom, 0) + 1
        self._taken: dict[Blob, int] = {}
        self._lines: list[str] = []
        self._blobs = 0
        self.weights: list[bytes] = []

    def add(
        self,
        kind: str,
        name: str,
        bottoms: tuple[Blob, ...],
        tops: tuple[Blob, ...],
        params: Params,
        weights: bytes = b"",
    ) -> None:
        """One layer, and a Split for each top that needs one."""
        self._line(kind, name, [self._take(bottom) for bottom in bottoms], list(map(str, tops)))
        self._lines[-1] += "".join(f" {_param(key, params[key])}" for key in sorted(params))
        self.weights.append(weights)
        for top in tops:
            count = self._uses.get(top, 0)
            if count > 1:
                copies = [f"{top}_split_{i}" for i in range(count)]
                self._line("Split", f"split_{top}", [str(top)], copies)

    def _take(self, blob: Blob) -> str:
        if self._uses[blob] == 1:
            return str(blob)
        number = self._taken[blob] = self._taken.get(blob, -1) + 1
        return f"{blob}_split_{number}"

    def _line(self, kind: str, name: str, bottoms: list[str], tops: list[str]) -> None:
        self._blobs += len(tops)
        self._lines.append(
            " ".join([kind, name, str(len(bottoms)), str(len(tops)), *bottoms, *tops])
        )

    def text(self) -> str:
        """The whole file."""
        return "\n".join([str(MAGIC), f"{len(self._lines)} {self._blobs}", *self._lines, ""])


def _param(key: int, value: int | float | list[float]) -> str:
    if isinstance(value, list):
        return f"{-23300 - key}={len(value)}," + ",".join(f"{item:e}" for item in value)
    return f"{key}={value}" if isinstance(value, int) else f"{key}={value:e}"


def _bytes(*arrays: Array) -> bytes:
    return b"".join(np.ascontiguousarray(array, np.float32).tobytes() for array in arrays)


def _convolution(layer: Layer) -> Converted:
    param, group = layer.params.convolution_param, groups(layer.params)
    windows = convolution_windows(param)
    params: Params = {0: int(param.num_output), 5: len(layer.weights) - 1}
    sizes = (windows.kernel, windows.dilation, windows.stride, windows.pad_begin)
    for key, (vertical, horizontal) in enumerate(sizes, 1):
        params[key], params[10 + key] = horizontal, vertical
    params[16], params[15] = windows.pad_end
    params[6] = int(layer.weights[0].size)
    if group != 1:
        params[7] = group
    kind = "Convolution" if group == 1 else "ConvolutionDepthWise"
    return kind, params, FLOAT32 + _bytes(*layer.weights)


def _single_convolution(layer: Layer) -> Converted:
    weight = layer.weights[0]
    params: Params = {0: len(weight), 1: len(layer.weights) - 1, 2: int(weight.size)}
    return "InnerProduct", params, FLOAT32 + _bytes(*layer.weights)


def _inner_product(layer: Layer) -> Converted:
    weight = layer.weights[0]
    if layer.params.inner_product_param.transpose:
        weight = weight.T
    outputs = int(layer.params.inner_product_param.num_output)
    params: Params = {0: outputs, 1: len(layer.weights) - 1, 2: int(weight.size)}
    return "InnerProduct", params, FLOAT32 + _bytes(weight, *layer.weights[1:])


def _pooling(layer: Layer) -> Converted:
    param = layer.params.pooling_param
    windows = pooling_windows(layer.params, 1, 1)
    params: Params = {0: NCNN_POOLING[param.pool], 4: int(param.global_pooling)}
    for key, (vertical, horizontal) in enumerate((windows.kernel, windows.stride), 1):
        params[key], params[10 + key] = horizontal, vertical
    (params[13], params[3]), (params[15], params[14]) = windows.pad_begin, windows.pad_end
    return "Pooling", params, b""


def _batch_norm(layer: Layer) -> Converted:
    mean, var, moving = (blob.reshape(-1) for blob in layer.weights[:3])
    factor = np.float32(0 if moving[0] == 0 else 1 / moving[0])
    one, zero = np.ones_like(mean), np.zeros_like(mean)
    params: Params = {0: int(mean.size), 1: float(layer.params.batch_norm_param.eps)}
    return "BatchNorm", params, _bytes(one, mean * factor, var * factor, zero)


def _scale(layer: Layer) -> Converted:
    params: Params = {0: int(layer.weights[0].size), 1: len(layer.weights) - 1}
    return "Scale", params, _bytes(*layer.weights)


def _eltwise(layer: Layer) -> Converted:
    param = layer.params.eltwise_param
    params: Params = {0: int(param.operation)}
    if param.coeff:
        params[1] = [float(value) for value in param.coeff]
    return "Eltwise", params, b""


def _lrn(layer: Layer) -> Converted:
    param = layer.params.lrn_param
    params: Params = {0: int(param.norm_region), 1: int(param.local_size)}
    params.update({2: float(param.alpha), 3: float(param.beta), 4: float(param.k)})
    return "LRN", params, b""


_FUSING = frozenset(("Convolution", "ConvolutionDepthwise", "DepthwiseConvolution", "InnerProduct"))
_CONVERTERS: dict[str, Callable[[Layer], Converted]] = {
    "Convolution": _convolution,
    "ConvolutionDepthwise": _convolution,
    "DepthwiseConvolution": _convolution,
    "InnerProduct": _inner_product,
    "Pooling": _pooling,
    "BatchNorm": _batch_norm,
    "Scale": _scale,
    "Eltwise": _eltwise,
    "LRN": _lrn,
    "ReLU": lambda layer: ("ReLU", {0: float(layer.params.relu_param.negative_slope)}, b""),
    # Axes count from the image on in ncnn, which has no batch: Caffe's axis 1 is its 0.
    "Concat": lambda layer: ("Concat", {0: int(layer.params.concat_param.axis) - 1}, b""),
    "Softmax": lambda layer: ("Softmax", {0: int(layer.params.softmax_param.axis) - 1, 1: 1}, b""),
    "Dropout": lambda layer: ("Dropout", {}, b""),
}
