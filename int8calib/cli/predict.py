"""Run an ncnn model on images and show what it says: classes, or boxes drawn on the pictures.

example:
  int8calib predict --param net.param net-int8.param --bin net.bin net-int8.bin \\
      --images photos/ --mean 104 117 123 --names classes.txt

Two models, such as one in float and its INT8 form, are shown beside each other. Needs the extra
ncnn (pip install "int8calib[ncnn]").
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from int8calib.cli.console import Console
from int8calib.cli.image_options import ImageOptions, add_image_arguments, image_options
from int8calib.cli.labels import read_names
from int8calib.cli.options import (
    MessageOptions,
    add_input_shape_argument,
    finite,
    parse_input_shapes,
    read_options,
    whole,
)
from int8calib.cli.outputs import make_folder
from int8calib.errors import ImageError, OptionError

if TYPE_CHECKING:
    from int8calib.arrays import Array, Shape
    from int8calib.images import ImageSource, Preprocess
    from int8calib.images.annotate import Box
    from int8calib.ncnn.model import NcnnModel
    from int8calib.ncnn.runtime import RuntimeNet

DETECTORS = frozenset(("DetectionOutput", "Yolov3DetectionOutput", "YoloDetectionOutput"))
"""Types whose tops are rows of label, score and box."""
TOPK = 5
MIN_SCORE = 0.3
_ROW = 6


@dataclass(frozen=True)
class _PredictOptions:
    """What `int8calib predict` was told, beside images and messages."""

    param: tuple[str, ...]
    bin: tuple[str, ...]
    input_shape: tuple[str, ...] = ()
    names: str | None = None
    scores: str | None = None
    output: str | None = None
    topk: int = TOPK
    min_score: float = MIN_SCORE
    threads: int = 1

    def __post_init__(self) -> None:
        """Raise `OptionError` for values that mean nothing."""
        if len(self.param) != len(self.bin) or len(self.param) > 2:
            raise OptionError(
                f"{len(self.param)} --param and {len(self.bin)} --bin files: expected one or two "
                "of each"
            )
        if not 0 <= self.min_score <= 1:
            raise OptionError(f"--min-score {self.min_score:g}: expected a score, 0 to 1")

    def refuse_idle(self, *, detector: bool) -> None:
        """Raise `OptionError` for an option that a model of this kind has no use for."""
        of_classes = (("--scores", self.scores, None), ("--topk", self.topk, TOPK))
        of_boxes = (("--min-score", self.min_score, MIN_SCORE), ("--output", self.output, None))
        gives = "boxes" if detector else "no boxes"
        for option, value, default in of_classes if detector else of_boxes:
            if value != default:
                raise OptionError(f"{option} {value}: the model gives {gives}; leave it out")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `int8calib predict`."""
    group = parser.add_argument_group("ncnn model")
    for name, what in (("--param", "structure"), ("--bin", "weight")):
        group.add_argument(
            name, nargs="+", required=True, metavar="FILE", help=f"the {what} file, one or two"
        )
    add_input_shape_argument(group)
    group.add_argument(
        "--threads", type=whole(1), default=1, metavar="N", help="ncnn's threads (default: 1)"
    )
    add_image_arguments(parser, batch=False)
    group = parser.add_argument_group("result")
    group.add_argument("--names", metavar="FILE", help="names of the classes, one a line")
    group.add_argument(
        "--scores",
        metavar="BLOB",
        help="the blob of class scores (default: the only output, or the only one of a Softmax)",
    )
    group.add_argument(
        "--topk",
        type=whole(1),
        default=TOPK,
        metavar="N",
        help="classes shown for an image (default: 5)",
    )
    group.add_argument(
        "--min-score",
        type=finite(),
        default=MIN_SCORE,
        metavar="S",
        help="detections of a lower score are not shown (default: 0.3)",
    )
    group.add_argument(
        "--output", metavar="DIR", help="where pictures with their boxes go, one for each image"
    )


