"""The command line and a model file to start-up times."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import caffe_proto
from benchmarks.networks import Material, Network, Say
from benchmarks.settings import Settings
from benchmarks.timing import (
    COMMAND,
    Cost,
    calibrate_arguments,
    interleave,
    python,
    run_process,
    spread,
    timed,
)

FEW_IMAGES = 4


def measure(material: Material, settings: Settings, say: Say) -> dict[str, Any]:
    """Help, import, the first run ever against later ones, and loading the largest caffemodel."""
    found = _bare(settings)
    say(f"--help {found['help']['median']:.3f} s, import {found['import']['median']:.3f} s")
    found.update(_first_run(material, settings))
    first, later = found["first_run"]["median"], found["later_run"]["median"]
    say(f"first run ever {first:.2f} s, later ones {later:.2f} s")
    found["load"] = _load(material.one("resnet50"), settings)
    ratios = {way: found["load"][way]["ratio"]["median"] for way in ("views", "touched", "net")}
    say("caffemodel, in times of reading: " + ", ".join(f"{w} {r:.2f}" for w, r in ratios.items()))
    return found


def _bare(settings: Settings) -> dict[str, Any]:
    commands = {
        "python": python("-c", "pass"),
        "import": python("-c", "import int8calib"),
        "help": python("-c", COMMAND, "--help"),
    }
    for command in commands.values():
        run_process(command)
    walls: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(settings.starts):
        for name, command in commands.items():
            walls[name].append(run_process(command).wall)
    return {name: spread(values) for name, values in walls.items()}


def _first_run(material: Material, settings: Settings) -> dict[str, Any]:
    """The same command with an empty numba cache, and again with what that run left there."""
    network = material.one("squeezenet_v1.1")
    listing, table = str(material.image_list(FEW_IMAGES)), str(material.folder / "start.table")
    command = python("-c", COMMAND, *calibrate_arguments(network, listing, table))
    run_process(command)
    first, later = [], []
    for _ in range(max(1, settings.starts // 2)):
        with tempfile.TemporaryDirectory() as cache:
            env = {"NUMBA_CACHE_DIR": cache}
            first.append(run_process(command, env).wall)
            later.append(run_process(command, env).wall)
    extra = [a - b for a, b in zip(first, later, strict=True)]
    return {
        "first_run": spread(first),
        "later_run": spread(later),
        "first_run_extra": spread(extra),
        "images": FEW_IMAGES,
    }


def _load(network: Network, settings: Settings) -> dict[str, Any]:
    """Loading in units of reading the file's bytes: as views, all weights read, and as a net."""

    def read() -> Cost:
        return timed(lambda: network.model.read_bytes(), 1)

    def touch() -> float:
        weights = caffe_proto.read_weights(network.model)
        return sum(float(blob.reshape(-1).sum()) for blobs in weights.values() for blob in blobs)

    found = interleave(
        read,
        {
            "views": lambda: timed(lambda: caffe_proto.read_weights(network.model), 1),
            "touched": lambda: timed(touch, 1),
            "net": lambda: timed(network.load, 1),
        },
        settings.starts,
    )
    sizes: dict[str, Any] = {way: rounds.summary() for way, rounds in found.items()}
    return {"network": network.name, "bytes": Path(network.model).stat().st_size, **sizes}
