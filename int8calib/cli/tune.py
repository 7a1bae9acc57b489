"""Search the table that loses least in INT8; with --write-model or --ncnn also better weights.

example:
  int8calib tune --proto deploy.prototxt --model net.caffemodel --images photos/ \\
      --mean 104 117 123 --output net.table --write-model tuned.caffemodel tuned.prototxt

With --write-model the table belongs to the written Caffe model, with --ncnn to the written ncnn
models; of an ncnn model (--param, --bin) that is the model itself with other weights. Their float
outputs are nearly those of the old one; some layers may have more channels (--more-work). Beside
the table stand a report (net.table.json), all options (net.table.toml) and an explanation
(net.table.txt).
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from int8calib.cli.comparison import (
    GroundTruth,
    add_compared_arguments,
    comparison_images,
    result_rows,
)
from int8calib.cli.config import add_config_argument, config_text
from int8calib.cli.console import Console
from int8calib.cli.image_options import add_image_arguments, image_options
from int8calib.cli.network import NumpyOptions, add_network_arguments
from int8calib.cli.options import (
    MessageOptions,
    RunOptions,
    add_run_arguments,
    finite,
    read_options,
)
from int8calib.cli.outputs import NcnnFiles, TableFiles, add_ncnn_argument, is_stdout, report_text
from int8calib.cli.table_options import (
    add_fold_arguments,
    add_layer_arguments,
    add_winograd_arguments,
)
from int8calib.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from int8calib.calibration.options import Options
    from int8calib.files import Contents
    from int8calib.tuning.results import TuneOptions, Tuning


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `int8calib tune`."""
    add_config_argument(parser)
    add_network_arguments(parser, engine=False)
    add_image_arguments(parser)
    group = parser.add_argument_group("result")
    group.add_argument("--output", required=True, metavar="FILE", help="the table to write")
    group.add_argument(
        "--write-model",
        nargs=2,
        metavar=("CAFFEMODEL", "PROTOTXT"),
        help="let weights and biases change, and write the new model, BatchNorm folded in",
    )
    add_ncnn_argument(group)
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
        help="with --write-model or --ncnn, changes not to make: equalize, copies (channel "
        "splitting), rounding, refit, bias",
    )
    group.add_argument(
        "--more-work",
        type=finite(),
        metavar="P",
        help="with --write-model or --ncnn, most percent of multiply-adds that split channels "
        "may add; 0 leaves every num_output as it is (default: 10)",
    )
    group.add_argument(
        "--six-bit",
        nargs="+",
        action="extend",
        metavar="NAME",
        help="layers, or globs of them, with 31 weight levels in any case",
    )
    add_layer_arguments(group)
    add_winograd_arguments(group)


def _add_target_arguments(group: Any) -> None:
    group.add_argument(
        "--max-drop",
        type=finite(),
        metavar="P",
        help="points of top-1 to lose, which needs --labels; of a detector points of mean average "
        "precision",
    )
    group.add_argument(
        "--min-agreement",
        type=finite(),
        metavar="S",
        help="share of images, 0 to 1, that keep their best class; of a detector's boxes",
    )
    group.add_argument(
        "--max-float-layers",
        type=int,
        metavar="N",
        help="layers that may stay in float where a target is not met without (default: any)",
    )
    add_compared_arguments(group, labels=True, topk=False)


def _add_budget_arguments(group: Any) -> None:
    group.add_argument(
        "--time",
        type=finite(0),
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
        type=finite(),
        default=0.25,
        metavar="S",
        help="share of them that only decides between results (default: 0.25)",
    )


def run(args: argparse.Namespace) -> int:
    """Tune and write what was found."""
    from int8calib.table import get_format
    from int8calib.tuning.search import tune

    started = time.perf_counter()
    console = Console(read_options(MessageOptions, args), stdout_taken=is_stdout(args.output))
    console.keep_warnings()
    model = read_options(NumpyOptions, args)
    options = read_options(_TuneOptions, args)
    if options.write_model and not model.is_caffe:
        raise OptionError(
            "--write-model writes a Caffe model; give --ncnn PREFIX for an ncnn model"
        )
    files = TableFiles(options.output, ".json", ".toml", ".txt")
    models = NcnnFiles(args.ncnn)
    others = (*models.paths, *(options.write_model or ()))
    files.check(*others, inputs=model.files)
    machine = read_options(RunOptions, args)
    calibration = options.calibration(machine)
    tuning = options.tuning()
    net = model.load_net()
    models.check(net)
    pixels = image_options(args)
    images = comparison_images(pixels, net, args.scores, args.outputs, workers=machine.worker_count)
    batches = read_options(GroundTruth, args).of(images, pixels)
    with console.progress() as progress:
        found = tune(net, batches, calibration, tuning, progress=progress)
    images.print_skipped(console)
    fold = options.fold_bn or found.changed
    contents, notes = models.contents(
        found.net,
        found.table,
        fold_bn=fold,
        rounded=found.rounded,
        winograd=options.winograd == "safe",
    )
    texts = {
        ".json": _report(found, [*console.notes, *notes]),
        ".toml": config_text("tune", vars(args), add_arguments),
        ".txt": "\n".join([*_explained(options, found), ""]),
    }
    files.write(
        get_format("ncnn").write(found.table),
        texts,
        {**contents, **_model_contents(options, found)},
    )
    _show(console, found)
    seconds = time.perf_counter() - started
    console.say(
        f"{options.output}: {len(found.table.layers)} layers in INT8, tuned on {found.images} "
        f"images in {seconds:.1f} s{files.told({'.txt': 'the choices'})}"
    )
    models.tell(console, notes)
    return 0


