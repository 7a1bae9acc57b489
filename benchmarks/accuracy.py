"""README's accuracy table, one split of the images: `python -m benchmarks.accuracy [--seed S]`.

Half of the images calibrate and tune, the other half is reported, each image as it is and mirrored,
since so few leave much to chance. Everything is held against the original float network. Takes a
few minutes a model; needs the folder of real models (`INT8CALIB_SHARED`).
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import int8calib
from benchmarks.networks import shared_folder
from int8calib.images import Preprocess, batches, open_source
from int8calib.tuning.validation import Validator

MODELS = {
    "bons_imagenet_mod11l": (
        "MobilenetV2-mod11l-ImageNet_iter_850000.caffemodel",
        {"norm": 0.017, "resize": "crop", "resize_to": 256},
    ),
    "squeezenet_v1.1": ("squeezenet_v1.1.caffemodel", {}),
    "squeezenet_v1.0": ("squeezenet_v1.0.caffemodel", {}),
}
METHODS = ("kl", "aciq", "mse")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the models named (all by default) and print their rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", help=f"of {', '.join(MODELS)} (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="which half calibrates")
    args = parser.parse_args(argv)
    images = sorted((shared_folder() / "images/imagenet_300").glob("*.jpg"))
    random.Random(args.seed).shuffle(images)
    print("| model | | top-1 | top-5 | agree | SQNR |\n|---|---|---|---|---|---|")
    for name in args.models or MODELS:
        measure(name, images)
    return 0


def measure(name: str, images: Sequence[Path]) -> None:
    """The rows of one model."""
    shared = shared_folder()
    weights, pixels = MODELS[name]
    folder = shared / "models" / name
    net = int8calib.load_caffe(folder / "deploy.prototxt", folder / weights)
    shape = net.input_shapes["data"][1:]
    preprocess = Preprocess(shape, mean=(104, 117, 123), **pixels)  # type: ignore[arg-type]
    half = len(images) // 2
    used, held_out = (open_source(list(part)) for part in (images[:half], images[half:]))

    def loader() -> list[dict[str, object]]:
        return [batch.blobs for batch in batches(used, preprocess)]

    nets = {}
    for method in METHODS:
        made = int8calib.calibrate(net, loader, int8calib.Options(method=method))
        nets[method] = int8calib.simulate(net, made.table)
    for label, more_work in (("tuned, as wide", 0.0), ("tuned", int8calib.TuneOptions.more_work)):
        options = int8calib.TuneOptions(change_model=True, more_work=more_work)
        started = time.perf_counter()
        tuned = int8calib.tune(net, loader, int8calib.Options(), options)
        seconds = time.perf_counter() - started
        nets[label] = int8calib.simulate(tuned.net, tuned.table)
        print(f"{label}: {seconds:.0f} s; {'; '.join(tuned.notes)}", file=sys.stderr)
    lines = (shared / "images/imagenet_300_labels.txt").read_text().splitlines()
    labels = dict(line.split() for line in lines)
    given = [
        int8calib.Labeled({"data": image}, [int(labels[Path(batch.names[0]).name])])
        for batch in batches(held_out, preprocess)
        for image in (batch.blobs["data"], np.ascontiguousarray(batch.blobs["data"][..., ::-1]))
    ]
    found = Validator(net, given, scores=None, workers=2)(nets)
    print(f"| {name} | float | {_accuracy(found.float_accuracy)} | | |")
    for table in found.tables:
        sqnr = table.blobs[0].sqnr
        print(
            f"| | {table.name} | {_accuracy(table.accuracy)} "
            f"| {100 * table.agreement.value:.1f} | {sqnr:.1f} |",
            flush=True,
        )


def _accuracy(accuracy: object) -> str:
    """Top-1 and top-5 in percent."""
    return " | ".join(f"{100 * accuracy.topk[k].value:.1f}" for k in (1, 5))  # type: ignore[attr-defined]


if __name__ == "__main__":
    raise SystemExit(main())
