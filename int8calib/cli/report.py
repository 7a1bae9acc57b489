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
import time
from pathlib import Path
from typing import TYPE_CHECKING

from int8calib.cli.calibrate import check_output
from int8calib.cli.compare_options import (
    add_labels_argument,
    add_scores_argument,
    add_table_fold_arguments,
    add_topk_argument,
)
from int8calib.cli.digest import file_sha256
from int8calib.cli.evaluate import output_inputs, read_tables
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
from int8calib.cli.screen import Progress, Screen
from int8calib.errors import OptionError

if TYPE_CHECKING:
    from int8calib.analysis.layer_errors import Analysis
    from int8calib.caffe.engine.run import Net
    from int8calib.calibration.statistics.store import Statistics
    from int8calib.evaluation.results import Evaluation
    from int8calib.table.model import CalibrationTable

    Tables = dict[str, CalibrationTable]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `int8calib report`."""
    add_model_arguments(parser)
    add_image_arguments(parser)
    group = parser.add_argument_group("report")
    group.add_argument(
        "--table",
        action="append",
        required=True,
        metavar="FILE",
        help="a calibration table in any format; the page is about the first, others are compared",
    )
    group.add_argument("--output", required=True, metavar="FILE", help="the .html file to write")
    group.add_argument("--png", metavar="DIR", help="also write every picture as a PNG file")
    group.add_argument("--title", help="the page's heading (default: the prototxt's folder)")
    add_labels_argument(group)
    add_topk_argument(group)
    add_scores_argument(group)
    group.add_argument(
        "--sensitivity",
        type=int,
        default=10,
        metavar="N",
        help="images over which each layer runs in INT8 alone (default: 10; 0: none)",
    )
    group.add_argument(
        "--samples",
        type=int,
        default=4,
        metavar="N",
        help="batches of which values before and after are drawn (default: 4; 0: none)",
    )
    add_table_fold_arguments(group)
    known = parser.add_argument_group("known already", "what need not be found again")
    known.add_argument("--stats", metavar="FILE", help="statistics of `int8calib collect`")
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
    from int8calib.reporting.drawing import require_matplotlib
    from int8calib.reporting.report import report
    from int8calib.reporting.samples import sample_outputs
    from int8calib.simulation.build import folds

    screen = Screen(args)
    started = time.perf_counter()
    check_output(args.output)
    require_matplotlib()
    tables = read_tables(args.table)
    first = next(iter(tables.values()))
    fold = folds(first) if args.fold_bn is None else bool(args.fold_bn)
    net = load_net(args)
    batches = ImageLoader(image_options(args), net, output_inputs(net), workers=worker_count(args))
    with screen.progress() as progress:
        statistics = _statistics(args, net, batches, fold, progress)
        evaluation = _evaluation(args, net, batches, tables, progress)
        analyzes = _analyzes(args, net, batches, tables, progress)
        samples = {}
        if args.samples > 0:
            samples = sample_outputs(
                net, first, batches, count=args.samples, fold_bn=fold, progress=progress
            )
    batches.tell(screen)
    title = args.title or Path(args.proto).resolve().parent.name or args.proto
    facts = {"weights": args.model, "images": ", ".join(args.images)}
    made = report(
        net,
        tables,
        statistics=statistics,
        analysis=analyzes,
        evaluation=evaluation,
        samples=samples,
        title=title,
        facts=facts,
        fold_bn=fold,
    )
    with screen.progress("pictures") as progress:
        made.save(args.output, progress)
    size = Path(args.output).stat().st_size / 1e6
    seconds = time.perf_counter() - started
    screen.say(
        f"{args.output}: {len(made.content.layers)} layers, {size:.1f} MB, in {seconds:.1f} s"
    )
    if args.png:
        screen.say(f"{args.png}: {made.save_pictures(args.png)} pictures")
    for advice in made.advice:
        screen.result(f"{advice.level}: {advice.text}")
    return 0


def _statistics(
    args: argparse.Namespace, net: Net, batches: ImageLoader, fold: bool, progress: Progress
) -> Statistics:
    """The histograms of `--stats`, checked for being of this network, or new ones."""
    from int8calib.calibration.collected import check_identity, load_collected
    from int8calib.calibration.options import Options
    from int8calib.calibration.pipeline import prepare
    from int8calib.calibration.statistics.collect import collect_statistics

    if args.stats is not None:
        stored = load_collected(args.stats)
        mine = {
            "prototxt": file_sha256(args.proto),
            "caffemodel": file_sha256(args.model),
            "fold-bn": fold,
        }
        theirs = {key: stored.identity.get(key) for key in mine}
        check_identity(theirs, mine, args.stats, "this report")
        return stored.statistics
    job = prepare(net, Options(fold_bn=fold))
    return collect_statistics(
        job.graph,
        batches,
        job.blobs,
        workers=worker_count(args),
        cache_bytes=cache_size(args),
        total=len(batches),
        progress=progress,
    )


def _evaluation(
    args: argparse.Namespace,
    net: Net,
    batches: ImageLoader,
    tables: Tables,
    progress: Progress,
) -> Evaluation:
    """That of `--evaluation`, or a new one."""
    from int8calib.evaluation.evaluate import evaluate
    from int8calib.reporting.files import read_evaluation

    if args.evaluation is not None:
        return read_evaluation(args.evaluation)
    return evaluate(
        net,
        tables,
        batches if args.labels is None else LabelledImages(batches, args.labels),
        topk=args.topk,
        scores=args.scores,
        fold_bn=args.fold_bn,
        workers=worker_count(args),
        total=len(batches),
        progress=progress,
    )


def _analyzes(
    args: argparse.Namespace,
    net: Net,
    batches: ImageLoader,
    tables: Tables,
    progress: Progress,
) -> dict[str, Analysis]:
    """Those of `--analysis`, and new ones for the tables behind them."""
    from int8calib.analysis.analyze import analyze
    from int8calib.reporting.files import read_analysis

    if len(args.analysis) > len(tables):
        raise OptionError(f"--analysis: {len(args.analysis)} files for {len(tables)} tables")
    found = {name: read_analysis(path) for name, path in zip(tables, args.analysis, strict=False)}
    for i, (name, table) in enumerate(tables.items()):
        if name in found:
            continue
        found[name] = analyze(
            net,
            table,
            batches,
            # One table's effects at the outputs are enough; they cost most.
            sensitivity_images=args.sensitivity if i == 0 else 0,
            scores=args.scores,
            fold_bn=args.fold_bn,
            workers=worker_count(args),
            total=len(batches),
            progress=progress,
        )
    return found
