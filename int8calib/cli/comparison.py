"""What the commands share that compare INT8 networks with the float network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from int8calib.cli.console import format_share
from int8calib.cli.labels import BoxedImages, LabeledImages, check_geometry, read_names
from int8calib.cli.loader import ImageLoader
from int8calib.cli.options import finite, whole
from int8calib.errors import OptionError

if TYPE_CHECKING:
    from int8calib.caffe.engine.run import Net
    from int8calib.caffe.network.graph import Blob
    from int8calib.cli.image_options import ImageOptions
    from int8calib.evaluation.average_precision import BoxAccuracy
    from int8calib.evaluation.results import Evaluation
    from int8calib.ncnn.execution.network import NcnnNet
    from int8calib.table.model import CalibrationTable


def add_compared_arguments(group: Any, *, labels: bool, topk: bool) -> None:
    """Declare what is compared: `--scores`, `--outputs`; where wanted `--topk`.

    With `labels` also `--labels`, `--boxes`, `--names` and `--kind`.
    """
    if labels:
        _add_labels_argument(group)
        _add_boxes_arguments(group)
        _add_kind_argument(group)
    if topk:
        _add_topk_argument(group)
    group.add_argument(
        "--scores",
        metavar="BLOB",
        help="the blob of class scores (default: the only output, if it is a vector)",
    )
    group.add_argument(
        "--outputs",
        nargs="+",
        action="extend",
        metavar="BLOB",
        help="the blobs to compare (default: the outputs; where one cannot run, the last blobs "
        "before it that can)",
    )


def _add_labels_argument(group: Any) -> None:
    group.add_argument(
        "--labels",
        metavar="WHERE",
        help="a file of `image index` lines, or a folder with one folder of images per class",
    )


def _add_boxes_arguments(group: Any) -> None:
    """Declare `--boxes` and `--names`: where the boxes of each image are found."""
    group.add_argument(
        "--boxes",
        metavar="WHERE",
        help="for detectors: labeled boxes, a .json file in COCO's form or a folder of VOC's .xml "
        "files",
    )
    group.add_argument(
        "--names",
        metavar="FILE",
        help="with --boxes: names of the network's classes, one a line, the background first "
        "(default: COCO's category ids are the network's labels)",
    )


def _add_kind_argument(group: Any) -> None:
    """Declare `--kind`: what the network is for."""
    group.add_argument(
        "--kind",
        choices=("classifier", "detector", "regressor", "image-to-image"),
        help="what the network is for, and so is judged by: best class, boxes, relative error, or "
        "PSNR (default: what its outputs tell, which is said)",
    )


def add_value_arguments(group: Any) -> None:
    """Declare `--box-score` and `--peak`: from where boxes count, and the span of images."""
    group.add_argument(
        "--box-score",
        type=finite(),
        default=0.3,
        metavar="S",
        help="detections of a lower score are not compared (default: 0.3)",
    )
    group.add_argument(
        "--peak",
        type=finite(),
        metavar="V",
        help="for PSNR: the span of an image's values, such as 1 or 255 (default: the span of the "
        "float output)",
    )


def _add_topk_argument(group: Any) -> None:
    group.add_argument(
        "--topk",
        type=whole(1),
        nargs="+",
        default=[1, 5],
        metavar="K",
        help="with --labels: an image counts as right where its class is among the K best "
        "(default: 1 5)",
    )


def add_table_fold_arguments(group: Any) -> None:
    """Declare `--fold-bn`: whether the model runs folded, where a table may know."""
    fold = group.add_mutually_exclusive_group()
    fold.add_argument(
        "--fold-bn",
        action="store_true",
        default=None,
        help="the model goes through ncnnoptimize (default: what a table's report says, or else "
        "so)",
    )
    fold.add_argument(
        "--no-fold-bn",
        dest="fold_bn",
        action="store_false",
        help="the model goes to ncnn2int8 straight from caffe2ncnn",
    )


def add_tables_argument(group: Any, several: str) -> None:
    """Declare `--table`, which may be given more than once; `several` says what happens then."""
    group.add_argument(
        "--table",
        action="append",
        required=True,
        metavar="FILE",
        help=f"a calibration table in any format; {several}",
    )


def add_sensitivity_argument(group: Any) -> None:
    """Declare `--sensitivity`: how many images tell what each layer does to the outputs."""
    group.add_argument(
        "--sensitivity",
        type=whole(),
        default=10,
        metavar="N",
        help="images over which each layer runs in INT8 alone, to rank layers by what they do to "
        "the outputs; costs N runs of the net per layer (default: 10; 0: none)",
    )


def add_json_argument(group: Any) -> None:
    """Declare `--json`: output for programs."""
    group.add_argument("--json", action="store_true", help="print the result as JSON")


def read_tables(paths: Sequence[str]) -> dict[str, CalibrationTable]:
    """Read the tables of `--table`.

    Parameters
    ----------
    paths
        The files.

    Returns
    -------
    dict of str to CalibrationTable
        The tables by path, in their order.

    Raises
    ------
    OptionError
        For a file that is given twice.
    TableError
        For a file that cannot be read.
    """
    from int8calib.table import read_table

    tables: dict[str, CalibrationTable] = {}
    for path in paths:
        if path in tables:
            raise OptionError(f"--table {path}: is given twice")
        tables[path] = read_table(path)
    return tables


def comparison_images(
    options: ImageOptions,
    net: Net | NcnnNet,
    scores: str | None,
    outputs: Sequence[str] | None,
    *,
    workers: int,
    blobs: Sequence[Blob] = (),
) -> ImageLoader:
    """Open the images for the inputs that a comparison needs.

    Parameters
    ----------
    options
        The image options.
    net
        The network.
    scores, outputs
        The values of `--scores` and `--outputs`.
    workers
        Images in parallel.
    blobs
        Blobs that are wanted too.

    Returns
    -------
    ImageLoader
        Batches for the inputs on the way to what is compared, and to `blobs`.
    """
    from int8calib.evaluation import ncnn_model
    from int8calib.evaluation.outputs import compared_blobs, needed_inputs
    from int8calib.ncnn.execution.network import NcnnNet

    if isinstance(net, NcnnNet):
        names = [blob.name for blob in ncnn_model.compared_blobs(net, scores, outputs).blobs]
        return ImageLoader(options, net, net.needed_inputs(names), workers=workers)
    wanted = (*compared_blobs(net, scores, outputs).blobs, *blobs)
    return ImageLoader(options, net, needed_inputs(net.graph, wanted), wanted, workers=workers)


@dataclass(frozen=True)
class GroundTruth:
    """What is known of each image: the values of `--labels`, `--boxes` and `--names`."""

    labels: str | None = None
    boxes: str | None = None
    names: str | None = None

    def __post_init__(self) -> None:
        """Raise `OptionError` for options that exclude each other."""
        if self.labels is not None and self.boxes is not None:
            raise OptionError("--labels and --boxes: a network has classes or boxes; give one")

    def of(
        self, images: ImageLoader, options: ImageOptions
    ) -> ImageLoader | LabeledImages | BoxedImages:
        """`images` with what is known of them; raises `ImageError` where that cannot be read."""
        if self.labels is not None:
            return LabeledImages(images, self.labels)
        if self.boxes is None:
            return images
        from int8calib.images.boxes import read_boxes

        check_geometry(options)
        names = () if self.names is None else read_names(self.names)
        return BoxedImages(images, read_boxes(self.boxes, names))


def box_figures(found: Evaluation) -> tuple[list[str], list[list[str]]]:
    """Return the columns on boxes, and their cells for the float net and then for each table.

    Both are empty for a network without detections.
    """
    rows: list[list[str]] = [[] for _ in range(1 + len(found.tables))]
    if all(table.boxes is None for table in found.tables):
        return [], rows
    columns = []
    labeled = [found.float_boxes, *(table.against_labels for table in found.tables)]
    if any(each is not None for each in labeled):
        columns += ["mAP %", "recall %"]
        for row, each in zip(rows, labeled, strict=True):
            row += _box_cells(each)
    columns += ["mAP on float's boxes %", "recall of them %", "same boxes %"]
    rows[0] += [""] * 3
    for row, table in zip(rows[1:], found.tables, strict=True):
        row += _box_cells(table.against_float)
        same = table.boxes
        counts = f"{same.matched} of {same.float_boxes} and {same.int8_boxes}" if same else ""
        known = same is not None and not math.isnan(same.value)
        row.append(f"{100 * same.value:.1f} ({counts})" if same and known else counts)
    return columns, rows


def result_rows(found: Evaluation) -> tuple[list[str], list[list[str]]]:
    """Return columns, and a row for float where it has figures and for each table.

    They hold top-1, equal classes, boxes, the lowest SQNR, and of images the lowest PSNR.
    """
    from int8calib.evaluation.measures import format_decibels

    before = found.float_accuracy
    agreed = any(table.agreement for table in found.tables)
    box_columns, boxes = box_figures(found)
    columns = ["", *["top-1 %"] * (before is not None), *["same top-1 %"] * agreed, *box_columns]
    images = any(blob.psnr is not None for table in found.tables for blob in table.blobs)
    columns += ["output SQNR dB", *["PSNR dB"] * images]
    rows = []
    if before is not None or found.float_boxes is not None:
        tops = [] if before is None else [format_share(before.topk[1])]
        rows.append(["float", *tops, *[""] * agreed, *boxes[0], "", *[""] * images])
    for table, cells in zip(found.tables, boxes[1:], strict=True):
        tops = [format_share(table.accuracy.topk[1])] if before and table.accuracy else []
        same = [format_share(table.agreement)] * agreed
        nearest = min((blob.sqnr for blob in table.blobs), default=None)
        psnr = min((blob.psnr for blob in table.blobs if blob.psnr is not None), default=None)
        rows.append([table.name, *tops, *same, *cells, format_decibels(nearest)])
        rows[-1] += [format_decibels(psnr)] * images
    return columns, rows


def _box_cells(found: BoxAccuracy | None) -> list[str]:
    """Mean average precision and recall in percent."""
    if found is None or math.isnan(found.mean_precision):
        return ["", ""]
    return [f"{100 * found.mean_precision:.1f}", format_share(found.recall)]
