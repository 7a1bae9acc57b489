"""Check a built wheel: everything the packages need is in it, and nothing that is not theirs.

usage: python tests/wheel_contents.py int8calib-*.whl
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("caffe_proto", "int8calib")
MOST_BYTES = 1_200_000


def main(wheel: str) -> int:
    """Compare the wheel with the source tree; returns the exit code."""
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if not name.endswith("/")}
    wanted = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    strangers = {name for name in packed - wanted if ".dist-info/" not in name}
    size = Path(wheel).stat().st_size
    problems = [f"missing from the wheel: {name}" for name in sorted(wanted - packed)]
    problems += [f"does not belong into the wheel: {name}" for name in sorted(strangers)]
    if not any(name.endswith("licenses/LICENSE") for name in packed):
        problems.append("the wheel has no LICENSE")
    if size > MOST_BYTES:
        problems.append(f"the wheel has {size} bytes; at most {MOST_BYTES} are right")
    for problem in problems:
        print(problem)
    print(f"{Path(wheel).name}: {len(packed)} files, {size} bytes, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
