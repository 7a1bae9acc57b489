"""A whole Caffe network as an ncnn model: order, names of blobs, splits.

The rules for names are caffe2ncnn's, so that tables and programs made for its models fit: the top
of an in-place layer is called `<blob>_<layer>`, and a blob with several readers goes through a
Split, whose copies are handed out from the last to the first (source: ncnn,
tools/caffe/caffe2ncnn.cpp).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from int8calib.arrays import Shape
from int8calib.caffe.engine.run import Net
from int8calib.caffe.network.graph import QUANTIZED_TYPES, Blob, Graph, Layer
from int8calib.caffe.network.inputs import INPUT_TYPES
from int8calib.caffe.network.runnable import runnable_outputs
from int8calib.caffe.network.shapes import infer_shapes, reach
from int8calib.errors import ModelError
from int8calib.ncnn.convert.context import BlobName, Conversion, Converter, Node
from int8calib.ncnn.convert.pointwise import POINTWISE
from int8calib.ncnn.convert.pooling import POOLING
from int8calib.ncnn.convert.shaping import SHAPING
from int8calib.ncnn.convert.weighted import WEIGHTED
from int8calib.ncnn.model import NcnnModel
from int8calib.ncnn.param import NcnnLayer, Value

CONVERTERS: Mapping[str, Converter] = {**WEIGHTED, **POOLING, **SHAPING, **POINTWISE}
"""How each Caffe type becomes ncnn layers."""
DROPPED = frozenset(("Silence",))
"""Types that compute nothing and that ncnn does without."""
_KEEP_AXES = frozenset(
    (
        *POINTWISE,
        "BatchNorm",
        "BN",
        "Scale",
        "Bias",
        "PReLU",
        "Split",
        "Slice",
        "Concat",
        "Eltwise",
        "Add",
    )
)
"""Types whose tops have as many axes in ncnn as their first bottom."""


def convert_network(net: Net, outputs: Iterable[Blob] | None = None) -> NcnnModel:
    """Convert a Caffe network to an unoptimized ncnn model.

    Parameters
    ----------
    net : Net
        A network with weights, BatchNorm not folded.
    outputs
        Convert only what these blobs need; by default every layer but those of a tail that
        cannot run, of which the notes tell.

    Returns
    -------
    NcnnModel
        Where caffe2ncnn is right, the same layers, names, parameters and weight bytes; where it is
        not, layers that compute what Caffe does.

    Raises
    ------
    ModelError
        For a layer that ncnn does not have, or an option that means something else there; names
        layer and option. By default also where Convolution or InnerProduct layers are behind a
        layer that cannot run.
    """
    graph, left_out = _wanted_part(net, outputs)
    shapes = _shapes_of_one_image(graph, net.input_shapes)
    axes: dict[Blob, int] = {}
    nodes: list[Node] = []
    notes = list(left_out)
    for layer in graph.layers:
        if layer.type in INPUT_TYPES:
            nodes += _inputs(layer, shapes, axes)
        elif layer.type not in DROPPED:
            conversion = _converted(layer, shapes, axes, graph.source)
            nodes += conversion.nodes
            notes += conversion.notes
    return NcnnModel(_with_splits(_named(nodes, graph)), graph.source, tuple(notes))


def _wanted_part(net: Net, outputs: Iterable[Blob] | None) -> tuple[Graph, tuple[str, ...]]:
    """The part of the graph to convert, and what is left out in words."""
    graph = net.graph
    if outputs is not None:
        return replace(graph, layers=graph.ancestors(outputs)), ()
    blocked = reach(graph, net.input_shapes).blocked
    for layer, obstacle in blocked.items():
        if layer.type in QUANTIZED_TYPES:
            raise ModelError(
                f"{graph.source}: {obstacle}, and {layer.label} is behind it; name the outputs to "
                "convert for (--outputs BLOB of int8calib convert), and compute the rest in your "
                "program"
            )
    running = tuple(layer for layer in graph.layers if layer not in blocked)
    if blocked and all(layer.type in INPUT_TYPES for layer in running):
        first = next(iter(blocked.values()))
        raise ModelError(f"{graph.source}: no layer can be converted: {first}")
    return replace(graph, layers=running), runnable_outputs(graph, net.input_shapes)[1]


def _shapes_of_one_image(graph: Graph, inputs: Mapping[str, Shape]) -> Mapping[Blob, Shape]:
    single = {name: (1, *shape[1:]) for name, shape in inputs.items()}
    return infer_shapes(graph, single)


def _inputs(layer: Layer, shapes: Mapping[Blob, Shape], axes: dict[Blob, int]) -> list[Node]:
    """Input layers, one for each top whose shape differs."""
    nodes = []
    hints = {top: _hint(shapes[top]) for top in layer.tops}
    for top in layer.tops:
        axes[top] = len(shapes[top]) - 1
    if len({tuple(hint.items()) for hint in hints.values()}) == 1:
        return [Node("Input", layer.name, (), layer.tops, hints[layer.tops[0]])]
    for top, hint in hints.items():
        nodes.append(Node("Input", f"{layer.name}_{top.name}", (), (top,), hint))
    return nodes


def _hint(shape: Shape) -> dict[int, Value]:
    """0=w 1=h 2=c, as many as there are."""
    return dict(enumerate(int(size) for size in reversed(shape[1:])))


def _converted(
    layer: Layer, shapes: Mapping[Blob, Shape], axes: dict[Blob, int], source: str
) -> Conversion:
    convert = CONVERTERS.get(layer.type)
    if convert is None:
        raise ModelError(
            f"{source}: {layer.label}: ncnn has no layer that computes it; name the outputs "
            "that do not need it (--outputs BLOB of int8calib convert), and compute it in your "
            "program"
        )
    conversion = Conversion(layer, shapes, axes, source)
    convert(conversion)
    for top in layer.tops:
        default = len(shapes[top]) - 1
        if layer.type in _KEEP_AXES and layer.bottoms:
            default = axes[layer.bottoms[0]]
        axes[top] = default if conversion.top_axes is None else conversion.top_axes
    return conversion


def blob_names(graph: Graph) -> dict[Blob, str]:
    """The ncnn name of each of Caffe's blob versions."""
    names = {top: top.name for layer in graph.layers for top in layer.tops}
    for layer in graph.layers:
        if (
            len(layer.bottoms) == len(layer.tops) == 1
            and layer.bottoms[0].name == layer.tops[0].name
        ):
            names[layer.tops[0]] = f"{layer.tops[0].name}_{layer.name}"
    return names


