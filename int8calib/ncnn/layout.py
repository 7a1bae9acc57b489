"""Which blobs each ncnn layer type has in the weight file, and how many values each holds.

Source: ncnn, each layer's load_model in src/layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from int8calib.errors import ModelFileError
from int8calib.ncnn.param import NcnnLayer

MOST_VALUES = 2**31 - 1
BLOCK_QUANTIZED = 400
"""From this value of parameter 18 on, weights are stored in blocks of 4 to 8 bits."""


class Blob(NamedTuple):
    """One blob that a layer loads: its values, and whether a flag stands before them."""

    size: int
    tagged: bool
    name: str


def blob_layout(layer: NcnnLayer) -> list[Blob]:
    """The blobs of `layer` in the `.bin`, in order.

    Raises
    ------
    ModelFileError
        For counts that are negative or too large, and for storage that is not supported.
    """
    make = _LAYOUTS.get(layer.type)
    blobs = [] if make is None else list(make(layer))
    for blob in blobs:
        if not 0 <= blob.size <= MOST_VALUES:
            raise ModelFileError(
                f"layer {layer.name!r} ({layer.type}): {blob.size} values of {blob.name}; 0 to "
                f"{MOST_VALUES} are right"
            )
    return blobs


def _tagged(count: int, name: str = "weights") -> Blob:
    return Blob(count, True, name)


def _raw(count: int, name: str) -> Blob:
    return Blob(count, False, name)


def _convolution(bias: int, *, dynamic: int | None = 19, int8: bool = False) -> Callable[..., Any]:
    """Weights p6, bias p0 if `bias`, int8 scales; nothing with weights from a bottom."""

    def layout(layer: NcnnLayer) -> Iterator[Blob]:
        if dynamic is not None and layer.integer(dynamic):
            return
        out = layer.integer(0)
        yield _tagged(layer.integer(6))
        if layer.integer(bias):
            yield _raw(out, "bias")
        if int8:
            rows = out if layer.type == "Convolution" else layer.integer(7, 1)
            yield from _int8_scales(layer, rows)

    return layout


def _int8_scales(layer: NcnnLayer, rows: int) -> Iterator[Blob]:
    term = layer.integer(8)
    if not term:
        return
    # Old depthwise files have one scale for all groups.
    single = layer.type == "ConvolutionDepthWise" and term % 100 == 2
    yield _raw(1 if single else rows, "weight scales")
    yield _raw(1, "bottom scale")
    if term > 100 and layer.type != "InnerProduct":
        yield _raw(1, "top scale")


def _inner_product(layer: NcnnLayer) -> Iterator[Blob]:
    out = layer.integer(0)
    yield _tagged(layer.integer(2))
    if layer.integer(1):
        yield _raw(out, "bias")
    yield from _int8_scales(layer, out)


def _batch_norm(layer: NcnnLayer) -> Iterator[Blob]:
    for name in ("slope", "mean", "variance", "bias"):
        yield _raw(layer.integer(0), name)


def _scale(layer: NcnnLayer) -> Iterator[Blob]:
    count = layer.integer(0)
    if count == -233:
        return
    yield _raw(count, "scale")
    if layer.integer(1):
        yield _raw(count, "bias")


def _memory_data(layer: NcnnLayer) -> Iterator[Blob]:
    sizes = [size for key in (0, 1, 11, 2) if (size := layer.integer(key))]
    if sizes:
        # Exact integers; the limit is checked by the caller.
        count = 1
        for size in sizes:
            count *= size
        yield Blob(count, layer.integer(21, 1) == 0, "data")


def _embed(layer: NcnnLayer) -> Iterator[Blob]:
    yield _tagged(layer.integer(3))
    if layer.integer(2):
        yield _raw(layer.integer(0), "bias")
    if layer.integer(18):
        yield _raw(1, "weight scale")


def _affine(size: int, affine: int) -> Callable[[NcnnLayer], Iterator[Blob]]:
    def layout(layer: NcnnLayer) -> Iterator[Blob]:
        if layer.integer(affine, 1):
            yield _raw(layer.integer(size), "gamma")
            yield _raw(layer.integer(size), "beta")

    return layout


def _rms_norm(layer: NcnnLayer) -> Iterator[Blob]:
    if layer.integer(2, 1):
        yield _raw(layer.integer(0), "gamma")


def _recurrent(gates: int, biases: int) -> Callable[[NcnnLayer], Iterator[Blob]]:
    """LSTM, GRU, RNN: input weights p1, bias, recurrent weights, scales where int8."""

    def layout(layer: NcnnLayer) -> Iterator[Blob]:
        out, directions = layer.integer(0), 2 if layer.integer(2) == 2 else 1
        hidden = layer.integer(3, out) if layer.type == "LSTM" else out
        rows = gates * hidden * directions
        yield _tagged(layer.integer(1), "input weights")
        yield _tagged(biases * hidden * directions, "bias")
        yield _tagged(out * rows, "recurrent weights")
        if hidden != out:
            yield _tagged(hidden * out * directions, "projection")
        if layer.integer(8):
            yield _raw(rows, "input weight scales")
            yield _raw(rows, "recurrent weight scales")

    return layout


def _attention(layer: NcnnLayer) -> Iterator[Blob]:
    _refuse_blocks(layer)
    embed = layer.integer(0)
    query = layer.integer(2) // embed if embed else 0
    sizes = {"query": query, "key": layer.integer(3, embed), "value": layer.integer(4, embed)}
    for name, size in sizes.items():
        yield _tagged(embed * size, f"{name} weights")
        yield _raw(embed, f"{name} bias")
    yield _tagged(query * embed, "output weights")
    yield _raw(query, "output bias")
    if layer.integer(18):
        for name in sizes:
            yield _raw(embed, f"{name} weight scales")
        yield _raw(1, "output weight scale")


def _gemm(layer: NcnnLayer) -> Iterator[Blob]:
    _refuse_blocks(layer)
    m, n, k = (layer.integer(key) for key in (7, 8, 9))
    if layer.integer(4):
        yield _tagged(m * k, "A")
    if layer.integer(5):
        yield _tagged(n * k, "B")
    broadcast = layer.integer(10)
    if layer.integer(6) and broadcast != -1:
        yield _tagged({0: 1, 1: m, 2: m, 3: m * n, 4: n}.get(broadcast, -1), "C")
    if layer.integer(18):
        if layer.integer(4):
            yield _raw(m, "A scales")
        if layer.integer(5):
            yield _raw(1, "B scale")


def _refuse_blocks(layer: NcnnLayer) -> None:
    if layer.integer(18) >= BLOCK_QUANTIZED:
        raise ModelFileError(
            f"layer {layer.name!r} ({layer.type}): weights in quantized blocks (18="
            f"{layer.integer(18)}) are not supported"
        )


def _counted(key: int, name: str, default: int = 0) -> Callable[[NcnnLayer], Iterator[Blob]]:
    def layout(layer: NcnnLayer) -> Iterator[Blob]:
        if count := layer.integer(key, default):
            yield _raw(count, name)

    return layout


def _dequantize(layer: NcnnLayer) -> Iterator[Blob]:
    yield _raw(layer.integer(0, 1), "scale")
    if layer.integer(1):
        yield _raw(layer.integer(1), "bias")


def _requantize(layer: NcnnLayer) -> Iterator[Blob]:
    yield _raw(layer.integer(0, 1), "input scale")
    yield _raw(layer.integer(1, 1), "output scale")
    if layer.integer(2):
        yield _raw(layer.integer(2), "bias")


_LAYOUTS: Mapping[str, Callable[[NcnnLayer], Iterator[Blob]]] = {
    "Convolution": _convolution(5, int8=True),
    "ConvolutionDepthWise": _convolution(5, int8=True),
    "Convolution1D": _convolution(5),
    "ConvolutionDepthWise1D": _convolution(5),
    "Deconvolution": _convolution(5, dynamic=28),
    "Deconvolution1D": _convolution(5, dynamic=28),
    "DeconvolutionDepthWise": _convolution(5, dynamic=28),
    "DeconvolutionDepthWise1D": _convolution(5, dynamic=28),
    "Convolution3D": _convolution(5, dynamic=None),
    "ConvolutionDepthWise3D": _convolution(5, dynamic=None),
    "Deconvolution3D": _convolution(5, dynamic=None),
    "DeconvolutionDepthWise3D": _convolution(5, dynamic=None),
    "DeformableConv2D": _convolution(5, dynamic=None),
    "InnerProduct": _inner_product,
    "BatchNorm": _batch_norm,
    "Scale": _scale,
    "Bias": _counted(0, "bias"),
    "PReLU": _counted(0, "slope"),
    "Normalize": _counted(3, "scale"),
    "MemoryData": _memory_data,
    "Embed": _embed,
    "LayerNorm": _affine(0, 2),
    "InstanceNorm": _affine(0, 2),
    "GroupNorm": _affine(1, 3),
    "RMSNorm": _rms_norm,
    "LSTM": _recurrent(4, 4),
    "GRU": _recurrent(3, 4),
    "RNN": _recurrent(1, 1),
    "MultiHeadAttention": _attention,
    "Gemm": _gemm,
    "Padding": _counted(6, "pad values"),
    "Quantize": _counted(0, "scale", 1),
    "Dequantize": _dequantize,
    "Requantize": _requantize,
}
