"""Pictures: where things are drawn, against positions computed with numpy."""

from __future__ import annotations

import re
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from int8calib.errors import OutputError
from int8calib.reporting.drawing import HEIGHT, WIDTH, draw_png, draw_svg
from int8calib.reporting.markup import PLACEHOLDERS, inline_svg
from int8calib.reporting.plot_types import ROLES, Plot
from int8calib.reporting.plots import accuracy_plot, layer_plots, sqnr_plot
from tests.reporting_cases import NAMES, TABLES, case, element, points


def drawn(plot: Plot, key: str = "k") -> str:
    return inline_svg(draw_svg(plot, PLACEHOLDERS), plot, key)


def frame(svg: str) -> tuple[float, float, float, float]:
    """Left, right, top and bottom of the axes, from their two lines."""
    lines = re.findall(
        r'<path d="M(\S+) (\S+)L(\S+) (\S+)" style="[^"]*stroke-linecap:square"/>', svg
    )
    (x0, y0, _, y1), (left, _, right, _) = (tuple(map(float, line)) for line in lines[-2:])
    assert x0 == left
    return left, right, y1, y0


def place(plot: Plot, svg: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Where values are drawn, (n, 2): linear, or logarithmic along y."""
    left, right, top, bottom = frame(svg)
    low, high = plot.y_limits
    if plot.y_log:
        y, low, high = np.log10(y), np.log10(low), np.log10(high)
    across = left + (x - plot.x_limits[0]) / np.diff(plot.x_limits) * (right - left)
    return np.column_stack([across, bottom - (y - low) / (high - low) * (bottom - top)])


@pytest.fixture(scope="module")
def pictures() -> dict[str, dict[str, tuple[Plot, str]]]:
    """Plots and SVGs by layer and kind."""
    content = case().report().content
    return {
        view.name: {plot.name: (plot, drawn(plot)) for plot in layer_plots(content, view)}
        for view in content.layers
    }


@pytest.mark.parametrize("layer", NAMES)
def test_thresholds_stand_where_tables_put_them(pictures: dict, layer: str) -> None:
    for kind in ("histogram", "cost"):
        plot, svg = pictures[layer][kind]
        for i, name in enumerate(TABLES):
            if layer not in case().tables[name]:
                continue
            threshold = 127 / case().tables[name][layer].bottom_scale
            mark = points(element(svg, f"threshold{i}"))
            expected = place(plot, svg, np.full(2, threshold), np.array(plot.y_limits))
            np.testing.assert_allclose(mark, expected, atol=0.11)


@pytest.mark.parametrize("layer", NAMES)
def test_bars_have_the_heights_of_the_counts(pictures: dict, layer: str) -> None:
    plot, svg = pictures[layer]["histogram"]
    table = case().tables[TABLES[0]][layer]
    found = case().statistics.histograms[table.evidence.blob]
    threshold = 127 / table.bottom_scale
    counts = found.counts.reshape(128, 16).sum(axis=1)
    edges = np.arange(129) * found.absmax / 128
    for k in range(128):
        middle = (edges[k] + edges[k + 1]) / 2
        side = "kept" if middle < threshold else "clipped"
        outline = points(element(svg, side))
        height = np.array([max(counts[k], 0.5)], float)
        expected = place(plot, svg, np.array([middle]), height)[0]
        left = np.flatnonzero((outline[:-1, 0] <= expected[0]) & (outline[1:, 0] > expected[0]))
        assert len(left) == 1, f"one top above {middle}"
        assert outline[left[0], 1] == pytest.approx(expected[1], abs=0.11)
    if "clipped" in svg:
        tail = points(element(svg, "clipped"))
        edge = place(plot, svg, np.array([threshold]), np.ones(1))[0, 0]
        assert tail[:, 0].min() == pytest.approx(edge, abs=0.11)
        assert points(element(svg, "kept"))[:, 0].max() == pytest.approx(edge, abs=0.11)


def test_something_is_clipped(pictures: dict) -> None:
    assert any("clipped" in pictures[layer]["histogram"][1] for layer in NAMES)


@pytest.mark.parametrize("layer", NAMES)
def test_weights_reach_from_smallest_to_largest(pictures: dict, layer: str) -> None:
    plot, svg = pictures[layer]["weights"]
    net_layer = next(x for x in case().net.graph.layers if x.name == layer)
    rows = net_layer.weights[0].reshape(len(net_layer.weights[0]), -1)
    outline = points(element(svg, "weights"))
    middles = np.arange(len(rows)) + 0.5
    for values in (rows.min(axis=1), rows.max(axis=1)):
        for x, y in place(plot, svg, middles, values):
            crossing = [
                a[1]
                for a, b in pairwise(outline)
                if min(a[0], b[0]) < x < max(a[0], b[0]) and a[1] == b[1]
            ]
            assert min(abs(c - y) for c in crossing) < 0.11
    scales = np.asarray(case().tables[TABLES[0]][layer].weight_scales)
    levels = np.rint((np.abs(rows).max(axis=1) * scales).max())
    clip = points(element(svg, "clip0-high"))
    np.testing.assert_allclose(clip, place(plot, svg, middles, levels / scales), atol=0.11)


def test_single_values_are_those_of_the_sample(pictures: dict) -> None:
    plot, svg = pictures["fc"]["error"]
    sample = case().samples["fc"]
    dots = points(element(svg, "sample"))[::2]
    all_places = place(plot, svg, sample.expected, sample.actual - sample.expected)
    assert len(dots) == len(sample.expected)
    for dot in dots:
        assert np.abs(all_places - dot).max(axis=1).min() < 0.11


def test_overviews_show_the_figures() -> None:
    content = case().report().content
    sqnr, accuracy = sqnr_plot(content), accuracy_plot(content)
    assert sqnr is not None
    assert accuracy is not None
    svg = drawn(sqnr)
    for i, found in enumerate(case().analyses.values()):
        values = {layer.name: layer.accumulated_sqnr for layer in found.layers}
        at = [k for k, name in enumerate(NAMES, start=1) if name in values]
        y = np.array([values[NAMES[k - 1]] for k in at])
        expected = place(sqnr, svg, np.array(at, float), y)
        np.testing.assert_allclose(points(element(svg, f"accumulated{i}")), expected, atol=0.11)
    svg = drawn(accuracy)
    results = [case().evaluation.float_accuracy, *(t.accuracy for t in case().evaluation.tables)]
    for i, result in enumerate(results):
        dot = points(element(svg, f"row{i}"))[0]
        value = np.array([100 * result.topk[1].hits / result.topk[1].total])
        expected = place(accuracy, svg, value, np.array([len(results) - 1.0 - i]))[0]
        np.testing.assert_allclose(dot, expected, atol=0.11)


def test_svgs_are_short_and_take_their_colors_from_the_page(pictures: dict) -> None:
    sizes = []
    for plots in pictures.values():
        for _, svg in plots.values():
            sizes.append(len(svg))
            assert "#" not in svg.replace("url(#k", ""), "a color that the page cannot change"
            assert set(re.findall(r"var\(--(\w+)\)", svg)) <= set(ROLES)
            assert "font-family" not in svg
    assert max(sizes) < 16_000


def test_all_text_lies_inside_the_picture(pictures: dict) -> None:
    for plots in pictures.values():
        for _, svg in plots.values():
            for x, y in re.findall(r'<text x="(\S+)" y="(\S+)"', svg):
                assert 0 <= float(x) <= WIDTH
                assert 0 <= float(y) <= HEIGHT


def test_pictures_repeat(pictures: dict) -> None:
    plot, svg = pictures["fc"]["histogram"]
    assert drawn(plot) == svg


def test_png_files_have_the_size_and_are_no_blank(pictures: dict) -> None:
    import cv2

    plot, _ = pictures["fc"]["histogram"]
    data = draw_png(plot, scale=2.0)
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    assert image.shape[1] == 2 * WIDTH
    assert image.std() > 10


def test_pictures_are_written_under_safe_names(tmp_path: Path) -> None:
    count = case().report().save_pictures(tmp_path / "new" / "folder")
    names = sorted(path.name for path in (tmp_path / "new" / "folder").iterdir())
    assert len(names) == count == 2 + 4 * len(NAMES)
    assert all(re.fullmatch(r"[\w.-]+\.png", name) for name in names)
    assert names[0] == "1-conv_1_co-cost.png"


def test_without_matplotlib_the_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(OutputError, match=r"pip install int8calib\[report\]"):
        case().report().html()
