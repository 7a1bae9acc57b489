"""Calibrate the built-in network on pictures that are drawn on the spot.

Writes pictures, model, table, report and ncnn models into a folder, compares the accuracy in float
and in INT8, in ncnn itself where that is installed, and shows commands that go on from there.
--detection does the same for a small detector: average precision, and boxes drawn on scenes.
"""

from __future__ import annotations

import argparse
import math
import shlex
import tempfile
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from int8calib.cli.console import Console
from int8calib.cli.options import MessageOptions, read_options
from int8calib.cli.outputs import make_folder
from int8calib.errors import OptionError

if TYPE_CHECKING:
    from int8calib.caffe.engine.run import Net
    from int8calib.evaluation.evaluate import Labeled
    from int8calib.evaluation.results import Accuracy

CALIBRATION_IMAGES = 100
TEST_IMAGES = 500
CALIBRATION_SEED = 1
TEST_SEED = 2
BATCH = 50


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `int8calib demo`."""
    parser.add_argument(
        "--output", metavar="DIR", help="where to write (default: a new folder for temporary files)"
    )
    parser.add_argument(
        "--detection", action="store_true", help="the built-in detector in place of the classifier"
    )


def run(args: argparse.Namespace) -> int:
    """Draw, calibrate, compare, and show what came out."""
    from int8calib.cli.demo_detection import run_detection

    console = Console(read_options(MessageOptions, args))
    output: str | None = args.output
    folder = make_folder(output or tempfile.mkdtemp(prefix="int8calib-demo-"))
    messages = ["--quiet"] * args.quiet + ["--verbose"] * args.verbose
    if args.detection:
        run_detection(console, folder, messages)
    else:
        _run_classification(console, folder, messages)
    return 0


def _run_classification(console: Console, folder: Path, messages: Sequence[str]) -> None:
    from int8calib.cli.main import run_command
    from int8calib.demo import CAFFEMODEL, MEAN, NORM, PROTOTXT, draw
    from int8calib.files import write_atomic

    images, test = folder / "images", folder / "test"
    console.say(f"drawing {CALIBRATION_IMAGES} pictures of {len(draw.LABELS)} shapes in {folder}")
    draw.write_images(images, CALIBRATION_IMAGES, CALIBRATION_SEED)
    draw.write_images(test, TEST_IMAGES, TEST_SEED)
    proto, model, table = folder / PROTOTXT.name, folder / CAFFEMODEL.name, folder / "demo.table"
    write_atomic(proto, PROTOTXT.read_bytes())
    write_atomic(model, CAFFEMODEL.read_bytes())
    network = ["--proto", str(proto), "--model", str(model)]
    pixels = ["--mean", *(f"{m:g}" for m in MEAN), "--norm", f"{NORM:g}"]
    calibrate = ["calibrate", *network, "--images", str(images), *pixels]
    calibrate += ["--output", str(table), "--ncnn", str(folder / "demo")]
    run_command([*calibrate, *messages])
    console.result("", f"Head of {table}:")
    for line in table.read_text(encoding="utf-8").splitlines()[:6]:
        console.result(line if len(line) <= 88 else f"{line[:85]}...")
    _show_accuracy(console, proto, model, table)
    evaluate = ["evaluate", *network, "--images", str(test), "--labels", str(test), *pixels]
    pairs = [
        [str(folder / f"demo{name}.{end}") for name in ("", "-int8")] for end in ("param", "bin")
    ]
    predict = ["predict", "--param", *pairs[0], "--bin", *pairs[1], "--images", str(test), *pixels]
    predict += ["--limit", "5"]
    console.result(
        "",
        "To measure what a table does to the accuracy:",
        _command([*evaluate, "--table", str(table)]),
        "",
        "To run the ncnn models, float beside INT8 (pip install 'int8calib[ncnn]'):",
        _command(predict),
        "",
        "To repeat the calibration by hand:",
        _command(calibrate),
    )


def _command(words: Sequence[str]) -> str:
    """A command line that can be pasted into a shell."""
    return shlex.join(["int8calib", *words])


def _show_accuracy(console: Console, proto: Path, model: Path, table: Path) -> None:
    """Float beside INT8 on fresh pictures: simulated, and in ncnn where that is installed."""
    import int8calib
    from int8calib.evaluation.outputs import Comparison
    from int8calib.evaluation.runtime import evaluate_runtime

    net = int8calib.load_caffe(proto, model)
    tables = int8calib.read_table(table)
    found = int8calib.evaluate(net, tables, lambda: _test_batches(net), topk=(1,))
    in_float, in_int8 = (100 * _top1(x) for x in (found.float_accuracy, found.tables[0].accuracy))
    console.result(
        "",
        f"Accuracy on {TEST_IMAGES} other pictures: {in_float:.1f} % in float, {in_int8:.1f} % in "
        "INT8 (simulated)",
    )
    try:
        real = evaluate_runtime(net, tables, lambda: _test_batches(net), Comparison(topk=(1,)))
    except OptionError as error:
        console.say(f"not run in ncnn: {error}")
        return
    found, times = real.evaluation, real.milliseconds
    in_float, in_int8 = (100 * _top1(x) for x in (found.float_accuracy, found.tables[0].accuracy))
    console.result(
        f"In ncnn itself: {in_float:.1f} % in float, {in_int8:.1f} % in INT8, which is "
        f"{times['float'] / times['table']:.2f} times as fast "
        f"({times['float']:.2f} ms and {times['table']:.2f} ms a picture)"
    )


def _top1(accuracy: Accuracy | None) -> float:
    return math.nan if accuracy is None else accuracy.topk[1].value


def _test_batches(net: Net) -> Iterator[Labeled]:
    import numpy as np

    import int8calib
    from int8calib.demo import MEAN, NORM, draw
    from int8calib.images import Preprocess

    ((name, shape),) = net.input_shapes.items()
    preprocess = Preprocess((shape[1], shape[2], shape[3]), mean=MEAN, norm=NORM)
    pictures = draw.draw_images(TEST_IMAGES, TEST_SEED)
    while drawn := list(islice(pictures, BATCH)):
        data = np.stack([preprocess(image) for image, _ in drawn])
        yield int8calib.Labeled({name: data}, [label for _, label in drawn])
