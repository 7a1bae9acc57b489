"""Calibrate the built-in network on pictures that are drawn on the spot.

Writes pictures, model, table and report into a folder, compares the accuracy in float and in INT8,
and shows commands that go on from there.
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

if TYPE_CHECKING:
    from int8calib.caffe.engine.run import Net
    from int8calib.evaluation.evaluate import Labelled
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


def run(args: argparse.Namespace) -> int:
    """Draw, calibrate, compare, and show what came out."""
    from int8calib.cli.main import run_command
    from int8calib.demo import CAFFEMODEL, MEAN, NORM, PROTOTXT, draw
    from int8calib.files import write_atomic

    console = Console(read_options(MessageOptions, args))
    output: str | None = args.output
    folder = make_folder(output or tempfile.mkdtemp(prefix="int8calib-demo-"))
    images, test = folder / "images", folder / "test"
    console.say(f"drawing {CALIBRATION_IMAGES} pictures of {len(draw.LABELS)} shapes in {folder}")
    draw.write_images(images, CALIBRATION_IMAGES, CALIBRATION_SEED)
    draw.write_images(test, TEST_IMAGES, TEST_SEED)
    proto, model, table = folder / PROTOTXT.name, folder / CAFFEMODEL.name, folder / "demo.table"
    write_atomic(proto, PROTOTXT.read_bytes())
    write_atomic(model, CAFFEMODEL.read_bytes())
    network = ["--proto", str(proto), "--model", str(model)]
    pixels = ["--mean", *(f"{m:g}" for m in MEAN), "--norm", f"{NORM:g}"]
    calibrate = ["calibrate", *network, "--images", str(images), *pixels, "--output", str(table)]
    messages = ["--quiet"] * args.quiet + ["--verbose"] * args.verbose
    run_command([*calibrate, *messages])
    console.result("", f"Head of {table}:")
    for line in table.read_text(encoding="utf-8").splitlines()[:6]:
        console.result(line if len(line) <= 88 else f"{line[:85]}...")
    in_float, in_int8 = _accuracies(proto, model, table)
    evaluate = ["evaluate", *network, "--images", str(test), "--labels", str(test), *pixels]
    console.result(
        "",
        f"Accuracy on {TEST_IMAGES} other pictures: {100 * in_float:.1f} % in float, "
        f"{100 * in_int8:.1f} % in INT8 (simulated)",
        "",
        "To calibrate by hand and write the ncnn models too:",
        _command([*calibrate, "--ncnn", str(folder / "demo")]),
        "",
        "To measure what a table does to the accuracy:",
        _command([*evaluate, "--table", str(table)]),
    )
    return 0


def _command(words: Sequence[str]) -> str:
    """A command line that can be pasted into a shell."""
    return shlex.join(["int8calib", *words])


def _accuracies(proto: Path, model: Path, table: Path) -> tuple[float, float]:
    """The shares of fresh pictures that the network names rightly, in float and in INT8."""
    import int8calib
    from int8calib.table import read_table

    net = int8calib.load_caffe(proto, model)
    found = int8calib.evaluate(net, read_table(table), lambda: _test_batches(net), topk=(1,))
    in_float, in_int8 = found.float_accuracy, found.tables[0].accuracy
    return _top1(in_float), _top1(in_int8)


def _top1(accuracy: Accuracy | None) -> float:
    return math.nan if accuracy is None else accuracy.topk[1].value


def _test_batches(net: Net) -> Iterator[Labelled]:
    import numpy as np

    import int8calib
    from int8calib.demo import MEAN, NORM, draw
    from int8calib.images import Preprocess

    ((name, shape),) = net.input_shapes.items()
    preprocess = Preprocess((shape[1], shape[2], shape[3]), mean=MEAN, norm=NORM)
    pictures = draw.draw_images(TEST_IMAGES, TEST_SEED)
    while drawn := list(islice(pictures, BATCH)):
        data = np.stack([preprocess(image) for image, _ in drawn])
        yield int8calib.Labelled({name: data}, [label for _, label in drawn])
