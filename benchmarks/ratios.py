"""Networks to the main table: whole calibration, engine and ncnn in units of an OpenCV forward."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from benchmarks.engines import engine_forward, noise, opencv_forward
from benchmarks.ncnn_forward import NcnnForward, NcnnMissingError
from benchmarks.networks import Material, Network, Say
from benchmarks.settings import Settings
from benchmarks.timing import (
    COMMAND,
    Contender,
    Cost,
    calibrate_arguments,
    interleave,
    python,
    run_process,
)
from int8calib.caffe.network.shapes import multiply_adds

NCNN2TABLE = {
    "squeezenet_v1.1": 1.45,
    "mobilenet_v1": 2.3,
    "mobilenet_v2": 3.0,
    "googlenet_v1": 1.6,
    "resnet18": 1.3,
    "resnet50": 1.36,
    "mobilenet_v1_ssd300": 2.2,
}
"""OpenCV forwards an image that ncnn2table took, start-up included, when it was measured."""
ENGINE_GOAL = {
    "squeezenet_v1.1": 0.7,
    "mobilenet_v1": 0.9,
    "mobilenet_v2": 1.1,
    "googlenet_v1": 1.0,
    "resnet18": 1.0,
    "resnet50": 1.0,
    "mobilenet_v1_ssd300": 1.3,
}


def measure(material: Material, settings: Settings, say: Say) -> dict[str, Any]:
    """All networks; the first process warms numba's cache."""
    return {
        network.name: _network(material, network, settings, say) for network in material.networks
    }


def whole_process(material: Material, network: Network, images: int, *more: str) -> Contender:
    """`int8calib calibrate` as a process of its own; the cost is that of one image."""
    listing = material.image_list(images)
    arguments = calibrate_arguments(
        network, str(listing), str(material.folder / "process.table"), *more
    )

    def run() -> Cost:
        cost = run_process(python("-c", COMMAND, *arguments))
        return Cost(cost.wall / images, cost.cpu / images)

    return run


def _network(material: Material, network: Network, settings: Settings, say: Say) -> dict[str, Any]:
    inputs = noise(network)
    contenders: dict[str, Contender] = {
        "process": whole_process(material, network, settings.images),
        "engine": engine_forward(network, inputs, settings),
    }
    whole_process(material, network, 2)()
    baseline = opencv_forward(network, inputs, settings)
    notes = []
    with ExitStack() as stack:
        try:
            folder = material.folder / "ncnn" / network.name
            contenders["ncnn"] = stack.enter_context(NcnnForward(network, inputs, settings, folder))
        except NcnnMissingError as error:
            notes.append(str(error))
        found = interleave(baseline, contenders, settings.rounds)
    net = network.load()
    shapes = {name: (1, *shape[1:]) for name, shape in net.input_shapes.items()}
    result: dict[str, Any] = {name: rounds.summary() for name, rounds in found.items()}
    result["images"] = settings.images
    result["multiply_adds"] = multiply_adds(net.graph, shapes)
    result["notes"] = notes
    shown = ", ".join(f"{name} {result[name]['ratio']['median']:.2f}" for name in found)
    say(f"{network.name}: {shown} OpenCV forwards")
    return result
