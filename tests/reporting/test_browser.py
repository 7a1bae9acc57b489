"""The page in a real browser: no errors, no sideways scrolling on a phone, both color schemes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from urllib.parse import quote

import pytest

from int8calib.reporting.markup import anchor
from tests.reporting_cases import NAMES, case, html

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
# Reports to the page's root element what only a browser knows, once the page is drawn.
pytestmark = pytest.mark.long

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

# Many pages in one window, which starts slowly; a frame may be as narrow as a phone, a window not.
_FRAMES = """<!DOCTYPE html><html lang="en"><body>
<script>
addEventListener("message", (x) => {
  for (const frame of document.querySelectorAll("iframe"))
    if (frame.contentWindow === x.source)
      document.documentElement.setAttribute("data-of-" + frame.id, JSON.stringify(x.data));
});
</script>%s</body></html>
"""
_LIGHT, _DARK = "rgb(255, 255, 255)", "rgb(21, 24, 29)"
_DARK_SYSTEM = "--blink-settings=preferredColorScheme=0"


@dataclass(frozen=True)
class View:
    """A page, the width it is seen at, and the part of its address that names a place in it."""

    page: str
    width: int = 390
    target: str = ""


Seen = Mapping[str, tuple[Mapping[str, str], list[str]]]
"""What the probe noted, and the lines that the console got, of each view."""


@pytest.fixture(scope="module")
def browser() -> str:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser is installed ({', '.join(BROWSERS)})")
    return found


def visit(browser: str, folder: Path, view: View, *options: str) -> tuple[str, list[str]]:
    """The root element of a page in a window of its own, and the lines that the console got."""
    path = folder / "page.html"
    path.write_text(view.page, encoding="utf-8")
    command = [
        *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *("--enable-logging=stderr", "--v=0", "--dump-dom", "--virtual-time-budget=3000"),
        f"--user-data-dir={folder / 'user'}",
        *(f"--window-size={view.width},844", *options, path.as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, timeout=120, check=True)
    root = re.search(r"<html[^>]*>", done.stdout.decode("utf-8"))
    assert root is not None, done.stderr.decode("utf-8", "replace")
    lines = done.stderr.decode("utf-8", "replace").splitlines()
    return root[0], [line for line in lines if "CONSOLE" in line]


def visit_all(browser: str, folder: Path, views: Mapping[str, View], *options: str) -> Seen:
    """The views, each in a frame of its own."""
    frames = ""
    for name, view in views.items():
        (folder / f"{name}.html").write_text(view.page, encoding="utf-8")
        frames += (
            f'<iframe id="{name}" src="{name}.html{view.target}" width="{view.width}" '
            'height="844" style="border:0"></iframe>'
        )
    root, lines = visit(browser, folder, View(_FRAMES % frames, 1400), *options)
    found = {
        name: json.loads(unescape(text))
        for name, text in re.findall(r'data-of-([\w-]+)="([^"]*)"', root)
    }
    assert found.keys() == views.keys()
    # A line that names no page may be of any.
    files = {name: f"/{name}.html" for name in views}
    general = [line for line in lines if not any(file in line for file in files.values())]
    return {
        name: (noted, general + [line for line in lines if files[name] in line])
        for name, noted in found.items()
    }


def probed(page: str, *, opened: bool) -> str:
    return page.replace("</body>", _PROBE % str(opened).lower())


def themes() -> dict[str, str]:
    """The page as it is, and with the switch on dark and on light."""
    page = probed(html(), opened=False)
    neither = page.replace('id="auto" checked', 'id="auto"')
    chosen = {x: neither.replace(f'id="{x}"', f'id="{x}" checked') for x in ("dark", "light")}
    return {"auto": page, **chosen}


@pytest.fixture(scope="module")
def seen(browser: str, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """Every page that a window with light colors shows."""
    page = probed(html(), opened=False)
    wide = '<div style="width:900px">wide</div><script>nonsense()</script></main>'
    loading = '<img src="http://127.0.0.1:9/x.png"></main>'
    long = case().report(title="x" * 300, facts={"y" * 200: "z" * 300}).html()
    views = {
        **{f"open-{width}": View(probed(html(), opened=True), width) for width in (390, 1280)},
        "closed": View(page),
        **{
            f"layer-{number}": View(page, target=f"#{quote(anchor(name), safe='')}")
            for number, name in enumerate(NAMES)
        },
        **{name: View(shown, 800) for name, shown in themes().items()},
        "long": View(probed(long, opened=True)),
        "wide": View(probed(html().replace("</main>", wide), opened=False)),
        "loading": View(probed(html().replace("</main>", loading), opened=False)),
    }
    return visit_all(browser, tmp_path_factory.mktemp("pages"), views)


def check_open(noted: Mapping[str, str], console: list[str], width: int) -> None:
    assert console == []
    assert noted["ready"] == str(len(NAMES)), "the page's own script ran to its end"
    assert int(noted["width"]) == width
    assert int(noted["scroll"]) <= width
    assert int(noted["pictures"]) == 4 * len(NAMES) + 2
    assert float(noted["text"]) > 11


@pytest.mark.parametrize("width", [390, 1280])
def test_it_renders_without_errors_and_fits(seen: Seen, width: int) -> None:
    check_open(*seen[f"open-{width}"], width)


def test_it_does_so_in_a_window_of_its_own(browser: str, tmp_path: Path) -> None:
    root, console = visit(browser, tmp_path, View(probed(html(), opened=True), 1280))
    noted = dict(re.findall(r'data-(\w+)="([^"]*)"', root))
    check_open(noted, console, 1280)
    assert noted["paper"] == _LIGHT


def test_layers_are_closed_until_one_jumps_to_them(seen: Seen) -> None:
    assert seen["closed"][0]["open"] == "0"
    for number in range(len(NAMES)):
        noted, console = seen[f"layer-{number}"]
        assert console == []
        assert noted["open"] == "1"


def test_dark_follows_the_system_and_the_switch(browser: str, tmp_path: Path, seen: Seen) -> None:
    pages = themes()
    views = {name: View(pages[name], 800) for name in ("auto", "light")}
    dark = visit_all(browser, tmp_path, views, _DARK_SYSTEM)
    for noted, expected in (
        (seen["auto"][0], _LIGHT),
        (seen["light"][0], _LIGHT),
        (seen["dark"][0], _DARK),
        (dark["auto"][0], _DARK),
        (dark["light"][0], _LIGHT),
    ):
        assert noted["paper"] == expected


def test_a_long_name_does_not_widen_the_page(seen: Seen) -> None:
    noted, console = seen["long"]
    assert console == []
    assert int(noted["scroll"]) <= 390


def test_the_checks_notice_errors_and_overflow(seen: Seen) -> None:
    noted, console = seen["wide"]
    assert int(noted["scroll"]) > 390
    assert any("nonsense" in line for line in console)
    assert any("Content Security" in line for line in seen["loading"][1])
