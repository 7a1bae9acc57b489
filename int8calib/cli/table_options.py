"""Options about thresholds, weight scales and layers, for the commands that write tables."""

from __future__ import annotations

from dataclasses import dataclass
from shlex import quote
from typing import TYPE_CHECKING, Any

from int8calib.cli.options import finite
from int8calib.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from int8calib.calibration.layers import QuantLayer
    from int8calib.calibration.options import Options
    from int8calib.table.model import CalibrationTable

FORMATS = ("ncnn", "tool", "tool-v1", "tensorrt", "json")
BY_BLOB = frozenset(("tool-v1", "tensorrt"))
"""Formats that hold a scale for every blob."""
PERCENTILE = 99.99
"""The share of the values, in percent, that the method percentile keeps by default."""
TOOL_DEAD = 1e-4
"""The reference tool writes 0 for a channel whose weights are all below this."""
WINOGRAD = ("safe", "6bit", "off")
PRESETS: Mapping[str, tuple[str, ...]] = {
    "ncnn2table": ("--method=kl", "--winograd=6bit", "--fold-bn", "--format=ncnn"),
    "tool": ("--method=kl-tool", "--winograd=6bit", "--no-fold-bn", "--format=tool"),
    "tool-v1": ("--method=kl-tool-v1", "--winograd=off", "--no-fold-bn", "--format=tool-v1"),
    "tensorrt": ("--method=kl-tensorrt", "--winograd=off", "--no-fold-bn", "--format=tensorrt"),
}
"""What `--like TOOL` means, besides what all of these tools have in common."""
ALL_PRESETS = ("--input-method=same", "--grouped=int8", "--exact")
"""Input blobs are treated as any other, every layer with weights is quantized, images run twice."""


def add_table_arguments(group: Any) -> None:
    """How thresholds and weight scales are found, and for which layers."""
    add_fold_arguments(group)
    add_choice_arguments(group)


def add_fold_arguments(group: Any) -> None:
    """Whether weights are those before or after ncnnoptimize."""
    fold = group.add_mutually_exclusive_group()
    fold.add_argument(
        "--fold-bn",
        action="store_true",
        default=True,
        help="weight scales of weights with BatchNorm and Scale folded in: for a model that goes "
        "through ncnnoptimize before ncnn2int8, as ncnn's guide says (default)",
    )
    fold.add_argument(
        "--no-fold-bn",
        dest="fold_bn",
        action="store_false",
        help="weight scales of the weights as they are: for a model that goes from caffe2ncnn "
        "straight to ncnn2int8. The wrong choice saturates every layer with a BatchNorm behind it",
    )


def add_choice_arguments(group: Any) -> None:
    """What can still be chosen when statistics are there already."""
    group.add_argument(
        "--like",
        choices=tuple(PRESETS),
        help="the numbers of another tool: its method, its treatment of inputs and of weights, "
        "its folding and its format, where no option says otherwise; tool and tool-v1 are the "
        "latest and the first version of caffe-int8-convert-tool",
    )
    group.add_argument(
        "--format",
        choices=FORMATS,
        default="ncnn",
        help="layout of the table (default: ncnn); tool and tool-v1 are the reference tool's, "
        "tensorrt is a calibration cache",
    )
    _add_method_arguments(group)
    add_layer_arguments(group)
    group.add_argument(
        "--first-last-float",
        action="store_true",
        help="leave the first and the last layers that could be INT8 in float",
    )
    _add_weight_arguments(group)


def _add_method_arguments(group: Any) -> None:
    from int8calib.calibration.thresholds import DEFAULT_METHOD

    group.add_argument(
        "--method",
        default=DEFAULT_METHOD,
        metavar="NAME",
        help="how thresholds are found: mse (default: loses least), kl (ncnn2table's), kl-tool, "
        "kl-tool-v1, aciq, minmax, percentile or kl-tensorrt",
    )
    group.add_argument(
        "--input-method",
        default="auto",
        metavar="NAME",
        help="method of the input blobs: a method, same (as all others) or auto: minmax, but same "
        "with kl-tool, kl-tool-v1 and aciq (default)",
    )
    group.add_argument(
        "--percentile",
        type=finite(),
        default=PERCENTILE,
        metavar="P",
        help="share of the values, in percent, that --method percentile keeps (default: 99.99)",
    )
    group.add_argument(
        "--layer-method",
        nargs="+",
        action="extend",
        metavar="NAME=METHOD",
        help="another method for some layers, such as conv1=minmax 'fire*/expand*=mse'",
    )


def add_layer_arguments(group: Any) -> None:
    """Declare `--exclude` and `--only`."""
    for name, text in (
        ("--exclude", "layers, or globs of them, that stay in float"),
        ("--only", "the layers, or globs of them, to quantize"),
    ):
        group.add_argument(name, nargs="+", action="extend", metavar="NAME", help=text)
    group.add_argument(
        "--grouped",
        choices=("float", "int8"),
        default="float",
        help="convolutions of several groups, with a multiple of 8 outputs each, of which ncnn on "
        "x86 returns uninitialized memory in INT8: float keeps them in float (default)",
    )


