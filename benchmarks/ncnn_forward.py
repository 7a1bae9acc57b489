"""One network to forward passes of PyPI's ncnn, on the network as ncnnoptimize leaves it.

ncnn2table runs one image a thread. ncnn's Python binding does not let go of the interpreter's
lock while it computes, so each of several images has a process of its own, started once.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import numpy as np

from benchmarks.engines import passes
from benchmarks.networks import ROOT, Network
from benchmarks.settings import Settings
from benchmarks.timing import Cost
from int8calib.arrays import Array
from int8calib.errors import Int8CalibError
from int8calib.ncnn.convert.network import convert_network
from int8calib.ncnn.model import load_model, save_model
from int8calib.ncnn.optimize import optimize_model
from int8calib.ncnn.runtime import RuntimeNet, import_ncnn

PROCESSES = 2


class NcnnMissingError(RuntimeError):
    """There is no ncnn to measure, or it does not take the model."""


def save(network: Network, folder: Path) -> tuple[Path, Path]:
    """Write the network as ncnnoptimize leaves it: its `.param` and `.bin` in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    files = folder / "net.param", folder / "net.bin"
    save_model(optimize_model(convert_network(network.load()).layers), *files)
    return files


class NcnnForward:
    """A contender: ncnn forwards, in processes side by side; the cost is that of one.

    Each runs float32 all through, in one thread.
    """

    def __init__(
        self,
        network: Network,
        inputs: Mapping[str, Array],
        settings: Settings,
        folder: Path,
        processes: int = PROCESSES,
    ) -> None:
        """Raises NcnnMissingError where ncnn is not installed or does not take the model."""
        try:
            import_ncnn()
            save(network, folder)
        except Int8CalibError as error:
            raise NcnnMissingError(str(error)) from None
        for name, array in inputs.items():
            np.save(folder / f"{name}.npy", array[0])
        command = [sys.executable, "-m", "benchmarks.ncnn_forward", str(folder), *inputs]
        self._workers = [
            subprocess.Popen(
                command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            for _ in range(processes)
        ]
        self._each = 1
        try:
            self()
            self._each = passes(settings, self()) // processes
        except NcnnMissingError:
            self._end()
            raise

    def __call__(self) -> Cost:
        """Run them."""
        started = time.perf_counter()
        cpu = self._ask(self._each)
        count = self._each * len(self._workers)
        return Cost((time.perf_counter() - started) / count, cpu / count)

    def _ask(self, times: int) -> float:
        """All run `times` forwards; their processor seconds together."""
        for worker in self._workers:
            if worker.stdin is not None and worker.poll() is None:
                print(times, file=worker.stdin, flush=True)
        replies = [worker.stdout.readline() for worker in self._workers if worker.stdout]
        if not all(replies):
            raise NcnnMissingError("ncnn's process ended; its messages stand above")
        return sum(map(float, replies))

    def __enter__(self) -> NcnnForward:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the processes."""
        self._end()

    def _end(self) -> None:
        for worker in self._workers:
            worker.kill()
            worker.communicate()


def serve(folder: Path, names: list[str]) -> None:
    """A worker: for each number read, that many forwards; answers with processor seconds."""
    try:
        model = load_model(folder / "net.param", folder / "net.bin")
        net = RuntimeNet(replace(model, source=str(folder)), float32=True)
        inputs = {name: np.load(folder / f"{name}.npy") for name in names}
        net.run(inputs, net.outputs)
    except Int8CalibError as error:
        sys.exit(str(error))
    for line in sys.stdin:
        before = time.process_time()
        for _ in range(int(line)):
            net.run(inputs, net.outputs)
        print(time.process_time() - before, flush=True)


if __name__ == "__main__":
    serve(Path(sys.argv[1]), sys.argv[2:])
