"""Make a page that explains a table from what `collect`, `analyze` and `evaluate` give."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from int8calib.analysis.results import Analysis
from int8calib.analysis.samples import LayerSample
from int8calib.caffe.engine.run import Net
from int8calib.calibration.statistics.store import Statistics
from int8calib.errors import OutputError
from int8calib.evaluation.results import Evaluation
from int8calib.files import write_atomic
from int8calib.reporting.advice import Advice, advise
from int8calib.reporting.content import Content, gather
from int8calib.reporting.drawing import draw_png, draw_svg, require_matplotlib
from int8calib.reporting.markup import PLACEHOLDERS, inline_svg
from int8calib.reporting.page import page
from int8calib.reporting.plot_types import Plot
from int8calib.reporting.plots import accuracy_plot, layer_plots, sqnr_plot
from int8calib.simulation.build import folds
from int8calib.table.model import CalibrationTable
from int8calib.workers import Progress

_UNSAFE = re.compile(r"[^\w.-]+")


@dataclass(frozen=True, eq=False)
class Report:
    """A report that is ready to be drawn.

    Attributes
    ----------
    content : Content
        What it shows.
    advice : tuple of Advice
        Its sentences on what to look at.
    """

    content: Content
    advice: tuple[Advice, ...]

    def html(self, progress: Progress | None = None) -> str:
        """Draw the page.

        Parameters
        ----------
        progress : callable, optional
            Called as `progress("pictures", pictures drawn, 0)`.

        Returns
        -------
        str
            HTML that loads nothing, neither from the network nor from other files.

        Raises
        ------
        OutputError
            Where matplotlib is missing.
        """
        require_matplotlib()
        drawn = 0

        def draw(plot: Plot, key: str) -> str:
            nonlocal drawn
            drawn += 1
            if progress is not None:
                progress("pictures", drawn, 0)
            return inline_svg(draw_svg(plot, PLACEHOLDERS), plot, key)

        return page(self.content, self.advice, draw)

    def pictures(self) -> Iterator[tuple[str, bytes]]:
        """Give every picture as a PNG.

        Returns
        -------
        iterator of (str, bytes)
            A file name that tells what it shows, and the file.

        Raises
        ------
        OutputError
            Where matplotlib is missing.
        """
        for plot in (accuracy_plot(self.content), sqnr_plot(self.content)):
            if plot is not None:
                yield f"{plot.name}.png", draw_png(plot)
        digits = len(str(len(self.content.layers)))
        for number, view in enumerate(self.content.layers, start=1):
            for plot in layer_plots(self.content, view):
                safe = _UNSAFE.sub("_", view.name)[:80]
                yield f"{number:0{digits}}-{safe}-{plot.name}.png", draw_png(plot)

    def save(self, path: str | os.PathLike[str], progress: Progress | None = None) -> None:
        """Write the page to a file, whole or not at all.

        Parameters
        ----------
        path : path
            The .html file.
        progress : callable, optional
            As in `html`.

        Raises
        ------
        OutputError
            Where the file cannot be written, or matplotlib is missing.
        """
        write_atomic(path, self.html(progress))

    def save_pictures(self, folder: str | os.PathLike[str]) -> int:
        """Write every picture into a folder.

        Parameters
        ----------
        folder : path
            Made where it is missing.

        Returns
        -------
        int
            How many there are.

        Raises
        ------
        OutputError
            Where a file cannot be written, or matplotlib is missing.
        """
        where = Path(folder)
        try:
            where.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{where}: cannot be made: {error.strerror or error}") from error
        count = 0
        for name, data in self.pictures():
            write_atomic(where / name, data)
            count += 1
        return count


def report(
    net: Net,
    tables: CalibrationTable | Mapping[str, CalibrationTable],
    *,
    statistics: Statistics | None = None,
    analysis: Analysis | Mapping[str, Analysis] | None = None,
    evaluation: Evaluation | None = None,
    samples: Mapping[str, LayerSample] = MappingProxyType({}),
    title: str = "INT8 report",
    facts: Mapping[str, str] = MappingProxyType({}),
    fold_bn: bool | None = None,
) -> Report:
    """Make a report on a network with one table, or several by name.

    Nothing is computed from images here; what is not given is left out.

    Parameters
    ----------
    net : Net
        The float network.
    tables : CalibrationTable or mapping of str to CalibrationTable
        One calibration table, or several by name; the report is about the first.
    statistics : Statistics, optional
        Of `calibrate` or `collect`: the histograms.
    analysis : Analysis or mapping of str to Analysis, optional
        Of `analyze`, one for the first table, or by table: the errors of layers.
    evaluation : Evaluation, optional
        Of `evaluate`: the accuracy.
    samples : mapping of str to LayerSample
        Of `sample_outputs`: the pictures of before and after.
    title : str
        The page's heading.
    facts : mapping of str to str
        More rows for the summary, by their names.
    fold_bn : bool, optional
        As in `simulate`.

    Returns
    -------
    Report
        The gathered results, ready to be drawn.

    Raises
    ------
    OptionError
        For no tables, and for results or rows that belong to another network or table.
    """
    named = {"table": tables} if isinstance(tables, CalibrationTable) else dict(tables)
    analyses: Mapping[str, Analysis] = {}
    if isinstance(analysis, Analysis):
        analyses = dict.fromkeys(list(named)[:1], analysis)
    elif analysis is not None:
        analyses = analysis
    fold = fold_bn
    if fold is None:
        fold = all(folds(table) for table in list(named.values())[:1])
    content = gather(
        net.graph,
        fold,
        named,
        title=title,
        statistics=statistics,
        evaluation=evaluation,
        analyses=analyses,
        samples=samples,
        facts=facts,
    )
    return Report(content, advise(content))
