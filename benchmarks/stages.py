"""The ways from a Caffe model to an INT8 ncnn model that are compared, each by commands."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.cases import Case
from int8calib.cli.main import run_command
from int8calib.ncnn.model import load_model
from int8calib.ncnn.runtime import RuntimeNet

Report = Callable[[str], None]


@dataclass(frozen=True)
class Stage:
    """One way.

    Attributes
    ----------
    key, name
        How options and tables call it.
    command, words
        The command that makes the table, and its options.
    alone
        Whether only the table is used, with the float model as it was and ncnn2int8's rounding.
    """

    key: str
    name: str
    command: str
    words: tuple[str, ...] = ()
    alone: bool = False


KL = Stage("kl", "ncnn2table's kl", "calibrate", ("--like", "ncnn2table"), alone=True)
MSE = Stage("table", "`calibrate`, table alone", "calibrate", alone=True)
LEVELS = Stage("ncnn", "`calibrate --ncnn`", "calibrate")
EQUALIZED = Stage("equalized", "`calibrate --ncnn --equalize`", "calibrate", ("--equalize",))
TUNED_TABLE = Stage("tuned-table", "`tune`, table alone", "tune", alone=True)
TUNED = Stage("tuned", "`tune --ncnn --more-work 0`", "tune", ("--more-work", "0"))
TUNED_WIDER = Stage("tuned-wider", "`tune --ncnn`", "tune")
STAGES = (KL, MSE, LEVELS, EQUALIZED, TUNED_TABLE, TUNED, TUNED_WIDER)


@dataclass(frozen=True, eq=False)
class Made:
    """An INT8 model that a stage made, ready to run.

    `seconds` are those of its command, `cpu` those of the processor, which other work beside it
    hardly changes.
    """

    net: RuntimeNet
    seconds: float
    cpu: float


def float_net(case: Case, folder: Path) -> RuntimeNet:
    """The case's network in ncnn, in float."""
    pair = [str(folder / f"float.{end}") for end in ("param", "bin")]
    run_command(["convert", *case.network, "--output", *pair, "--quiet"])
    return RuntimeNet(load_model(*pair))


def make(case: Case, stage: Stage, images: Sequence[Path], folder: Path) -> Made:
    """Calibrate or tune on `images`, and load the INT8 model; `folder` holds the float one."""
    listed, table = folder / "images.txt", folder / "net.table"
    listed.write_text("".join(f"{path}\n" for path in images), encoding="utf-8")
    words = [stage.command, *case.network, "--images", str(listed), *case.words, *stage.words]
    words += ["--output", str(table), "--quiet"]
    pair = [str(folder / f"net-int8.{end}") for end in ("param", "bin")]
    if stage.command == "tune":
        words += ["--tune-images", str(len(images))]
    if not stage.alone:
        words += ["--ncnn", str(folder / "net")]
    started, used = time.perf_counter(), time.process_time()
    run_command(words)
    seconds, cpu = time.perf_counter() - started, time.process_time() - used
    if stage.alone:
        given = [str(folder / f"float.{end}") for end in ("param", "bin")]
        words = ["quantize", "--param", given[0], "--bin", given[1], "--table", str(table)]
        run_command([*words, "--output", *pair, "--quiet"])
    return Made(RuntimeNet(load_model(*pair)), seconds, cpu)


def interval(values: np.ndarray, seed: int = 0, rounds: int = 2000) -> tuple[float, float, float]:
    """The mean of one value per image, and its 95 % interval by drawing images again.

    The percentile bootstrap: images are drawn with replacement, so that what an image gives in
    several splits, or mirrored, counts as one observation.
    """
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, len(values), (rounds, len(values)))
    low, high = np.percentile(values[drawn].mean(axis=1), (2.5, 97.5))
    return float(values.mean()), float(low), float(high)


def table_lines(heads: Sequence[str], rows: Sequence[Mapping[str, str]]) -> list[str]:
    """A table in Markdown, numbers at the right."""
    lines = [f"| {' | '.join(heads)} |", f"|---|---|{'---:|' * (len(heads) - 2)}"]
    return lines + [f"| {' | '.join(row.get(head, '') for head in heads)} |" for row in rows]
