"""Contenders to costs: interleaved rounds, ratios to a baseline, child processes.

Clocks drift when a machine is shared or warms up. So the baseline runs before and after every
contender (B A B C B ...), and each contender is divided by the mean of its two neighbors.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from benchmarks.networks import ROOT, Network

COMMAND = "import sys; from int8calib.cli.main import main; sys.exit(main())"
"""What the installed command `int8calib` runs."""


class Cost(NamedTuple):
    """Seconds of one unit of work: on the clock, and of all processors together.

    `peak` is the memory of a whole process in bytes, 0 where it is not known.
    """

    wall: float
    cpu: float
    peak: int = 0


Contender = Callable[[], Cost]


@dataclass(frozen=True)
class Rounds:
    """One contender's costs, and the baseline's around each of them."""

    costs: tuple[Cost, ...]
    around: tuple[Cost, ...]

    def summary(self) -> dict[str, Any]:
        """Seconds and ratios, each as a spread."""
        pairs = list(zip(self.costs, self.around, strict=True))
        return {
            "seconds": spread([cost.wall for cost in self.costs]),
            "baseline_seconds": spread([base.wall for base in self.around]),
            "ratio": spread([cost.wall / base.wall for cost, base in pairs]),
            "cpu_ratio": spread([cost.cpu / base.cpu for cost, base in pairs if base.cpu > 0]),
        }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, lowest, highest and number of `values`."""
    if not values:
        return {"median": 0.0, "low": 0.0, "high": 0.0, "rounds": 0}
    return {
        "median": statistics.median(values),
        "low": min(values),
        "high": max(values),
        "rounds": len(values),
    }


def interleave(
    baseline: Contender, contenders: Mapping[str, Contender], rounds: int
) -> dict[str, Rounds]:
    """Every contender `rounds` times, the baseline between any two runs."""
    costs: dict[str, list[Cost]] = {name: [] for name in contenders}
    around: dict[str, list[Cost]] = {name: [] for name in contenders}
    before = baseline()
    for _ in range(rounds):
        for name, contender in contenders.items():
            cost, after = contender(), baseline()
            costs[name].append(cost)
            around[name].append(Cost((before.wall + after.wall) / 2, (before.cpu + after.cpu) / 2))
            before = after
    return {name: Rounds(tuple(costs[name]), tuple(around[name])) for name in contenders}


def timed(work: Callable[[], object], count: int) -> Cost:
    """The cost of one of `count` units of work that `work()` does, in this process."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Cost((time.perf_counter() - wall) / count, (time.process_time() - cpu) / count)


def run_process(command: Sequence[str], env: Mapping[str, str] | None = None) -> Cost:
    """Run a program to its end; raises RuntimeError with its messages where it fails."""
    full = {**os.environ, "PYTHONPATH": str(ROOT), **(env or {})}
    # Users have compiled modules: without, each start would compile all of them again.
    full.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryFile() as messages:
        started = time.perf_counter()
        child = subprocess.Popen(command, stdout=messages, stderr=messages, env=full, cwd=ROOT)
        _, status, usage = os.wait4(child.pid, 0)
        wall = time.perf_counter() - started
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            messages.seek(0)
            text = messages.read().decode(errors="replace").strip()[-2000:]
            raise RuntimeError(f"{' '.join(command)} failed with {child.returncode}: {text}")
    return Cost(wall, usage.ru_utime + usage.ru_stime, 1024 * usage.ru_maxrss)


def python(*arguments: str) -> list[str]:
    """This interpreter with `arguments`."""
    return [sys.executable, *arguments]


def calibrate_arguments(
    network: Network, images: str, output: str, *more: str, workers: int = 2
) -> list[str]:
    """`int8calib calibrate` by kl for `network` over a list of images."""
    return [
        *("calibrate", "--proto", str(network.proto), "--model", str(network.model)),
        *("--images", images, "--output", output, "--workers", str(workers), "--quiet"),
        *("--method", "kl"),
        *("--mean", *(f"{value:g}" for value in network.mean), "--norm", f"{network.norm:g}"),
        *more,
    ]
