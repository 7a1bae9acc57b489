"""Many cases of the mutation test: `python -m tests.fuzz --cases 100000`."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz.run import cases_of, damaged, run_case, run_cases
from tests.fuzz.seeds import make_seeds
from tests.fuzz.targets import TARGETS


def main() -> int:
    """Run, and print counts by kind and outcome; 1 where a case failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000, help="how many (default: 10000)")
    parser.add_argument("--kind", action="append", choices=sorted(TARGETS), help="only this kind")
    parser.add_argument("--seed", type=int, default=1, help="another seed, other cases")
    parser.add_argument("--limit", type=float, default=10.0, help="seconds a case may take")
    parser.add_argument("--case", type=int, help="one case, with its traceback")
    parser.add_argument("--keep", type=Path, help="a folder for the files of failed cases")
    args = parser.parse_args()
    kinds = args.kind or list(TARGETS)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder, "cases")
        work.mkdir()
        made = Path(folder, "seeds")
        made.mkdir()
        seeds = make_seeds(made)
        if args.case is not None:
            outcome, failure = run_case(
                seeds, kinds[0], args.case, work, seed=args.seed, limit=args.limit
            )
            _keep(args.keep, kinds[0], args.case, damaged(seeds, kinds[0], args.case, args.seed)[0])
            print(failure.trace if failure else outcome)  # noqa: T201
            return int(failure is not None)
        started = time.monotonic()
        report = run_cases(
            seeds, cases_of(kinds, args.cases), work, seed=args.seed, limit=args.limit
        )
        print(report.table())  # noqa: T201
        print(f"{time.monotonic() - started:.0f} s, seed {args.seed}")  # noqa: T201
        for failure in report.failures:
            data = damaged(seeds, failure.kind, failure.case, args.seed)[0]
            _keep(args.keep, failure.kind, failure.case, data)
    return int(bool(report.failures))


def _keep(folder: Path | None, kind: str, case: int, data: bytes) -> None:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{kind}-{case}{TARGETS[kind].suffix}").write_bytes(data)


if __name__ == "__main__":
    sys.exit(main())
