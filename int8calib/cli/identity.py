"""Files and options come in, what makes a collection repeatable goes out: its fingerprints."""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from int8calib.cli.feeds import ImageFeeds
    from int8calib.engine.run import Net


def job_identity(
    args: argparse.Namespace, net: Net, feeds: ImageFeeds, blobs: Sequence[str]
) -> dict[str, Any]:
    """What must be the same for two collections to belong together, as JSON values."""
    identity = {
        "prototxt": file_sha256(args.proto),
        "caffemodel": file_sha256(args.model),
        "input shapes": {name: list(shape[1:]) for name, shape in net.input_shapes.items()},
        "preprocessing": feeds.preprocessing(),
        "fold-bn": args.fold_bn,
        "blobs": list(blobs),
    }
    plain: dict[str, Any] = json.loads(json.dumps(identity))
    return plain


def file_sha256(path: str | Path) -> str:
    """The SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def text_sha256(*parts: object) -> str:
    """The SHA-256 of the texts of `parts`, in hex; bytes count as they are."""
    digest = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else str(part).encode("utf-8", "surrogateescape")
        digest.update(f"{len(data)}:".encode() + data)
    return digest.hexdigest()