def _named(nodes: Sequence[Node], graph: Graph) -> list[NcnnLayer]:
    """The nodes with every blob under its ncnn name."""
    names = blob_names(graph)
    taken = Counter(layer.name for layer in graph.layers)

    def name(blob: BlobName) -> str:
        return blob if isinstance(blob, str) else names[blob]

    layers = [
        NcnnLayer(
            node.type,
            node.name,
            tuple(map(name, node.bottoms)),
            tuple(map(name, node.tops)),
            node.params,
            node.weights,
        )
        for node in nodes
    ]
    for label, count in taken.items():
        if count > 1:
            raise ModelError(
                f"{graph.source}: {count} layers are called {label!r}; ncnn needs names"
            )
    return layers


def _with_splits(layers: Sequence[NcnnLayer]) -> tuple[NcnnLayer, ...]:
    """A Split behind every top that several bottoms read."""
    counts = Counter(bottom for layer in layers for bottom in layer.bottoms)
    left: dict[str, list[str]] = {}
    made: list[NcnnLayer] = []
    splits = 0
    for layer in layers:
        bottoms = tuple(left[b].pop() if b in left else b for b in layer.bottoms)
        made.append(replace(layer, bottoms=bottoms))
        for top in layer.tops:
            if counts[top] > 1:
                copies = [f"{top}_splitncnn_{i}" for i in range(counts[top])]
                left[top] = list(copies)
                made.append(NcnnLayer("Split", f"splitncnn_{splits}", (top,), tuple(copies)))
                splits += 1
    return tuple(made)
