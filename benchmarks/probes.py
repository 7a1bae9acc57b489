"""A command of int8calib in a process of its own, to a JSON file: memory, and time by stage.

`python -m benchmarks.probes OUT.json [--stages] calibrate ...`. Stages are told apart by
wrapping the functions at their seams, one clock per thread; time in a wrapped function that
another one calls counts for the inner one alone.
"""

from __future__ import annotations

import functools
import importlib
import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SEAMS = (
    ("load", "int8calib.caffe.engine.run", "load_caffe"),
    ("decode", "int8calib.images.source", "read_image"),
    ("decode", "int8calib.images.preprocess", "Preprocess.__call__"),
    ("forward", "int8calib.caffe.engine.run", "run_plan"),
    ("statistics", "int8calib.calibration.statistics.fine", "FineBuilder.add"),
    ("statistics", "int8calib.calibration.statistics.counters", "OnePassCounters.add_to"),
    ("range", "int8calib.calibration.statistics.collect", "measure_range"),
    ("range", "int8calib.calibration.statistics.checkpoint", "CollectionState.add_ranges"),
    ("range", "int8calib.calibration.statistics.cache", "range_of_values"),
    ("histogram", "int8calib.calibration.statistics.histogram", "HistogramBuilder.add_values"),
    ("histogram", "int8calib.calibration.statistics.checkpoint", "CollectionState.add_counts"),
    ("threshold", "int8calib.calibration.thresholds.registry", "find_threshold"),
    ("write", "int8calib.cli.outputs", "write_all"),
)
STAGES = (
    *("start", "load", "decode", "forward", "statistics"),
    *("keep", "range", "histogram", "threshold", "write"),
)
"""`start`: the interpreter and imports; `statistics`: counts of one pass; `keep`, `range` and
`histogram`: those of two, `keep` being copies of activations; what is in none is the rest."""


class Clock:
    """Processor seconds by stage, over all threads."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._lock = threading.Lock()
        self._inner = threading.local()

    def timing(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, its own time added to `stage`."""

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            outer, self._inner.seconds = getattr(self._inner, "seconds", 0.0), 0.0
            started = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                spent = time.thread_time() - started
                with self._lock:
                    own = spent - self._inner.seconds
                    self.seconds[stage] = self.seconds.get(stage, 0.0) + own
                self._inner.seconds = outer + spent

        return wrapper


def install(clock: Clock) -> None:
    """Wrap every seam; raises AttributeError, which names it, for one that is gone."""
    for stage, module, path in SEAMS:
        owner: Any = importlib.import_module(module)
        *parents, name = path.split(".")
        for parent in parents:
            owner = getattr(owner, parent)
        function = getattr(owner, name)
        if stage == "forward":
            function = _with_timed_listener(clock, function)
        setattr(owner, name, clock.timing(stage, function))


def _with_timed_listener(clock: Clock, run_plan: Callable[..., Any]) -> Callable[..., Any]:
    """What listens to the tops is no part of the forward pass: it measures, counts or keeps."""

    def run(plan: Any, inputs: Any, listen: Callable[..., Any]) -> Any:
        return run_plan(plan, inputs, clock.timing("keep", listen))

    return run


def _start_up() -> None:
    """Import what the stages need, and load their compiled kernels, before any clock runs."""
    import cv2  # noqa: F401
    import numpy as np

    from int8calib.calibration.statistics.histogram import HistogramBuilder
    from int8calib.calibration.statistics.ranges import measure_range
    from int8calib.calibration.thresholds import find_threshold

    values = np.linspace(-1, 1, 4099, dtype=np.float32).reshape(1, -1)
    builder = HistogramBuilder(measure_range(values).absmax)
    builder.add(values)
    find_threshold(builder.result(), "kl")


def peak_memory() -> int | None:
    """The most bytes this process had in memory, None where the system does not tell.

    VmHWM starts at 0 with the process; getrusage's ru_maxrss may be that of the parent.
    """
    try:
        text = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return None
    line = next((line for line in text.splitlines() if line.startswith("VmHWM:")), None)
    return None if line is None else int(line.split()[1]) * 1024


def main(arguments: list[str]) -> int:
    """Run the command and write what was seen."""
    out, *command = arguments
    clock = Clock()
    if command[0] == "--stages":
        command = command[1:]
        _start_up()
        install(clock)
        clock.seconds["start"] = time.process_time()
    from int8calib.cli.main import main as run

    code = run(command)
    seen = {"peak_bytes": peak_memory(), "cpu": time.process_time(), "stages": clock.seconds}
    Path(out).write_text(json.dumps(seen), encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
