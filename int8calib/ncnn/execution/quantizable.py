"""What a network knows by the ncnn model it was made of, whatever runs it: rows, INT8 models."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import cached_property

from int8calib.arrays import Array
from int8calib.ncnn.execution.layers import weight_rows
from int8calib.ncnn.model import NcnnModel, save_model
from int8calib.ncnn.quantize import quantize_model, read_rows
from int8calib.table.formats import get_format
from int8calib.table.model import CalibrationTable


class QuantizableModel:
    """A network with the ncnn model it was made of.

    Attributes
    ----------
    model : NcnnModel
        Structure and weights.
    """

    model: NcnnModel

    @cached_property
    def weight_rows(self) -> dict[str, Array]:
        """Weight scales of Embed, MultiHeadAttention, RNN, LSTM and GRU, by the key of the row."""
        return weight_rows(self.model.layers)

    def quantized(self, table: CalibrationTable, *, fp32: bool = False) -> NcnnModel:
        """Return the INT8 model that a table makes of this one, as ncnn2int8 does it.

        Parameters
        ----------
        table : CalibrationTable
            A table of this model.
        fp32 : bool
            Store what stays in float as float32 (float16 otherwise, as ncnn2int8).

        Returns
        -------
        NcnnModel

        Raises
        ------
        TableError
            For a table that does not fit the model.
        """
        rows = read_rows(get_format("ncnn").write(table), "the table")
        layers = quantize_model(self.model.layers, rows, fp32=fp32, source=self.model.source)
        return replace(self.model, layers=layers)

    def write_int8(
        self,
        table: CalibrationTable,
        param: str | os.PathLike[str],
        weights: str | os.PathLike[str],
        *,
        fp32: bool = False,
    ) -> None:
        """Write the INT8 model that a table makes of this one: both files or none.

        Parameters
        ----------
        table : CalibrationTable
            A table of this model.
        param, weights : path
            The structure file and the weight file to write.
        fp32 : bool
            Store what stays in float as float32 (float16 otherwise, as ncnn2int8).

        Raises
        ------
        TableError
            For a table that does not fit the model.
        OutputError
            For a file that cannot be written.
        """
        save_model(self.quantized(table, fp32=fp32).layers, param, weights)
