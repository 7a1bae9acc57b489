"""Numbers of images and input sizes to times: how cost grows with the work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.networks import Material, Network, Say
from benchmarks.settings import Settings
from benchmarks.timing import COMMAND, calibrate_arguments, python, run_process, spread
from int8calib.caffe.network.shapes import multiply_adds

WORKERS = (1, 2)


def measure(material: Material, settings: Settings, say: Say) -> dict[str, Any]:
    """Time over images for one and two workers, and over multiply-adds for one network."""
    network = material.one("squeezenet_v1.1")
    return {
        "network": network.name,
        "images": _images(material, network, settings, say),
        "sizes": _sizes(material, network, settings, say),
    }


def _images(material: Material, network: Network, settings: Settings, say: Say) -> dict[str, Any]:
    """Whole processes; sizes take turns, so that drift is no slope."""
    walls: dict[tuple[int, int], list[float]] = {}
    for _ in range(settings.growth_rounds):
        for count in settings.growth_images:
            for workers in WORKERS:
                seconds = _run(material, network, count, workers)
                walls.setdefault((workers, count), []).append(seconds)
    found: dict[str, Any] = {}
    for workers in WORKERS:
        spreads = {count: spread(walls[workers, count]) for count in settings.growth_images}
        medians = [spreads[count]["median"] for count in settings.growth_images]
        fit = straight_line(settings.growth_images, medians)
        found[str(workers)] = {"seconds": {str(n): s for n, s in spreads.items()}, **fit}
        say(f"{workers} workers: {1e3 * fit['slope']:.1f} ms an image, R2 {fit['r2']:.4f}")
    return found


def _sizes(material: Material, network: Network, settings: Settings, say: Say) -> dict[str, Any]:
    """Whole processes of one worker at several input sizes."""
    net = network.load()
    (name, shape), *_ = net.input_shapes.items()
    walls: dict[int, list[float]] = {}
    for _ in range(settings.growth_rounds):
        for size in settings.growth_sizes:
            option = f"{name}=1,{shape[1]},{size},{size}"
            seconds = _run(material, network, settings.size_images, 1, "--input-shape", option)
            walls.setdefault(size, []).append(seconds)
    macs = {
        size: multiply_adds(net.graph, {name: (1, shape[1], size, size)})
        for size in settings.growth_sizes
    }
    spreads = {size: spread(values) for size, values in walls.items()}
    work = [macs[size] * settings.size_images for size in settings.growth_sizes]
    fit = straight_line(work, [spreads[size]["median"] for size in settings.growth_sizes])
    say(f"input sizes: {1e9 * fit['slope']:.3f} ns a multiply-add, R2 {fit['r2']:.4f}")
    return {
        "images": settings.size_images,
        "multiply_adds": {str(size): count for size, count in macs.items()},
        "seconds": {str(size): found for size, found in spreads.items()},
        **fit,
    }


def _run(material: Material, network: Network, images: int, workers: int, *more: str) -> float:
    arguments = calibrate_arguments(
        network,
        str(material.image_list(images)),
        str(material.folder / "growth.table"),
        *more,
        workers=workers,
    )
    return run_process(python("-c", COMMAND, *arguments)).wall


def straight_line(x: Sequence[float], y: Sequence[float]) -> dict[str, float]:
    """The least squares line through the points, and the share of variance it explains (R2)."""
    a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
    centered = a - a.mean()
    slope = float((centered * (b - b.mean())).sum() / (centered**2).sum())
    start = float(b.mean() - slope * a.mean())
    left = float(((b - (start + slope * a)) ** 2).sum())
    total = float(((b - b.mean()) ** 2).sum())
    return {"slope": slope, "start": start, "r2": 1 - left / total if total else 1.0}
