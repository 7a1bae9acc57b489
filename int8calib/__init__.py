"""INT8 calibration of Caffe models for ncnn, without Caffe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from int8calib.analysis.analyze import analyze
    from int8calib.analysis.results import Analysis
    from int8calib.caffe.engine.run import Net, load_caffe
    from int8calib.caffe.export import write_model
    from int8calib.caffe.inspection.inspect import inspect
    from int8calib.caffe.layers.outside import register_layer
    from int8calib.calibration.executor import Executor
    from int8calib.calibration.layers import QuantLayer
    from int8calib.calibration.observer import Observer
    from int8calib.calibration.pipeline import Calibration, Options, calibrate
    from int8calib.calibration.scales import WeightOptions
    from int8calib.calibration.statistics.checkpoint import Checkpoint
    from int8calib.calibration.statistics.histogram import Histogram
    from int8calib.calibration.statistics.store import Statistics
    from int8calib.errors import (
        ImageError,
        Int8CalibError,
        ModelError,
        ModelFileError,
        OptionError,
        OutputError,
        ShapeError,
        StatisticsError,
        TableError,
        UnreadableImageError,
        UnsupportedLayerError,
        WeightsError,
    )
    from int8calib.evaluation.evaluate import Labeled, evaluate
    from int8calib.evaluation.results import Evaluation
    from int8calib.images.boxes import Truth
    from int8calib.inspection import Inspection
    from int8calib.ncnn.execution.inspect import inspect_ncnn
    from int8calib.ncnn.execution.network import NcnnNet
    from int8calib.ncnn.model import NcnnModel
    from int8calib.ncnn.translate.load import load_ncnn
    from int8calib.ncnn.translate.network import TranslatedNet
    from int8calib.onnx.layers import onnx_layers
    from int8calib.reporting.report import Report, report
    from int8calib.simulation.build import simulate
    from int8calib.table.files import read_table, write_table
    from int8calib.table.model import CalibrationTable, LayerScales
    from int8calib.tuning.results import TuneOptions, Tuning
    from int8calib.tuning.search import tune


__all__ = [
    "Analysis",
    "Calibration",
    "CalibrationTable",
    "Checkpoint",
    "Evaluation",
    "Executor",
    "Histogram",
    "ImageError",
    "Inspection",
    "Int8CalibError",
    "Labeled",
    "LayerScales",
    "ModelError",
    "ModelFileError",
    "NcnnModel",
    "NcnnNet",
    "Net",
    "Observer",
    "OptionError",
    "Options",
    "OutputError",
    "QuantLayer",
    "Report",
    "ShapeError",
    "Statistics",
    "StatisticsError",
    "TableError",
    "TranslatedNet",
    "Truth",
    "TuneOptions",
    "Tuning",
    "UnreadableImageError",
    "UnsupportedLayerError",
    "WeightOptions",
    "WeightsError",
    "__version__",
    "analyze",
    "calibrate",
    "evaluate",
    "inspect",
    "inspect_ncnn",
    "load_caffe",
    "load_ncnn",
    "onnx_layers",
    "read_table",
    "register_layer",
    "report",
    "simulate",
    "tune",
    "write_model",
    "write_table",
]

_HOMES = {
    "Analysis": "int8calib.analysis.results",
    "Calibration": "int8calib.calibration.pipeline",
    "CalibrationTable": "int8calib.table.model",
    "Checkpoint": "int8calib.calibration.statistics.checkpoint",
    "Evaluation": "int8calib.evaluation.results",
    "Executor": "int8calib.calibration.executor",
    "Histogram": "int8calib.calibration.statistics.histogram",
    "ImageError": "int8calib.errors",
    "Inspection": "int8calib.inspection",
    "Int8CalibError": "int8calib.errors",
    "Labeled": "int8calib.evaluation.evaluate",
    "LayerScales": "int8calib.table.model",
    "ModelError": "int8calib.errors",
    "ModelFileError": "int8calib.errors",
    "NcnnModel": "int8calib.ncnn.model",
    "NcnnNet": "int8calib.ncnn.execution.network",
    "Net": "int8calib.caffe.engine.run",
    "Observer": "int8calib.calibration.observer",
    "OptionError": "int8calib.errors",
    "Options": "int8calib.calibration.pipeline",
    "OutputError": "int8calib.errors",
    "QuantLayer": "int8calib.calibration.layers",
    "Report": "int8calib.reporting.report",
    "ShapeError": "int8calib.errors",
    "Statistics": "int8calib.calibration.statistics.store",
    "StatisticsError": "int8calib.errors",
    "TableError": "int8calib.errors",
    "Truth": "int8calib.images.boxes",
    "TuneOptions": "int8calib.tuning.results",
    "TranslatedNet": "int8calib.ncnn.translate.network",
    "Tuning": "int8calib.tuning.results",
    "UnreadableImageError": "int8calib.errors",
    "UnsupportedLayerError": "int8calib.errors",
    "WeightOptions": "int8calib.calibration.scales",
    "WeightsError": "int8calib.errors",
    "analyze": "int8calib.analysis.analyze",
    "calibrate": "int8calib.calibration.pipeline",
    "evaluate": "int8calib.evaluation.evaluate",
    "inspect": "int8calib.caffe.inspection.inspect",
    "inspect_ncnn": "int8calib.ncnn.execution.inspect",
    "load_caffe": "int8calib.caffe.engine.run",
    "load_ncnn": "int8calib.ncnn.translate.load",
    "onnx_layers": "int8calib.onnx.layers",
    "read_table": "int8calib.table.files",
    "register_layer": "int8calib.caffe.layers.outside",
    "report": "int8calib.reporting.report",
    "simulate": "int8calib.simulation.build",
    "tune": "int8calib.tuning.search",
    "write_model": "int8calib.caffe.export",
    "write_table": "int8calib.table.files",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that importing the package stays light."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """The public names, those not imported yet included."""
    return sorted(__all__)
