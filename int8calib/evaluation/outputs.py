"""Which blobs tell what INT8 does to a network: its outputs, or the last blobs that can run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real

from int8calib.arrays import Shape
from int8calib.caffe.engine.run import Net
from int8calib.caffe.network.graph import Blob, Graph
from int8calib.caffe.network.inputs import INPUT_TYPES
from int8calib.caffe.network.runnable import named_outputs, runnable_outputs
from int8calib.caffe.network.shapes import infer_shapes
from int8calib.errors import ModelError, OptionError
from int8calib.evaluation.kinds import (
    CLASSIFIER,
    DETECTIONS,
    DETECTOR,
    KEEPS_VALUES,
    NetworkKind,
    Output,
    is_vector,
    network_kind,
)
from int8calib.evaluation.measures import MIN_SCORE
from int8calib.limits import check_real
from int8calib.words import listed


@dataclass(frozen=True)
class Comparison:
    """What `evaluate` was told to compare; see there.

    Raises
    ------
    OptionError
        For values that mean nothing.
    """

    topk: Sequence[int] = (1, 5)
    scores: str | None = None
    outputs: Sequence[str] | None = None
    kind: str | None = None
    box_score: float = MIN_SCORE
    peak: float | None = None

    def __post_init__(self) -> None:
        """Refuse what nobody can count: accuracies, scores of boxes, a peak that is no span."""
        ks = list(self.topk) if isinstance(self.topk, Iterable) else []
        if not ks or not all(isinstance(k, int) and k >= 1 for k in ks):
            raise OptionError(f"top-k {self.topk!r}: expected whole numbers of at least 1")
        if not isinstance(self.box_score, Real) or not 0 <= self.box_score <= 1:
            raise OptionError(f"box score {self.box_score!r}: expected a number, 0 to 1")
        if self.peak is not None:
            check_real(self.peak, "peak")
        if self.peak is not None and not 0 < self.peak < math.inf:
            raise OptionError(f"peak {self.peak:g}: expected a number above 0, such as 1 or 255")


@dataclass(frozen=True)
class ComparedBlobs:
    """The blobs in which a float and an INT8 network are compared.

    Attributes
    ----------
    scores
        the blob with one score per class, or None.
    tensors
        blobs compared value by value: all outputs but detections, and what detections are made
        of (offsets and scores, or the grids of YOLO).
    detections
        tops of layers that list boxes (`DETECTIONS`), compared box by box.
    outputs
        where the comparison ends: the outputs of the network, the last blobs that can run in
        place of those that cannot, or what was asked for.
    notes
        one line for each layer that cannot run and so keeps an output from being compared.
    kind
        what the network is for.
    """

    scores: Blob | None
    tensors: tuple[Blob, ...]
    detections: tuple[Blob, ...]
    outputs: tuple[Blob, ...] = ()
    notes: tuple[str, ...] = ()
    kind: NetworkKind | None = None

    @property
    def blobs(self) -> tuple[Blob, ...]:
        """All compared blobs, each once."""
        scores = () if self.scores is None else (self.scores,)
        return tuple(dict.fromkeys((*self.tensors, *scores, *self.detections)))


def compared_blobs(
    net: Net,
    scores: str | None = None,
    outputs: Sequence[str] | None = None,
    *,
    kind: str | None = None,
    labeled: bool = False,
) -> ComparedBlobs:
    """Choose the blobs in which `net` is compared with itself in INT8.

    Parameters
    ----------
    net
        The float network.
    scores
        The name of the blob of class scores; by default the only output, if that is one vector
        of two or more values per image.
    outputs
        Names of blobs to compare in place of the network's outputs.
    kind
        What the network is for, one of `KINDS`; by default what its outputs tell.
    labeled
        Whether class labels are to be compared, for which there must be class scores.

    Returns
    -------
    ComparedBlobs
        Outputs that cannot run are replaced by the last blobs before them that can.

    Raises
    ------
    ModelError
        Where nothing can run.
    OptionError
        For the name of a blob that does not exist, cannot run or is an input; for a kind that the
        outputs cannot be; where labels are to be compared and it is not clear with which blob.
    """
    graph, inputs = net.graph, net.input_shapes
    notes: tuple[str, ...] = ()
    if outputs is None:
        ends, notes = runnable_outputs(graph, inputs)
        if not ends:
            raise ModelError(f"{graph.source}: nothing can be compared: {listed(notes)}")
    else:
        ends = _without_inputs(graph, named_outputs(graph, outputs, inputs))
    detections = [blob for blob in ends if graph.producer(blob).type in DETECTIONS]
    tensors = [blob for blob in ends if blob not in detections]
    for blob in detections:
        layer = graph.producer(blob)
        tensors += layer.bottoms[: DETECTIONS[layer.type]]
    shapes = infer_shapes(graph, inputs)
    if scores is None:
        chosen = _only_vector(shapes, ends)
    else:
        (chosen,) = _without_inputs(graph, named_outputs(graph, [scores], inputs))
    what = network_kind(
        [_output(graph, shapes, blob) for blob in ends],
        source=graph.source,
        channels={shape[1] for shape in inputs.values() if len(shape) == 4},
        scores=None if chosen is None else str(chosen),
        named_scores=scores is not None,
        given=kind,
    )
    if what.name != CLASSIFIER and scores is None:
        chosen = None
    if what.name != DETECTOR:
        detections = []
    compared = ComparedBlobs(
        chosen, tuple(dict.fromkeys(tensors)), tuple(detections), ends, notes, what
    )
    if labeled:
        compared = with_labels(compared)
    return compared


def with_labels(compared: ComparedBlobs) -> ComparedBlobs:
    """Return `compared` for a network whose images have class labels.

    Raises
    ------
    OptionError
        Where no blob holds class scores.
    """
    if compared.scores is None:
        raise OptionError(
            f"labels are given, but the outputs {listed(map(str, compared.outputs))} are not one "
            "vector of class scores; name the blob that is (--scores)"
        )
    if compared.detections:
        return compared
    return replace(compared, kind=NetworkKind(CLASSIFIER, "its images have labels", sure=True))


def needed_inputs(graph: Graph, blobs: Iterable[Blob]) -> tuple[str, ...]:
    """The names of the inputs that `blobs` depend on, in running order."""
    layers = [layer for layer in graph.ancestors(blobs) if layer.type in INPUT_TYPES]
    return tuple(top.name for layer in layers for top in layer.tops)


def _without_inputs(graph: Graph, blobs: tuple[Blob, ...]) -> tuple[Blob, ...]:
    """`blobs`; raises `OptionError` for one that is an input, or none at all."""
    for blob in blobs:
        if graph.producer(blob).type in INPUT_TYPES:
            raise OptionError(
                f"{graph.source}: outputs {blob.name}: is an input, which INT8 does not change; "
                "name the top of a layer"
            )
    if not blobs:
        raise OptionError(f"{graph.source}: no outputs are named; name a blob, or leave it out")
    return blobs


def _only_vector(shapes: Mapping[Blob, Shape], ends: tuple[Blob, ...]) -> Blob | None:
    """The only output, if it is a vector of two values or more per image."""
    return ends[0] if len(ends) == 1 and is_vector(shapes.get(ends[0], ())) else None


def _output(graph: Graph, shapes: Mapping[Blob, Shape], blob: Blob) -> Output:
    """What its kind is told by."""
    maker = layer = graph.producer(blob)
    while layer.type in KEEPS_VALUES and len(layer.bottoms) >= 1:
        layer = graph.producer(layer.bottoms[0])
    return Output(str(blob), shapes.get(blob, ()), maker.type, layer.type == "Softmax")