def run(args: argparse.Namespace) -> int:
    """Run the models over all images."""
    from int8calib.ncnn.model import load_model
    from int8calib.ncnn.runtime import RuntimeNet

    console = Console(read_options(MessageOptions, args))
    options = read_options(_PredictOptions, args)
    images = image_options(args)
    names = () if options.names is None else read_names(options.names)
    models = [load_model(*pair) for pair in zip(options.param, options.bin, strict=True)]
    nets = [RuntimeNet(model, threads=options.threads) for model in models]
    source, how = _open(images, models[0], nets[0], options)
    idle = images.idle_for_arrays()
    if how is None and idle:
        console.say(f"warning: {idle}")
    detectors = [_detections(model) for model in models]
    options.refuse_idle(detector=bool(detectors[0]))
    scores = "" if detectors[0] else _scores(models[0], nets[0], options.scores)
    for model, detector in zip(models[1:], detectors[1:], strict=True):
        _check_pair(models[0], model, (bool(detectors[0]), bool(detector)), scores)
    folder = None if options.output is None else make_folder(options.output)
    shown = 0
    for index, label in enumerate(source.names):
        blob = _loaded(source, how, index, console)
        if blob is None:
            continue
        shown += 1
        results = []
        for net, detector in zip(nets, detectors, strict=True):
            out = detector or scores
            results.append(net.run({net.inputs[0]: blob}, [out])[out])
        if detectors[0]:
            boxes = [_boxes(found, options.min_score) for found in results]
            _show_boxes(console, label, boxes, options, names)
            if folder is not None:
                _draw(folder, source, index, boxes, options, names)
        else:
            if shown == 1:
                _check_classes(console, results, options, names)
            _show_classes(console, label, results, options, names)
    if not shown:
        raise ImageError(f"{images.images[0]}: not one of the {len(source)} images could be read")
    return 0


def _check_pair(first: NcnnModel, second: NcnnModel, boxes: tuple[bool, bool], scores: str) -> None:
    """Raise `OptionError` for two models that are not of one network."""
    from int8calib.ncnn.execution.layers import input_shapes

    told = f"{second.source} and {first.source} cannot be compared: "
    inputs, others = (input_shapes(model.layers) for model in (first, second))
    if inputs.keys() != others.keys() or not all(
        _agree(inputs[name], others[name]) for name in inputs
    ):
        raise OptionError(f"{told}their inputs are {_listed(others)} and {_listed(inputs)}")
    if boxes[0] != boxes[1]:
        raise OptionError(f"{told}only {(first if boxes[0] else second).source} gives boxes")
    if scores and not any(scores in layer.tops for layer in second.layers):
        raise OptionError(f"{told}the first has no blob {scores!r}, which holds class scores")


def _agree(shape: Shape, other: Shape) -> bool:
    """Whether two shapes can be the same, where 0 or () stands for what is not known."""
    if not shape or not other:
        return True
    return len(shape) == len(other) and all(
        a == b or 0 in (a, b) for a, b in zip(shape, other, strict=True)
    )


def _listed(inputs: Mapping[str, Shape]) -> str:
    """Inputs with the sizes that a model tells."""
    shapes = {name: "x".join(map(str, shape[1:])) for name, shape in inputs.items()}
    return ", ".join(f"{name} {shape or '(of any size)'}" for name, shape in shapes.items())


def _check_classes(
    console: Console, results: Sequence[Array], options: _PredictOptions, names: Sequence[str]
) -> None:
    """Raise `OptionError` where two models have other classes, and warn of other names."""
    counts = [found.size for found in results]
    if len(set(counts)) > 1:
        raise OptionError(
            f"{' and '.join(options.param)} cannot be compared: they have "
            f"{' and '.join(map(str, counts))} classes"
        )
    if names and len(names) != counts[0]:
        console.say(
            f"warning: --names {options.names}: holds {len(names)} names, and the model has "
            f"{counts[0]} classes; are they this model's?"
        )


def _open(
    images: ImageOptions, model: NcnnModel, net: RuntimeNet, options: _PredictOptions
) -> tuple[ImageSource, Preprocess | None]:
    """The images, and how they become the input blob; None where they are arrays already."""
    from int8calib.cli.loader import preprocessing
    from int8calib.images import open_source

    if len(net.inputs) != 1 or len(images.images) != 1:
        raise OptionError(f"the model has inputs {', '.join(net.inputs)}; one can be filled")
    (name,), (where,) = net.inputs, images.images
    source = open_source(
        where, limit=images.limit, shuffle=images.shuffle, seed=images.seed, blob=name
    )
    given = parse_input_shapes(options.input_shape)
    if given.keys() - {name} or (given and source.preprocessed):
        raise OptionError(f"--input-shape: is for images that fill input {name!r}; leave it out")
    if source.preprocessed:
        return source, None
    shape = given[name][1:] if name in given else _input_shape(model, name)
    return source, preprocessing(images, shape, f"{where}: images cannot fill input {name!r}")


