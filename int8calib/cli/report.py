"""Write a page that explains a table: accuracy, the worst layers, and pictures of each layer.

example:
  int8calib report --proto deploy.prototxt --model net.caffemodel --images photos/ \\
      --mean 104 117 123 --labels labels.txt --table net.table.json --output report.html

The table's JSON report tells more than the table itself: methods, options and warnings. What
other commands have found already need not be found again: --stats takes a file of `int8calib
collect`, --analysis and --evaluation what `analyze --json` and `evaluate --json` printed.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from int8calib.cli.comparison import (
    GroundTruth,
    add_compared_arguments,
    add_sensitivity_argument,
    add_table_fold_arguments,
    add_tables_argument,
    comparison_images,
    read_tables,
)
from int8calib.cli.console import Console, Progress
from int8calib.cli.image_options import add_image_arguments, image_options
from int8calib.cli.labels import BoxedImages, LabeledImages
from int8calib.cli.loader import ImageLoader
from int8calib.cli.network import NumpyOptions, add_network_arguments, network_fingerprint
from int8calib.cli.options import (
    MessageOptions,
    RunOptions,
    add_run_arguments,
    read_options,
    whole,
)
from int8calib.cli.outputs import check_folder, check_outputs, is_stdout
from int8calib.errors import OptionError, StatisticsError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from int8calib.analysis.results import Analysis
    from int8calib.analysis.samples import LayerSample
    from int8calib.caffe.engine.run import Net
    from int8calib.calibration.statistics.store import Statistics
    from int8calib.evaluation.results import Evaluation
    from int8calib.table.model import CalibrationTable

    Tables = dict[str, CalibrationTable]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `int8calib report`."""
    add_network_arguments(parser, engine=False)
    add_image_arguments(parser)
    group = parser.add_argument_group("report")
    add_tables_argument(group, "the page is about the first, others are compared")
    group.add_argument("--output", required=True, metavar="FILE", help="the .html file to write")
    group.add_argument("--png", metavar="DIR", help="also write every picture as a PNG file")
    group.add_argument("--title", help="the page's heading (default: the model's folder)")
    add_compared_arguments(group, labels=True, topk=True)
    add_sensitivity_argument(group)
    group.add_argument(
        "--samples",
        type=whole(),
        default=4,
        metavar="N",
        help="batches of which values before and after are drawn (default: 4; 0: none)",
    )
    add_table_fold_arguments(group)
    known = parser.add_argument_group("known already", "what need not be found again")
    known.add_argument(
        "--stats", metavar="FILE", help="statistics of `int8calib collect` or of an Observer"
    )
    known.add_argument(
        "--analysis",
        action="append",
        default=[],
        metavar="FILE",
        help="the output of `analyze --json`, once for each table, in their order",
    )
    known.add_argument("--evaluation", metavar="FILE", help="the output of `evaluate --json`")
    add_run_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Find what is missing, and write the page."""
    from int8calib.caffe.network.runnable import layers_to_quantize
    from int8calib.reporting.drawing import require_matplotlib
    from int8calib.reporting.report import report
    from int8calib.simulation.build import folds

    started = time.perf_counter()
    console = Console(read_options(MessageOptions, args), stdout_taken=is_stdout(args.output))
    model = read_options(NumpyOptions, args)
    options = read_options(_ReportOptions, args)
    check_outputs([args.output], inputs=(*model.files, *args.table))
    if args.png is not None:
        check_folder(args.png)
    require_matplotlib()
    tables = read_tables(args.table)
    first = next(iter(tables.values()))
    fold = folds(first, options.fold_bn)
    machine = read_options(RunOptions, args)
    net = model.load_net()
    structure, weights = model.files
    known = _Known.read(options, net, tables)
    pixels = image_options(args)
    batches = comparison_images(
        pixels,
        net,
        options.scores,
        options.outputs,
        workers=machine.worker_count,
        blobs=[layer.bottom for layer in layers_to_quantize(net.graph, net.input_shapes)[0]],
    )
    labeled = read_options(GroundTruth, args).of(batches, pixels)
    with console.progress() as progress:
        job = _Job(options, model, machine, net, tables, known, batches, labeled, progress)
        statistics = job.statistics(fold)
        evaluation = job.evaluation()
        analyses = job.analyses()
        samples = job.samples(first, fold)
    batches.print_skipped(console)
    made = report(
        net,
        tables,
        statistics=statistics,
        analysis=analyses,
        evaluation=evaluation,
        samples=samples,
        title=options.title or Path(structure).resolve().parent.name or structure,
        facts={"weights": weights, "images": ", ".join(args.images)},
        fold_bn=fold,
    )
    with console.progress("pictures") as progress:
        made.save(args.output, progress)
    size = Path(args.output).stat().st_size / 1e6
    seconds = time.perf_counter() - started
    console.say(
        f"{args.output}: {len(made.content.layers)} layers, {size:.1f} MB, in {seconds:.1f} s"
    )
    if args.png:
        console.say(f"{args.png}: {made.save_pictures(args.png)} pictures")
    for advice in made.advice:
        console.result(f"{advice.level}: {advice.text}")
    return 0


@dataclass(frozen=True)
class _ReportOptions:
    """What `int8calib report` was told, beside model, images, machine and files to write."""

    title: str | None
    topk: tuple[int, ...]
    kind: str | None
    scores: str | None
    outputs: tuple[str, ...] | None
    sensitivity: int
    samples: int
    fold_bn: bool | None
    stats: str | None
    analysis: tuple[str, ...]
    evaluation: str | None


@dataclass(frozen=True, eq=False)
class _Known:
    """The results that were given as files, checked for being of this network and these tables."""

    evaluation: Evaluation | None
    analyses: Mapping[str, Analysis]

    @classmethod
    def read(cls, options: _ReportOptions, net: Net, tables: Tables) -> _Known:
        """Read the files of `--evaluation` and `--analysis`; raises `OptionError`."""
        from int8calib.analysis.results import read_analysis
        from int8calib.evaluation.stored import read_evaluation
        from int8calib.reporting.content import check_results

        files = options.analysis
        if len(files) > len(tables):
            raise OptionError(f"--analysis: {len(files)} files for {len(tables)} tables")
        analyses = {name: read_analysis(path) for name, path in zip(tables, files, strict=False)}
        evaluation = None if options.evaluation is None else read_evaluation(options.evaluation)
        check_results(net.graph, tables, evaluation, analyses)
        return cls(evaluation, analyses)


@dataclass(frozen=True, eq=False)
class _Job:
    """What one report is made of, read from files where they are given, found anew where not."""

    options: _ReportOptions
    model: NumpyOptions
    machine: RunOptions
    net: Net
    tables: Tables
    known: _Known
    batches: ImageLoader
    labeled: ImageLoader | LabeledImages | BoxedImages
    progress: Progress

    def statistics(self, fold: bool) -> Statistics:
        """The histograms of `--stats`, checked for being of this network, or new ones."""
        from int8calib.calibration.collected import check_fingerprint, load_collected
        from int8calib.calibration.executor import layers_fingerprint
        from int8calib.calibration.options import Options
        from int8calib.calibration.pipeline import prepare
        from int8calib.calibration.statistics.collect import collect_statistics

        path = self.options.stats
        if path is not None:
            stored = load_collected(path)
            mine = network_fingerprint(self.model, fold_bn=fold)
            if "network" in stored.fingerprint:
                # Of an Observer, which knows no files.
                job = prepare(self.net, Options(fold_bn=fold))
                mine = {"network": layers_fingerprint(job.candidates)}
            elif not stored.statistics.histograms:
                raise StatisticsError(
                    f"{path}: holds ranges only; collect the histograms with --ranges"
                )
            else:
                mine["preprocessing"] = json.loads(json.dumps(self.batches.preprocessing()))
            theirs = {key: stored.fingerprint.get(key) for key in mine}
            check_fingerprint(theirs, mine, path, "this report")
            return stored.statistics
        job = prepare(self.net, Options(fold_bn=fold))
        return collect_statistics(
            job.executor,
            self.batches,
            job.blobs,
            exact=bool(self.machine.exact),
            workers=self.machine.worker_count,
            cache_bytes=self.machine.cache_bytes,
            total=len(self.batches),
            progress=self.progress,
        )

    def evaluation(self) -> Evaluation:
        """That of `--evaluation`, or a new one."""
        from int8calib.evaluation.evaluate import evaluate

        if self.known.evaluation is not None:
            return self.known.evaluation
        options = self.options
        return evaluate(
            self.net,
            self.tables,
            self.labeled,
            topk=options.topk,
            scores=options.scores,
            outputs=options.outputs,
            kind=options.kind,
            fold_bn=options.fold_bn,
            workers=self.machine.worker_count,
            total=len(self.batches),
            progress=self.progress,
        )

    def analyses(self) -> dict[str, Analysis]:
        """Those of `--analysis`, and new ones for the tables behind them."""
        from int8calib.analysis.analyze import analyze

        analyses = dict(self.known.analyses)
        for i, (name, table) in enumerate(self.tables.items()):
            if name in analyses:
                continue
            analyses[name] = analyze(
                self.net,
                table,
                self.batches,
                # One table's effects at the outputs are enough; they cost most.
                sensitivity_images=self.options.sensitivity if i == 0 else 0,
                scores=self.options.scores,
                outputs=self.options.outputs,
                fold_bn=self.options.fold_bn,
                workers=self.machine.worker_count,
                total=len(self.batches),
                progress=self.progress,
            )
        return analyses

    def samples(self, table: CalibrationTable, fold: bool) -> Mapping[str, LayerSample]:
        """Values of each layer before and after, over a few batches."""
        from int8calib.analysis.samples import sample_outputs

        count = self.options.samples
        if count < 1:
            return {}
        return sample_outputs(
            self.net,
            table,
            self.batches,
            count=count,
            outputs=self.options.outputs,
            fold_bn=fold,
            progress=self.progress,
        )
