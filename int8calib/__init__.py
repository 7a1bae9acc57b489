"""INT8 calibration of Caffe models for ncnn, without Caffe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from int8calib.analysis.analyze import analyze
    from int8calib.analysis.layer_errors import Analysis
    from int8calib.caffe.engine.run import Net, load_caffe
    from int8calib.caffe.export import write_model
    from int8calib.caffe.inspection.inspect import inspect
    from int8calib.caffe.inspection.results import Inspection
    from int8calib.caffe.layers.registry import register_layer
    from int8calib.calibration.pipeline import Calibration, Options, calibrate
    from int8calib.errors import Int8CalibError
    from int8calib.evaluation.evaluate import Labelled, evaluate
    from int8calib.evaluation.results import Evaluation
    from int8calib.reporting.report import report
    from int8calib.simulation.build import simulate
    from int8calib.tuning.results import TuneOptions, Tuning
    from int8calib.tuning.search import tune

__all__ = [
    "Analysis",
    "Calibration",
    "Evaluation",
    "Inspection",
    "Int8CalibError",
    "Labelled",
    "Net",
    "Options",
    "TuneOptions",
    "Tuning",
    "__version__",
    "analyze",
    "calibrate",
    "evaluate",
    "inspect",
    "load_caffe",
    "register_layer",
    "report",
    "simulate",
    "tune",
    "write_model",
]

_HOMES = {
    "Inspection": "int8calib.caffe.inspection.results",
    "inspect": "int8calib.caffe.inspection.inspect",
    "Analysis": "int8calib.analysis.layer_errors",
    "Evaluation": "int8calib.evaluation.results",
    "Labelled": "int8calib.evaluation.evaluate",
    "analyze": "int8calib.analysis.analyze",
    "evaluate": "int8calib.evaluation.evaluate",
    "report": "int8calib.reporting.report",
    "simulate": "int8calib.simulation.build",
    "TuneOptions": "int8calib.tuning.results",
    "Tuning": "int8calib.tuning.results",
    "tune": "int8calib.tuning.search",
    "write_model": "int8calib.caffe.export",
    "Calibration": "int8calib.calibration.pipeline",
    "Options": "int8calib.calibration.pipeline",
    "calibrate": "int8calib.calibration.pipeline",
    "Int8CalibError": "int8calib.errors",
    "Net": "int8calib.caffe.engine.run",
    "load_caffe": "int8calib.caffe.engine.run",
    "register_layer": "int8calib.caffe.layers.registry",
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
