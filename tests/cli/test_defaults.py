"""Defaults of the command line beside those of the library's functions and options."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING
from typing import Any

import pytest

import int8calib
from int8calib import Checkpoint, Options, TuneOptions, WeightOptions
from int8calib.analysis.samples import sample_outputs
from int8calib.calibration.statistics.collect import collect_statistics
from int8calib.cli.image_options import ImageOptions
from int8calib.cli.main import build_parser
from int8calib.cli.options import CheckpointOptions, MessageOptions, RunOptions, read_options
from int8calib.cli.table_options import TableOptions
from int8calib.evaluation.runtime import evaluate_runtime
from int8calib.images import Preprocess
from int8calib.ncnn.convert.network import convert_network
from int8calib.ncnn.optimize import optimize_model
from int8calib.ncnn.quantize import quantize_model
from int8calib.table.check import check_table


def default(function: Callable[..., Any], parameter: str) -> Any:
    """What a function takes where nothing is given."""
    return inspect.signature(function).parameters[parameter].default


# The library's default of what an option sets, for every command that has it.
LIBRARY: Mapping[str, Any] = {
    "batch": ImageOptions.batch,
    "box_score": default(int8calib.evaluate, "box_score"),
    "cache": Options.cache_bytes,
    "channel_order": Preprocess.channel_order,
    "cluster": default(int8calib.calibrate, "cluster"),
    "checkpoint": default(int8calib.calibrate, "checkpoint"),
    "checkpoint_every": default(Checkpoint, "every"),
    "engine": default(int8calib.load_ncnn, "engine"),
    "exact": Options.exact,
    "exclude": Options.exclude,
    "fast_jpeg": Preprocess.reduced_jpeg,
    "first_last_float": Options.first_last_float,
    "fold_bn": Options.fold_bn,
    "grouped": Options.grouped,
    "format": default(int8calib.write_table, "format"),
    "fp16": default(optimize_model, "fp16"),
    "fp32": default(quantize_model, "fp32"),
    "ignore_field": default(int8calib.load_caffe, "ignore_fields"),
    "input_method": Options.input_method,
    "kind": default(int8calib.evaluate, "kind"),
    "peak": default(int8calib.evaluate, "peak"),
    "input_shape": default(int8calib.load_caffe, "input_shapes"),
    "layer_method": Options.layer_methods,
    "max_drop": TuneOptions.max_drop,
    "max_float_layers": TuneOptions.max_float_layers,
    "mean": Preprocess.mean,
    "method": Options.method,
    "min_agreement": TuneOptions.min_agreement,
    "min_score": default(int8calib.evaluate, "box_score"),
    "model": default(int8calib.inspect, "caffemodel"),
    "norm": Preprocess.norm,
    "only": Options.only,
    "optimize": default(int8calib.load_ncnn, "optimize"),
    "outputs": default(int8calib.evaluate, "outputs"),
    "percentile": Options.percentile,
    "resize": Preprocess.resize,
    "resize_to": Preprocess.resize_to,
    "samples": default(sample_outputs, "count"),
    "scores": default(int8calib.evaluate, "scores"),
    "sensitivity": default(int8calib.analyze, "sensitivity_images"),
    "six_bit": WeightOptions.six_bit,
    "threads": default(evaluate_runtime, "threads"),
    "time": TuneOptions.seconds,
    "topk": default(int8calib.evaluate, "topk"),
    "transpose": Preprocess.transpose,
    "tune_images": TuneOptions.images,
    "validation": TuneOptions.validation,
    "weight_method": WeightOptions.method,
    "weights": WeightOptions.granularity,
    "winograd": WeightOptions.winograd,
    "workers": default(int8calib.evaluate, "workers"),
    "all_blobs": Options.all_blobs,
    "ranges": default(collect_statistics, "known"),
    "ranges_only": default(collect_statistics, "ranges_only"),
    "source_format": default(int8calib.read_table, "format"),
    "tolerance": default(check_table, "tolerance"),
    # Of one command only:
    "convert outputs": default(convert_network, "outputs"),
    "evaluate fold_bn": default(int8calib.evaluate, "fold_bn"),
    "analyze fold_bn": default(int8calib.analyze, "fold_bn"),
    "report fold_bn": default(int8calib.report, "fold_bn"),
    "report analysis": default(int8calib.report, "analysis"),
    "report evaluation": default(int8calib.report, "evaluation"),
    "report stats": default(int8calib.report, "statistics"),
    "predict topk": max(default(int8calib.evaluate, "topk")),
}

# Options about files, messages, pictures and the order of images, which the library has not.
COMMAND_LINE_ONLY = {
    *("config", "debug", "quiet", "verbose", "json"),
    *("ncnn", "output", "param", "bin", "png", "proto", "names", "title", "labels", "layers"),
    *("boxes",),
    *("limit", "seed", "shuffle", "no_optimize", "runtime", "more_work", "skip", "write_model"),
    *("gpu", "group", "send_images", "detection", "like", "rounding", "offsets", "equalize"),
}


def commands(parser: argparse.ArgumentParser, name: str = "") -> Iterator[tuple[str, Any]]:
    nested = [a.choices for a in parser._actions if isinstance(a.choices, Mapping)]
    for choices in nested:
        for word, command in choices.items():
            yield from commands(command, f"{name} {word}".strip())
    if not nested:
        yield name, parser


def plain(value: Any) -> Any:
    """A default in one form: nothing is None, one number in a list that number."""
    if isinstance(value, list | tuple | Mapping) and not value:
        return None
    if isinstance(value, list | tuple):
        return float(value[0]) if len(value) == 1 else tuple(value)
    return value


@pytest.mark.parametrize("name", [name for name, _ in commands(build_parser())])
def test_an_option_left_out_means_what_the_library_takes(name: str) -> None:
    parser = dict(commands(build_parser()))[name]
    defaults: dict[str, Any] = {}
    for action in parser._actions:
        if not action.required and action.dest not in COMMAND_LINE_ONLY | {"help"}:
            defaults.setdefault(action.dest, action.default)  # the first of a pair counts
    for option, value in defaults.items():
        expected = LIBRARY.get(f"{name} {option}", LIBRARY.get(option, MISSING))
        assert expected is not MISSING, f"{name}: {option} has no counterpart here"
        assert plain(value) == plain(expected), option
    assert defaults or name in ("merge", "demo")


REQUIRED = {
    "calibrate": "--proto p --model m --images i --output o",
    "collect": "--proto p --model m --images i --output o",
    "thresholds": "s --output o",
    "evaluate": "--proto p --model m --images i --table t",
}


def parsed(name: str) -> argparse.Namespace:
    return build_parser([name]).parse_args([name, *REQUIRED[name].split()])


@pytest.mark.parametrize("name", ["calibrate", "thresholds"])
def test_tables_are_made_with_the_options_of_the_library(name: str) -> None:
    assert read_options(TableOptions, parsed(name)).calibration() == Options()
    assert read_options(TableOptions, parsed(name)).calibration().weights == WeightOptions()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, CheckpointOptions) for name in ("calibrate", "collect")),
        *((name, ImageOptions) for name in ("calibrate", "collect", "evaluate")),
        *((name, RunOptions) for name in ("calibrate", "collect", "evaluate")),
        *((name, MessageOptions) for name in REQUIRED),
    ],
)
def test_option_classes_hold_the_defaults_of_their_parsers(name: str, kind: type[Any]) -> None:
    given = {"images": ("i",)} if kind is ImageOptions else {}
    assert read_options(kind, parsed(name)) == kind(**given)


def test_cores_and_memory_are_those_of_the_library() -> None:
    assert read_options(RunOptions, parsed("calibrate")).worker_count == Options().workers
    assert default(int8calib.analyze, "workers") is None
    assert RunOptions(cache="0").cache_bytes == 0
    assert RunOptions().cache_bytes is Options().cache_bytes is None


def test_more_work_is_told_in_percent() -> None:
    tune = dict(commands(build_parser()))["tune"]
    help_text = next(a.help for a in tune._actions if a.dest == "more_work")
    assert f"(default: {100 * TuneOptions.more_work:g})" in help_text
