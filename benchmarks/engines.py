"""One network to forward passes: OpenCV's dnn (the unit of all ratios), and our engine."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from math import ceil

import cv2
import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.networks import Network
from benchmarks.settings import Settings
from benchmarks.timing import Contender, Cost, timed
from int8calib.arrays import Array
from int8calib.caffe.engine.plan import make_plan
from int8calib.caffe.engine.run import run_plan
from int8calib.caffe.network.fold import fold_batch_norm
from int8calib.caffe.network.quantized import quantized_layers

THREADS = 2


def noise(network: Network, seed: int = 0) -> dict[str, Array]:
    """Inputs of batch 1 of the size of pixels with their mean taken off."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.normal(0, 60 * network.norm, (1, *shape[1:])).astype(np.float32)
        for name, shape in network.load().input_shapes.items()
    }


def opencv_forward(network: Network, inputs: Mapping[str, Array], settings: Settings) -> Contender:
    """Batch 1 through OpenCV's dnn on two threads; the cost is that of one forward."""
    net = cv2.dnn.readNetFromCaffe(str(network.proto), str(network.model))

    def forward(times: int) -> None:
        cv2.setNumThreads(THREADS)
        for _ in range(times):
            for name, array in inputs.items():
                net.setInput(array, name)
            net.forward()

    forward(1)
    count = passes(settings, timed(lambda: forward(2), 2))
    return lambda: timed(lambda: forward(count), count)


def passes(settings: Settings, one: Cost) -> int:
    """How many forward passes make a measurement that is long enough; an even number."""
    needed = max(settings.forwards, settings.seconds / one.wall)
    return 2 * ceil(needed / 2)


def engine_forward(network: Network, inputs: Mapping[str, Array], settings: Settings) -> Contender:
    """Our engine as calibration uses it: folded graph, two threads with an image each.

    The cost is that of one image. Plans are made once, as they are there.
    """
    graph = fold_batch_norm(network.load().graph)
    blobs = list(dict.fromkeys(layer.bottom for layer in quantized_layers(graph)))
    shapes = {name: array.shape for name, array in inputs.items()}
    plans = [make_plan(graph, shapes, blobs, keep=False) for _ in range(THREADS)]

    def work(number: int, times: int) -> None:
        batch = {name: inputs[name] for name in plans[number].inputs}
        for _ in range(times):
            run_plan(plans[number], batch, lambda layer, blob, top: None)

    def side_by_side(each: int) -> None:
        threads = [threading.Thread(target=work, args=(i, each)) for i in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def run(count: int) -> Cost:
        with threadpool_limits(limits=1, user_api="blas"):
            return timed(lambda: side_by_side(count // THREADS), count)

    run(THREADS)
    count = passes(settings, run(THREADS))
    return lambda: run(count)
