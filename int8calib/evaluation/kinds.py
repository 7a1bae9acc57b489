"""What a network is for, told from its outputs: classes, boxes, values or images."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from int8calib.arrays import Shape
from int8calib.errors import OptionError
from int8calib.words import listed

CLASSIFIER, DETECTOR, REGRESSOR, IMAGES = KINDS = (
    "classifier",
    "detector",
    "regressor",
    "image-to-image",
)
"""Judged by the best class, by boxes, by relative errors, and by PSNR."""
DETECTIONS = {"DetectionOutput": 2, "YoloDetectionOutput": None, "Yolov3DetectionOutput": None}
"""Types whose tops are lists of boxes, (..., 7), and how many of their bottoms they decode."""
KEEPS_VALUES = frozenset(("Reshape", "Flatten", "Permute", "Dropout", "Split"))
"""Types whose top holds their bottom's values, maybe in another order."""
_PICTURE_CHANNELS = (1, 3)


class NetworkKind(NamedTuple):
    """What a network is taken for.

    Attributes
    ----------
    name : str
        One of `KINDS`.
    reason : str
        Which outputs say so.
    sure : bool
        False where the outputs could mean something else too.
    """

    name: str
    reason: str
    sure: bool

    def __str__(self) -> str:
        """One line, with the way out where it is not sure."""
        unsure = "" if self.sure else "; if it is something else, name it (--kind)"
        return f"{self.name}: {self.reason}{unsure}"


class Output(NamedTuple):
    """An output of a network: its name and shape, and the type of the layer that makes it.

    `softmax` tells whether the values are a Softmax's, maybe laid out anew.
    """

    name: str
    shape: Shape
    type: str
    softmax: bool


def network_kind(
    outputs: Sequence[Output],
    *,
    source: str,
    channels: Collection[int] = (),
    scores: str | None,
    named_scores: bool = False,
    given: str | None = None,
) -> NetworkKind:
    """Tell what a network is for.

    Parameters
    ----------
    outputs
        The outputs that are compared.
    source
        The network's file, for messages.
    channels
        How many channels its inputs have.
    scores
        The blob that may be class scores, or None.
    named_scores
        Whether the user has named `scores`.
    given
        What the user says it is, one of `KINDS`, or None.

    Returns
    -------
    NetworkKind
        What the user says, or what the outputs tell.

    Raises
    ------
    OptionError
        For another kind, and for one that the outputs cannot be.
    """
    found = [output for output in outputs if output.type in DETECTIONS]
    if given is not None:
        _check(source, given, scores, bool(found))
        return NetworkKind(given, "as told", sure=True)
    if found:
        types = listed(sorted({output.type for output in found}))
        return NetworkKind(DETECTOR, f"{listed(x.name for x in found)} made by {types}", True)
    if scores is not None:
        if named_scores:
            return NetworkKind(CLASSIFIER, f"{scores} is named as its class scores", True)
        (only,) = outputs
        size = only.shape[1]
        if only.softmax:
            return NetworkKind(CLASSIFIER, f"{scores} is a Softmax over {size} classes", True)
        why = f"its only output {scores} is a vector of {size} values, without a Softmax"
        return NetworkKind(CLASSIFIER, why, sure=False)
    return _values(outputs, channels)


def is_vector(shape: Shape) -> bool:
    """Whether a blob of this shape is a vector of two values or more per image."""
    return len(shape) >= 2 and shape[1] > 1 and all(size == 1 for size in shape[2:])


def _check(source: str, given: str, scores: str | None, boxes: bool) -> None:
    """Raise `OptionError` for a kind that the network cannot be."""
    if given not in KINDS:
        raise OptionError(f"kind {given!r}: expected one of {', '.join(KINDS)}")
    if given == DETECTOR and not boxes:
        raise OptionError(
            f"{source}: kind detector: no output is made by {' or '.join(DETECTIONS)}; end the "
            "network with such a layer"
        )
    if given == CLASSIFIER and scores is None:
        raise OptionError(
            f"{source}: kind classifier: the outputs are not one vector of class scores; name the "
            "blob that is (--scores)"
        )


def _values(outputs: Sequence[Output], channels: Collection[int]) -> NetworkKind:
    """Images where the only output looks like one, else values."""
    first = outputs[0].shape
    if len(outputs) == 1 and len(first) == 4 and min(first[2:]) > 1:
        why = f"its only output {outputs[0].name} has shape {_shape(first)}"
        if first[1] in channels:
            return NetworkKind(IMAGES, f"{why} and as many channels as its input", sure=True)
        if first[1] in _PICTURE_CHANNELS:
            return NetworkKind(IMAGES, why, sure=False)
    shown = listed(f"{output.name} {_shape(output.shape)}" for output in outputs)
    why = f"its outputs {shown} are neither class scores nor detections nor an image"
    if _boxes_and_scores([output.shape for output in outputs]):
        why += (
            "; they look like boxes and scores that are decoded outside the network: to compare "
            "boxes, end it with PriorBox and DetectionOutput"
        )
    return NetworkKind(REGRESSOR, why, sure=False)


def _boxes_and_scores(shapes: Sequence[Shape]) -> bool:
    """Whether two outputs (N, P, 4) and (N, P, C) may be boxes and scores of the same priors."""
    if len(shapes) != 2 or any(len(shape) != 3 for shape in shapes):
        return False
    a, b = shapes
    return a[1] == b[1] and 4 in (a[2], b[2])


def _shape(shape: Shape) -> str:
    return "x".join(map(str, shape))
