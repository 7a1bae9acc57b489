"""A whole ncnn model as a network of the numpy engine: layer by layer, with the shapes known."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from caffe_proto import LayerParameter
from caffe_proto.errors import one_line
from int8calib.arrays import Shape
from int8calib.caffe.engine.executor import CaffeExecutor
from int8calib.caffe.engine.run import Net
from int8calib.caffe.network.graph import Blob, Graph, Layer
from int8calib.caffe.network.inputs import shape_advice
from int8calib.caffe.network.layer_shapes import top_shapes
from int8calib.caffe.network.shapes import reach
from int8calib.device import Device
from int8calib.errors import ModelError, OptionError, ShapeError, UnsupportedLayerError
from int8calib.limits import check_shape
from int8calib.ncnn.execution.quantizable import QuantizableModel
from int8calib.ncnn.model import NcnnModel
from int8calib.ncnn.param import HINTS, NcnnLayer, blob_readers
from int8calib.ncnn.sound import check_graph
from int8calib.ncnn.translate.context import Translation, Translator
from int8calib.ncnn.translate.layers import families  # noqa: F401
from int8calib.ncnn.translate.layers.registry import OWN
from int8calib.ncnn.translate.pointwise import POINTWISE
from int8calib.ncnn.translate.shaping import SHAPING, own
from int8calib.ncnn.translate.weighted import WEIGHTED

TRANSLATORS: Mapping[str, Translator] = {**WEIGHTED, **SHAPING, **POINTWISE}
"""How each ncnn type becomes layers of the engine, where its own function is not all."""


def translated_types() -> list[str]:
    """The ncnn types that run in numpy, sorted without regard to case."""
    return sorted({"Input", *TRANSLATORS, *OWN}, key=str.lower)


class TranslatedExecutor(CaffeExecutor):
    """A translated network that a calibration runs."""

    def __init__(self, net: TranslatedNet) -> None:
        super().__init__(net.graph, net.input_shapes, device=net.device)
        self.weight_rows = net.weight_rows


class TranslatedNet(QuantizableModel, Net):
    """An ncnn model as a network that runs in numpy, or on a GPU with CuPy.

    Parameters
    ----------
    graph : Graph
        What was made of it.
    input_shapes : mapping of str to Shape
        The shape of each input.
    model : NcnnModel
        What was translated.
    device : str or Device, optional
        The GPU that runs it, such as ``cuda:0``, see `Net`. None for the CPU.
    """

    def __init__(
        self,
        graph: Graph,
        input_shapes: Mapping[str, Shape],
        model: NcnnModel,
        device: str | Device | None = None,
    ) -> None:
        super().__init__(graph, input_shapes, device)
        self.model = model

    def executor(self, *, fold_bn: bool = True) -> TranslatedExecutor:
        """Return the net as `calibrate` runs it.

        Parameters
        ----------
        fold_bn : bool
            Of no effect: weights are as the ncnn model has them.

        Returns
        -------
        TranslatedExecutor
            An `Executor`.

        Raises
        ------
        ModelError
            Where no layer is left to quantize; says what stands in the way.
        """
        return TranslatedExecutor(self)


def translate_model(
    model: NcnnModel,
    input_shapes: Mapping[str, Shape] | None = None,
    device: Device | None = None,
) -> TranslatedNet:
    """Translate an ncnn model into a network that runs in numpy.

    Parameters
    ----------
    model : NcnnModel
        A float model with weights.
    input_shapes : mapping of str to Shape, optional
        Shapes by input name with the batch first, such as ``{"data": (1, 3, 224, 224)}``, for
        inputs of which the model does not say it, or in its place.
    device : Device, optional
        The GPU that runs it.

    Returns
    -------
    TranslatedNet
        Layers have ncnn's names and blobs ncnn's, so that tables fit. The activation of a
        layer is a layer of its own behind it; what reads a copy that a Split makes reads the blob
        itself. A layer without an equivalent is there, too, and
        cannot run (`obstacles` tells which).

    Raises
    ------
    ModelFileError
        For a model that ncnn would misread.
    ShapeError
        Where the size of an input is not known, or a bottom does not fit.
    OptionError
        For a shape given to something that is no input.
    """
    check_graph(model.layers, model.source)
    inputs = _inputs(model, input_shapes or {})
    shapes: dict[str, Shape] = {name: (1, *shape[1:]) for name, shape in inputs.items()}
    layers = _input_layers(model)
    graph = Graph("", model.source, tuple(layers), inputs, ())
    for layer in _without_copies(model.layers):
        if layer.type != "Input":
            layers += _translated(graph, layer, shapes, next(iter(inputs)))
    read = {bottom for layer in layers for bottom in layer.bottoms}
    outputs = tuple(
        top for layer in layers if layer.bottoms for top in layer.tops if top not in read
    )
    graph = Graph("", model.source, tuple(layers), inputs, outputs)
    return TranslatedNet(graph, inputs, model, device)


def obstacles(net: Net) -> tuple[str, ...]:
    """One line for each layer of a translated network that cannot run by itself."""
    blocked = reach(net.graph, net.input_shapes).blocked
    return tuple(one_line(str(found)) for layer, found in blocked.items() if found.layer is layer)


def _inputs(model: NcnnModel, given: Mapping[str, Shape]) -> dict[str, Shape]:
    """The full shape of every input."""
    names = [top for layer in model.layers if layer.type == "Input" for top in layer.tops]
    if not names:
        raise ModelError(f"{model.source}: has no Input layer; expected one for each input")
    for name in given:
        if name not in names:
            raise OptionError(
                f"{model.source}: {name!r} is no input; the inputs are {', '.join(names)}"
            )
    shapes = {}
    for layer in model.layers:
        if layer.type != "Input":
            continue
        for name in layer.tops:
            shape = given.get(name) or _declared(layer, model.layers)
            if min(shape) < 1:
                raise ShapeError(
                    f"{model.source}: the size of input {name!r} is not in the model; give it with "
                    f"--input-shape {shape_advice(name, shape)} (input_shapes in Python)"
                )
            check_shape(shape, f"{model.source}: input {name!r}")
            shapes[name] = tuple(int(size) for size in shape)
    return shapes


def _declared(layer: NcnnLayer, layers: Iterable[NcnnLayer]) -> Shape:
    """What the Input layer, or the shape hints of its top, say; 0 for what they do not."""
    sizes = [layer.integer(key) for key in (0, 1, 11, 2)]
    if not any(sizes):
        hints = [hint for hint in layer.array(HINTS) if isinstance(hint, int)]
        if len(hints) == 5:
            sizes = [hints[1], hints[2], hints[3] if hints[0] == 4 else 0, hints[4]]
            sizes = [size if i < hints[0] or hints[0] > 2 else 0 for i, size in enumerate(sizes)]
        elif len(hints) == 4:
            sizes = [hints[1], hints[2] if hints[0] > 1 else 0, 0, hints[3] if hints[0] > 2 else 0]
    known = [size for size in sizes if size]
    if known:
        return (1, *reversed(known))
    return (1, _first_channels(layer, layers), 0, 0)


def _first_channels(layer: NcnnLayer, layers: Iterable[NcnnLayer]) -> int:
    """The channels that the first convolution of an input asks for, 0 where there is none."""
    blobs = set(layer.tops)
    for reader in layers:
        if blobs.isdisjoint(reader.bottoms):
            continue
        if reader.type in ("Split", "BinaryOp", "BatchNorm", "Scale", "Padding"):
            blobs.update(reader.tops)
        elif reader.type == "Convolution":
            width, height = reader.integer(1), reader.integer(11, reader.integer(1))
            taps = width * height * reader.integer(0)
            return reader.integer(6) // taps if taps else 0
    return 0


def _without_copies(layers: Sequence[NcnnLayer]) -> Iterator[NcnnLayer]:
    """The layers, of which each reads blobs and not copies of them; copies nobody reads are left.

    ncnn needs a Split where a blob has several readers, the engine does not.
    """
    readers, origins = blob_readers(layers), dict[str, str]()
    for layer in layers:
        bottoms = tuple(origins.get(bottom, bottom) for bottom in layer.bottoms)
        if layer.type == "Split":
            read = [top for top in layer.tops if top in readers]
            origins.update(dict.fromkeys(read, bottoms[0]))
            layer = replace(layer, tops=tuple(top for top in layer.tops if top not in readers))
            if not layer.tops:
                continue
        yield replace(layer, bottoms=bottoms)


def _input_layers(model: NcnnModel) -> list[Layer]:
    layers = []
    for layer in model.layers:
        if layer.type == "Input":
            for number, top in enumerate(layer.tops):
                name = layer.name if number == 0 else f"{layer.name}:{top}"
                params = LayerParameter(name=name, type="Input", top=[top])
                layers.append(Layer(name, "Input", params, (), (Blob(top),)))
    return layers


def _translated(
    graph: Graph, layer: NcnnLayer, shapes: dict[str, Shape], batch: str
) -> list[Layer]:
    """The engine's layers for one of ncnn's; `shapes` gets those of its tops."""
    t = Translation(layer, shapes, batch)
    if not all(bottom in shapes for bottom in layer.bottoms):
        t.refuse("stands behind a layer that does not run")
        return t.layers
    translator = TRANSLATORS.get(layer.type)
    try:
        if translator is not None:
            translator(t)
        elif layer.type in OWN:
            own(t)
        else:
            raise UnsupportedLayerError("the numpy engine has no such layer")
        made = {Blob(name): shape for name, shape in shapes.items()}
        for each in t.layers:
            made.update(zip(each.tops, top_shapes(graph, each, made), strict=True))
    except (ShapeError, UnsupportedLayerError) as error:
        places = [f"{graph.source}: {each.label}: " for each in t.layers]
        reason = str(error)
        for place in places:
            reason = reason.removeprefix(place)
        t.refuse(reason)
        return t.layers
    except (ArithmeticError, ValueError, LookupError) as error:
        # Options of no meaning that a translator does not look at by itself.
        t.refuse(f"bottoms and options do not go together ({error})")
        return t.layers
    shapes.update({blob.name: shape for blob, shape in made.items()})
    return t.layers