@dataclass(frozen=True)
class _TuneOptions:
    """What `int8calib tune` was told, beside model, images and machine."""

    output: str
    write_model: tuple[str, str] | None
    ncnn: str | None
    offsets: bool
    fold_bn: bool
    skip: tuple[str, ...] | None
    more_work: float | None
    six_bit: tuple[str, ...] | None
    exclude: tuple[str, ...] | None
    only: tuple[str, ...] | None
    grouped: str
    winograd: str
    max_drop: float | None
    min_agreement: float | None
    max_float_layers: int | None
    kind: str | None
    scores: str | None
    outputs: tuple[str, ...] | None
    time: float | None
    tune_images: int
    validation: float

    @property
    def changes_model(self) -> bool:
        """Whether weights may change, which needs a place for the new model."""
        return self.write_model is not None or self.ncnn is not None

    def calibration(self, machine: RunOptions) -> Options:
        """The library's options for the tables that the search starts from."""
        from int8calib.calibration.options import Options
        from int8calib.calibration.scales import WeightOptions

        return Options(
            method="mse",
            exclude=self.exclude or (),
            only=self.only or (),
            grouped=self.grouped,
            fold_bn=self.fold_bn,
            weights=WeightOptions(winograd=self.winograd, six_bit=self.six_bit or ()),
            workers=machine.worker_count,
            exact=machine.exact,
            cache_bytes=machine.cache_bytes,
        )

    def tuning(self) -> TuneOptions:
        """The library's options for the search; raises `OptionError`."""
        from int8calib.tuning.results import TECHNIQUES, TuneOptions

        # "equalise" is how earlier versions spelled it.
        skipped = ["equalize" if name == "equalise" else name for name in self.skip or ()]
        for name in skipped:
            if name not in TECHNIQUES:
                raise OptionError(f"--skip {name}: expected one of {', '.join(TECHNIQUES)}")
        return TuneOptions(
            change_model=self.changes_model,
            techniques=tuple(name for name in TECHNIQUES if name not in skipped),
            more_work=self._more_work(TuneOptions.more_work),
            max_drop=self.max_drop,
            min_agreement=self.min_agreement,
            max_float_layers=self.max_float_layers,
            images=self.tune_images,
            validation=self.validation,
            seconds=self.time,
            kind=self.kind,
            offsets=self.offsets and self.ncnn is not None,
            scores=self.scores,
            outputs=self.outputs,
        )

    def _more_work(self, default: float) -> float:
        if self.more_work is None:
            return default
        if not 0 <= self.more_work <= 100:
            raise OptionError(f"--more-work {self.more_work:g}: expected percent, 0 to 100")
        return self.more_work / 100


def _report(found: Tuning, notes: Sequence[str]) -> str:
    """The table's report with what the tuning settled."""
    meta = {**found.table.meta, "tuning": found.as_dict()}
    return report_text(replace(found.table, meta=meta), notes)


def _model_contents(options: _TuneOptions, found: Tuning) -> Contents:
    """What `--write-model` writes: a table never stands there without its model."""
    from int8calib.caffe.export import encode_model

    if options.write_model is None:
        return {}
    caffemodel, prototxt = options.write_model
    structure, weights = encode_model(found.net)
    return {caffemodel: weights, prototxt: structure}


def _explained(options: _TuneOptions, found: Tuning) -> list[str]:
    """The text of the explanation."""
    lines = [f"Result: {found.chosen}."]
    if options.write_model and found.changed:
        lines.append(f"The table belongs to the model {' and '.join(options.write_model)}.")
    elif options.ncnn and found.changed:
        lines.append(f"The table belongs to the model {options.ncnn}.param.")
    elif options.write_model:
        lines.append("The weights did not change: the model written is the old one, folded.")
    if found.target_met is not None:
        lines.append(f"The target is {'met' if found.target_met else 'missed'}.")
    lines += [f"Note: {note}" for note in found.notes]
    lines.append("")
    lines += [f"{c.layer}: {c.what}; {c.why}" for c in found.choices]
    if found.evidence is not None:
        lines += ["", f"Over {found.evidence.images} images that nothing was fitted to:"]
        lines += ["  ".join(text for text in row if text) for row in result_rows(found.evidence)[1]]
    return lines


def _show(console: Console, found: Tuning) -> None:
    if found.evidence is not None:
        columns, rows = result_rows(found.evidence)
        console.say(f"compared as {found.evidence.kind}")
        console.table(f"Validation over {found.evidence.images} images", columns, rows)
    for note in found.notes:
        console.say(f"note: {note}")
    if found.target_met is False:
        console.say("warning: the target is not met")
