"""CPU against GPU: `python -m benchmarks.gpu [NETWORK ...]`.

Images are decoded before the clock runs. Each network's statistics are collected on all cores and
on the GPU; then upload, forward pass and counting of a batch are timed apart, the device waited for
after each. Thresholds of both are compared, in bins of 2048. The figures go into
benchmarks/gpu.json, the table into docs/measured.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import int8calib
from benchmarks.__main__ import machine
from benchmarks.networks import DEMO, MEAN, NETWORKS, ROOT, Network, gather
from benchmarks.report import insert
from int8calib import device as devices
from int8calib.arrays import Array, to_host
from int8calib.caffe.engine.on_device import device_batch
from int8calib.calibration.pipeline import Job, make_table, prepare
from int8calib.calibration.statistics.collect import collect_statistics
from int8calib.calibration.statistics.counters import OnePassCounters, image_checksums
from int8calib.calibration.statistics.histogram import BINS
from int8calib.errors import OptionError
from int8calib.images import Preprocess, open_source
from int8calib.workers import usable_cores

BEGIN, END = "<!-- gpu:begin -->", "<!-- gpu:end -->"
PAGE = ROOT / "docs" / "measured.md"
RESULTS = ROOT / "benchmarks" / "gpu.json"
HEAD = (
    *("network", "images/s, CPU", "images/s, GPU", "times as fast", "batch"),
    *("upload ms", "forward ms", "counting ms", "worst bins apart", "within 1 bin"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the networks named; 2 where there is no GPU."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    known = ", ".join((*NETWORKS, DEMO))
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=f"of {known}")
    parser.add_argument("--gpu", type=int, default=0, metavar="N", help="CUDA device (default: 0)")
    parser.add_argument("--images", type=int, default=256, metavar="N", help="default: 256")
    parser.add_argument(
        "--batch", type=int, metavar="N", help="images of a forward pass on the GPU"
    )
    parser.add_argument("--rounds", type=int, default=5, help="batches timed in parts (default: 5)")
    parser.add_argument("--dry-run", action="store_true", help="print only")
    args = parser.parse_args(argv)
    try:
        device = devices.open_device(f"cuda:{args.gpu}")
    except OptionError as error:
        print(error, file=sys.stderr)
        return 2
    work = Path(tempfile.gettempdir()) / "int8calib-benchmarks"
    material = gather(work, args.networks or NETWORKS, lambda text: print(text, file=sys.stderr))
    found: dict[str, Any] = {"machine": {**machine(), "gpu": device.hardware}, "networks": {}}
    found["machine"]["packages"]["cupy"] = getattr(device.xp, "__version__", None)
    for network in material.networks:
        print(f"{network.name} ...", file=sys.stderr, flush=True)
        images = list(islice(cycle(material.images), args.images))
        found["networks"][network.name] = measure(network, device, images, args.batch, args.rounds)
        if not args.dry_run:
            RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    text = table(found)
    print(text)
    if not args.dry_run:
        insert(PAGE, BEGIN, END, text)
    return 0


def measure(
    network: Network,
    device: devices.Device,
    images: Sequence[Path],
    batch: int | None,
    rounds: int,
) -> dict[str, Any]:
    """Images a second on both, the parts of a batch on the GPU, and how far thresholds differ."""
    net = network.load()
    there = int8calib.Net(net.graph, net.input_shapes, device=device)
    options = int8calib.Options()
    here_job, there_job = prepare(net, options), prepare(there, options)
    pixels = decoded(network, net, here_job.inputs, images)
    size = min(batch or most_images(there, there_job), len(images))
    one, many = batches(pixels, 1), batches(pixels, size)
    # Loops are compiled and memory is fetched before the clock runs.
    collect(here_job, one[: usable_cores()])
    collect(there_job, many[:1])
    cpu, here = timed(lambda: collect(here_job, one))
    gpu, on_gpu = timed(lambda: collect(there_job, many))
    gaps = bins_apart(make_table(here_job, here, options), make_table(there_job, on_gpu, options))
    return {
        "images": len(images),
        "batch": size,
        "cpu_images_per_second": len(images) / cpu,
        "gpu_images_per_second": len(images) / gpu,
        "milliseconds": parts(there_job, device, many[0], rounds),
        "bins_apart": {"worst": max(gaps), "within_1": float(np.mean(np.round(gaps) <= 1))},
    }


def most_images(net: int8calib.Net, job: Job[Any]) -> int:
    """The batch that a calibration takes on the device."""
    blobs = job.executor.versions(job.blobs)
    free = net.device.free_bytes if net.device is not None else 0
    return device_batch(net.graph, net.input_shapes, free, blobs)


def decoded(
    network: Network, net: int8calib.Net, inputs: Sequence[str], images: Sequence[Path]
) -> dict[str, Array]:
    """The images as one array (N, C, H, W) for each input."""
    source = open_source(list(dict.fromkeys(images)))
    found = {}
    for name in inputs:
        shape = net.input_shapes[name][1:]
        how = Preprocess(shape, mean=network.mean or MEAN, norm=network.norm)
        each = [how(source.load(i)) for i in range(len(source))]
        found[name] = np.stack(list(islice(cycle(each), len(images))))
    return found


def batches(pixels: Mapping[str, Array], size: int) -> list[dict[str, Array]]:
    """The images, so many at a time."""
    count = len(next(iter(pixels.values())))
    return [
        {name: array[start : start + size] for name, array in pixels.items()}
        for start in range(0, count, size)
    ]


def collect(job: Job[Any], given: Sequence[Mapping[str, Array]]) -> Any:
    """The statistics of a job over these batches, on all cores or on its GPU."""
    return collect_statistics(job.executor, lambda: iter(given), job.blobs, workers=usable_cores())


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """The seconds that `work` takes, and its result."""
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def parts(
    job: Job[Any], device: devices.Device, batch: Mapping[str, Array], rounds: int
) -> dict[str, float]:
    """Milliseconds an image of upload, forward pass and counting: medians, each by a difference."""
    run = job.executor.runner(job.blobs)
    checksums = image_checksums(batch)
    counters = OnePassCounters(job.blobs)

    def upload() -> None:
        for array in batch.values():
            device.asarray(array)

    def forward() -> None:
        run(batch, lambda blob, top: None)

    def whole() -> None:
        run(batch, lambda blob, top: counters.add(checksums, blob, top))

    taken: list[list[float]] = [[], [], []]
    for work, seconds in islice(cycle(zip((upload, forward, whole), taken, strict=True)), 3):
        waited(work, device)
        seconds.clear()
    for _ in range(rounds):
        for work, seconds in zip((upload, forward, whole), taken, strict=True):
            seconds.append(waited(work, device))
    up, run_through, all_of_it = (1000 * median(seconds) / len(checksums) for seconds in taken)
    return {"upload": up, "forward": run_through - up, "counting": all_of_it - run_through}


def waited(work: Callable[[], None], device: devices.Device) -> float:
    """The seconds until the device has done all of `work`."""
    with device.current():
        to_host(device.xp.zeros(1))
        started = time.perf_counter()
        work()
        to_host(device.xp.zeros(1))
        return time.perf_counter() - started


def bins_apart(here: int8calib.Calibration, there: int8calib.Calibration) -> list[float]:
    """How far the thresholds of each blob lie apart, in bins of 2048 of the CPU's absmax."""
    return [
        abs(a.threshold - b.threshold) / (a.absmax / BINS) if a.absmax else 0.0
        for a, b in _evidence(here, there)
    ]


