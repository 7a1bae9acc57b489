"""What a Caffe network needs of its table, for `check_table`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from int8calib.arrays import Array
from int8calib.caffe.network.fold import fold_batch_norm
from int8calib.caffe.network.graph import Graph
from int8calib.caffe.network.quantized import QuantizedLayer, quantized_layers
from int8calib.calibration.scales import WeightOptions, summed_levels, unlimited_scales
from int8calib.table.model import Requirement
from int8calib.table.rules import grouped_problem


def requirements_from_graph(
    graph: Graph, *, fold_bn: bool = True, winograd: str = "safe", versions: bool = True
) -> list[Requirement]:
    """List what each layer that ncnn quantizes needs, in running order.

    Parameters
    ----------
    graph
        A network with weights, as `load_graph` or `load_unsized` give it: nothing is run, so its
        sizes need not be known.
    fold_bn
        Whether the network will run with BatchNorm folded in, as ncnnoptimize leaves it.
    winograd
        As in `WeightOptions`: what the weights of layers are to be that ncnn may run by int8
        winograd.
    versions
        False names bottoms as tables keyed by blob do, without the count of in-place layers.

    Returns
    -------
    list of Requirement
        Without scales for a layer that has no weights, as one behind a layer that cannot run may.
    """
    options = WeightOptions(winograd=winograd)
    folded = {layer.name: layer for layer in quantized_layers(fold_batch_norm(graph))}
    return [
        Requirement(
            layer.name,
            layer.kind,
            layer.rows,
            weight_scales_folded=_scales(folded[layer.name], options),
            weight_scales_raw=_scales(layer, options),
            levels=options.levels(layer),
            level_sums=_level_sums(folded[layer.name] if fold_bn else layer, options),
            folded=fold_bn,
            bottom=str(layer.bottom) if versions else layer.bottom.name,
            caution=grouped_problem(layer.group, layer.outputs),
        )
        for layer in quantized_layers(graph)
    ]


def _scales(layer: QuantizedLayer, options: WeightOptions) -> Array | None:
    return unlimited_scales(layer, options) if layer.layer.weights else None


def _level_sums(layer: QuantizedLayer, options: WeightOptions) -> Callable[[Any], Any] | None:
    return summed_levels(layer, options) if layer.layer.weights else None
