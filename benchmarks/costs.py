"""Networks to the share of each stage, and to peak memory with and without a cache."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.networks import Material, Network, Say
from benchmarks.probes import STAGES
from benchmarks.settings import Settings
from benchmarks.timing import calibrate_arguments, python, run_process

RESNET_IMAGES = 20


def stages(material: Material, settings: Settings, say: Say) -> dict[str, Any]:
    """Every network's processor seconds by stage, their shares, and its peak memory."""
    found = {}
    for network in material.networks:
        seen = probed(material, network, settings.images, "--stages")
        seconds = {stage: seen["stages"].get(stage, 0.0) for stage in STAGES}
        seconds["rest"] = seen["cpu"] - sum(seconds.values())
        found[network.name] = {
            "images": settings.images,
            "cpu_seconds": seen["cpu"],
            "shares": {stage: value / seen["cpu"] for stage, value in seconds.items()},
            "peak_bytes": seen["peak_bytes"],
        }
        shares = found[network.name]["shares"]
        say(f"{network.name}: " + ", ".join(f"{s} {100 * v:.0f} %" for s, v in shares.items()))
    return found


def memory(material: Material, settings: Settings, say: Say) -> dict[str, Any]:
    """Peak memory: few images, many images, and the largest network."""
    few, many = settings.images, settings.many_images
    network = material.one("squeezenet_v1.1")
    large = material.one("resnet50")
    runs = {
        "few": (network, few),
        "many": (network, many),
        "large": (large, min(RESNET_IMAGES, many)),
    }
    found: dict[str, Any] = {}
    peaks: dict[tuple[str, int], int | None] = {}
    for name, (which, images) in runs.items():
        # Where there is one network only, two of the runs may be the same.
        key = (which.name, images)
        if key not in peaks:
            peaks[key] = probed(material, which, images)["peak_bytes"]
        peak = peaks[key]
        found[name] = {"network": which.name, "images": images, "peak_bytes": peak}
        say(f"{which.name}, {images} images: {(peak or 0) / 1e6:.0f} MB")
    low, high = found["few"]["peak_bytes"], found["many"]["peak_bytes"]
    found["growth"] = high / low - 1 if low and high else None
    return found


def probed(material: Material, network: Network, images: int, *options: str) -> dict[str, Any]:
    """What `benchmarks.probes` sees of one calibration."""
    out = material.folder / "seen.json"
    first = [option for option in options if option == "--stages"]
    more = [option for option in options if option != "--stages"]
    table = str(material.folder / "probed.table")
    arguments = calibrate_arguments(network, str(material.image_list(images)), table, *more)
    run_process(python("-m", "benchmarks.probes", str(out), *first, *arguments))
    seen: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return seen
