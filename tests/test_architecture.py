"""The house rules that a machine can hold: directions of imports, and who may import what."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted([*(ROOT / "int8calib").rglob("*.py"), *(ROOT / "caffe_proto").rglob("*.py")])

# Every stage with its rank: a file imports stages of a lower rank, or its own.
STAGES = {
    "caffe_proto": 0,
    "int8calib.errors": 1,
    "int8calib.arrays": 1,
    "int8calib.words": 1,
    "int8calib.levels": 1,
    "int8calib.files": 2,
    "int8calib.parsing": 2,
    "int8calib.workers": 2,
    "int8calib.limits": 2,
    "int8calib.compiled": 3,
    "int8calib.images": 4,
    "int8calib.table": 4,
    "int8calib.calibration": 5,
    "int8calib.ncnn": 5,
    "int8calib.caffe.layers": 6,
    "int8calib.caffe.network": 7,
    "int8calib.caffe.engine": 8,
    "int8calib.caffe": 9,
    "int8calib.caffe.inspection": 10,
    "int8calib.ncnn.convert": 10,
    "int8calib.demo": 11,
    "int8calib.simulation": 12,
    "int8calib.evaluation": 13,
    "int8calib.analysis": 14,
    "int8calib.tuning": 15,
    "int8calib.reporting": 16,
    "int8calib.cli": 20,
}
# Stages that another converter embeds, and what they must not drag in.
ALONE = {
    "int8calib.table": {"int8calib.caffe", "int8calib.ncnn", "caffe_proto"},
    "int8calib.calibration": {"int8calib.caffe", "int8calib.ncnn", "caffe_proto"},
    "int8calib.images": {"int8calib.caffe"},
    "int8calib.ncnn": {"int8calib.caffe", "caffe_proto"},
}
HOMES = {
    "numba": {"int8calib/compiled/machine.py"},
    "llvmlite": {"int8calib/compiled/machine.py"},
    "cv2": {"int8calib/images/decode.py"},
    "matplotlib": {"int8calib/reporting/drawing.py"},
    "torch": {"int8calib/demo/train.py"},
}


def _module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _stage(module: str) -> str | None:
    found = [name for name in STAGES if module == name or module.startswith(name + ".")]
    return max(found, key=len) if found else None


def _imports(path: Path, *, top_level_only: bool = False) -> list[tuple[int, str]]:
    """Every module a file imports, with the line; type-checking imports count as well."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = []
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            found.append((node.lineno, node.module or ""))
            found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
    return found


@pytest.mark.parametrize("path", FILES, ids=_module)
def test_stages_import_earlier_stages_only(path: Path) -> None:
    own = _stage(_module(path))
    if own is None:
        assert _module(path) == "int8calib", f"{path} belongs to no stage"
        return
    for line, name in _imports(path):
        stage = _stage(name)
        if stage is None or stage == own:
            continue
        assert STAGES[stage] < STAGES[own], f"{path}:{line}: {own} imports {stage}"
        assert stage not in ALONE.get(own, set()), (
            f"{path}:{line}: {own} must stand without {stage}"
        )


@pytest.mark.parametrize("library", HOMES)
def test_heavy_libraries_have_one_home(library: str) -> None:
    users = {
        str(path.relative_to(ROOT))
        for path in FILES
        for _, name in _imports(path)
        if name.split(".")[0] == library
    }
    assert users == HOMES[library]


@pytest.mark.parametrize("path", FILES, ids=_module)
def test_files_say_what_they_are_for_and_stay_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if path.name.endswith("_pb2.py"):
        return
    assert ast.get_docstring(ast.parse(text)), f"{path} has no docstring"
    assert text.count("\n") <= 350, f"{path} has {text.count(chr(10))} lines"


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import int8calib", {"numpy", "numba", "cv2", "google.protobuf"}),
        (
            "from int8calib.cli.main import build_parser; build_parser().format_help()",
            {"numpy", "numba", "cv2", "google.protobuf", "rich"},
        ),
        ("import int8calib; int8calib.load_caffe; int8calib.calibrate", {"numba", "cv2"}),
        (
            "import int8calib.calibration.statistics.store, int8calib.calibration.thresholds",
            {"numba", "cv2", "google.protobuf"},
        ),
        (
            "import int8calib; int8calib.calibrate",
            {"numba", "cv2", "google.protobuf", "int8calib.caffe"},
        ),
        (
            "import int8calib; int8calib.simulate; int8calib.evaluate; int8calib.analyze",
            {"numba", "cv2"},
        ),
        ("import int8calib.table", {"numba", "cv2", "google.protobuf"}),
        ("import caffe_proto, caffe_proto.files", {"int8calib", "numpy", "google.protobuf"}),
    ],
)
def test_importing_stays_light(statement: str, absent: set[str]) -> None:
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    loaded = set(done.stdout.split())
    assert not loaded & absent, f"{statement} loads {sorted(loaded & absent)}"
