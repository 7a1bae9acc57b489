"""Refuse options that have no effect beside the others: nobody gives one for nothing."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from int8calib.errors import OptionError

_Rule = tuple[str, tuple[str, ...], str]

_NEED_ANOTHER: tuple[_Rule, ...] = (
    ("seed", ("shuffle",), "only --shuffle depends on it; give --shuffle too, or leave it out"),
    (
        "checkpoint_every",
        ("checkpoint",),
        "no checkpoint is written; give --checkpoint FILE too, or leave it out",
    ),
    (
        "threads",
        ("runtime",),
        "only ncnn itself takes it; give --runtime too, or leave it out (--workers says how many "
        "images run at a time)",
    ),
    ("topk", ("labels",), "only --labels are counted so; give --labels too, or leave it out"),
    ("names", ("boxes",), "only --boxes need them; leave it out"),
    ("send_images", ("cluster",), "only a --cluster needs images sent; leave it out"),
    ("rounding", ("ncnn",), "says how --ncnn rounds, which is not given; leave it out"),
    (
        "skip",
        ("write_model", "ncnn"),
        "without --write-model or --ncnn the weights do not change; leave it out",
    ),
    (
        "more_work",
        ("write_model", "ncnn"),
        "without --write-model or --ncnn no channel is split; leave it out",
    ),
    (
        "max_float_layers",
        ("max_drop", "min_agreement"),
        "layers become float only for a target; give --max-drop or --min-agreement too, or leave "
        "it out",
    ),
    (
        "tolerance",
        ("proto", "bin"),
        "scales are compared with weights, which are not given; give --proto and --model, or "
        "--param and --bin, or leave it out",
    ),
)
"""An option, others of which it needs one, and what to tell; holds where a command has them all."""


def _takes_no_percentile(args: Mapping[str, Any]) -> bool:
    by_layer = [text.rpartition("=")[2] for text in args["layer_method"] or ()]
    return "percentile" not in (args["method"], args["input_method"], *by_layer)


_BESIDE: tuple[tuple[str, Callable[[Mapping[str, Any]], bool], str], ...] = (
    ("verbose", lambda args: args["quiet"], "--quiet prints nothing but errors; leave one out"),
    (
        "offsets",
        lambda args: args["offsets"] and not args["ncnn"],
        "is for the INT8 model of --ncnn, which is not given; leave it out",
    ),
    (
        "offsets",
        lambda args: args["offsets"] and args["rounding"] == "nearest",
        "weights rounded to nearest have none; leave one of --offsets and --rounding out",
    ),
    (
        "engine",
        lambda args: args["runtime"] and args["engine"] == "numpy",
        "--runtime runs in ncnn itself; leave one of both out",
    ),
    (
        "percentile",
        _takes_no_percentile,
        "only the method percentile takes it; give --method percentile too, or leave it out",
    ),
    (
        "weights",
        lambda args: (
            args["group"] is not None and (args["group"] == 0) != (args["weights"] == "per-tensor")
        ),
        "--group says otherwise; leave one of both out",
    ),
    (
        "weights",
        lambda args: args["format"] == "tool-v1" and args["weights"] != "per-tensor",
        "the format tool-v1 has one scale a layer; leave it out, or give another --format",
    ),
    (
        "group",
        lambda args: args["format"] == "tool-v1" and args["group"] == 1,
        "the format tool-v1 has one scale a layer; leave it out, or give another --format",
    ),
    (
        "winograd",
        lambda args: args["format"] == "tool-v1" and args["winograd"] != "off",
        "the format tool-v1 has 8-bit weights; leave it out, or give another --format",
    ),
    (
        "winograd",
        lambda args: (
            args["tolerance"] is not None and args["proto"] is None and args["bin"] is None
        ),
        "scales are compared with weights, which are not given; give --proto and --model, or "
        "--param and --bin, or leave it out",
    ),
    (
        "fold_bn",
        lambda args: args["tolerance"] is not None and args["proto"] is None,
        "only of a Caffe model BatchNorm is folded in; give --proto and --model, or leave it out",
    ),
    (
        "ignore_field",
        lambda args: args["proto"] is None,
        "is for prototxts, and none is given; leave it out",
    ),
    (
        "exact",
        lambda args: args["stats"] is not None,
        "the histograms are those of --stats; leave one of both out",
    ),
    *(
        (
            option,
            lambda args: args["evaluation"] is not None,
            "the accuracy is that of --evaluation; leave one of both out",
        )
        for option in ("labels", "boxes", "topk", "kind")
    ),
    (
        "sensitivity",
        lambda args: bool(args["analysis"]),
        "what each layer does to the outputs stands in --analysis; leave one of both out",
    ),
)
"""An option, when others leave it without effect, and what to tell."""


def refuse_idle(given: Mapping[str, str], args: Mapping[str, Any]) -> None:
    """Raise `OptionError` for the first option that was given for nothing.

    Parameters
    ----------
    given
        The options that the user gave, as spelled, by their names in the parser.
    args
        All arguments of the command by their names.
    """
    for name, others, why in _NEED_ANOTHER:
        if name in given and _lacks(args, others):
            raise OptionError(f"{given[name]}: {why}")
    for name, idle, why in _BESIDE:
        if name in given and _holds(idle, args):
            raise OptionError(f"{given[name]}: {why}")


def _lacks(args: Mapping[str, Any], names: Collection[str]) -> bool:
    """Whether the command has options of these names, and none is given."""
    # Not by ==, to which 0 is False.
    return all(any(args.get(name, 0) is x for x in (None, False)) for name in names)


def _holds(idle: Callable[[Mapping[str, Any]], bool], args: Mapping[str, Any]) -> bool:
    """Whether it holds; not in a command that lacks one of the options that it asks for."""
    try:
        return bool(idle(args))
    except KeyError:
        return False
