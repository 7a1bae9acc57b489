"""Images, memory and time that a tuning may use come in; what it works with goes out."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from int8calib.caffe.engine.executor import CaffeExecutor
from int8calib.caffe.engine.run import Net
from int8calib.calibration.pipeline import Job
from int8calib.errors import ImageError, OptionError
from int8calib.evaluation.evaluate import Labelled, batch_and_labels
from int8calib.tuning.layerwise import bytes_per_image
from int8calib.tuning.results import TuneOptions
from int8calib.workers import Batch, Progress, batch_size


class OutOfTimeError(Exception):
    """The time is over; never leaves this package."""


def taken(given: Iterable[Batch | Labelled], images: int) -> list[Batch | Labelled]:
    """The first batches, with about so many images."""
    found: list[Batch | Labelled] = []
    count = 0
    for each in given:
        found.append(each)
        count += batch_size(batch_and_labels(each)[0])
        if count >= images:
            break
    if len(found) < 2:
        raise ImageError(
            f"{len(found)} batches of images: tuning needs two at least, one to tune and one to "
            "validate; give more images, or smaller batches"
        )
    return found


def split(
    given: Sequence[Batch | Labelled], tuning: TuneOptions, job: Job[CaffeExecutor], net: Net
) -> tuple[list[Batch], list[Batch | Labelled]]:
    """The batches to tune on, and those to validate with, spread evenly, within the memory."""
    fitted: list[Batch] = []
    held: list[Batch | Labelled] = []
    for i, each in enumerate(given):
        if int((i + 1) * tuning.validation) > int(i * tuning.validation):
            held.append(each)
        else:
            fitted.append(batch_and_labels(each)[0])
    if not held:
        held = [fitted.pop()]
    elif not fitted:
        fitted = [batch_and_labels(held.pop())[0]]
    size = bytes_per_image(job.executor.graph, net.input_shapes) * batch_size(fitted[0])
    return fitted[: max(1, tuning.memory // max(size, 1))], held


def check_targets(tuning: TuneOptions, held: Sequence[Batch | Labelled]) -> None:
    """Raise `OptionError` for a target that the images to validate with cannot tell."""
    if tuning.max_drop is not None and not all(isinstance(each, Labelled) for each in held):
        raise OptionError("a largest drop of top-1 needs labels; give them, or a least agreement")


def clock_of(progress: Progress | None, seconds: float | None) -> Progress:
    """`progress` that also ends the search when the time is over."""
    end = None if seconds is None else time.monotonic() + seconds

    def tell(stage: str, done: int, total: int) -> None:
        if progress is not None:
            progress(stage, done, total)
        if end is not None and time.monotonic() > end:
            raise OutOfTimeError

    return tell
