"""One network to the cost of onnxruntime's entropy calibrator on an equal ONNX model.

It runs in a process of its own, by the interpreter that `INT8CALIB_ONNX_PYTHON` names or this
one: `pip install onnx onnxruntime numpy protobuf` is all it needs. Few images, extrapolated.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.networks import ROOT, Material, Network, Say
from benchmarks.settings import Settings

MISSING = 3
"""The exit status of a worker without onnx or onnxruntime."""


def measure(material: Material, settings: Settings, say: Say) -> dict[str, Any]:
    """The calibrator's OpenCV forwards an image, or why there are none."""
    from benchmarks.engines import noise, opencv_forward

    network = material.one("squeezenet_v1.1")
    baseline = opencv_forward(network, noise(network), settings)
    images = material.folder / "onnx_images.npy"
    np.save(images, _preprocessed(material, network, settings.slow_images))
    interpreter = os.environ.get("INT8CALIB_ONNX_PYTHON") or sys.executable
    command = [interpreter, "-m", "benchmarks.onnx_calibrator"]
    before = baseline()
    done = subprocess.run(
        [*command, str(network.proto), str(network.model), str(images), str(material.folder)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    after = baseline()
    missing = done.returncode == MISSING
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        reason += "; INT8CALIB_ONNX_PYTHON may name an interpreter that has it" * missing
        say(f"onnxruntime: not measured: {reason}")
        return {"skipped": reason if missing else f"it failed: {reason}"}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    unit = (before.wall + after.wall) / 2
    per_image = found["collect_seconds"] / found["images_run"]
    whole = per_image + found["compute_seconds"] / settings.images
    say(f"{network.name}: onnxruntime {whole / unit:.1f} OpenCV forwards an image (extrapolated)")
    extrapolated = {"extrapolated_to_images": settings.images, "ratio": whole / unit}
    return {"network": network.name, **found, **extrapolated}


def _preprocessed(material: Material, network: Network, count: int) -> Any:
    from int8calib.images import Preprocess
    from int8calib.images.decode import read_image

    (_, shape), *_ = network.load().input_shapes.items()
    preprocess = Preprocess((shape[1], shape[2], shape[3]), mean=network.mean, norm=network.norm)
    paths = islice(cycle(material.images), count)
    return np.stack([preprocess(read_image(path)) for path in paths])


class Reader:
    """Images one at a time, as onnxruntime asks for them."""

    def __init__(self, name: str, images: Any) -> None:
        self._batches: Iterator[dict[str, Any]] = ({name: image[None]} for image in images)

    def get_next(self) -> dict[str, Any] | None:
        """The next batch, None at the end."""
        return next(self._batches, None)


def work(proto: str, model: str, images: str, folder: str) -> None:
    """The worker: convert, calibrate by entropy, print seconds as JSON."""
    try:
        onnx: Any = import_module("onnx")
        version: str = import_module("onnxruntime").__version__
        calibrate: Any = import_module("onnxruntime.quantization.calibrate")
        from benchmarks.onnx_model import convert
    except ImportError as error:
        print(error, file=sys.stderr)
        sys.exit(MISSING)
    import int8calib
    from int8calib.caffe.network.fold import fold_batch_norm

    net = int8calib.load_caffe(proto, model)
    data = np.load(images)
    (name, shape), *_ = net.input_shapes.items()
    path = Path(folder, "equal.onnx")
    onnx.save(convert(fold_batch_norm(net.graph), {name: (1, *shape[1:])}), str(path))
    calibrator = calibrate.create_calibrator(
        str(path),
        ["Conv", "Gemm"],
        augmented_model_path=str(Path(folder, "augmented.onnx")),
        calibrate_method=calibrate.CalibrationMethod.Entropy,
    )
    started = time.perf_counter()
    calibrator.collect_data(Reader(name, data))
    collected = time.perf_counter()
    calibrator.compute_data()
    found = {
        "onnxruntime": version,
        "images_run": len(data),
        "collect_seconds": collected - started,
        "compute_seconds": time.perf_counter() - collected,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    work(*sys.argv[1:])
