"""All that a report shows, gathered layer by layer and checked to belong together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from int8calib.analysis.results import Analysis, LayerError
from int8calib.analysis.samples import LayerSample
from int8calib.caffe.network.fingerprint import network_fingerprint
from int8calib.caffe.network.fold import fold_batch_norm
from int8calib.caffe.network.graph import Graph
from int8calib.caffe.network.quantized import QuantizedLayer, quantized_layers
from int8calib.calibration.statistics.histogram import Histogram
from int8calib.calibration.statistics.store import Statistics
from int8calib.errors import OptionError
from int8calib.evaluation.results import Evaluation
from int8calib.levels import LEVELS, WINOGRAD_LEVELS
from int8calib.reporting.plot_data import WeightRanges, weight_ranges
from int8calib.reporting.plot_types import MARKS
from int8calib.table.model import CalibrationTable, LayerScales
from int8calib.words import listed

SIX_BITS = WINOGRAD_LEVELS + 0.5
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
        """The method of that threshold; None for a table that does not tell."""
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
    analyses: Mapping[str, Analysis]
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
        """The layers of the first table, the largest isolated error first, or in network order.

        Layers without figures, which an analysis of other tables leaves open, come last.
        """
        isolated = {
            view.name: view.errors[self.main].isolated_sqnr
            for view in self.layers
            if self.main in view.errors
        }
        mine = [view for view in self.layers if self.main in view.rows]
        return sorted(mine, key=lambda view: isolated.get(view.name, float("inf")))


def gather(
    graph: Graph,
    fold: bool,
    tables: Mapping[str, CalibrationTable],
    *,
    title: str,
    statistics: Statistics | None,
    evaluation: Evaluation | None,
    analyses: Mapping[str, Analysis],
    samples: Mapping[str, LayerSample],
    facts: Mapping[str, str],
) -> Content:
    """Gather all results layer by layer.

    Parameters
    ----------
    graph
        The network as it was loaded.
    fold
        Whether BatchNorm is folded where the tables are used.
    tables, title, statistics, evaluation, analyses, samples, facts
        What the report was given; see `report`.

    Returns
    -------
    Content
        What the page shows.

    Raises
    ------
    OptionError
        For no tables, and for results of another network or table.
    """
    if not tables:
        raise OptionError("a report needs a table")
    check_results(graph, tables, evaluation, analyses)
    known = quantized_layers(fold_batch_norm(graph) if fold else graph)
    errors = {name: {e.name: e for e in analysis.layers} for name, analysis in analyses.items()}
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
        analyses=dict(analyses),
        facts=dict(facts),
    )


def check_results(
    graph: Graph,
    tables: Mapping[str, CalibrationTable],
    evaluation: Evaluation | None,
    analyses: Mapping[str, Analysis],
) -> None:
    """Raise `OptionError` for results of another network, and for analyses of other tables."""
    for name, analysis in analyses.items():
        _check_layers(name, analysis, tables)
    given = {"the evaluation": "" if evaluation is None else evaluation.network}
    given |= {f"the analysis of {name}": analysis.network for name, analysis in analyses.items()}
    given = {what: network for what, network in given.items() if network}
    if not given:
        return
    mine = network_fingerprint(graph)
    for what, network in given.items():
        if network != mine:
            raise OptionError(
                f"{what} belongs to another network (fingerprint {network[:12]}; {graph.source} "
                f"with its weights has {mine[:12]}); make it anew with this one"
            )


def _check_layers(name: str, analysis: Analysis, tables: Mapping[str, CalibrationTable]) -> None:
    """Raise `OptionError` for an analysis that is not of the table `name`."""
    if name not in tables:
        raise OptionError(f"an analysis of {name!r}; the tables are {listed(tables)}")
    analyzed = {error.name for error in analysis.layers} | set(analysis.left_out)
    rows = {row.name for row in tables[name].layers}
    for layer in sorted(analyzed ^ rows):
        who = "the table" if layer in analyzed else "the analysis"
        raise OptionError(
            f"the analysis of {name} belongs to another table: {who} lacks the layer {layer!r}; "
            "analyze this table"
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
        errors={
            name: by_layer[layer.name]
            for name, by_layer in errors.items()
            if layer.name in by_layer
        },
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
