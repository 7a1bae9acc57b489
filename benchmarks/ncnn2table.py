"""Whole calibrations side by side with ncnn's own ncnn2table, in time and in memory.

Where the environment variable INT8CALIB_NCNN_TOOLS names a folder with ncnn2table, both run in
turn. That tool is in no package: elsewhere the unit is a single-thread float forward of PyPI's
ncnn, run in turn as well, times what ncnn2table takes in such forwards where both were measured.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.engines import noise
from benchmarks.ncnn_forward import NcnnForward, NcnnMissingError, save
from benchmarks.networks import Material, Network, Say
from benchmarks.settings import Settings
from benchmarks.timing import COMMAND, calibrate_arguments, python, run_process, spread

FORWARDS = {
    "squeezenet_v1.1": 1.7,
    "mobilenet_v1": 1.8,
    "mobilenet_v2": 2.6,
    "googlenet_v1": 1.4,
    "resnet18": 1.3,
    "resnet50": 1.4,
    "mobilenet_v1_ssd300": 2.0,
}
"""Single-thread forwards of PyPI's ncnn that ncnn2table takes an image, with 100 images and two
threads, when both were measured side by side."""
GOALS = {100: 0.8}
GOAL = 0.7
"""The part of ncnn2table's time that a calibration may take, by images; `GOAL` for more."""


class Run(NamedTuple):
    """Seconds on the clock, and bytes of memory at most (0 where unknown)."""

    seconds: float
    peak: int


def measure(material: Material, settings: Settings, say: Say) -> dict[str, Any]:
    """Each network at each number of images."""
    tool = os.environ.get("INT8CALIB_NCNN_TOOLS")
    found: dict[str, Any] = {"measured": tool is not None, "networks": {}}
    for network in material.networks:
        if tool is None and network.name not in FORWARDS:
            say(f"{network.name}: what ncnn2table takes of it is not known")
            continue
        with ExitStack() as stack:
            try:
                other = _other(material, network, settings, tool, stack)
            except NcnnMissingError as error:
                say(f"{network.name}: {error}")
                continue
            found["networks"][network.name] = {
                str(images): _rounds(material, network, images, rounds, other, say)
                for images, rounds in settings.tool_images
            }
    return found


def _rounds(
    material: Material,
    network: Network,
    images: int,
    rounds: int,
    other: Callable[[int], Run],
    say: Say,
) -> dict[str, Any]:
    """Ours between two of the other, each round."""
    ours: list[Run] = []
    theirs = [other(images)]
    for _ in range(rounds):
        ours.append(_ours(material, network, images))
        theirs.append(other(images))
    ratios = [
        2 * run.seconds / (before.seconds + after.seconds)
        for run, before, after in zip(ours, theirs, theirs[1:], strict=False)
    ]
    summary = {
        "ratio": spread(ratios),
        "seconds": spread([run.seconds for run in ours]),
        "peak_bytes": max(run.peak for run in ours),
        "tool_seconds": spread([run.seconds for run in theirs]),
        "tool_peak_bytes": max(run.peak for run in theirs),
        "goal": GOALS.get(images, GOAL),
    }
    say(
        f"{network.name}, {images} images: {summary['ratio']['median']:.2f} of ncnn2table, "
        f"{summary['peak_bytes'] / 1e6:.0f} MB"
    )
    return summary


def _ours(material: Material, network: Network, images: int) -> Run:
    listing = str(material.image_list(images))
    table = str(material.folder / "beside.table")
    arguments = calibrate_arguments(network, listing, table)
    cost = run_process(python("-c", COMMAND, *arguments))
    return Run(cost.wall, cost.peak)


def _other(
    material: Material, network: Network, settings: Settings, tool: str | None, stack: ExitStack
) -> Callable[[int], Run]:
    """What runs ncnn2table over some images, or what tells its time from forwards."""
    folder = material.folder / "ncnn2table" / network.name
    if tool is not None:
        param, weights = save(network, folder)
        return lambda images: _tool(Path(tool), material, network, param, weights, images)
    inputs = noise(network)
    forward = stack.enter_context(NcnnForward(network, inputs, settings, folder, processes=1))
    return lambda images: Run(forward().wall * FORWARDS[network.name] * images, 0)


def _tool(
    tools: Path, material: Material, network: Network, param: Path, weights: Path, images: int
) -> Run:
    """Run ncnn2table as its documentation says, two threads, method kl."""
    ((_, shape),) = network.load().input_shapes.items()
    mean = ",".join(f"{value:g}" for value in network.mean)
    norm = ",".join([f"{network.norm:g}"] * shape[1])
    cost = run_process(
        [
            *(str(tools / "ncnn2table"), str(param), str(weights)),
            *(str(material.image_list(images)), str(param.with_name("tool.table"))),
            *(f"mean=[{mean}]", f"norm=[{norm}]", f"shape=[{shape[3]},{shape[2]},{shape[1]}]"),
            *("pixel=BGR" if shape[1] == 3 else "pixel=GRAY", "thread=2", "method=kl"),
        ]
    )
    return Run(cost.wall, cost.peak)
