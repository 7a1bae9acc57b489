"""`Net.forward` and OpenCV's forward beside processes that keep the processors busy.

Each contender runs in a process of its own, since threads of one that wait in loops would take
time from the next. `python -m benchmarks.busy CONTENDER PROTO MODEL SECONDS` is such a process.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2

import int8calib
from benchmarks.engines import THREADS, noise
from benchmarks.networks import ROOT, Material, Network, Say
from benchmarks.settings import Settings
from benchmarks.timing import Contender, Cost, interleave, python

NETWORKS = ("squeezenet_v1.1", "mobilenet_v1", "resnet18")
BUSY = (0, 1, 2)
"""How many busy processes there are."""
OPENCV, DEFAULT, BLAS = "OpenCV", "forward", "forward, threads=None"


def measure(material: Material, settings: Settings, say: Say) -> dict[str, Any]:
    """Seconds of one forward, and its ratio to OpenCV's, for each number of busy processes."""
    names = [network.name for network in material.networks]
    chosen = [material.one(name) for name in NETWORKS if name in names] or [material.one()]
    return {network.name: _measure_one(network, settings, say) for network in chosen}


def _measure_one(network: Network, settings: Settings, say: Say) -> dict[str, Any]:
    found = {}
    for count in BUSY:
        say(f"  {network.name} beside {count} busy processes")
        with busy_processes(count):
            rounds = interleave(
                _contender(OPENCV, network, settings),
                {name: _contender(name, network, settings) for name in (DEFAULT, BLAS)},
                settings.rounds,
            )
        found[str(count)] = {name: each.summary() for name, each in rounds.items()}
    return found


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """`count` processes that compute until the block ends."""
    processes = [subprocess.Popen(python("-c", "while True: pass")) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()


def _contender(name: str, network: Network, settings: Settings) -> Contender:
    arguments = (name, str(network.proto), str(network.model), str(settings.seconds))

    def run() -> Cost:
        command = python("-m", "benchmarks.busy", *arguments)
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        return Cost(*json.loads(done.stdout))

    return run


def _forward(name: str, network: Network) -> Callable[[], object]:
    inputs = noise(network)
    if name != OPENCV:
        net, threads = (
            int8calib.load_caffe(network.proto, network.model),
            1 if name == DEFAULT else None,
        )
        return lambda: net.forward(inputs, threads=threads)
    opencv = cv2.dnn.readNetFromCaffe(str(network.proto), str(network.model))
    cv2.setNumThreads(THREADS)

    def run() -> None:
        for blob, array in inputs.items():
            opencv.setInput(array, blob)
        opencv.forward()

    return run


def main(arguments: list[str]) -> int:
    """Print the seconds of one forward: on the clock, and of all processors together."""
    name, proto, model, seconds = arguments
    forward = _forward(name, Network("", Path(proto), Path(model), (), 1.0))
    forward()
    wall, cpu, count = time.perf_counter(), time.process_time(), 0
    while count < 3 or time.perf_counter() - wall < float(seconds):
        forward()
        count += 1
    taken = time.perf_counter() - wall, time.process_time() - cpu
    print(json.dumps([each / count for each in taken]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
