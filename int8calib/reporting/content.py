"""Results of all stages come in; what the page says, gathered by layer, goes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from int8calib.analysis.layer_errors import Analysis, LayerError
from int8calib.caffe.network.fold import fold_batch_norm
from int8calib.caffe.network.graph import Graph
from int8calib.caffe.network.quantized import QuantizedLayer, quantized_layers
from int8calib.calibration.scales import LEVELS
from int8calib.calibration.statistics.histogram import Histogram
from int8calib.calibration.statistics.store import Statistics
from int8calib.errors import OptionError
from int8calib.evaluation.results import Evaluation
from int8calib.reporting.curves import WeightRanges, weight_ranges
from int8calib.reporting.plots import MARKS
from int8calib.reporting.samples import LayerSample
from int8calib.table.model import CalibrationTable, LayerScales

SIX_BITS = 31.5
"""Weights whose largest level lies below this use 6 bits."""


@dataclass(frozen=True, eq=False)
class LayerView:
    """One quantized layer and all that is known of it; `rows` and `errors` go by table."""

    name: str
    ncnn_type: str
    bottom: str
    winograd: bool
    weights: WeightRanges
    rows: Mapping[str, LayerScales]
    errors: Mapping[str, LayerError]
    histogram: Histogram | None
    sample: LayerSample | None

    def threshold(self, table: str) -> float:
        """Where `table` clips the layer's bottom."""
        return LEVELS / float(self.rows[table].bottom_scale)

    def method(self, table: str) -> str | None:
        """How that threshold was found; None for a table that does not tell."""
        evidence = self.rows[table].evidence
        return None if evidence is None else evidence.method

    def six_bit(self, table: str) -> bool:
        """Whether `table` gives the layer weights of 6 bits."""
        levels = self.weights.absmax * self.rows[table].weight_scales
        dead = list(self.rows[table].dead_channels)
        levels[dead] = 0.0
        return bool(0 < levels.max() <= SIX_BITS)


@dataclass(frozen=True, eq=False)
class Content:
    """All that the page shows. The first of `tables` is the one that the page is about.

    `layers` are in running order; `in_float` names layers that could be INT8 and are in no table.
    """

    title: str
    source: str
    tables: Mapping[str, CalibrationTable]
    short: Mapping[str, str]
    layers: tuple[LayerView, ...]
    in_float: tuple[str, ...]
    statistics: Statistics | None
    evaluation: Evaluation | None
    analyzes: Mapping[str, Analysis]
    facts: Mapping[str, str]

    @property
    def colors(self) -> dict[str, str]:
        """The role of each table's color."""
        return {name: MARKS[i % len(MARKS)] for i, name in enumerate(self.tables)}

    @property
    def main(self) -> str:
        """The name of the first table."""
        return next(iter(self.tables))

    def ranking(self) -> list[LayerView]:
        """The layers of the first table, the largest own damage first; network order without one.

        Layers without figures, which an analysis of other tables leaves open, come last.
        """
        own = {
            view.name: view.errors[self.main].own_sqnr
            for view in self.layers
            if self.main in view.errors
        }
        mine = [view for view in self.layers if self.main in view.rows]
        return sorted(mine, key=lambda view: own.get(view.name, float("inf")))


def gather(
    graph: Graph,
    fold: bool,
    tables: Mapping[str, CalibrationTable],
    *,
    title: str,
    statistics: Statistics | None,
    evaluation: Evaluation | None,
    analyzes: Mapping[str, Analysis],
    samples: Mapping[str, LayerSample],
    facts: Mapping[str, str],
) -> Content:
    """All results by layer; `fold` says whether BatchNorm is folded where the tables are used.

    Raises `OptionError` for no tables, or an analysis of a table that is not given.
    """
    if not tables:
        raise OptionError("a report needs a table")
    unknown = [name for name in analyzes if name not in tables]
    if unknown:
        raise OptionError(f"an analysis of {unknown[0]!r}; the tables are {', '.join(tables)}")
    known = quantized_layers(fold_batch_norm(graph) if fold else graph)
    errors = {name: {e.name: e for e in found.layers} for name, found in analyzes.items()}
    views = [
        _view(layer, tables, errors, statistics, samples.get(layer.name))
        for layer in known
        if any(layer.name in table for table in tables.values())
    ]
    shown = {view.name for view in views}
    for name, table in tables.items():
        for row in table.layers:
            if row.name not in shown:
                raise OptionError(f"{name}: has rows for {row.name!r}, which {graph.source} lacks")
    return Content(
        title=title,
        source=graph.source,
        tables=dict(tables),
        short=short_names(list(tables)),
        layers=tuple(views),
        in_float=tuple(layer.name for layer in known if layer.name not in shown),
        statistics=statistics,
        evaluation=evaluation,
        analyzes=dict(analyzes),
        facts=dict(facts),
    )


def _view(
    layer: QuantizedLayer,
    tables: Mapping[str, CalibrationTable],
    errors: Mapping[str, Mapping[str, LayerError]],
    statistics: Statistics | None,
    sample: LayerSample | None,
) -> LayerView:
    histograms = {} if statistics is None else statistics.histograms
    rows = {name: table[layer.name] for name, table in tables.items() if layer.name in table}
    for name, row in rows.items():
        if len(row.weight_scales) not in (1, layer.rows) or not row.bottom_scale > 0:
            raise OptionError(
                f"{name}: layer {layer.name} has {len(row.weight_scales)} weight scales and the "
                f"bottom scale {row.bottom_scale:g}; expected {layer.rows} and a number above 0"
            )
    return LayerView(
        name=layer.name,
        ncnn_type=layer.kind,
        bottom=str(layer.bottom),
        winograd=layer.winograd,
        weights=weight_ranges(layer),
        rows=rows,
        errors={name: found[layer.name] for name, found in errors.items() if layer.name in found},
        histogram=histograms.get(str(layer.bottom)),
        sample=sample,
    )


def short_names(names: Sequence[str], longest: int = 24) -> dict[str, str]:
    """A short name for each of `names` (file names, say), different ones for different names."""
    bases = [_base(name) for name in names]
    chosen: dict[str, str] = {}
    for name, base in zip(names, bases, strict=True):
        text = name if bases.count(base) > 1 else base
        text = text if len(text) <= longest else f"…{text[1 - longest :]}"
        number = 2
        unique = text
        while unique in chosen.values():
            unique, number = f"{text} ({number})", number + 1
        chosen[name] = unique
    return chosen


def _base(name: str) -> str:
    """A file name without folder and without what every table file ends in."""
    base = PurePath(name).name or name
    for suffix in (".json", ".table", ".txt"):
        base = base.removesuffix(suffix) or base
    return base
