"""What an ncnn model with its weights needs of its table, for `check_table`."""

from __future__ import annotations

from int8calib.calibration.layers import QuantLayer
from int8calib.calibration.scales import WeightOptions, summed_levels, unlimited_scales
from int8calib.ncnn.execution.layers import quant_layers, row_counts, weight_rows
from int8calib.ncnn.execution.network import optimized
from int8calib.ncnn.model import NcnnModel
from int8calib.ncnn.sound import refuse_int8
from int8calib.table.model import Requirement, RowRequirement
from int8calib.table.rules import grouped_problem


def requirements_from_model(model: NcnnModel, *, winograd: str = "safe") -> list[Requirement]:
    """List what each layer that ncnn2int8 quantizes by a table needs, in running order.

    Parameters
    ----------
    model
        A float model.
    winograd
        As in `WeightOptions`: what the weights of layers are to be that ncnn may run by int8
        winograd.

    Returns
    -------
    list of Requirement
        The model runs as it is; the scales with BatchNorm folded only tell what was done wrong.

    Raises
    ------
    ModelFileError
        For a model that is INT8 already.
    """
    refuse_int8(model.layers, model.source)
    options = WeightOptions(winograd=winograd)
    folded = {layer.name: layer for layer in quant_layers(optimized(model).layers, "")[0]}
    return [
        Requirement(
            layer.name,
            layer.kind,
            layer.rows,
            weight_scales_folded=unlimited_scales(_same_rows(folded, layer), options),
            weight_scales_raw=unlimited_scales(layer, options),
            levels=options.levels(layer),
            level_sums=summed_levels(layer, options),
            folded=False,
            bottom=layer.blob,
            caution=grouped_problem(layer.group, layer.outputs),
        )
        for layer in quant_layers(model.layers, model.source)[0]
    ]


def _same_rows(folded: dict[str, QuantLayer], layer: QuantLayer) -> QuantLayer:
    """The layer of the optimized model, or the same one where there is none like it."""
    other = folded.get(layer.name, layer)
    return other if other.rows == layer.rows else layer


def rows_from_model(model: NcnnModel) -> list[RowRequirement]:
    """List the weight rows of Embed, MultiHeadAttention, RNN, LSTM and GRU, in running order.

    `model` may be without weights; the scales are None then.
    """
    known = weight_rows(model.layers) if any(layer.weights for layer in model.layers) else {}
    return [
        RowRequirement(key, layer.type, count, known.get(key))
        for layer in model.layers
        for key, count in (
            (f"{layer.name}_param_{index}", count) for index, count in enumerate(row_counts(layer))
        )
    ]