def _input_shape(model: NcnnModel, name: str) -> tuple[int, ...]:
    """The shape that the Input layer names; raises `OptionError` where it names none."""
    layer = next(layer for layer in model.layers if name in layer.tops)
    shape = tuple(layer.integer(key) for key in (2, 1, 0))
    if min(shape) < 1:
        raise OptionError(
            f"{model.source}: does not say how large its input is; give --input-shape "
            f"{name}=1,3,H,W"
        )
    return shape


def _detections(model: NcnnModel) -> str | None:
    """The blob of detections, None where there is none."""
    tops = [layer.tops[0] for layer in model.layers if layer.type in DETECTORS]
    return tops[-1] if tops else None


def _scores(model: NcnnModel, net: RuntimeNet, named: str | None) -> str:
    """The blob of class scores; raises `OptionError` where it is not clear which that is."""
    if named is not None or len(net.outputs) == 1:
        return named or net.outputs[0]
    softmax = [top for layer in model.layers if layer.type == "Softmax" for top in layer.tops]
    found = [name for name in net.outputs if name in softmax]
    if len(found) != 1:
        raise OptionError(
            f"{model.source}: has the outputs {', '.join(net.outputs)}; name the one that holds "
            "class scores (--scores)"
        )
    return found[0]


def _loaded(
    source: ImageSource, how: Preprocess | None, index: int, console: Console
) -> Array | None:
    """Image `index` as an input blob; None, with a message, where it cannot be read."""
    from int8calib.images import UnreadableImageError

    try:
        if how is None:
            array: Array = source.load(index)
            return array
        return how(source.load(index, gray=how.gray))
    except UnreadableImageError as error:
        console.say(f"{source.names[index]}: skipped: {error}")
        return None


def _called(label: int, names: Sequence[str]) -> str:
    return names[label] if label < len(names) else str(label)


def _show_classes(
    console: Console,
    image: str,
    results: Sequence[Array],
    options: _PredictOptions,
    names: Sequence[str],
) -> None:
    """The best classes of an image, a column for each model."""
    import numpy as np

    columns = []
    for scores in (found.reshape(-1) for found in results):
        best = np.argsort(-scores, kind="stable")[: options.topk].tolist()
        columns.append([f"{scores[i]:.4f} {_called(i, names)}" for i in best])
    console.table(image, options.param, list(zip(*columns, strict=True)))


def _boxes(found: Array, least: float) -> list[Box]:
    """The detections of an image from a score on, best first."""
    from int8calib.images.annotate import Box

    rows = found.reshape(-1, _ROW).tolist()
    boxes = [Box(int(row[0]), *row[1:]) for row in rows if row[1] >= least]
    return sorted(boxes, key=lambda box: -box.score)


def _show_boxes(
    console: Console,
    image: str,
    boxes: Sequence[Sequence[Box]],
    options: _PredictOptions,
    names: Sequence[str],
) -> None:
    """The boxes of an image, model by model, corners as parts of the picture."""
    rows = [
        (model, _called(box.label, names), f"{box.score:.3f}", *(f"{x:.3f}" for x in box[2:]))
        for model, found in zip(options.param, boxes, strict=True)
        for box in found
    ]
    console.table(image, ("model", "class", "score", "left", "top", "right", "bottom"), rows)


def _draw(
    folder: Path,
    source: ImageSource,
    index: int,
    boxes: Sequence[Sequence[Box]],
    options: _PredictOptions,
    names: Sequence[str],
) -> None:
    """Write one picture with the boxes of each model."""
    from int8calib.files import write_atomic
    from int8calib.images.annotate import draw_boxes, encode_png, side_by_side

    if source.preprocessed:
        raise OptionError("--output: arrays cannot be drawn on; give images")
    picture = source.load(index)
    drawn = [
        draw_boxes(picture, found, Path(model).stem, names)
        for model, found in zip(options.param, boxes, strict=True)
    ]
    name = f"{index:04d}-{Path(source.names[index]).stem}.png"
    write_atomic(folder / name, encode_png(side_by_side(drawn)))
