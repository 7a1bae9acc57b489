"""The house rules that a machine can hold: who imports whom, sizes, where tests lie, words."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from int8calib.cli.main import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "int8calib"
FILES = sorted([*(ROOT / "int8calib").rglob("*.py"), *(ROOT / "caffe_proto").rglob("*.py")])

# Every stage with its rank: a file imports stages of a lower rank, or its own.
STAGES = {
    "caffe_proto": 0,
    "int8calib.errors": 1,
    "int8calib.arrays": 1,
    "int8calib.words": 1,
    "int8calib.levels": 1,
    "int8calib.device": 2,
    "int8calib.inspection": 2,
    "int8calib.complaints": 2,
    "int8calib.files": 2,
    "int8calib.parsing": 2,
    "int8calib.limits": 2,
    "int8calib.urls": 2,
    "int8calib.workers": 3,
    "int8calib.compiled": 3,
    "int8calib.cluster": 4,
    "int8calib.images": 5,
    "int8calib.table": 5,
    "int8calib.calibration": 6,
    "int8calib.ncnn": 6,
    "int8calib.onnx": 7,
    "int8calib.ncnn.execution": 7,
    "int8calib.caffe.layers": 7,
    "int8calib.caffe.network": 8,
    "int8calib.caffe.engine": 9,
    "int8calib.caffe": 10,
    "int8calib.caffe.inspection": 11,
    "int8calib.ncnn.convert": 11,
    "int8calib.ncnn.translate": 11,
    "int8calib.demo": 12,
    "int8calib.simulation": 13,
    "int8calib.evaluation": 14,
    "int8calib.analysis": 15,
    "int8calib.rounding": 15,
    "int8calib.tuning": 16,
    "int8calib.reporting": 17,
    "int8calib.cli": 20,
    "int8calib.__main__": 21,
}
# Stages, with all that stands below their name, and what they must do without. Caffe and ncnn meet
# in ncnn.convert and ncnn.translate, and in what stands above them.
ALONE = {
    "int8calib.table": ("int8calib.caffe", "int8calib.ncnn", "caffe_proto"),
    "int8calib.calibration": ("int8calib.caffe", "int8calib.ncnn", "caffe_proto"),
    "int8calib.images": ("int8calib.caffe", "int8calib.ncnn"),
    "int8calib.ncnn": ("int8calib.caffe", "caffe_proto"),
    "int8calib.caffe": ("int8calib.ncnn",),
    "int8calib.onnx": ("int8calib.caffe", "int8calib.ncnn", "caffe_proto"),
}
MEETING = ("int8calib.ncnn.convert", "int8calib.ncnn.translate")
MOST_FILES, MOST_LINES = 12, 350
# Packages that are lists, one file an entry: a family of layers, a command.
LISTS = {"int8calib/caffe/layers", "int8calib/cli"}
# Tests of the program as a whole, and of modules that stand in no folder.
WHOLE_PROGRAM = re.compile(
    r"test_(architecture|public_api|docs|benchmarks|dialects|golden|networks|real_models)"
)
HOMES = {
    "numba": {"int8calib/compiled/machine.py"},
    "llvmlite": {"int8calib/compiled/machine.py"},
    "cv2": {"int8calib/images/decode.py"},
    "cupy": {"int8calib/device.py"},
    "onnx": {"int8calib/onnx/layers.py"},
    "matplotlib": {"int8calib/reporting/drawing.py"},
    "distributed": {"int8calib/cluster/connect.py"},
    "fsspec": {"int8calib/urls.py"},
    "cloudpickle": {"int8calib/cluster/job.py"},
    "torch": {"int8calib/demo/train.py", "int8calib/demo/train_detector.py"},
}


def _module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _below(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


@cache
def _stage(module: str) -> str | None:
    found = [name for name in STAGES if _below(module, name)]
    return max(found, key=len) if found else None


@cache
def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(_text(path))


@cache
def _nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(_tree(path)))


@cache
def _imports(path: Path) -> tuple[tuple[int, str], ...]:
    """Every module a file imports, with the line; type-checking imports count as well."""
    found = []
    for node in _nodes(path):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            found.append((node.lineno, node.module or ""))
            found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
    return tuple(found)


def test_stages_import_earlier_stages_only() -> None:
    wrong = []
    for path in FILES:
        own = _stage(_module(path))
        if own is None:
            wrong += [f"{path} belongs to no stage"] * (_module(path) != "int8calib")
            continue
        for line, name in _imports(path):
            stage = _stage(name)
            if stage is None or stage == own:
                continue
            if STAGES[stage] >= STAGES[own]:
                wrong.append(f"{path}:{line}: {own} imports {stage}")
            for alone, without in ALONE.items():
                if _below(own, alone) and own not in MEETING:
                    others = [other for other in without if _below(stage, other)]
                    wrong += [f"{path}:{line}: {alone} must stand without {o}" for o in others]
    assert not wrong, "\n".join(wrong)


def test_heavy_libraries_have_one_home() -> None:
    users: dict[str, set[str]] = {library: set() for library in HOMES}
    for path in FILES:
        for _, name in _imports(path):
            library = name.split(".")[0]
            if library in HOMES:
                users[library].add(path.relative_to(ROOT).as_posix())
    assert users == HOMES


def test_files_say_what_they_are_for_and_stay_short() -> None:
    tests = sorted((ROOT / "tests").rglob("*.py"))
    wrong = []
    for path in (*FILES, *tests):
        text = _text(path)
        if path.name.endswith("_pb2.py"):
            continue
        if path in FILES and not ast.get_docstring(_tree(path)):
            wrong.append(f"{path} has no docstring")
        if text.count("\n") > MOST_LINES:
            wrong.append(f"{path} has {text.count(chr(10))} lines")
    assert not wrong, "\n".join(wrong)


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


def _modules() -> dict[str, list[str]]:
    """The modules of every package, `__init__` left out, by its path in the repository."""
    modules: dict[str, list[str]] = {}
    for path in FILES:
        if path.stem not in ("__init__", "__main__"):
            modules.setdefault(path.parent.relative_to(ROOT).as_posix(), []).append(path.stem)
    return modules


def test_packages_stay_small() -> None:
    programs = COMMANDS.keys() | {"main", "start", "convert_tool", "demo_detection"}
    sizes = {folder: len(modules) for folder, modules in _modules().items()}
    sizes["int8calib/cli"] -= len(programs)
    large = {f: n for f, n in sizes.items() if n > MOST_FILES and f not in LISTS}
    assert not large, f"packages with more than {MOST_FILES} files: {large}"
    assert sizes["int8calib/cli"] <= MOST_FILES, "too many files that commands share"


def test_tests_mirror_the_folders() -> None:
    homes = {
        folder: ROOT / "tests" / folder.removeprefix("int8calib").removeprefix("/")
        for folder in _modules()
    }
    without = [folder for folder, tests in homes.items() if not any(tests.glob("test_*.py"))]
    assert not without, f"packages that have no tests: {without}"


def test_a_test_lies_where_its_module_is() -> None:
    wrong = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        place = path.parent.relative_to(ROOT / "tests").as_posix()
        if place == ".":
            module = ROOT / "int8calib" / path.name.removeprefix("test_")
            if not module.exists() and not WHOLE_PROGRAM.match(path.name):
                wrong.append(f"{path.name} tests no module")
            continue
        homes = (ROOT / "int8calib" / place, ROOT / place, ROOT / "tests" / place / "__main__.py")
        if not any(home.exists() for home in homes):
            wrong.append(f"there is no folder {place} to test")
    assert not wrong, "\n".join(wrong)


def test_parsed_arguments_stay_in_the_command() -> None:
    """A namespace ends in the file of its command, where it becomes dataclasses and values."""
    readers = {"main", "options", "image_options", "convert_tool", "config"} | COMMANDS.keys()
    wrong = []
    for path in FILES:
        if "Namespace" not in _text(path):
            continue
        if path.parent != ROOT / "int8calib/cli" or path.stem not in readers:
            wrong.append(f"{path} sees parsed arguments")
        own = {node.name for node in _tree(path).body if isinstance(node, ast.FunctionDef)}
        allowed = own | {"vars", "getattr", "hasattr", "read_options", "image_options", "run"}
        for call in (node for node in _nodes(path) if isinstance(node, ast.Call)):
            given = [arg.id for arg in call.args if isinstance(arg, ast.Name)]
            if "args" in given and not isinstance(call.func, ast.Subscript):
                name = getattr(call.func, "id", getattr(call.func, "attr", ""))
                if name not in allowed:
                    wrong.append(f"{path}:{call.lineno}: hands its arguments to {name}")
    assert not wrong, "\n".join(wrong)


# British spelling, and words of an earlier text that say less than the field's own.
STEMS = (
    *("quantis", "normalis", "optimis", "initialis", "serialis", "organis", "recognis"),
    *("summaris", "minimis", "maximis", "colour", "behaviour", "neighbour", "favour", "honour"),
    *("artefact", "catalogue"),
)
# Patterns by the part that each begins with: that part is found far sooner.
BRITISH = {stem: rf"{stem}\w*" for stem in STEMS}
BRITISH |= {"centre": r"\bcentres?\b", "analyse": r"\banalysed?\b", "labell": r"\blabell\w*"}
BRITISH |= {word: rf"\b{word}\b" for word in ("grey", "cancelled", "modelling", "licence")}
OLD_NAMES = {
    *("feed", "feeds", "twin", "twins", "shelf", "tally", "evened", "suited", "settle", "settled"),
    *("aim", "judge", "clock", "weighing", "arriving", "screen", "tolerantly", "importance"),
}


def _written() -> list[Path]:
    """Every text that people write here: code, tests, pages."""
    folders = ("int8calib", "caffe_proto", "tests", "benchmarks", "docs")
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*.*")]
    return [
        path
        for path in (*paths, *ROOT.glob("*.md"))
        if path.suffix in (".py", ".md", ".proto") and path != Path(__file__).resolve()
    ]


def test_spelling_is_american() -> None:
    found = []
    for path in _written():
        text = _text(path).lower()
        for part, pattern in BRITISH.items():
            if part in text:
                found += [f"{path}: {match[0]}" for match in re.finditer(pattern, text)]
    assert not found, found


def _identifiers(path: Path) -> Iterator[tuple[int, str]]:
    """Every name in a file with its line."""
    for node in _nodes(path):
        for attribute in ("id", "attr", "arg", "name"):
            if attribute in node._fields and isinstance(name := getattr(node, attribute), str):
                yield getattr(node, "lineno", 0), name


@cache
def _is_old(name: str) -> bool:
    return not OLD_NAMES.isdisjoint(re.sub(r"([A-Z])", r"_\1", name).lower().split("_"))


def test_words_are_those_of_the_field() -> None:
    wrong = []
    for path in FILES:
        if path.name.endswith("_pb2.py"):
            continue
        for line, name in [(1, path.stem), *_identifiers(path)]:
            if _is_old(name):
                wrong.append(f"{path}:{line}: {name}")
        for node in _nodes(path):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node) or ""
                if re.search(r"\bcomes? in\b.*\bgo(es)? out\b", text, re.DOTALL):
                    wrong.append(f"{path}: {text[:80]}")
    assert not wrong, "\n".join(wrong)


def test_commands_do_not_import_one_another() -> None:
    commands = {f"int8calib.cli.{name}" for name in COMMANDS}
    wrong = []
    for command in COMMANDS:
        others = commands - {f"int8calib.cli.{command}"}
        imported = {name for _, name in _imports(ROOT / "int8calib/cli" / f"{command}.py")}
        wrong += [f"{command} imports {other}" for other in sorted(imported & others)]
    assert not wrong, "\n".join(wrong)
