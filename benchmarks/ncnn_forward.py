"""One network to ncnn forward passes (PyPI's ncnn): two of them are ncnn2table's engine cost.

ncnn2table runs one image a thread. ncnn's Python binding does not let go of the interpreter's
lock while it computes, so here each of the two images has a process of its own, started once.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from benchmarks.engines import passes
from benchmarks.ncnn_model import NcnnModel, convert
from benchmarks.networks import ROOT, Network
from benchmarks.settings import Settings
from benchmarks.timing import Cost
from int8calib.arrays import Array
from int8calib.caffe.network.fold import fold_batch_norm

PROCESSES = 2


class NcnnMissingError(RuntimeError):
    """There is no ncnn to measure, or it does not take the model."""


class NcnnNet:
    """A model that `save` wrote, in ncnn: float32 all through, one thread."""

    def __init__(self, folder: Path) -> None:
        ncnn: Any = import_module("ncnn")
        self._ncnn = ncnn
        names = json.loads((folder / "names.json").read_text(encoding="utf-8"))
        self.inputs, self._outputs = names["inputs"], names["outputs"]
        self._net = ncnn.Net()
        option = self._net.opt
        option.num_threads = 1
        for name in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_storage"):
            setattr(option, f"use_{name}", False)
        param, binary = folder / "net.param", folder / "net.bin"
        if self._net.load_param(str(param)) or self._net.load_model(str(binary)):
            raise NcnnMissingError(f"{param}: ncnn does not load it")

    def forward(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """One image (1, C, H, W) through; the outputs by ncnn's names, without the batch axis."""
        extractor = self._net.create_extractor()
        mats = {name: self._ncnn.Mat(np.ascontiguousarray(x[0])) for name, x in inputs.items()}
        for name, blob in self.inputs.items():
            extractor.input(blob, mats[name])
        tops = {}
        for name in self._outputs:
            code, mat = extractor.extract(name)
            if code:
                raise NcnnMissingError(f"ncnn cannot compute {name}")
            tops[name] = np.array(mat)
        return tops


def save(network: Network, inputs: Mapping[str, Array], folder: Path) -> NcnnModel:
    """Write the folded network in ncnn's format, with `inputs`, into `folder`."""
    graph = fold_batch_norm(network.load().graph)
    model = convert(graph, {name: array.shape for name, array in inputs.items()})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "net.param").write_text(model.param, encoding="utf-8")
    (folder / "net.bin").write_bytes(model.binary)
    names = {"inputs": model.inputs, "outputs": list(model.outputs.values())}
    (folder / "names.json").write_text(json.dumps(names), encoding="utf-8")
    for i, name in enumerate(model.inputs):
        np.save(folder / f"input_{i}.npy", inputs[name])
    return model


class NcnnForward:
    """A contender: two processes run ncnn forwards side by side; the cost is that of one."""

    def __init__(
        self, network: Network, inputs: Mapping[str, Array], settings: Settings, folder: Path
    ) -> None:
        """Raises NcnnMissingError where ncnn is not installed or does not take the model."""
        try:
            import_module("ncnn")
        except ImportError as error:
            raise NcnnMissingError(f"ncnn is not installed ({error})") from None
        left_out = save(network, inputs, folder).left_out
        self.note = f"ncnn runs without {len(left_out)} layers for boxes" if left_out else ""
        command = [sys.executable, "-m", "benchmarks.ncnn_forward", str(folder)]
        self._workers = [
            subprocess.Popen(
                command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            for _ in range(PROCESSES)
        ]
        self._each = 1
        try:
            self()
            self._each = passes(settings, self()) // PROCESSES
        except NcnnMissingError:
            self._end()
            raise

    def __call__(self) -> Cost:
        """Run them."""
        started = time.perf_counter()
        cpu = self._ask(self._each)
        count = self._each * PROCESSES
        return Cost((time.perf_counter() - started) / count, cpu / count)

    def _ask(self, times: int) -> float:
        """Both run `times` forwards; their processor seconds together."""
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


def serve(folder: Path) -> None:
    """A worker: for each number read, that many forwards; answers with processor seconds."""
    try:
        net = NcnnNet(folder)
    except NcnnMissingError as error:
        sys.exit(str(error))
    inputs = {name: np.load(folder / f"input_{i}.npy") for i, name in enumerate(net.inputs)}
    for line in sys.stdin:
        before = time.process_time()
        for _ in range(int(line)):
            net.forward(inputs)
        print(time.process_time() - before, flush=True)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
