"""The page in a real browser: no errors, no sideways scrolling on a phone, both color schemes."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import quote

import pytest

from int8calib.reporting.markup import anchor
from tests.reporting_cases import NAMES, case, html

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
# Reports to the page's root element what only a browser knows, once the page is drawn.
_PROBE = """<script>
for (const layer of document.querySelectorAll("details")) layer.open = %s || layer.open;
const root = document.documentElement;
const seen = [...document.querySelectorAll("svg.plot")].map((x) => x.getBoundingClientRect());
root.dataset.width = innerWidth;
root.dataset.scroll = root.scrollWidth;
root.dataset.pictures = seen.filter((x) => x.width > 250 && x.height > 80).length;
root.dataset.paper = getComputedStyle(document.body).backgroundColor;
root.dataset.open = document.querySelectorAll("details[open]").length;
const small = [...document.querySelectorAll("svg text")].map((x) => x.getBoundingClientRect());
const sizes = small.map((x) => Math.min(x.width, x.height)).filter((x) => x > 0);
root.dataset.text = Math.max(...sizes);
if (parent !== window) parent.postMessage({ ...root.dataset }, "*");
</script>
</body>"""

# A window has a smallest width; a frame in it may be as narrow as a phone.
_FRAME = """<!DOCTYPE html><html lang="en"><body>
<script>addEventListener("message", (x) => Object.assign(document.documentElement.dataset, x.data))
</script><iframe src="page.html%s" width="%d" height="844" style="border:0"></iframe></body></html>
"""
_SMALLEST = 500


@pytest.fixture(scope="module")
def browser() -> str:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser is installed ({', '.join(BROWSERS)})")
    return found


def visit(
    browser: str, folder: Path, page: str, width: int, *options: str, target: str = ""
) -> tuple[dict[str, str], list[str]]:
    """What the probe noted, and the lines that the console got."""
    path = folder / "page.html"
    path.write_text(page, encoding="utf-8")
    if width < _SMALLEST:
        path = folder / "frame.html"
        path.write_text(_FRAME % (target, width), encoding="utf-8")
        target = ""
    command = [
        *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *("--enable-logging=stderr", "--v=0", "--dump-dom", "--virtual-time-budget=3000"),
        f"--user-data-dir={folder / 'user'}",
        *(f"--window-size={max(width, _SMALLEST)},844", *options, f"{path.as_uri()}{target}"),
    ]
    done = subprocess.run(command, capture_output=True, timeout=120, check=True)
    root = re.search(r"<html[^>]*>", done.stdout.decode("utf-8"))
    assert root is not None, done.stderr.decode("utf-8", "replace")
    noted = dict(re.findall(r'data-(\w+)="([^"]*)"', root[0]))
    lines = done.stderr.decode("utf-8", "replace").splitlines()
    return noted, [line for line in lines if "CONSOLE" in line]


def probed(page: str, *, opened: bool) -> str:
    return page.replace("</body>", _PROBE % str(opened).lower())


@pytest.mark.parametrize("width", [390, 1280])
def test_it_renders_without_errors_and_fits(browser: str, tmp_path: Path, width: int) -> None:
    noted, console = visit(browser, tmp_path, probed(html(), opened=True), width)
    assert console == []
    assert noted["ready"] == str(len(NAMES)), "the page's own script ran to its end"
    assert int(noted["width"]) == width
    assert int(noted["scroll"]) <= width
    assert int(noted["pictures"]) == 4 * len(NAMES) + 2
    assert float(noted["text"]) > 11


def test_layers_are_closed_until_one_jumps_to_them(browser: str, tmp_path: Path) -> None:
    page = probed(html(), opened=False)
    noted, _ = visit(browser, tmp_path, page, 390)
    assert noted["open"] == "0"
    for name in NAMES:
        noted, console = visit(
            browser, tmp_path, page, 390, target=f"#{quote(anchor(name), safe='')}"
        )
        assert console == []
        assert noted["open"] == "1"


def test_dark_follows_the_system_and_the_switch(browser: str, tmp_path: Path) -> None:
    page = probed(html(), opened=False)
    dark_page = page.replace('id="auto" checked', 'id="auto"').replace(
        'id="dark"', 'id="dark" checked'
    )
    light_page = page.replace('id="auto" checked', 'id="auto"').replace(
        'id="light"', 'id="light" checked'
    )
    dark_system = "--blink-settings=preferredColorScheme=0"
    light, dark = "rgb(255, 255, 255)", "rgb(21, 24, 29)"
    for shown, options, expected in (
        (page, (), light),
        (dark_page, (), dark),
        (page, (dark_system,), dark),
        (light_page, (dark_system,), light),
    ):
        noted, _ = visit(browser, tmp_path, shown, 800, *options)
        assert noted["paper"] == expected


def test_a_long_name_does_not_widen_the_page(browser: str, tmp_path: Path) -> None:
    page = case().report(title="x" * 300, facts={"y" * 200: "z" * 300}).html()
    noted, console = visit(browser, tmp_path, probed(page, opened=True), 390)
    assert console == []
    assert int(noted["scroll"]) <= 390


def test_the_checks_notice_errors_and_overflow(browser: str, tmp_path: Path) -> None:
    wide = '<div style="width:900px">wide</div><script>nonsense()</script></main>'
    noted, console = visit(
        browser, tmp_path, probed(html().replace("</main>", wide), opened=False), 390
    )
    assert int(noted["scroll"]) > 390
    assert any("nonsense" in line for line in console)
    loading = html().replace("</main>", '<img src="http://127.0.0.1:9/x.png"></main>')
    assert any("Content Security" in line for line in visit(browser, tmp_path, loading, 390)[1])
