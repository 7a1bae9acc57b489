"""What the commands share that compare INT8 networks with the float network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from int8calib.cli.loader import ImageLoader
from int8calib.cli.options import whole
from int8calib.errors import OptionError

if TYPE_CHECKING:
    from int8calib.caffe.engine.run import Net
    from int8calib.caffe.network.graph import Blob
    from int8calib.cli.image_options import ImageOptions
    from int8calib.ncnn.execution.network import NcnnNet
    from int8calib.table.model import CalibrationTable


def add_compared_arguments(group: Any, *, labels: bool, topk: bool) -> None:
    """Declare what is compared: `--scores`, `--outputs`, and where wanted `--labels`, `--topk`."""
    if labels:
        _add_labels_argument(group)
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
