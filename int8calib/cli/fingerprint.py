"""The job of `calibrate` and `collect`, and fingerprints, which tell whether two runs fit."""

from __future__ import annotations

import hashlib
import json
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from int8calib.files import file_mode

if TYPE_CHECKING:
    from int8calib.caffe.engine.executor import CaffeExecutor
    from int8calib.caffe.engine.run import Net
    from int8calib.calibration.options import Options
    from int8calib.calibration.pipeline import Job
    from int8calib.cli.image_options import ImageOptions
    from int8calib.cli.loader import ImageLoader
    from int8calib.cli.options import ModelOptions


def file_sha256(path: str) -> str | None:
    """Return the SHA-256 of a file, in hex; None for a pipe, which can be read once only."""
    if not stat.S_ISREG(file_mode(path)):
        return None
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def text_sha256(*parts: object) -> str:
    """Return the SHA-256 of the texts of `parts`, in hex; bytes count as they are."""
    digest = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else str(part).encode("utf-8", "surrogateescape")
        digest.update(f"{len(data)}:".encode() + data)
    return digest.hexdigest()


def model_fingerprint(model: ModelOptions, *, fold_bn: bool) -> dict[str, Any]:
    """Return what must be the same for statistics to be of the same network, as JSON values."""
    return {
        "prototxt": file_sha256(model.proto),
        "caffemodel": file_sha256(model.model),
        "fold-bn": fold_bn,
    }


@dataclass(frozen=True, eq=False)
class OpenedJob:
    """What is to be run over which images.

    Attributes
    ----------
    job : Job
        The network and the blobs whose statistics are wanted.
    images : ImageLoader
        The images for its inputs.
    fingerprint : dict
        What must be the same for two collections to belong together, as JSON values.
    """

    job: Job[CaffeExecutor]
    images: ImageLoader
    fingerprint: dict[str, Any]


def open_job(
    model: ModelOptions, net: Net, options: Options, images: ImageOptions, *, workers: int
) -> OpenedJob:
    """Prepare a collection of statistics.

    Parameters
    ----------
    model
        The files of the network.
    net
        The network.
    options
        What to calibrate.
    images
        The image options.
    workers
        Images in parallel.

    Raises
    ------
    Int8CalibError
        Where the network cannot be calibrated, or its inputs cannot be filled.
    """
    from int8calib.calibration.pipeline import prepare
    from int8calib.cli.loader import ImageLoader

    job = prepare(net, options)
    versions = job.executor.versions(job.blobs)
    loader = ImageLoader(images, net, job.inputs, versions, workers=workers)
    fingerprint = {
        **model_fingerprint(model, fold_bn=options.fold_bn),
        "input shapes": {name: list(shape[1:]) for name, shape in net.input_shapes.items()},
        "preprocessing": loader.preprocessing(),
        "blobs": list(job.blobs),
        **net.graph.facts,
    }
    return OpenedJob(job, loader, json.loads(json.dumps(fingerprint)))
