"""Networks and images that the tests of tuning share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from int8calib.caffe.engine.run import Net, load_caffe
from int8calib.caffe.layers.registry import find_type
from int8calib.caffe.network.graph import Blob
from int8calib.caffe.network.inputs import INPUT_TYPES
from int8calib.caffe.network.shapes import infer_shapes
from int8calib.calibration.options import Options
from int8calib.calibration.pipeline import prepare, run_job
from int8calib.demo import CAFFEMODEL, MEAN, NORM, PROTOTXT, draw
from int8calib.evaluation.evaluate import Labeled, batch_and_labels
from int8calib.images import Preprocess
from int8calib.rounding.weights import Changes
from int8calib.table import CalibrationTable
from int8calib.tuning.layer_solver import SolverOptions, solve_layers
from int8calib.workers import single_threaded_blas
from tests.generated import make_model

# Everything that factors travel through: ReLU, depthwise, BatchNorm, pooling, Concat, a sum.
CHAIN = """
name: "chain"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 23 dim: 29 } } }
layer { name: "c1" type: "Convolution" bottom: "data" top: "c1"
  convolution_param { num_output: 11 kernel_size: 3 stride: 2 bias_term: false } }
layer { name: "bn1" type: "BatchNorm" bottom: "c1" top: "c1" }
layer { name: "sc1" type: "Scale" bottom: "c1" top: "c1" scale_param { bias_term: true } }
layer { name: "r1" type: "ReLU" bottom: "c1" top: "c1" }
layer { name: "dw" type: "Convolution" bottom: "c1" top: "dw"
  convolution_param { num_output: 11 kernel_size: 3 pad: 1 group: 11 } }
layer { name: "rdw" type: "ReLU" bottom: "dw" top: "dw" }
layer { name: "a" type: "Convolution" bottom: "dw" top: "a"
  convolution_param { num_output: 7 kernel_size: 1 } }
layer { name: "ra" type: "ReLU" bottom: "a" top: "a" }
layer { name: "b" type: "Convolution" bottom: "dw" top: "b"
  convolution_param { num_output: 5 kernel_size: 3 pad: 1 } }
layer { name: "rb" type: "ReLU" bottom: "b" top: "b" }
layer { name: "cat" type: "Concat" bottom: "a" bottom: "b" top: "cat" }
layer { name: "pool" type: "Pooling" bottom: "cat" top: "pool"
  pooling_param { pool: MAX kernel_size: 2 stride: 2 } }
layer { name: "d" type: "Convolution" bottom: "pool" top: "d"
  convolution_param { num_output: 12 kernel_size: 3 pad: 1 } }
layer { name: "sum" type: "Eltwise" bottom: "pool" bottom: "d" top: "sum" }
layer { name: "e" type: "Convolution" bottom: "sum" top: "e"
  convolution_param { num_output: 13 kernel_size: 1 } }
layer { name: "re" type: "ReLU" bottom: "e" top: "e" }
layer { name: "gap" type: "Pooling" bottom: "e" top: "gap"
  pooling_param { pool: AVE global_pooling: true } }
layer { name: "fc" type: "InnerProduct" bottom: "gap" top: "fc"
  inner_product_param { num_output: 6 } }
layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }
"""
SHAPE = (3, 23, 29)


def chain(folder: Path) -> Net:
    return load_caffe(*make_model(folder, CHAIN))


def batches(
    count: int, seed: int = 3, shape: tuple[int, int, int] = SHAPE
) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [{"data": rng.normal(0, 60, (1, *shape)).astype(np.float32)} for _ in range(count)]


def plain_scores(
    net: Net, batch: dict[str, np.ndarray], scores: str, changed: dict[str, Callable] | None = None
) -> np.ndarray:
    """A blob without its mean, all layers in order by their plain functions.

    `changed`: what becomes of the first bottom of the layers named.
    """
    values = {}
    for layer in net.graph.layers:
        if layer.type in INPUT_TYPES:
            values.update({top: batch[top.name] for top in layer.tops})
            continue
        bottoms = [values[bottom] for bottom in layer.bottoms]
        if changed and layer.name in changed:
            bottoms[0] = changed[layer.name](bottoms[0]).astype(np.float32)
        tops = find_type(layer.type).run(layer.params, layer.weights, bottoms)
        values.update(zip(layer.tops, tops, strict=True))
    found = values[Blob(scores)]
    return found - found.mean(axis=1, keepdims=True)


def loss_of(
    net: Net,
    given: list[dict[str, np.ndarray]],
    scores: str,
    changed: dict[str, Callable],
    expected_scores: list[np.ndarray] | None = None,
) -> float:
    """The mean share of error energy that `changed` makes in a blob.

    `expected_scores`: the blob without changes, where it is known.
    """
    shares = []
    for i, batch in enumerate(given):
        expected = expected_scores[i] if expected_scores else plain_scores(net, batch, scores)
        error = plain_scores(net, batch, scores, changed) - expected
        shares.append(np.square(error).sum() / np.square(expected).sum())
    return float(np.mean(shares))


def labeled(net: Net, given: list[dict[str, np.ndarray]]) -> list[Labeled]:
    """The batches with the class that the float net gives each image."""
    out = net.graph.outputs[0].name
    return [Labeled(batch, net.forward(batch)[out].argmax(axis=1).tolist()) for batch in given]


def demo_net(size: int = 64) -> Net:
    shapes = {"data": (1, 3, size, size)}
    return load_caffe(PROTOTXT, CAFFEMODEL, input_shapes=shapes)


def demo_loader(count: int, seed: int = 7, size: int = 64) -> list[Labeled]:
    """Drawn pictures as the demo net wants them, each with its class."""
    net = demo_net(size)
    ((name, shape),) = net.input_shapes.items()
    preprocess = Preprocess((shape[1], shape[2], shape[3]), mean=MEAN, norm=NORM)
    return [
        Labeled({name: preprocess(image)[None]}, [label])
        for image, label in draw.draw_images(count, seed)
    ]


def score_blob(net: Net) -> str:
    return net.graph.producer(net.graph.outputs[0]).bottoms[0].name


def sqnr(reference: Net, found: Net, images: Sequence[Labeled | dict[str, np.ndarray]]) -> float:
    """In dB, of the scores without what they have in common, by the definition."""
    signal_, error = 0.0, 0.0
    for given in images:
        batch, _ = batch_and_labels(given)
        a, b = (
            n.forward(batch, outputs=[score_blob(n)])[score_blob(n)].reshape(-1)
            for n in (reference, found)
        )
        a, b = a - a.mean(), b - b.mean()
        signal_ += float(np.square(a).sum())
        error += float(np.square(a - b).sum())
    return 10 * float(np.log10(signal_ / error))


def plain_table(net: Net, given: list, method: str) -> CalibrationTable:
    options = Options(method=method)
    return run_job(prepare(net, options), lambda: given, options).table


def solved_by_layers(net: Net, given: list) -> CalibrationTable:
    """The table with thresholds that suit the layers that read each blob."""
    job = prepare(net, Options())
    graph = job.executor.graph
    start = {rows.name: rows for rows in plain_table(net, given, "mse").layers}
    grids = {layer.name: Options().weights.grid(layer) for layer in job.candidates}
    unchanged = Changes(rounding=False, refit=False, bias=False)
    solver = SolverOptions(unchanged, thresholds=True, reference=None, workers=2)
    shapes = infer_shapes(graph, net.input_shapes)
    with single_threaded_blas():
        solutions = list(solve_layers(graph, shapes, given, start, grids, solver))
    return CalibrationTable(tuple(solution.rows for solution in solutions))
