"""The page: well-formed, self-contained, complete, and with the numbers of the results."""

from __future__ import annotations

import json
import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

import int8calib
from int8calib.errors import OptionError
from int8calib.reporting.markup import anchor, text
from tests.reporting_cases import IMAGES, NAMES, TABLES, case, html

VOID = {"meta", "input", "wbr"}


class Page(HTMLParser):
    """A strict reader: every tag is closed in order; texts and attributes are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[tuple[str, dict[str, str]]] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.tables: list[tuple[str, list[list[str]]]] = []
        self.layers: dict[str, list[list[str]]] = {}
        self.heads: list[str] = []
        self._layer = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        assert len(values) == len(attrs), f"an attribute twice in {tag}"
        self.tags.append((tag, values))
        if tag not in VOID:
            self.open.append((tag, values))
        if tag == "details" and values.get("class") == "layer":
            self._layer = values["id"]
            self.heads.append("")
        if tag == "table":
            self.tables.append((values.get("class", ""), []))
        if tag == "tr":
            self.tables[-1][1].append([])
        if tag in ("td", "th"):
            self.tables[-1][1][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop()[0] == tag, f"</{tag}> closes another element"
        if tag == "table" and self.tables[-1][0] == "layer-table":
            self.layers[self._layer] = self.tables[-1][1]

    def handle_data(self, data: str) -> None:
        inside = [tag for tag, _ in self.open]
        if "td" in inside or "th" in inside:
            self.tables[-1][1][-1][-1] += data.replace("\xa0", " ")
        if any(values.get("class") == "name" for _, values in self.open) and self.heads:
            self.heads[-1] += data


@cache
def page() -> Page:
    found = Page()
    found.feed(html())
    found.close()
    assert not found.open, f"never closed: {[tag for tag, _ in found.open]}"
    return found


def rows(kind: str) -> dict[str, dict[str, str]]:
    """The cells of the first table of the class `kind`, by row and column."""
    found = next(rows for name, rows in page().tables if name == kind)
    head, *body = found
    return {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in body}


def test_it_is_well_formed_and_ids_are_unique() -> None:
    ids = [values["id"] for _, values in page().tags if "id" in values]
    assert len(ids) == len(set(ids))
    assert all(not re.search(r"\s", name) for name in ids)
    links = [values["href"] for tag, values in page().tags if tag == "a"]
    assert len(links) > len(NAMES)
    for link in links:
        assert unquote(link.removeprefix("#")) in ids
    used = set(re.findall(r"url\(#([^)]*)\)", html()))
    assert used <= set(ids)
    labels = {values["for"] for tag, values in page().tags if tag == "label"}
    assert labels == {"auto", "light", "dark"} <= set(ids)


def test_it_loads_nothing() -> None:
    assert not re.search(r"https?:|//\w|@import|src=", html().replace("</", ""))
    assert not {tag for tag, _ in page().tags} & {"link", "img", "iframe", "object", "base"}
    policy = next(v["content"] for _, v in page().tags if "http-equiv" in v)
    assert policy.startswith("default-src 'none'")


def test_names_are_text_and_nothing_else() -> None:
    for name in (*NAMES[:3], TABLES[0], "A <title> & more", "b<i>"):
        assert name not in html(), f"{name} stands unescaped"
    assert len(re.findall("<script>", html())) == len(re.findall("</script>", html())) == 1
    assert [head.partition(". ")[2] for head in page().heads[: len(NAMES)]][:3] == list(NAMES[:3])
    assert "<title>A &lt;title&gt; &amp; more" in html()


def test_what_html_cannot_hold_is_replaced() -> None:
    assert text("a\0b\x1b\ud800<\t") == "a\ufffdb\ufffd\ufffd&lt;\t"
    assert anchor("ä b\ud800") == "layer-%C3%A4%20b%ED%A0%80"


def test_every_layer_has_its_pictures() -> None:
    parts = html().split('<details class="layer"')[1:]
    assert len(parts) == len(NAMES)
    for part in parts:
        for kind in ("histogram", "cost", "weights", "error"):
            assert part.count(f'<figure class="{kind}">') == 1
        assert part.count("<svg") == 4


def test_figures_of_layers_are_those_of_the_results() -> None:
    for name in NAMES:
        found = page().layers[anchor(name)]
        tables = [table for table in TABLES if name in case().tables[table]]
        cells = {row[0]: row[1:] for row in found}
        assert len(cells[""]) == len(tables)
        for i, table in enumerate(tables):
            values = json.loads(json.dumps(case().analyses[table].as_dict()))
            error = next(x for x in values["layers"] if x["name"] == name)
            layer = case().tables[table][name]
            assert cells["isolated SQNR"][i] == f"{error['isolated_sqnr']:.1f} dB"
            assert cells["accumulated SQNR"][i] == f"{error['accumulated_sqnr']:.1f} dB"
            assert cells["isolated cosine"][i] == f"{error['isolated_cosine']:.5f}"
            assert cells["error by rounding"][i] == f"{100 * error['rounding_error']:.3g} %"
            assert float(cells["threshold"][i]) == pytest.approx(layer.evidence.threshold, rel=1e-5)
            assert float(cells["scale"][i]) == pytest.approx(layer.bottom_scale, rel=1e-5)
            assert cells["method"][i] == layer.evidence.method
            clipped = cells["values clipped"][i]
            if clipped != "< 0.001 %":
                shown = float(clipped.removesuffix(" %")) / 100
                assert shown == pytest.approx(layer.evidence.clipped, rel=6e-3, abs=1e-7)


def test_winograd_layers_have_six_bits_and_others_eight() -> None:
    bits = {name: dict(zip(*_columns(name), strict=True))["weight bits"] for name in NAMES}
    assert bits == dict(zip(NAMES, ("8", "8", "6", "8"), strict=True))


def _columns(name: str) -> tuple[list[str], list[str]]:
    found = page().layers[anchor(name)]
    return [row[0] for row in found], [row[1] for row in found]


def test_ranking_has_the_order_and_numbers_of_the_analysis() -> None:
    found = rows("ranking")
    values = case().analyses[TABLES[0]].as_dict()["layers"]
    assert list(found) == [error["name"] for error in values]
    for error in values:
        row = found[error["name"]]
        assert row["isolated dB"] == f"{error['isolated_sqnr']:.1f}"
        assert row["accumulated dB"] == f"{error['accumulated_sqnr']:.1f}"
        assert row["error by clipping"] == f"{100 * error['clipped_error']:.3g} %"
        assert row["outputs, this layer alone"] == f"{error['output_sqnr']:.1f}"
    other = {e["name"]: e["isolated_sqnr"] for e in case().analyses[TABLES[1]].as_dict()["layers"]}
    for name, row in found.items():
        assert row["isolated dB, mse"] == (f"{other[name]:.1f}" if name in other else "")


def test_accuracy_is_that_of_the_evaluation() -> None:
    values = case().evaluation.as_dict()
    found = rows("accuracy")
    assert list(found) == ["float", "kl & <co>", "mse"]
    top = values["float"]["topk"]["1"]
    shown = f"{100 * top['value']:.1f} % ({100 * top['low']:.1f}–{100 * top['high']:.1f})"
    assert found["float"]["top-1"] == shown
    for row, table in zip(list(found.values())[1:], values["tables"], strict=True):
        agreed = table["agreement"]
        assert agreed["total"] == IMAGES
        assert row["same best class"].startswith(f"{100 * agreed['hits'] / IMAGES:.1f} %")
    outputs = rows("outputs")
    for table, name in zip(values["tables"], ("kl & <co>", "mse"), strict=True):
        assert outputs[name]["SQNR in dB"] == f"{table['blobs'][0]['sqnr']:.1f}"


def test_what_is_not_given_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    made = case().report(statistics=None, analysis=None, evaluation=None, samples={})
    made.save(path)
    plain = path.read_text(encoding="utf-8")
    assert plain.count("<figure") == plain.count('<figure class="weights">') == len(NAMES)
    assert "No evaluation was given" in plain
    assert any("was not measured" in item.text for item in made.advice)


def test_one_table_alone_takes_one_analysis() -> None:
    found = case()
    table, analysis = found.tables[TABLES[1]], found.analyses[TABLES[1]]
    made = int8calib.report(found.net, table, analysis=analysis)
    assert [view.name for view in made.content.ranking()] == [e.name for e in analysis.layers]
    assert made.content.in_float == ("fc",)
    assert any("No table has rows for fc" in item.text for item in made.advice)


def test_things_that_do_not_belong_together_are_refused() -> None:
    found = case()
    with pytest.raises(OptionError, match="needs a table"):
        int8calib.report(found.net, {})
    with pytest.raises(OptionError, match="an analysis of 'other'"):
        found.report(analysis={"other": found.analyses[TABLES[0]]})
