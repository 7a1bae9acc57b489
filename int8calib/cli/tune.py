"""Search the table that loses least in INT8, and with --write-model also better weights.

example:
  int8calib tune --proto deploy.prototxt --model net.caffemodel --images photos/ \\
      --mean 104 117 123 --output net.table --write-model tuned.caffemodel tuned.prototxt

With --write-model the table belongs to the written model: give that one to caffe2ncnn. Its float
outputs are nearly those of the old one; some layers may have more channels (--more-work). Beside
the table stand a report (net.table.json), all options (net.table.toml) and an explanation
(net.table.txt).
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from int8calib.cli.calibrate import beside, check_output
from int8calib.cli.compare_options import add_labels_argument, add_scores_argument
from int8calib.cli.config import add_config_argument, write_config
from int8calib.cli.evaluate import decibels, output_inputs, share_text
from int8calib.cli.image_options import add_image_arguments, image_options
from int8calib.cli.inputs import (
    add_model_arguments,
    add_run_arguments,
    cache_size,
    load_net,
    worker_count,
)
from int8calib.cli.labels import LabelledImages
from int8calib.cli.loader import ImageLoader
from int8calib.cli.screen import Screen
from int8calib.cli.table_options import add_fold_arguments
from int8calib.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from int8calib.calibration.options import Options
    from int8calib.tuning.results import TuneOptions, Tuning


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `int8calib tune`."""
    add_config_argument(parser)
    add_model_arguments(parser)
    add_image_arguments(parser)
    group = parser.add_argument_group("result")
    group.add_argument("--output", required=True, metavar="FILE", help="the table to write")
    group.add_argument(
        "--write-model",
        nargs=2,
        metavar=("CAFFEMODEL", "PROTOTXT"),
        help="let weights and biases change, and write the new model, BatchNorm folded in",
    )
    _add_layer_arguments(group)
    _add_target_arguments(parser.add_argument_group("targets, on the validation images"))
    _add_budget_arguments(parser.add_argument_group("budget"))
    add_run_arguments(parser)


def _add_layer_arguments(group: Any) -> None:
    add_fold_arguments(group)
    group.add_argument(
        "--skip",
        nargs="+",
        action="extend",
        metavar="TECHNIQUE",
        help="with --write-model, changes not to make: equalize, copies, rounding, refit, bias",
    )
    group.add_argument(
        "--more-work",
        type=float,
        metavar="P",
        help="with --write-model, most percent of multiply-adds that copies of channels may add; "
        "0 leaves every num_output as it is (default: 10)",
    )
    for name, text in (
        ("--six-bit", "layers, or globs of them, with 31 weight levels in any case"),
        ("--exclude", "layers, or globs of them, that stay in float"),
        ("--only", "the layers, or globs of them, to quantize"),
    ):
        group.add_argument(name, nargs="+", action="extend", metavar="NAME", help=text)
    winograd = group.add_mutually_exclusive_group()
    winograd.add_argument(
        "--winograd",
        action="store_true",
        default=True,
        help="weights of 3x3 stride 1 convolutions as int8 winograd needs them: 127 levels where "
        "their sums allow it, or fewer (default)",
    )
    winograd.add_argument(
        "--no-winograd",
        dest="winograd",
        action="store_false",
        help="8-bit weights everywhere, if winograd is off in your ncnn options",
    )


def _add_target_arguments(group: Any) -> None:
    group.add_argument(
        "--max-drop", type=float, metavar="P", help="points of top-1 to lose; needs --labels"
    )
    group.add_argument(
        "--min-agreement",
        type=float,
        metavar="S",
        help="share of images, 0 to 1, that keep their best class",
    )
    group.add_argument(
        "--max-float-layers",
        type=int,
        metavar="N",
        help="layers that may stay in float where a target is not met without (default: any)",
    )
    add_labels_argument(group)
    add_scores_argument(group)


def _add_budget_arguments(group: Any) -> None:
    group.add_argument(
        "--time",
        type=float,
        metavar="S",
        help="seconds after which the best table so far is written (default: no limit)",
    )
    group.add_argument(
        "--tune-images",
        type=int,
        default=160,
        metavar="N",
        help="most images to use, those to validate with included (default: 160)",
    )
    group.add_argument(
        "--validation",
        type=float,
        default=0.25,
        metavar="S",
        help="share of them that only decides between results (default: 0.25)",
    )