def add_winograd_arguments(group: Any) -> None:
    """Declare `--winograd` and `--no-winograd`."""
    winograd = group.add_mutually_exclusive_group()
    winograd.add_argument(
        "--winograd",
        nargs="?",
        choices=WINOGRAD,
        const="safe",
        default="safe",
        help="weights of 3x3 convolutions of stride 1, which ncnn may run by int8 winograd: safe "
        "(default) is up to 127 levels, as many as the sum of each row's levels allows; 6bit is "
        "31 levels for all, as ncnn2table has it; off is 127 for all, right only where your "
        "program switches winograd off",
    )
    winograd.add_argument(
        "--no-winograd",
        dest="winograd",
        action="store_const",
        const="off",
        help="the same as --winograd off",
    )


def _add_weight_arguments(group: Any) -> None:
    group.add_argument(
        "--weights",
        choices=("per-channel", "per-tensor", "per-group"),
        default="per-channel",
        help="weights that share a scale (default: per-channel)",
    )
    group.add_argument(
        "--weight-method",
        choices=("absmax", "aciq", "mse"),
        help="how weights are clipped (default: absmax, or aciq with --method aciq)",
    )
    add_winograd_arguments(group)
    group.add_argument(
        "--six-bit",
        nargs="+",
        action="extend",
        metavar="NAME",
        help="layers, or globs of them, with 6-bit weights in any case",
    )
    group.add_argument(
        "--group",
        type=int,
        choices=(0, 1),
        help="the reference tool's option: 0 is --weights per-tensor",
    )


@dataclass(frozen=True)
class TableOptions:
    """What the options of `add_choice_arguments` say, under their names."""

    format: str
    method: str
    input_method: str
    percentile: float
    layer_method: tuple[str, ...] | None
    exclude: tuple[str, ...] | None
    only: tuple[str, ...] | None
    first_last_float: bool
    grouped: str
    weights: str
    weight_method: str | None
    winograd: str
    six_bit: tuple[str, ...] | None
    group: int | None

    def calibration(self, **more: Any) -> Options:
        """Return the library's options; `more` are fields that others know.

        A format of the reference tool brings its rules along: channels below 1e-4 are dead, 6-bit
        weights do not ask for dilation, and the first version has 8-bit weights with one scale a
        layer. Raises `OptionError`.
        """
        from int8calib.calibration.options import Options
        from int8calib.calibration.scales import DEAD_ABSMAX, WeightOptions
        from int8calib.calibration.thresholds import method_names

        if self.method not in method_names():
            raise OptionError(
                f"--method {self.method}: expected one of {', '.join(method_names())}"
            )
        first_version = self.format == "tool-v1"
        weights = WeightOptions(
            granularity="per-tensor" if self.group == 0 or first_version else self.weights,
            method=self.weight_method,
            winograd="off" if first_version else self.winograd,
            any_dilation=self.format == "tool",
            six_bit=self.six_bit or (),
            dead=TOOL_DEAD if self.format in ("tool", "tool-v1") else DEAD_ABSMAX,
        )
        return Options(
            method=self.method,
            input_method=self.input_method,
            layer_methods=tuple(_pair(text) for text in self.layer_method or ()),
            percentile=self.percentile,
            exclude=self.exclude or (),
            only=self.only or (),
            first_last_float=self.first_last_float,
            grouped=self.grouped,
            weights=weights,
            all_blobs=self.format in BY_BLOB,
            **more,
        )


def check_names(layers: Iterable[QuantLayer], format: str) -> None:
    """Raise `OptionError` where rows of a format cannot hold the name of a layer.

    Called before the first image: writing the table would find it too, after the last.
    """
    from int8calib.table.rules import name_problem

    if format not in ("ncnn", "tool"):
        return
    for layer in layers:
        problem = name_problem(layer.name)
        if problem is not None:
            raise OptionError(
                f"layer {layer.name!r}: {problem}; rename it, or leave it in float: "
                f"--exclude {quote(layer.name)}"
            )


def _pair(text: str) -> tuple[str, str]:
    pattern, found, method = text.rpartition("=")
    if not found or not pattern or not method:
        raise OptionError(f"--layer-method {text}: expected NAME=METHOD, such as conv1=minmax")
    return pattern, method


def laid_out(
    table: CalibrationTable, layers: Sequence[QuantLayer], options: Options, format: str
) -> CalibrationTable:
    """`table` with the rows of its format: the reference tool's own, where that is asked for."""
    from int8calib.calibration.assemble import tool_rows, tool_v1_rows

    if format == "tool-v1":
        return tool_v1_rows(table, layers)
    if format == "tool":
        return tool_rows(table, layers, one_scale=options.weights.granularity == "per-tensor")
    return table
