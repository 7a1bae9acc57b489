"""Calibrate the built-in network on pictures that are drawn on the spot.

Writes images, model, table and report into a folder, and says how to repeat it by hand.
"""

from __future__ import annotations

import argparse
import shlex
import tempfile
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from int8calib.cli.console import Console
from int8calib.cli.options import MessageOptions, read_options

if TYPE_CHECKING:
    from int8calib.caffe.engine.run import Net

CALIBRATION_IMAGES = 100
TEST_IMAGES = 500
CALIBRATION_SEED = 1
TEST_SEED = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `int8calib demo`."""
    parser.add_argument(
        "--output", metavar="DIR", help="where to write (default: a new folder for temporary files)"
    )


def run(args: argparse.Namespace) -> int:
    """Draw, calibrate, and show what came out."""
    from int8calib.caffe.engine.run import load_caffe
    from int8calib.cli.main import run_command
    from int8calib.demo import CAFFEMODEL, MEAN, NORM, PROTOTXT, draw
    from int8calib.files import write_atomic

    console = Console(read_options(MessageOptions, args))
    folder = _folder(args.output)
    console.say(f"drawing {CALIBRATION_IMAGES} pictures of {len(draw.LABELS)} shapes in {folder}")
    draw.write_images(folder / "images", CALIBRATION_IMAGES, CALIBRATION_SEED)
    proto, model = folder / PROTOTXT.name, folder / CAFFEMODEL.name
    write_atomic(proto, PROTOTXT.read_bytes())
    write_atomic(model, CAFFEMODEL.read_bytes())
    table = folder / "demo.table"
    command = [
        *("int8calib", "calibrate", "--proto", str(proto), "--model", str(model)),
        *("--images", str(folder / "images"), "--mean", *(f"{m:g}" for m in MEAN)),
        *("--norm", f"{NORM:g}"),
        *("--output", str(table)),
    ]
    messages = ["--quiet"] * args.quiet + ["--verbose"] * args.verbose
    run_command([*command[1:], *messages])
    accuracy = _accuracy(load_caffe(proto, model))
    console.result("", f"Head of {table}:")
    for line in table.read_text(encoding="utf-8").splitlines()[:6]:
        console.result(line if len(line) <= 88 else f"{line[:85]}...")
    console.result(
        "",
        f"Float accuracy on {TEST_IMAGES} other pictures: {100 * accuracy:.1f} %",
        "",
        "To repeat the calibration by hand:",
        shlex.join(command),
    )
    return 0


def _folder(output: str | None) -> Path:
    from int8calib.errors import OutputError

    if output is None:
        return Path(tempfile.mkdtemp(prefix="int8calib-demo-"))
    folder = Path(output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{output}: cannot be made a folder ({error.strerror})") from None
    return folder


def _accuracy(net: Net) -> float:
    """The share of fresh pictures that the float network names rightly."""
    import numpy as np

    from int8calib.demo import MEAN, NORM, draw
    from int8calib.images import Preprocess

    (name, shape), *_ = net.input_shapes.items()
    preprocess = Preprocess((shape[1], shape[2], shape[3]), mean=MEAN, norm=NORM)
    pictures = draw.draw_images(TEST_IMAGES, TEST_SEED)
    right = 0
    while batch := list(islice(pictures, 50)):
        data = np.stack([preprocess(image) for image, _ in batch])
        (scores,) = net.forward({name: data}).values()
        labels = np.array([label for _, label in batch])
        right += int((scores.reshape(len(batch), -1).argmax(axis=1) == labels).sum())
    return right / TEST_IMAGES
