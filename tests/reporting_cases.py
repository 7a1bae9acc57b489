"""A small network with awkward names, and everything that a report on it can be given."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from xml.etree import ElementTree

import numpy as np

import int8calib
from int8calib import Labeled, Options, WeightOptions
from int8calib.analysis.results import Analysis
from int8calib.analysis.samples import LayerSample, sample_outputs
from int8calib.calibration.statistics.store import Statistics
from int8calib.evaluation.results import Evaluation
from int8calib.reporting.report import Report
from int8calib.table.model import CalibrationTable
from tests.generated import make_model

NAMES = ("conv<1>&co", "größe/层 \"q'", "</script><b>", "fc")
TABLES = ("kl & <co>.table.json", "out/mse.table.json")
IMAGES = 7
_NET = r"""
name: "odd"
layer { name: "data" type: "Input" top: "data"
  input_param { shape { dim: 1 dim: 3 dim: 23 dim: 19 } } }
layer { name: "conv<1>&co" type: "Convolution" bottom: "data" top: "a"
  convolution_param { num_output: 13 kernel_size: 5 stride: 2 } }
layer { name: "relu1" type: "ReLU" bottom: "a" top: "a" }
layer { name: "größe/层 \"q'" type: "Convolution" bottom: "a" top: "b<i>"
  convolution_param { num_output: 13 group: 13 kernel_size: 3 pad: 1 } }
layer { name: "relu2" type: "ReLU" bottom: "b<i>" top: "b<i>" }
layer { name: "</script><b>" type: "Convolution" bottom: "b<i>" top: "c"
  convolution_param { num_output: 11 kernel_size: 3 } }
layer { name: "relu3" type: "ReLU" bottom: "c" top: "c" }
layer { name: "fc" type: "InnerProduct" bottom: "c" top: "fc"
  inner_product_param { num_output: 5 } }
layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }
"""


@dataclass(frozen=True, eq=False)
class Case:
    """The files, and what each stage made of them."""

    proto: Path
    model: Path
    net: Any
    tables: dict[str, CalibrationTable]
    statistics: Statistics
    analyses: dict[str, Analysis]
    evaluation: Evaluation
    samples: dict[str, LayerSample]

    def report(self, **changes: Any) -> Report:
        """A report on all of it, or with some of it changed."""
        given = {
            "statistics": self.statistics,
            "analysis": self.analyses,
            "evaluation": self.evaluation,
            "samples": self.samples,
            "title": "A <title> & more",
        }
        return int8calib.report(self.net, self.tables, **(given | changes))


def pixels() -> np.ndarray:
    """The images, as the network takes them."""
    return np.random.default_rng(3).normal(0, 60, (IMAGES, 3, 23, 19)).astype(np.float32)


@cache
def case() -> Case:
    """Everything, made once for all tests."""
    proto, model = make_model(Path(mkdtemp()), _NET)
    net = int8calib.load_caffe(proto, model)
    images = pixels()

    def batches() -> Any:
        return (Labeled({"data": images[i : i + 1]}, [i % 5]) for i in range(IMAGES))

    made = {
        name: int8calib.calibrate(
            net,
            lambda: ({"data": images[i : i + 1]} for i in range(IMAGES)),
            Options(method=method, exclude=exclude, weights=WeightOptions(winograd="6bit")),
        )
        for name, method, exclude in zip(TABLES, ("kl", "mse"), ((), ("fc",)), strict=True)
    }
    tables = {name: found.table for name, found in made.items()}
    analyses = {
        name: int8calib.analyze(net, table, batches, sensitivity_images=2)
        for name, table in tables.items()
    }
    return Case(
        proto,
        model,
        net,
        tables,
        made[TABLES[0]].statistics,
        analyses,
        int8calib.evaluate(net, tables, batches),
        sample_outputs(net, tables[TABLES[0]], batches),
    )


@cache
def html() -> str:
    """The page on all of it."""
    return case().report().html()


def element(svg: str, name: str) -> ElementTree.Element:
    """The path of the class `name` in an inline SVG."""
    found = [path for path in ElementTree.fromstring(svg).iter("path") if path.get("class") == name]
    assert len(found) == 1, f"{len(found)} paths of the class {name}"
    return found[0]


def points(path: ElementTree.Element) -> np.ndarray:
    """The end points of a path of M, L and z commands: (n, 2)."""
    text = path.get("d", "").replace("M", " ").replace("L", " ").replace("z", " ")
    return np.array(text.split(), float).reshape(-1, 2)
