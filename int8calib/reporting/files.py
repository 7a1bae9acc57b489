"""JSON that `analyze` and `evaluate` printed comes in, their results go out."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from int8calib.analysis.layer_errors import Analysis, LayerError
from int8calib.errors import OptionError
from int8calib.evaluation.boxes import BoxAgreement
from int8calib.evaluation.measures import Share
from int8calib.evaluation.results import Accuracy, BlobError, Evaluation, TableResult


def read_analysis(path: str | os.PathLike[str]) -> Analysis:
    """What `int8calib analyze --json` printed; raises `OptionError` for anything else."""
    root = _load(path)
    try:
        return Analysis(
            int(root["images"]),
            int(root["sensitivity_images"]),
            float(root["cost"]),
            tuple(_layer(layer) for layer in root["layers"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _wrong(path, "analyze", error) from None


def read_evaluation(path: str | os.PathLike[str]) -> Evaluation:
    """What `int8calib evaluate --json` printed; raises `OptionError` for anything else."""
    root = _load(path)
    try:
        tables = tuple(_table(table) for table in root["tables"])
        return Evaluation(int(root["images"]), _accuracy(root["float"]), tables)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _wrong(path, "evaluate", error) from None


def _load(path: str | os.PathLike[str]) -> Any:
    where = Path(path)
    try:
        return json.loads(where.read_bytes())
    except OSError as error:
        raise OptionError(f"{where}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise OptionError(f"{where}: is no JSON: {error}") from None


def _wrong(path: str | os.PathLike[str], command: str, error: Exception) -> OptionError:
    what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
    return OptionError(f"{Path(path)}: not what `int8calib {command} --json` prints ({what})")


def _layer(value: Any) -> LayerError:
    output = value["output_sqnr"]
    # Null is an SQNR without error where an effect was measured, and no effect where not.
    measured = output is not None or value["agreement"] is not None
    return LayerError(
        str(value["name"]),
        _sqnr(value["own_sqnr"]),
        _cosine(value["own_cosine"]),
        _sqnr(value["arriving_sqnr"]),
        _cosine(value["arriving_cosine"]),
        float(value["clipped_values"]),
        float(value["clipped_error"]),
        float(value["rounding_error"]),
        _sqnr(output) if measured else None,
        _share(value["agreement"]),
    )


def _sqnr(value: Any) -> float:
    return math.inf if value is None else float(value)


def _cosine(value: Any) -> float:
    return math.nan if value is None else float(value)


def _share(value: Any) -> Share | None:
    return None if value is None else Share(int(value["hits"]), int(value["total"]))


def _accuracy(value: Any) -> Accuracy | None:
    if value is None:
        return None
    topk: dict[int, Share] = {}
    for k, share in value["topk"].items():
        topk[int(k)] = Share(int(share["hits"]), int(share["total"]))
    confusion = value["confusion"]
    return Accuracy(topk, None if confusion is None else np.array(confusion, np.int64))


def _table(value: Any) -> TableResult:
    boxes = value["boxes"]
    return TableResult(
        str(value["name"]),
        _accuracy(value["accuracy"]),
        _share(value["agreement"]),
        tuple(
            BlobError(str(blob["blob"]), _sqnr(blob["sqnr"]), _cosine(blob["cosine"]))
            for blob in value["blobs"]
        ),
        None
        if boxes is None
        else BoxAgreement(int(boxes["matched"]), int(boxes["float"]), int(boxes["int8"])),
    )
