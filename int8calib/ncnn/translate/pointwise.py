"""ncnn's activations and other functions of single values as Caffe's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from int8calib.ncnn.translate.context import Translation, Translator
from int8calib.ncnn.translate.options import Options


def _as(kind: str, fields: Callable[[Options], dict[str, Any]] = lambda options: {}) -> Translator:
    """A translator to Caffe's type `kind`, with the fields that `fields` reads."""

    def translate(t: Translation) -> None:
        t.add(kind, **fields(t.options))

    return translate


def _message(name: str, **names: str) -> Callable[[Options], dict[str, Any]]:
    """A message of numbers: its field for each of ncnn's parameters."""

    def fields(options: Options) -> dict[str, Any]:
        return {name: {field: options.number(own) for field, own in names.items()}}

    return fields


def _hard_swish(t: Translation) -> None:
    """HardSwish: Caffe's where it is that of MobileNetV3, which ncnn can fuse alike."""
    alpha, beta = t.options.number("alpha"), t.options.number("beta")
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        t.add("HardSwish")
    else:
        t.add_ncnn()


POINTWISE: Mapping[str, Translator] = {
    "ReLU": _as("ReLU", _message("relu_param", negative_slope="slope")),
    "Clip": _as("Clip", _message("clip_param", min="min", max="max")),
    "TanH": _as("TanH"),
    "Mish": _as("Mish"),
    "HardSwish": _hard_swish,
    "ELU": _as("ELU", _message("elu_param", alpha="alpha")),
    "SELU": _as("SeLU", lambda o: {"selu_param": {n: o.number(n) for n in ("alpha", "lambda")}}),
    "BNLL": _as("BNLL"),
    "AbsVal": _as("AbsVal"),
    "Threshold": _as("Threshold", _message("threshold_param", threshold="threshold")),
    "Power": _as("Power", _message("power_param", power="power", scale="scale", shift="shift")),
    "Exp": _as("Exp", _message("exp_param", base="base", scale="scale", shift="shift")),
    "Log": _as("Log", _message("log_param", base="base", scale="scale", shift="shift")),
    "Dropout": _as(
        "Dropout",
        lambda o: {"dropout_param": {"scale_train": False, "dropout_ratio": 1 - o.number("scale")}},
    ),
}
"""Translators by ncnn type."""
