"""Which blobs of a network tell what INT8 does to it: class scores, tensors and detections."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from int8calib.arrays import Shape
from int8calib.caffe.engine.run import Net
from int8calib.caffe.network.graph import Blob, Graph
from int8calib.caffe.network.shapes import infer_shapes
from int8calib.errors import OptionError

DETECTIONS = "DetectionOutput"


@dataclass(frozen=True)
class Watched:
    """What is compared.

    scores
        the blob with one score per class, or None.
    tensors
        blobs compared value by value: all outputs but detections, and what detections are made
        of (offsets and scores).
    detections
        tops of DetectionOutput layers, compared box by box.
    """

    scores: Blob | None
    tensors: tuple[Blob, ...]
    detections: tuple[Blob, ...]

    @property
    def blobs(self) -> tuple[Blob, ...]:
        """All of them, each once."""
        scores = () if self.scores is None else (self.scores,)
        return tuple(dict.fromkeys((*self.tensors, *scores, *self.detections)))


def watched_blobs(net: Net, scores: str | None = None, *, labelled: bool = False) -> Watched:
    """What to compare in `net`; `scores` names the blob of class scores.

    Without a name it is the only output that is one vector per image. Raises `OptionError` where
    labels are to be compared and it is not clear with which blob.
    """
    graph = net.graph
    detections = [b for b in graph.outputs if graph.producer(b).type == DETECTIONS]
    tensors = [blob for blob in graph.outputs if blob not in detections]
    for blob in detections:
        tensors += graph.producer(blob).bottoms[:2]
    named = None if scores is None else graph.last_version(scores)
    chosen = named or _only_vector(graph, infer_shapes(graph, net.input_shapes), tensors)
    if labelled and chosen is None:
        raise OptionError(
            f"{graph.source}: labels are given, but the outputs "
            f"{', '.join(blob.name for blob in graph.outputs)} are not one vector of class scores; "
            "name the blob that is"
        )
    return Watched(chosen, tuple(dict.fromkeys(tensors)), tuple(detections))


def _only_vector(graph: Graph, shapes: Mapping[Blob, Shape], tensors: list[Blob]) -> Blob | None:
    """The only output of the net, if it is a vector of two values or more per image."""
    vectors = [blob for blob in tensors if blob in shapes and _is_vector(shapes[blob])]
    return vectors[0] if len(vectors) == len(graph.outputs) == 1 else None


def _is_vector(shape: Shape) -> bool:
    return len(shape) >= 2 and shape[1] > 1 and all(size == 1 for size in shape[2:])
