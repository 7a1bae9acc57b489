"""One pass against two: `python -m benchmarks.one_pass [MODEL ...]`.

Every model of the folder INT8CALIB_SHARED (or ../shared) is calibrated over photos in one pass and,
exactly, in two. Printed is how far the thresholds of a method lie apart, in bins of 2048, and what
that costs by the method's own measure, both on the exact histogram.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

import int8calib
from benchmarks.networks import ROOT
from int8calib.calibration.statistics.collect import collect_statistics
from int8calib.calibration.statistics.histogram import BINS, Histogram
from int8calib.calibration.thresholds import find_threshold
from int8calib.calibration.thresholds.error_kernels import mse_curve
from int8calib.calibration.thresholds.kernels import LEVELS, kl_curve
from int8calib.errors import Int8CalibError

METHODS = ("mse", "kl", "percentile")
SHAPES = (None, (1, 1, 28, 28), (1, 3, 32, 32), (1, 3, 64, 64))
"""Input shapes to try, for models that do not say theirs."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure all models and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.one_pass", description=__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="folders of models to take")
    parser.add_argument("--images", type=int, default=20, help="photos of each (default: 20)")
    args = parser.parse_args(argv)
    shared = Path(os.environ.get("INT8CALIB_SHARED", ROOT.parent / "shared"))
    pictures = [read(path) for path in photos(shared, args.images)]
    print(
        "| model | blobs | " + " | ".join(f"{m}: bins, worst (within 1)" for m in METHODS), end=""
    )
    print(" | mse: costs more | kl: costs more |\n|" + "---|" * (4 + len(METHODS)))
    total: dict[str, list[float]] = {method: [] for method in METHODS}
    for name, net in models(shared, args.models):
        found = compare(net, pictures)
        if found is None:
            print(f"{name}: does not run on photos", file=sys.stderr)
            continue
        bins, costs = found
        cells = [f"{max(bins[m]):.2f} ({share(bins[m])})" for m in METHODS]
        cells += [f"{100 * max(costs[m]):.3f} %" for m in ("mse", "kl")]
        print(f"| {name} | {len(bins['mse'])} | " + " | ".join(cells) + " |", flush=True)
        for method in METHODS:
            total[method] += bins[method]
    for method, gaps in total.items():
        print(
            f"{method}: of {len(gaps)} blobs {share(gaps)} within 1 bin, {share(gaps, 4)} within 4 "
            f"(0.2 % of the absmax), worst {max(gaps):.2f} bins"
        )
    return 0


def share(gaps: Sequence[float], most: float = 1) -> str:
    """How many are at most so many bins apart."""
    return f"{100 * sum(gap <= most for gap in gaps) / len(gaps):.1f} %"


def photos(shared: Path, count: int) -> list[Path]:
    """Some image files."""
    files = sorted(
        path for path in (shared / "images").rglob("*") if path.suffix in (".jpg", ".JPEG", ".png")
    )
    step = max(1, len(files) // count)
    return files[::step][:count]


def read(path: Path) -> NDArray[np.uint8]:
    """A picture as BGR."""
    picture = cv2.imread(str(path))
    if picture is None:
        raise SystemExit(f"{path}: cannot be read")
    return picture.astype(np.uint8)


def models(shared: Path, wanted: Sequence[str]) -> Iterator[tuple[str, int8calib.Net]]:
    """Every pair of prototxt and caffemodel that loads."""
    for folder in sorted((shared / "models").iterdir()):
        if not folder.is_dir() or (wanted and folder.name not in wanted):
            continue
        for proto in sorted(folder.glob("*.prototxt")):
            for model in sorted(folder.glob("*.caffemodel")):
                net = load(proto, model)
                if net is not None:
                    yield folder.name, net


def load(proto: Path, model: Path) -> int8calib.Net | None:
    """The network, with a size for its input where it has none."""
    for shape in SHAPES:
        try:
            return int8calib.load_caffe(
                proto, model, input_shapes=None if shape is None else {"data": shape}
            )
        except Int8CalibError:
            continue
    return None


def compare(
    net: int8calib.Net, pictures: Sequence[NDArray[np.uint8]]
) -> tuple[dict[str, list[float]], dict[str, list[float]]] | None:
    """For each method, the gaps in bins and the relative costs of all blobs."""
    (name, shape), *others = net.input_shapes.items()
    if others or len(shape) != 4 or shape[1] not in (1, 3):
        return None

    def batches() -> Iterator[dict[str, NDArray[np.float32]]]:
        for picture in pictures:
            x = cv2.resize(picture, (shape[3], shape[2])).astype(np.float32) - 117
            x = x.mean(axis=2, keepdims=True) if shape[1] == 1 else x
            yield {name: np.ascontiguousarray(x.transpose(2, 0, 1)[None], np.float32)}

    try:
        executor = net.executor()
        blobs = [layer.blob for layer in executor.layers]
        exact, once = (
            collect_statistics(executor, batches, blobs, exact=exact, workers=2).histograms
            for exact in (True, False)
        )
    except Int8CalibError:
        return None
    alive = [blob for blob in exact if exact[blob].nonzero]
    bins: dict[str, list[float]] = {method: [] for method in METHODS}
    costs: dict[str, list[float]] = {"mse": [], "kl": []}
    for blob in alive:
        for method in METHODS:
            a, b = (find_threshold(histograms[blob], method) for histograms in (exact, once))
            bins[method].append(abs(a.value - b.value) / exact[blob].absmax * BINS)
            if method in costs and a.bin is not None and b.bin is not None:
                costs[method].append(_costs_more(exact[blob], method, a.bin, b.bin))
    return bins, costs


def _costs_more(histogram: Histogram, method: str, best: int, other: int) -> float:
    """By how much `other` costs more than `best`, on the exact histogram."""
    counts = histogram.counts.astype(np.float64)
    if not counts[:-1].any():
        return 0.0
    curve, first = (mse_curve(counts, 127), 1) if method == "mse" else (kl_curve(counts), LEVELS)
    at, least = curve[min(other - first, curve.size - 1)], curve[best - first]
    return float(at / least - 1) if least > 0 else 0.0


if __name__ == "__main__":
    sys.exit(main())
