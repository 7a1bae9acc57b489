"""What must hold of a model before ncnn's runtime gets it, which reads out of bounds otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from int8calib.errors import ModelError, ModelFileError
from int8calib.limits import MAX_VALUES
from int8calib.ncnn.layout import blob_layout
from int8calib.ncnn.param import NcnnLayer
from int8calib.ncnn.schema import value_of

_WITHOUT_BOTTOMS = frozenset(("Input", "MemoryData"))
_KERNELS = frozenset(
    ("Convolution", "ConvolutionDepthWise", "Deconvolution", "DeconvolutionDepthWise")
)
_PER_CHANNEL = frozenset(("BatchNorm", "Scale", "Bias", "PReLU"))
"""Types with one value for each channel."""

_GATES: Mapping[str, int] = {"RNN": 1, "LSTM": 4, "GRU": 3}

_PADS: Mapping[str, tuple[int, ...]] = {
    "Convolution": (14, 16, 4, 15),
    "ConvolutionDepthWise": (14, 16, 4, 15),
    "Pooling": (13, 15, 3, 14),
    "Padding": (0, 1, 2, 3),
}
"""The parameters that say how wide the border is: at the top, bottom, left, right."""

_INT8_KEYS: Mapping[int, frozenset[str]] = {
    8: frozenset(("Convolution", "ConvolutionDepthWise", "InnerProduct", "RNN", "LSTM", "GRU")),
    18: frozenset(("Embed", "MultiHeadAttention", "Gemm", "SDPA")),
}
"""The parameter that says how a layer runs in INT8, and the types that have it."""

Extents = tuple[int, ...]
"""Extents of a blob in ncnn, the outermost first: (C, H, W), (H, W) or (W,)."""


def check_graph(layers: Sequence[NcnnLayer], source: str) -> None:
    """Check that every blob is made once and before it is read, and that weights are there.

    Parameters
    ----------
    layers : sequence of NcnnLayer
        In running order.
    source : str
        How errors call the model.

    Raises
    ------
    ModelFileError
        For the first layer of which that is not true.
    """
    made: set[str] = set()
    for layer in layers:
        place = f"{source}: layer {layer.name!r} ({layer.type})"
        absent = [bottom for bottom in layer.bottoms if bottom not in made]
        if absent:
            raise ModelFileError(f"{place}: no layer before it makes its bottom {absent[0]!r}")
        if not layer.bottoms and layer.type not in _WITHOUT_BOTTOMS:
            raise ModelFileError(f"{place}: it has no bottom")
        for top in layer.tops:
            if top in made:
                raise ModelFileError(f"{place}: the top {top!r} is made by two layers")
            made.add(top)
        empty = [blob.name for blob in blob_layout(layer) if not blob.size]
        if empty:
            raise ModelFileError(f"{place}: it has {empty[0]} of 0 values")


def is_int8(layer: NcnnLayer) -> bool:
    """Whether the weights of a layer are levels, as ncnn2int8 makes them."""
    return any(layer.type in types and layer.integer(key) for key, types in _INT8_KEYS.items())


def refuse_int8(layers: Iterable[NcnnLayer], source: str) -> None:
    """Raise `ModelFileError` for a model in INT8, where a float model is needed."""
    for layer in layers:
        if is_int8(layer):
            raise ModelFileError(
                f"{source}: layer {layer.name!r} is INT8 already; give the float model"
            )


def check_bottoms(layer: NcnnLayer, bottoms: Sequence[Extents], source: str) -> None:
    """Check that the bottoms of a layer have the sizes that its weights are for.

    Parameters
    ----------
    layer : NcnnLayer
        The layer, with weights.
    bottoms : sequence of tuple
        The extents of each bottom.
    source : str
        How errors call the model.

    Raises
    ------
    ModelError
        Where ncnn would read or write beside a blob.
    """
    if not all(extents and min(extents) > 0 for extents in bottoms):
        raise ModelError(
            f"{source}: layer {layer.name!r} ({layer.type}): a bottom is empty; a larger input is "
            "needed"
        )
    for found, right in _SIZES.get(layer.type, _no_sizes)(layer, bottoms):
        if found != right:
            shape = "x".join(map(str, bottoms[0]))
            raise ModelError(
                f"{source}: layer {layer.name!r} ({layer.type}): its bottom of shape {shape} needs "
                f"{found} and the layer has {right}; was the input or a parameter changed?"
            )


Sizes = Iterator[tuple[object, object]]


def _no_sizes(layer: NcnnLayer, bottoms: Sequence[Extents]) -> Sizes:
    yield from ()


def _int(layer: NcnnLayer, key: int) -> int:
    value = value_of(layer, key)
    return value if isinstance(value, int) else 0


def _padded(layer: NcnnLayer, bottoms: Sequence[Extents]) -> Sizes:
    """The bottom with its border, which ncnn makes a blob of, is within the limit of a blob."""
    extents, pads = bottoms[0], [_int(layer, key) for key in _PADS.get(layer.type, ())]
    height, width = (1, *extents)[-2] + sum(pads[:2]), extents[-1] + sum(pads[2:])
    channels = extents[0] if len(extents) > 2 else 1
    if max(map(abs, pads), default=0) > MAX_VALUES or channels * height * width > MAX_VALUES:
        yield f"at most {MAX_VALUES} values with its border", f"pads {pads}"


def _kernel(layer: NcnnLayer, bottoms: Sequence[Extents]) -> Sizes:
    yield from _padded(layer, bottoms)
    if not layer.weights:
        return
    channels = 1 if len(bottoms[0]) == 2 else bottoms[0][0]
    group = _int(layer, 7) if "DepthWise" in layer.type else 1
    taps = _int(layer, 1) * _int(layer, 11)
    yield (
        f"{_int(layer, 0) * channels * taps // max(group, 1)} weights",
        f"{_int(layer, 6)} weights",
    )
    if group > 1:
        yield f"{channels % group} channels beyond its groups", "0 channels beyond its groups"


def _inner_product(layer: NcnnLayer, bottoms: Sequence[Extents]) -> Sizes:
    count = 1
    for extent in bottoms[0]:
        count *= extent
    out, weights = _int(layer, 0), _int(layer, 2)
    # A bottom of two axes may be many rows, each taken by itself.
    rows = len(bottoms[0]) == 2 and bottoms[0][1] * out == weights
    if not rows:
        yield f"{count * out} weights", f"{weights} weights"


def _per_channel(layer: NcnnLayer, bottoms: Sequence[Extents]) -> Sizes:
    count = _int(layer, 0)
    # -233: the factors are a bottom. One value is for all channels.
    if count not in (-233, 1) or (layer.type == "BatchNorm" and count == 1):
        yield f"{bottoms[0][0]} values", f"{count} values"


def _slice(layer: NcnnLayer, bottoms: Sequence[Extents]) -> Sizes:
    axis = _int(layer, 1)
    axis += len(bottoms[0]) if axis < 0 else 0
    sizes = [size for size in layer.array(0) if isinstance(size, int)]
    total = sum(size for size in sizes if size != -233)
    if not 0 <= axis < len(bottoms[0]):
        yield f"an axis below {len(bottoms[0])}", f"axis {axis}"
    elif total > bottoms[0][axis] or any(size < 0 and size != -233 for size in sizes):
        yield f"slices of {bottoms[0][axis]}", f"slices of {total}"


def _recurrent(layer: NcnnLayer, bottoms: Sequence[Extents]) -> Sizes:
    hidden = _int(layer, 3) if layer.type == "LSTM" else _int(layer, 0)
    rows = _GATES[layer.type] * hidden * (2 if _int(layer, 2) == 2 else 1)
    width = bottoms[0][-1]
    yield f"{rows * width} input weights", f"{_int(layer, 1)} input weights"


def _attention(layer: NcnnLayer, bottoms: Sequence[Extents]) -> Sizes:
    """Query, key and value, of which those that are no bottoms are the one before."""
    embed, weights = _int(layer, 0), _int(layer, 2)
    yield f"{embed * bottoms[0][-1]} query weights", f"{weights} query weights"
    count = len(bottoms) - _int(layer, 5)
    if _int(layer, 7):  # keys and values of earlier steps are bottoms too
        return
    for place, (name, key) in enumerate((("keys", 3), ("values", 4)), start=1):
        width = bottoms[max(0, min(place, count - 1))][-1]
        yield f"{name} of width {width}", f"{name} of width {_int(layer, key)}"


_SIZES: Mapping[str, Callable[[NcnnLayer, Sequence[Extents]], Sizes]] = {
    **dict.fromkeys(_KERNELS, _kernel),
    **dict.fromkeys(_PER_CHANNEL, _per_channel),
    **dict.fromkeys(("RNN", "LSTM", "GRU"), _recurrent),
    "MultiHeadAttention": _attention,
    "InnerProduct": _inner_product,
    "Slice": _slice,
    "Pooling": _padded,
    "Padding": _padded,
}
