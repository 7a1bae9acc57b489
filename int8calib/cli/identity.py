"""Files and options come in, what makes a collection repeatable goes out: its fingerprints."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from int8calib.cli.digest import file_sha256

if TYPE_CHECKING:
    from collections.abc import Sequence

    from int8calib.caffe.engine.run import Net
    from int8calib.cli.loader import ImageLoader


def job_identity(
    args: argparse.Namespace, net: Net, batches: ImageLoader, blobs: Sequence[str]
) -> dict[str, Any]:
    """What must be the same for two collections to belong together, as JSON values."""
    identity = {
        "prototxt": file_sha256(args.proto),
        "caffemodel": file_sha256(args.model),
        "input shapes": {name: list(shape[1:]) for name, shape in net.input_shapes.items()},
        "preprocessing": batches.preprocessing(),
        "fold-bn": args.fold_bn,
        "blobs": list(blobs),
    }
    plain: dict[str, Any] = json.loads(json.dumps(identity))
    return plain
