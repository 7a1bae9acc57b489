"""Calibrate a Caffe or ncnn model over images and write the table with which ncnn makes it INT8.

examples:
  int8calib calibrate --proto deploy.prototxt --model net.caffemodel --images photos/ \\
      --mean 104 117 123 --norm 1 --output net.table
  int8calib calibrate --param net.ncnn.param --bin net.ncnn.bin --images photos/ \\
      --channel-order rgb --norm 0.00392157 --input-shape in0=1,3,224,224 --output net.table

With --ncnn net it also writes the ncnn models: net.param and net.bin in float, net-int8.param
and net-int8.bin in INT8. Beside the table stand a report (net.table.json) and all options
(net.table.toml); to repeat the run: int8calib calibrate --config net.table.toml
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from int8calib.cli.config import add_config_argument, config_text
from int8calib.cli.console import Console
from int8calib.cli.image_options import add_image_arguments, image_options
from int8calib.cli.network import (
    DeviceOptions,
    NetworkOptions,
    add_device_arguments,
    add_network_arguments,
    open_job,
    say_device,
)
from int8calib.cli.options import (
    CheckpointOptions,
    ClusterOptions,
    MessageOptions,
    RunOptions,
    add_checkpoint_arguments,
    add_cluster_arguments,
    add_run_arguments,
    read_options,
)
from int8calib.cli.outputs import (
    NcnnFiles,
    TableFiles,
    add_ncnn_argument,
    calibration_texts,
    counted,
    is_stdout,
    show_calibration,
)
from int8calib.cli.table_options import TableOptions, add_table_arguments, check_names
from int8calib.errors import OptionError

if TYPE_CHECKING:
    from int8calib.caffe.engine.executor import CaffeExecutor
    from int8calib.caffe.engine.run import Net
    from int8calib.caffe.network.quantized import QuantizedLayer
    from int8calib.calibration.assemble import Calibration
    from int8calib.calibration.options import Options
    from int8calib.calibration.pipeline import Job
    from int8calib.cli.loader import ImageLoader
    from int8calib.files import Contents
    from int8calib.ncnn.execution.network import NcnnNet
    from int8calib.rounding.levels import Int8Form
    from int8calib.rounding.sampler import ColumnSampler
    from int8calib.table import CalibrationTable
    from int8calib.workers import Progress

_NOT_REPORTED = frozenset(("run", "command", "config", "quiet", "verbose", "debug"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `int8calib calibrate`."""
    add_config_argument(parser)
    add_network_arguments(parser)
    add_image_arguments(parser)
    group = parser.add_argument_group("table")
    group.add_argument("--output", required=True, metavar="FILE", help="the table to write")
    add_ncnn_argument(group)
    group.add_argument(
        "--rounding",
        choices=("second-order", "nearest"),
        default="second-order",
        help="how --ncnn rounds weights to INT8: second-order (default) chooses the levels that "
        "disturb each layer's outputs least and corrects biases, nearest does as ncnn2int8; the "
        "table and the float model do not depend on it",
    )
    group.add_argument(
        "--equalize",
        action="store_true",
        help="let channels of the INT8 model of --ncnn share the range of their blob evenly, which "
        "takes almost four times as long; the table and the float model do not depend on it",
    )
    add_table_arguments(group)
    add_run_arguments(parser)
    add_device_arguments(parser)
    add_checkpoint_arguments(parser)
    add_cluster_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Calibrate and write the table, its report and its options."""
    from int8calib.caffe.engine.run import Net
    from int8calib.calibration.pipeline import run_job

    started = time.perf_counter()
    console = Console(read_options(MessageOptions, args), stdout_taken=is_stdout(args.output))
    console.keep_warnings()
    model = read_options(NetworkOptions, args)
    machine = read_options(RunOptions, args)
    long_run = read_options(CheckpointOptions, args)
    cluster = read_options(ClusterOptions, args)
    gpu = read_options(DeviceOptions, args)
    files = TableFiles(args.output, ".json", ".toml")
    models = NcnnFiles(args.ncnn)
    files.check(*models.paths, long_run.checkpoint, inputs=model.files)
    options = read_options(TableOptions, args).calibration(
        fold_bn=args.fold_bn,
        workers=machine.worker_count,
        exact=machine.exact,
        cache_bytes=machine.cache_bytes,
    )
    device = gpu.open()
    net = model.load(machine.worker_count, device)
    models.check(net)
    wanted = bool(models.paths) and args.rounding == "second-order"
    second_order = _rounds_second_order(console, net, wanted=wanted, equalize=args.equalize)
    if isinstance(net, Net) and net.graph.unused_weights:
        console.detail(f"{model.model}: {len(net.graph.unused_weights)} layers are not used")
    opened = open_job(model, net, options, image_options(args), workers=machine.worker_count)
    opened.images.send_files = cluster.send_images
    check_names(opened.job.layers, args.format)
    job, batches, fingerprint = opened.job, opened.images, opened.fingerprint
    say_device(console, device, min(batches.batch_size, len(batches)))
    checkpoint = long_run.open({**fingerprint, **batches.order(), **opened.device})
    rounding = None
    if second_order:
        how = {"offsets": args.offsets, "equalize": args.equalize}
        rounding = _Rounding.of(net, job, len(batches), **how)
    with cluster.open(checkpoint=long_run.checkpoint) as client, console.progress() as progress:
        done = run_job(
            job if rounding is None else rounding.watched(job),
            batches,
            options,
            total=len(batches),
            progress=progress,
            meta=_meta(vars(args), model, fingerprint, batches.batch_size),
            checkpoint=checkpoint,
            cluster=client,
        )
        form = None if rounding is None else rounding.form(done, batches, options, progress)
    batches.print_skipped(console)
    contents, notes = _ncnn_contents(models, net, done.table, form, options)
    table, report = calibration_texts(
        args.format, done, job.candidates, options, [*console.notes, *notes]
    )
    config = config_text("calibrate", vars(args), add_arguments)
    files.write(table, {".json": report, ".toml": config}, contents)
    if checkpoint is not None:
        checkpoint.remove()
    show_calibration(console, done)
    seconds = time.perf_counter() - started
    console.say(
        f"{args.output}: {counted(done)} in {seconds:.1f} s"
        f"{files.told({'.json': 'report', '.toml': 'options'})}"
    )
    models.tell(console, notes)
    return 0


def _rounds_second_order(
    console: Console, net: Net | NcnnNet, *, wanted: bool, equalize: bool
) -> bool:
    """Whether weights are rounded so as `wanted`; says why not, and refuses what needs it."""
    from int8calib.caffe.engine.run import Net

    if wanted and not isinstance(net, Net):
        console.say("note: it runs in ncnn, so weights are rounded to nearest (--engine numpy)")
    if equalize and not (wanted and isinstance(net, Net)):
        raise OptionError(
            "--equalize is for the INT8 model of --ncnn, with weights rounded second-order by numpy"
        )
    return wanted and isinstance(net, Net)


def _ncnn_contents(
    models: NcnnFiles,
    net: Net | NcnnNet,
    table: CalibrationTable,
    form: Int8Form | None,
    options: Options,
) -> tuple[Contents, tuple[str, ...]]:
    """The contents of `--ncnn`'s files, and notes on the INT8 model, which is of `form` if given.

    The float model is that of the network as it was given.
    """
    how: dict[str, Any] = {"winograd": options.weights.winograd == "safe"}
    if form is None or form.net is net:
        int8_table, rounded = (table, {}) if form is None else (form.table, form.rounded)
        return models.contents(net, int8_table, fold_bn=options.fold_bn, rounded=rounded, **how)
    given, _ = models.contents(net, table, fold_bn=options.fold_bn, **how)
    made, notes = models.contents(form.net, form.table, fold_bn=True, rounded=form.rounded, **how)
    made = {**given, **{path: made[path] for path in models.paths[2:]}}
    return made, notes


@dataclass(frozen=True, eq=False)
class _Rounding:
    """Weights rounded so that they disturb outputs least, by samples of the calibration's pass."""

    net: Net
    job: Job[CaffeExecutor]
    layers: list[QuantizedLayer]
    sampler: ColumnSampler
    images: int
    offsets: bool
    equalize: bool

    @classmethod
    def of(
        cls, net: Any, job: Job[CaffeExecutor], images: int, *, offsets: bool, equalize: bool
    ) -> _Rounding:
        from int8calib.caffe.network.quantized import QuantizedLayer
        from int8calib.rounding.sampler import ColumnSampler

        layers = [layer for layer in job.layers if isinstance(layer, QuantizedLayer)]
        sampler = ColumnSampler(layers, images)
        return cls(net, job, layers, sampler, images, offsets, equalize)

    def watched(self, job: Job[Any]) -> Job[Any]:
        """The job, whose activations are sampled as they pass."""
        return replace(job, executor=self.sampler.watch(job.executor))

    def form(
        self,
        done: Calibration,
        batches: ImageLoader,
        options: Options,
        progress: Progress,
    ) -> Int8Form:
        """How the network becomes INT8, after the pass."""
        from int8calib.rounding.bias import depthwise_before_relu
        from int8calib.rounding.levels import Int8Form, round_weights

        table = _with_offsets(self.net, done, options) if self.offsets else done.table
        if self.equalize:
            from int8calib.tuning.equalized import equalized_form

            return equalized_form(
                self.net, self.job, table, batches, options, total=self.images, progress=progress
            )
        rounded = round_weights(
            self.layers,
            table,
            self.sampler,
            {layer.name: options.weights.grid(layer) for layer in self.layers},
            before_relu=depthwise_before_relu(self.job.executor.graph),
            workers=options.workers,
            progress=progress,
        )
        return Int8Form(self.net, table, rounded)


def _with_offsets(net: Net, done: Calibration, options: Options) -> CalibrationTable:
    """The table of the INT8 model, whose blobs have an offset where that is possible."""
    from int8calib.rounding.unsigned import network_groups, unsigned_table

    groups = network_groups(net, done.table, fold_bn=options.fold_bn)
    return unsigned_table(done.table, groups, done.statistics.histograms)


def _meta(
    arguments: Mapping[str, Any], model: NetworkOptions, fingerprint: Mapping[str, Any], batch: int
) -> dict[str, Any]:
    """What the report says of the files, the images of a batch, and the command."""
    kinds = ("prototxt", "caffemodel") if model.is_caffe else ("param", "bin")
    hashes = [fingerprint[kind] for kind in kinds]
    return {
        "files": dict(zip(model.files, hashes, strict=True)),
        "batch": batch,
        "arguments": {
            name: value
            for name, value in arguments.items()
            if name not in _NOT_REPORTED and value is not None
        },
    }
