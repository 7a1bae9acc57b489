"""README.md and docs/ against the program: what they show works, and nothing is missing."""

from __future__ import annotations

import functools
import importlib
import json
import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from int8calib.caffe.layers import registry
from int8calib.calibration.thresholds import method_names
from int8calib.cli import convert_tool
from int8calib.cli.main import main
from int8calib.demo import DETECTOR_CAFFEMODEL, DETECTOR_PROTOTXT, draw, scenes
from tests.generated import make_model
from tests.network_styles import conv, conv_bn, data, head

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROGRAMS = {"int8calib": main, "caffe-int8-convert-tool": convert_tool.main}
PHOTOS, HELD_OUT = 10, 5
# One layer of each kind that the examples need: most of the time is theirs.
SMALL = (
    data(1, 3, 64, 64)
    + conv_bn("conv1", "data", "num_output: 8 kernel_size: 3 stride: 2")
    + conv("dw", "conv1", "num_output: 8 kernel_size: 3 group: 8 stride: 2")
    + head("dw", len(draw.LABELS))
)


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_the_reference_is_what_the_program_says(capsys: pytest.CaptureFixture[str]) -> None:
    pages = runpy.run_path(str(ROOT / "docs" / "generate.py"))["PAGES"]
    for name, make in pages.items():
        stored = (ROOT / "docs" / "reference" / name).read_text(encoding="utf-8")
        assert stored == make(), f"{name} is out of date: run python docs/generate.py"


def test_check_tells_outdated_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = runpy.run_path(str(ROOT / "docs" / "generate.py"))["main"]
    monkeypatch.setitem(run.__globals__, "REFERENCE", tmp_path)
    checking, writing = ["generate.py", "--check"], ["generate.py"]
    for words, status in ((checking, 1), (writing, 0), (checking, 0)):
        monkeypatch.setattr("sys.argv", words)
        assert run() == status
        assert any(tmp_path.iterdir()) == (words is writing or status == 0)
    (tmp_path / "api.md").write_text("old")
    assert run() == 1
    assert capsys.readouterr().out.endswith("api.md: out of date\n")


@pytest.mark.parametrize("method", method_names())
def test_every_method_is_explained(method: str) -> None:
    assert f"`{method}`" in (ROOT / "docs/guide/calibrate.md").read_text(encoding="utf-8")


def anchors(page: Path) -> set[str]:
    """The anchors that a page's headings make, as Markdown viewers name them."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    for link in links:
        if link.startswith("http"):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}"


def examples(page: Path) -> Iterator[str | list[str]]:
    """The page's Python blocks as text and its commands as words, in order.

    Blocks that begin with the name of a file are programs, which `test_docs_frameworks` runs.
    """
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    names = "|".join(PROGRAMS)
    pattern = rf"^```python\n(.*?)^```$|^    ((?:{names}) [^\n]*)$"
    for block, command in re.findall(pattern, text, re.MULTILINE | re.DOTALL):
        if not re.match(r"# \w+\.py\n", block):
            yield block or shlex.split(command)


# A demo is a page's own test; it needs no files and is tested elsewhere.
RUN = [
    page for page in PAGES if page.parent.name != "reference" and any(True for _ in examples(page))
]


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the examples name."""
    folder = tmp_path_factory.mktemp("material")
    proto, model = make_model(folder, SMALL, name="small")
    proto.rename(folder / "deploy.prototxt")
    model.rename(folder / "net.caffemodel")
    draw.write_images(folder / "photos", PHOTOS, 1)
    written = draw.write_images(folder / "held-out", HELD_OUT, 2)
    lines = (
        f"{path.relative_to(folder / 'held-out').as_posix()} {label}\n" for path, label in written
    )
    (folder / "labels.txt").write_text("".join(lines))
    (folder / "ssd.prototxt").write_bytes(DETECTOR_PROTOTXT.read_bytes())
    (folder / "ssd.caffemodel").write_bytes(DETECTOR_CAFFEMODEL.read_bytes())
    boxes: dict[str, list[object]] = {"images": [], "annotations": []}
    for i, (path, truths) in enumerate(scenes.write_scenes(folder / "streets", HELD_OUT, 2)):
        size = {"width": scenes.SIZE, "height": scenes.SIZE}
        boxes["images"].append({"id": i, "file_name": path.name, **size})
        for label, box in truths:
            left, top, right, bottom = (scenes.SIZE * x for x in box)
            place = {"bbox": [left, top, right - left, bottom - top]}
            boxes["annotations"].append({"image_id": i, "category_id": label, **place})
    (folder / "instances.json").write_text(json.dumps(boxes))
    return folder


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_examples_run(
    page: Path,
    material: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for item in material.iterdir():
        (tmp_path / item.name).symlink_to(item)
    monkeypatch.chdir(tmp_path)
    registry.type_names()  # loads the types that come with the package
    importlib.import_module("int8calib.simulation.layers")  # whose types must stay registered
    monkeypatch.setattr(registry, "_types", dict(registry._types))
    if page.stem == "cluster":
        # Workers in processes are tested with the cluster; here they are threads.
        distributed = pytest.importorskip("distributed")
        threads = functools.partial(distributed.LocalCluster, processes=False)
        monkeypatch.setattr(distributed, "LocalCluster", threads)
    rng = np.random.default_rng(0)
    names = {"arrays": [rng.normal(size=(1, 3, 64, 64)).astype(np.float32) for _ in range(3)]}
    for example in examples(page):
        if isinstance(example, str):
            exec(compile(example, page.name, "exec"), names)
            continue
        program, *words = example
        status = PROGRAMS[program](words)
        assert status == 0, f"{' '.join(example)}: {capsys.readouterr().err}"
