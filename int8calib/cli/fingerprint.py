"""Fingerprints of files and options, which tell whether two runs belong together."""

from __future__ import annotations

import hashlib
import json
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from int8calib.files import file_mode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from int8calib.caffe.engine.run import Net
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


def job_fingerprint(
    model: ModelOptions, net: Net, batches: ImageLoader, blobs: Sequence[str], *, fold_bn: bool
) -> dict[str, Any]:
    """Return what must be the same for two collections to belong together, as JSON values."""
    fingerprint = {
        **model_fingerprint(model, fold_bn=fold_bn),
        "input shapes": {name: list(shape[1:]) for name, shape in net.input_shapes.items()},
        "preprocessing": batches.preprocessing(),
        "blobs": list(blobs),
        **net.graph.facts,
    }
    plain: dict[str, Any] = json.loads(json.dumps(fingerprint))
    return plain
