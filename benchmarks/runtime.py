"""Float against INT8 in ncnn's runtime: `python -m benchmarks.runtime [NETWORK ...]`.

Each network is calibrated, converted and quantized here and run by PyPI's ncnn (the extra `ncnn`);
float and INT8 run in turn, and the table goes into docs/measured.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np

import int8calib
from benchmarks.__main__ import machine
from benchmarks.networks import MEAN, NETWORKS, ROOT, Network, gather
from benchmarks.report import insert
from int8calib.images import Preprocess, open_source
from int8calib.ncnn.convert.deploy import ncnn_pair
from int8calib.ncnn.model import NcnnModel
from int8calib.ncnn.runtime import RuntimeNet
from int8calib.ncnn.weights import write_weights

BEGIN, END = "<!-- runtime:begin -->", "<!-- runtime:end -->"
PAGE = ROOT / "docs" / "measured.md"
CALIBRATION_IMAGES = 8
WARM_UP = 3
THREADS = (1, 2)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the networks named, print the table, and write it into the docs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=f"of {', '.join(NETWORKS)}")
    parser.add_argument("--rounds", type=int, default=30, help="images of each model (default: 30)")
    parser.add_argument("--dry-run", action="store_true", help="print only")
    args = parser.parse_args(argv)
    work = Path(tempfile.gettempdir()) / "int8calib-benchmarks"
    material = gather(work, args.networks or NETWORKS, lambda text: print(text, file=sys.stderr))
    rows = [measure(network, material.images, args.rounds) for network in material.networks]
    head = [
        "network",
        *(
            f"{name}, {n} thread{'s' * (n > 1)}"
            for n in THREADS
            for name in ("float ms", "INT8 ms", "times as fast")
        ),
        "weights",
    ]
    lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    here = machine()
    packages = ", ".join(
        f"{name} {version}" for name, version in here["packages"].items() if version
    )
    text = "\n".join([*lines, "", f"{here['processor']}, {here['cores']} cores; {packages}."])
    print(text)
    if not args.dry_run:
        insert(PAGE, BEGIN, END, text)
    return 0


def measure(network: Network, images: Sequence[Path], rounds: int) -> list[str]:
    """One row: median milliseconds and their ratio for each number of threads, sizes of files."""
    net = network.load()
    ((name, shape),) = net.input_shapes.items()
    preprocess = Preprocess(shape[1:], mean=network.mean or MEAN, norm=network.norm)
    source = open_source(list(images[: max(CALIBRATION_IMAGES, 1)]))
    blobs = [preprocess(source.load(i)) for i in range(len(source))]
    done = int8calib.calibrate(net, lambda: ({name: blob[None]} for blob in blobs))
    pair = ncnn_pair(net, done.table)
    row = [network.name]
    for threads in THREADS:
        slow, fast = times(pair, name, blobs, rounds, threads)
        row += [f"{slow:.2f}", f"{fast:.2f}", f"{slow / fast:.2f}"]
    sizes = [len(write_weights(model.layers)) / 1e6 for model in pair]
    return [*row, f"{sizes[0]:.1f} to {sizes[1]:.1f} MB"]


def times(
    models: Sequence[NcnnModel], name: str, blobs: Sequence[np.ndarray], rounds: int, threads: int
) -> list[float]:
    """Median milliseconds an image of each model, which run in turn."""
    nets = [RuntimeNet(model, threads=threads) for model in models]
    taken: list[list[float]] = [[] for _ in nets]
    for i in range(WARM_UP + rounds):
        for net, own in zip(nets, taken, strict=True):
            net.run({name: blobs[i % len(blobs)]}, net.outputs[-1:])
            own.append(1000 * net.seconds)
    return [median(own[WARM_UP:]) for own in taken]


if __name__ == "__main__":
    sys.exit(main())