def run(args: argparse.Namespace) -> int:
    """Tune and write what was found."""
    from int8calib.tuning.search import tune

    screen = Screen(args)
    started = time.perf_counter()
    for path in (args.output, *(args.write_model or ())):
        check_output(path)
    options, tuning = _options(args), _tune_options(args)
    net = load_net(args)
    images = ImageLoader(image_options(args), net, output_inputs(net), workers=worker_count(args))
    batches = images if args.labels is None else LabelledImages(images, args.labels)
    with screen.progress() as progress:
        found = tune(net, batches, options, tuning, progress=progress)
    images.tell(screen)
    _write(args, found)
    _show(screen, found)
    seconds = time.perf_counter() - started
    screen.say(
        f"{args.output}: {len(found.table.layers)} layers in INT8, tuned on {found.images} images "
        f"in {seconds:.1f} s; the choices are explained in {beside(args.output, '.txt')}"
    )
    return 0


def _options(args: argparse.Namespace) -> Options:
    from int8calib.calibration.options import Options
    from int8calib.calibration.scales import WeightOptions

    return Options(
        method="mse",
        exclude=tuple(args.exclude or ()),
        only=tuple(args.only or ()),
        fold_bn=args.fold_bn,
        weights=WeightOptions(winograd=args.winograd, six_bit=tuple(args.six_bit or ())),
        workers=worker_count(args),
        cache_bytes=cache_size(args),
    )


def _tune_options(args: argparse.Namespace) -> TuneOptions:
    from int8calib.tuning.results import TECHNIQUES, TuneOptions

    skipped = args.skip or ()
    for name in skipped:
        if name not in TECHNIQUES:
            raise OptionError(f"--skip {name}: expected one of {', '.join(TECHNIQUES)}")
    if skipped and not args.write_model:
        raise OptionError("--skip: without --write-model the weights do not change; leave it out")
    more_work = TuneOptions.more_work
    if args.more_work is not None:
        if not args.write_model:
            raise OptionError("--more-work: without --write-model nothing is copied; leave it out")
        if not 0 <= args.more_work <= 100:
            raise OptionError(f"--more-work {args.more_work:g}: expected percent, 0 to 100")
        more_work = args.more_work / 100
    return TuneOptions(
        change_model=args.write_model is not None,
        techniques=tuple(name for name in TECHNIQUES if name not in skipped),
        more_work=more_work,
        max_drop=args.max_drop,
        min_agreement=args.min_agreement,
        max_float_layers=args.max_float_layers,
        images=args.tune_images,
        validation=args.validation,
        seconds=args.time,
        scores=args.scores,
    )


def _write(args: argparse.Namespace, found: Tuning) -> None:
    """Model first, then what belongs to it: a table never stands there without its model."""
    from int8calib.caffe.export import write_model
    from int8calib.files import write_atomic
    from int8calib.table import write_table

    if args.write_model:
        caffemodel, prototxt = args.write_model
        write_model(found.net, prototxt, caffemodel)
    write_table(args.output, found.table)
    report = replace(found.table, meta={**found.table.meta, "tuning": found.as_dict()})
    write_table(beside(args.output, ".json"), report, "json")
    write_config(beside(args.output, ".toml"), args, add_arguments)
    write_atomic(beside(args.output, ".txt"), "\n".join([*_explained(args, found), ""]))


def _explained(args: argparse.Namespace, found: Tuning) -> list[str]:
    """The text of the explanation."""
    lines = [f"Result: {found.chosen}."]
    if found.changed:
        lines.append(f"The table belongs to the model {' and '.join(args.write_model)}.")
    elif args.write_model:
        lines.append("The weights did not change: the model written is the old one, folded.")
    if found.target_met is not None:
        lines.append(f"The target is {'met' if found.target_met else 'missed'}.")
    lines += [f"Note: {note}" for note in found.notes]
    lines.append("")
    lines += [f"{c.layer}: {c.what}; {c.why}" for c in found.choices]
    if found.evidence is not None:
        lines += ["", f"Over {found.evidence.images} images that nothing was fitted to:"]
        lines += ["  ".join(text for text in row if text) for row in _evidence(found)]
    return lines


def _evidence(found: Tuning) -> Sequence[tuple[str, ...]]:
    """A row for each result: name, top-1, equal classes, SQNR."""
    evidence = found.evidence
    if evidence is None:
        return ()
    rows = []
    if evidence.float_accuracy is not None:
        rows.append(("float", share_text(evidence.float_accuracy.topk[1]), "", ""))
    for table in evidence.tables:
        top = share_text(table.accuracy.topk[1]) if table.accuracy else ""
        nearest = min((blob.sqnr for blob in table.blobs), default=None)
        rows.append((table.name, top, share_text(table.agreement), decibels(nearest)))
    return rows


def _show(screen: Screen, found: Tuning) -> None:
    columns = ("", "top-1 %", "same top-1 %", "output SQNR dB")
    if found.evidence is not None:
        title = f"Validation over {found.evidence.images} images"
        screen.table(title, columns, _evidence(found))
    for note in found.notes:
        screen.say(f"note: {note}")
    if found.target_met is False:
        screen.say("warning: the target is not met")
