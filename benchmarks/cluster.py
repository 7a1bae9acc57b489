"""One machine against workers of a Dask cluster on it: time, processor time and bytes an image.

`python -m benchmarks.cluster` prints the figures of docs/guide/cluster.md. Processor time tells the
cost of a cluster on a machine with other work to do, where times mean little.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import distributed
import numpy as np

from benchmarks.networks import Material, Network, gather
from int8calib.calibration.collected import load_collected
from int8calib.calibration.statistics import cluster as statistics
from int8calib.cli.main import main as int8calib
from int8calib.cluster import job
from int8calib.cluster.chunks import MAX_CHUNK_IMAGES

IMAGES, WORKERS = 1_000_000, 100
"""What the projection is for."""
FEW = 8
"""Images of a run that tells what a run costs without images."""


class Traffic:
    """Bytes that leave and reach the client."""

    def __init__(self) -> None:
        """Listen to all that is sent and merged."""
        self.start()
        pickled, add = job._pickled, statistics._Sums.add

        def send(value: Any, what: str) -> bytes:
            content = pickled(value, what)
            self.sent.append(len(content))
            return content

        def merge(sums: Any, packed: bytes) -> None:
            add(sums, packed)
            self.received.append(len(packed))

        job._pickled, statistics._Sums.add = send, merge  # type: ignore[method-assign]

    def start(self) -> None:
        """Forget what was before."""
        self.sent: list[int] = []
        self.received: list[int] = []


def collect(network: Network, images: Path, output: Path, *more: str) -> tuple[float, float]:
    """Run `collect`; the seconds, and the processor seconds of this process."""
    started, used = time.perf_counter(), time.process_time()
    words = ["collect", "--proto", str(network.proto), "--model", str(network.model), "--quiet"]
    words += ["--images", str(images), "--output", str(output), "--norm", f"{network.norm:g}"]
    words += ["--mean", *(f"{value:g}" for value in network.mean)]
    if int8calib([*words, *more]):
        raise SystemExit("collect failed")
    return time.perf_counter() - started, time.process_time() - used


def on_workers(
    material: Material,
    network: Network,
    count: int,
    workers: int,
    exact: Sequence[str],
    traffic: Traffic,
) -> tuple[float, float, float]:
    """The same on so many workers.

    Seconds an image, processor seconds of the client and of the workers; what a run costs without
    images is left out.
    """
    folder = material.folder
    with (
        distributed.LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            dashboard_address="127.0.0.1:0",
            silence_logs=50,
            memory_limit=0,
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        address = ("--cluster", client.scheduler.address, *exact)
        lists = {n: material.image_list(n) for n in (FEW * workers, count)}
        collect(network, lists[FEW * workers], folder / "warm.npz", *address)
        found = []
        for images in lists.values():
            traffic.start()
            before = sum(client.run(time.process_time).values())
            wall, here = collect(network, images, folder / "many.npz", *address)
            there = sum(client.run(time.process_time).values()) - before
            found.append(np.array([wall, here, there]))
        wall, here, there = (found[1] - found[0]) / (count - FEW * workers)
        return wall, here, there


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cluster", description=__doc__)
    parser.add_argument("--images", type=int, default=512, metavar="N")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], metavar="N")
    parser.add_argument("--network", default="squeezenet_v1.1", metavar="NAME")
    parser.add_argument("--exact", action="store_true")
    args = parser.parse_args(argv)
    exact = ["--exact"] * args.exact
    with tempfile.TemporaryDirectory() as folder:
        material = gather(Path(folder), [args.network], print)
        network, count = material.one(args.network), args.images
        images = material.image_list(count)
        one = ("--workers", "1", *exact)
        few = [collect(network, material.image_list(FEW), Path(folder, "w"), *one) for _ in "12"]
        many = collect(network, images, material.folder / "one.npz", *one)
        wall, used = (np.array(many) - few[1]) / (count - FEW)
        print(f"{network.name}, {count} images, {' '.join(exact) or 'one pass'}")
        print(f"one process: {1e3 * wall:.1f} ms an image, {1e3 * used:.1f} ms of processor")
        single, traffic = wall, Traffic()
        for workers in args.workers:
            wall, here, there = on_workers(material, network, count, workers, exact, traffic)
            single = wall if workers == 1 else single
            print(
                f"{workers} workers: {1e3 * wall:.1f} ms an image, {single / wall:.2f} times as "
                f"fast as one; {1e3 * there:.1f} ms of processor in workers, {1e3 * here:.2f} in "
                f"client and scheduler, one process takes {100 * used / (here + there):.0f} %"
            )
            print(
                f"   model {traffic.sent[0]} bytes, {sum(traffic.sent[1:]) / count:.0f} bytes an "
                f"image out, {sum(traffic.received) / count:.0f} in, {len(traffic.received)} chunks"
            )
        same = (material.folder / "one.npz").read_bytes()
        print("the same file:", same == (material.folder / "many.npz").read_bytes())
        whole = load_collected(str(material.folder / "one.npz")).statistics
        project(whole, there, count)


def project(whole: Any, seconds: float, count: int) -> None:
    """Print what a large run takes, where chunks have as many images as they may."""
    packed = statistics._packed(whole)
    started = time.thread_time()
    sums = statistics._Sums()
    repeats = 20
    for _ in range(repeats):
        sums.add(packed)
    merge = (time.thread_time() - started) / repeats
    chunks = math.ceil(IMAGES / MAX_CHUNK_IMAGES)
    work = IMAGES * seconds / WORKERS
    tail = MAX_CHUNK_IMAGES * seconds
    print(
        f"a chunk of {count} images: {len(packed)} bytes of statistics, merged in "
        f"{1e3 * merge:.0f} ms\n{IMAGES} images on {WORKERS} workers, {chunks} chunks: "
        f"work {work:.0f} s, last chunk "
        f"up to {tail:.0f} s more, merging {chunks * merge:.0f} s beside it, "
        f"{chunks * len(packed) / 2**30:.1f} GiB to the client "
        f"({chunks * len(packed) / 2**20 / (work + tail):.1f} MiB/s)"
    )


if __name__ == "__main__":
    main()
