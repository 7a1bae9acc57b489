"""What commands that compare INT8 nets with the float net have in common: their options."""

from __future__ import annotations

from typing import Any


def add_scores_argument(group: Any) -> None:
    """Which blob holds class scores."""
    group.add_argument(
        "--scores",
        metavar="BLOB",
        help="the blob of class scores (default: the only output, if it is a vector)",
    )


def add_labels_argument(group: Any) -> None:
    """Where the class of each image is found."""
    group.add_argument(
        "--labels",
        metavar="WHERE",
        help="a file of `image index` lines, or a folder with one folder of images per class",
    )


def add_topk_argument(group: Any) -> None:
    """Which accuracies are counted."""
    group.add_argument(
        "--topk", type=int, nargs="+", default=[1, 5], metavar="K", help="(default: 1 5)"
    )


def add_table_fold_arguments(group: Any) -> None:
    """Whether the model runs folded, where a table may know."""
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


def add_json_argument(group: Any) -> None:
    """Output for programs."""
    group.add_argument("--json", action="store_true", help="print the result as JSON")
