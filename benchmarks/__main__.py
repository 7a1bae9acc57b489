"""The command `python -m benchmarks`: options in, tables, results.json and results.md out."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeAlias

from benchmarks import (
    busy,
    costs,
    growth,
    guard,
    ncnn2table,
    onnx_calibrator,
    ratios,
    reference,
    report,
    start,
)
from benchmarks.networks import DEMO, NETWORKS, ROOT, Material, Say, gather
from benchmarks.settings import FULL, QUICK, Settings

Part: TypeAlias = Callable[[Material, Settings, Say], dict[str, Any]]
PARTS: Mapping[str, Part] = {
    "ratios": ratios.measure,
    "ncnn2table": ncnn2table.measure,
    "stages": costs.stages,
    "memory": costs.memory,
    "start": start.measure,
    "busy": busy.measure,
    "growth": growth.measure,
    "reference": reference.measure,
    "onnxruntime": onnx_calibrator.measure,
}
HERE = ROOT / "benchmarks"
WORK = Path(tempfile.gettempdir()) / "int8calib-benchmarks"
PACKAGES = ("numpy", "numba", "opencv-python", "ncnn")


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure int8calib in units of OpenCV forwards: prints tables, writes "
        "results.json and results.md. Parts that are not run keep their stored results.",
        epilog="Networks and photos come from the folder INT8CALIB_SHARED, or ../shared; without "
        "it the built-in demo network and drawn pictures are measured. onnxruntime may live in "
        "another environment: name its interpreter in INT8CALIB_ONNX_PYTHON. ncnn2table itself is "
        "measured where INT8CALIB_NCNN_TOOLS names the folder it is in.",
    )
    made.add_argument(
        "--parts",
        nargs="+",
        choices=PARTS,
        default=list(PARTS),
        metavar="PART",
        help=f"what to measure: {', '.join(PARTS)} (default: all)",
    )
    made.add_argument(
        "--networks",
        nargs="+",
        choices=(*NETWORKS, DEMO),
        metavar="NAME",
        help=f"of {', '.join((*NETWORKS, DEMO))} (default: the first seven)",
    )
    made.add_argument("--images", type=int, metavar="N", help="images of a whole calibration")
    made.add_argument("--rounds", type=int, metavar="N", help="repetitions of each measurement")
    made.add_argument(
        "--quick",
        action="store_true",
        help="tiny sizes, to see that all works; the numbers mean little",
    )
    made.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help=f"where results go (default: {HERE.name}/, with --quick the work folder)",
    )
    made.add_argument(
        "--work",
        type=Path,
        default=WORK,
        metavar="DIR",
        help="folder for generated models (default: %(default)s)",
    )
    made.add_argument(
        "--write-docs",
        action="store_true",
        help="measure nothing; put the stored main table into docs/measured.md",
    )
    made.add_argument(
        "--guard",
        action="store_true",
        help="measure two networks and fail where ratios or stage shares are clearly "
        "worse than the stored ones; nothing is written",
    )
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run; 0, or 1 where the guard finds something worse."""
    args = parser().parse_args(argv)
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - started:5.0f} s] {text}", flush=True)

    output = args.output or (args.work if args.quick else HERE)
    stored_path = output / "results.json"
    if args.write_docs:
        report.write_docs(ROOT / "docs" / "measured.md", _stored(stored_path))
        return 0
    settings = _settings(args)
    if args.guard:
        return _guard(args, settings, _stored(stored_path), say)
    output.mkdir(parents=True, exist_ok=True)
    material = gather(args.work, args.networks or NETWORKS, say)
    old = _stored(stored_path) if stored_path.is_file() else {}
    results = run_parts(args.parts, material, settings, say, old)
    stored_path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    page = report.page(results)
    (output / "results.md").write_text(page, encoding="utf-8")
    print(f"\n{page}\n{stored_path} and results.md are written")
    return 0


def run_parts(
    parts: Sequence[str],
    material: Material,
    settings: Settings,
    say: Say,
    old: Mapping[str, Any],
) -> dict[str, Any]:
    """Results of `parts`; others are kept from `old` where that is of the same machine."""
    here = machine()
    results: dict[str, Any] = dict(old) if old.get("machine") == here else {}
    results["machine"] = here
    for part in parts:
        say(f"{part} ...")
        found = PARTS[part](material, settings, say)
        # Networks that were not asked for this time keep their rows.
        kept = results.get(part, {}) if part in ("ratios", "stages") else {}
        results[part] = {**kept, **found}
    return results


def machine() -> dict[str, Any]:
    """What numbers depend on."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _settings(args: argparse.Namespace) -> Settings:
    settings = QUICK if args.quick else FULL
    given = {name: getattr(args, name) for name in ("images", "rounds")}
    for name, value in given.items():
        if value is not None and value < 1:
            sys.exit(f"--{name} {value}: expected at least 1")
    return replace(settings, **{name: value for name, value in given.items() if value is not None})


def _stored(path: Path) -> dict[str, Any]:
    if not path.is_file():
        sys.exit(f"{path}: there are no stored results; run `python -m benchmarks` first")
    stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return stored


def _guard(
    args: argparse.Namespace, settings: Settings, stored: Mapping[str, Any], say: Say
) -> int:
    material = gather(args.work, args.networks or guard.NETWORKS, say)
    fresh = run_parts(("ratios", "stages"), material, settings, say, {})
    names = guard.compared(stored, fresh)
    if not names:
        say("the stored results hold none of these networks with as many images")
        return 1
    lines = guard.regressions(stored, fresh)
    for line in lines:
        say(f"worse: {line}")
    say(f"compared {', '.join(names)}: {len(lines)} worse")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
