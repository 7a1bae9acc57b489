"""The inputs of a network: what its data layers say of their shapes, and what has to be given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeGuard

import numpy as np

from caffe_proto import LayerParameter
from int8calib.arrays import Array, Shape
from int8calib.caffe.layers.convolution import groups
from int8calib.caffe.layers.pooling import pooling_windows
from int8calib.caffe.layers.windows import convolution_windows
from int8calib.caffe.network.graph import CONVOLUTIONS, QUANTIZED_TYPES, Blob, Graph, Layer
from int8calib.errors import ModelError, OptionError, ShapeError
from int8calib.limits import check_shape
from int8calib.words import listed

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

CHANNEL_KEEPERS = frozenset(
    ("BatchNorm", "Bias", "Dropout", "LRN", "MVN", "Pooling", "Power", "ReLU", "Scale", "Split")
)
"""Types met between an input and its first convolution, with as many channels out as in."""

IMAGE_AXES = "NCHW"


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
    """One shape per top, or one for all of them, as Caffe asks; otherwise none is known."""
    if len(shapes) == 1:
        shapes = shapes * len(layer.top)
    if len(shapes) != len(layer.top):
        return dict.fromkeys(layer.top)
    return dict(zip(layer.top, shapes, strict=True))


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
    # Channels alone still help to say which shape is missing.
    return (1, channels, 0, 0) if channels else None


def resolve_inputs(
    graph: Graph,
    given: Mapping[str, Shape] | None = None,
    weights: Mapping[str, tuple[Array, ...]] | None = None,
) -> dict[str, Shape]:
    """The full shape of every input: as given, as in the prototxt, channels from the weights.

    Parameters
    ----------
    graph
        The network; weights need not be bound.
    given
        Shapes by input name, which override the prototxt's.
    weights
        Blobs by layer name, as in the caffemodel.

    Returns
    -------
    dict
        Input name to shape. An input that no layer to quantize needs, such as a label, is left
        out where its size is not known.

    Raises
    ------
    OptionError
        For a shape given to something that is no input.
    ShapeError
        Where the size of an input that is needed stays unknown, or is beyond the limits.
    """
    given = checked_inputs(graph, given)
    needed = _needed_inputs(graph)
    shapes: dict[str, Shape] = {}
    for name, declared in graph.inputs.items():
        shape = given.get(name) or complete_input(graph, name, declared, weights or {})
        if is_full(shape):
            check_shape(shape, f"{graph.source}: input {name!r}")
            shapes[name] = shape
        elif name in needed:
            raise ShapeError(
                f"{graph.source}: the size of input {name!r} is not in the prototxt; give it with "
                f"--input-shape {shape_advice(name, shape)} (input_shapes in Python)"
            )
    return shapes


def is_full(shape: Shape | None) -> TypeGuard[Shape]:
    """Whether a shape has axes, all of a known size."""
    return bool(shape) and min(shape or ()) > 0


def checked_inputs(graph: Graph, given: Mapping[str, Shape] | None) -> dict[str, Shape]:
    """The shapes given to inputs; raises `OptionError` for one given to something else."""
    for name in given or {}:
        if name not in graph.inputs:
            raise OptionError(
                f"{graph.source}: an input shape is given for {name!r}, "
                f"but the inputs are {listed(map(repr, graph.inputs))}"
            )
        shape = (given or {})[name]
        whole = isinstance(shape, Sequence) and not isinstance(shape, str)
        if not whole or not all(isinstance(size, (int, np.integer)) for size in shape):
            raise OptionError(
                f"{graph.source}: input {name!r} is given the shape {shape!r}; expected whole "
                "numbers such as (1, 3, 224, 224)"
            )
    return {name: tuple(map(int, shape)) for name, shape in (given or {}).items()}


def _needed_inputs(graph: Graph) -> set[str]:
    """The inputs that layers to quantize depend on; all where there is no such layer."""
    heavy = [layer for layer in graph.layers if layer.type in QUANTIZED_TYPES]
    needed = graph.ancestors(bottom for layer in heavy for bottom in layer.bottoms)
    names = {top.name for layer in needed if layer.type in INPUT_TYPES for top in layer.tops}
    return names or set(graph.inputs)


def complete_input(
    graph: Graph, name: str, declared: Shape | None, weights: Mapping[str, tuple[Array, ...]]
) -> Shape | None:
    """`declared` with a batch of 1 where it is open, and open channels taken from the weights.

    What stays unknown is 0 or below. An input of which nothing is declared becomes (1, C, 0, 0)
    where the weights tell the channels C.
    """
    if declared and len(declared) != 4:
        return declared
    batch, channels, *size = declared or (1, 0, 0, 0)
    if channels < 1:
        channels = _channels_by_weights(graph, name, weights) or channels
    if not declared and channels < 1:
        return None
    return (max(batch, 1), channels, *size)


def _channels_by_weights(
    graph: Graph, name: str, weights: Mapping[str, tuple[Array, ...]]
) -> int | None:
    """The channels that the first layers with weights behind an input ask for."""
    readers, blobs = graph.readers(), [Blob(name)]
    for blob in blobs:
        for reader in readers.get(blob, []):
            first = weights.get(reader.name, (None,))[0]
            if reader.type in CONVOLUTIONS and first is not None and first.ndim == 4:
                return int(first.shape[1]) * groups(reader.params)
            if reader.type in CHANNEL_KEEPERS:
                blobs.extend(top for top in reader.tops if top not in blobs)
    return None


def shape_advice(name: str, shape: Shape | None) -> str:
    """What to give to --input-shape: the known sizes, and a letter for each that is open."""
    sizes = shape or (1, 0, 0, 0)
    letters = IMAGE_AXES if len(sizes) == 4 else [f"D{axis}" for axis in range(len(sizes))]
    return f"{name}=" + ",".join(
        str(size) if size > 0 else letter for size, letter in zip(sizes, letters, strict=True)
    )


def small_inputs(
    graph: Graph, inputs: Mapping[str, Shape], shapes: Mapping[Blob, Shape]
) -> Iterator[tuple[str, str]]:
    """Inputs whose images are too small for the network, as prototxts have them for placeholders.

    Such an input is one pixel large before the first window, or becomes one pixel before a layer
    that still strides, or smaller than a window. Other inputs of 1x1, such as those of inner
    products or 1x1 convolutions, are as they should be.

    Parameters
    ----------
    graph
        The network.
    inputs
        The inputs to look at, with their shapes.
    shapes
        The shapes of all blobs that can be told.

    Yields
    ------
    tuple
        The name of the input, and one line that says what is wrong and what to give.
    """
    for name, shape in inputs.items():
        layer = None if len(shape) != 4 else _first_misfit(graph, Blob(name), shapes)
        if layer is None:
            continue
        least = "x".join(map(str, shapes[layer.bottoms[0]][2:]))
        # Where one side is a placeholder the other may be meant.
        open_size = [0 if side == 1 or 1 not in shape[2:] else side for side in shape[2:]]
        yield (
            name,
            f"input {name!r} of {shape[2]}x{shape[3]} pixels is too small, perhaps a placeholder: "
            f"{layer.label} meets {least}; give its size with --input-shape "
            f"{shape_advice(name, (*shape[:2], *open_size))} (input_shapes in Python)",
        )


def _first_misfit(graph: Graph, source: Blob, shapes: Mapping[Blob, Shape]) -> Layer | None:
    """The first layer whose windows find too little of the image in `source`."""
    images = {source}
    single = shapes.get(source, ())[2:] == (1, 1)
    for layer in graph.layers:
        bottom = next((blob for blob in layer.bottoms if blob in images), None)
        if bottom is None or bottom not in shapes or not layer.tops:
            continue
        size = shapes[bottom][2:]
        steps = _steps(layer)
        for length, (kernel, stride) in zip(size, steps or (), strict=False):
            if length == 1 and kernel > 1 and (stride > 1 or single):
                return layer
            if layer.tops and layer.tops[0] not in shapes and length < kernel:
                return layer
        tops = [top for top in layer.tops if len(shapes.get(top, ())) == 4]
        images.update(top for top in tops if steps or shapes[top][2:] == size)
    return None


def _steps(layer: Layer) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """(kernel, stride) of each axis for a layer that slides windows over images."""
    try:
        if layer.type in CONVOLUTIONS:
            windows = convolution_windows(layer.params.convolution_param)
        elif layer.type == "Pooling" and not layer.params.pooling_param.global_pooling:
            windows = pooling_windows(layer.params, 1, 1)
        else:
            return None
    except ModelError:
        return None
    (height, width), (down, right) = windows.extent, windows.stride
    return (height, down), (width, right)