def _evidence(here: Any, there: Any) -> Iterator[tuple[Any, Any]]:
    for a, b in zip(here.table.layers, there.table.layers, strict=True):
        yield a.evidence, b.evidence


def table(found: Mapping[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [f"| {' | '.join(HEAD)} |", f"|---|{'---:|' * (len(HEAD) - 1)}"]
    for name, row in found["networks"].items():
        cpu, gpu = row["cpu_images_per_second"], row["gpu_images_per_second"]
        cells = [name, f"{cpu:.0f}", f"{gpu:.0f}", f"{gpu / cpu:.1f}", str(row["batch"])]
        cells += [f"{row['milliseconds'][part]:.3f}" for part in ("upload", "forward", "counting")]
        apart = row["bins_apart"]
        cells += [f"{apart['worst']:.2f}", f"{100 * apart['within_1']:.1f} %"]
        lines.append(f"| {' | '.join(cells)} |")
    here = found["machine"]
    packages = ", ".join(
        f"{name} {version}" for name, version in here["packages"].items() if version
    )
    images = {row["images"] for row in found["networks"].values()}
    count = " or ".join(map(str, sorted(images)))
    return "\n".join(
        [
            f"{count} images, decoded before; one pass, method mse. The CPU takes one image a "
            "core; milliseconds are those of an image within a batch on the GPU.",
            "",
            *lines,
            "",
            f"{here['gpu']}; {here['processor']}, {here['cores']} cores; {packages}.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
