"""Ways in which a file of statistics or a checkpoint is a sound archive with wrong content."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from int8calib.calibration.statistics.file import _digest
from int8calib.calibration.statistics.fine import FINE_BINS

Content = dict[str, np.ndarray]
Change = Callable[[Content, dict[str, Any]], object]


def rewritten(source: Path, target: Path, change: Change, *, digest: bool) -> Path:
    """The file with changed content; `digest`: as by somebody who knows how to sign it."""
    arrays = _content(source)
    head = json.loads(arrays["meta"].tobytes())
    before = arrays["meta"]
    change(arrays, head)
    if arrays.get("meta") is before:
        arrays["meta"] = np.frombuffer(json.dumps(head, sort_keys=True).encode(), np.uint8)
    if digest and "digest" in arrays:
        del arrays["digest"]
        arrays["digest"] = _digest(arrays)
    np.savez(target, **arrays)  # type: ignore[arg-type]
    return target


def _content(path: Path) -> Content:
    """The arrays of a file, in a mapping of its own."""
    return dict(_read(path))


@cache
def _read(path: Path) -> Content:
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    for array in arrays.values():
        array.setflags(write=False)
    return arrays


def put(name: str, value: Any) -> Change:
    """Another array under a name; a function makes it from the one that is there."""
    return lambda arrays, head: arrays.update(
        {name: value(arrays[name]) if callable(value) else np.asarray(value)}
    )


def at(name: str, place: Any, value: Any) -> Change:
    """One element of an array changed."""

    def change(arrays: Content, head: dict[str, Any]) -> None:
        arrays[name] = arrays[name].copy()
        arrays[name][place] = value

    return change


def in_head(key: str, value: Any) -> Change:
    """Another value of the head; a function makes it from the one that is there."""
    return lambda arrays, head: head.update({key: value(head[key]) if callable(value) else value})


def both(*changes: Change) -> Change:
    return lambda arrays, head: [change(arrays, head) for change in changes]


COMMON: dict[str, Change] = {
    "a part is gone": lambda arrays, head: arrays.pop("all/zeros"),
    "no ranges": lambda arrays, head: arrays.pop("ranges"),
    "no checksums": lambda arrays, head: arrays.pop("checksums"),
    "no digest": lambda arrays, head: arrays.pop("digest"),
    "an unknown part": put("all/more", np.zeros(3)),
    "counts of objects": put("all/zeros", np.array([{}] * 5, object)),
    "negative zeros": at("all/zeros", 0, -1),
    "negative images": at("all/images", 0, -1),
    "range NaN": at("ranges", (0, 0), np.nan),
    "range infinite": at("ranges", (0, 1), np.inf),
    "range in the wrong order": put("ranges", lambda x: x[:, ::-1].copy()),
    "range of other values": at("ranges", (0, 1), 1000.0),
    "ranges as float32": put("ranges", lambda x: x.astype(np.float32)),
    "ranges with three limits": put("ranges", lambda x: np.concatenate([x, x], axis=1)[:, :3]),
    "fewer images measured than counted": at("range_images", 0, 0),
    "more zeros than float64 can count": at("all/zeros", 1, 2**60),
    "values, but no images": put("all/images", lambda x: x + 1000),
    "half with more images": at("half/images", 0, 1000),
    "checksums as int64": put("checksums", lambda x: x.astype(np.int64)),
    "checksums not in order": put("checksums", lambda x: x[::-1].copy()),
    "checksums with two axes": put("checksums", lambda x: x[:, None]),
    "blobs twice": in_head("blobs", lambda blobs: [blobs[0]] * len(blobs)),
    "blobs that are numbers": in_head("blobs", lambda blobs: list(range(len(blobs)))),
    "blobs that are a text": in_head("blobs", "abcde"),
    "blobs that are lists": in_head("blobs", lambda blobs: [[blob] for blob in blobs]),
    "fewer blobs in the head": in_head("blobs", lambda blobs: blobs[:-1]),
    "no blobs": in_head("blobs", None),
    "parts unknown": in_head("parts", ["all", "other"]),
    "parts as a text": in_head("parts", "all"),
    "half alone": in_head("parts", ["half"]),
    "parts that are there, not named": in_head("parts", []),
    "another format": in_head("format", "other"),
    "schema as text": in_head("schema", "2"),
    "a later schema": in_head("schema", 4),
    "a field too many": in_head("more", 1),
    "meta that is a list": in_head("meta", [1, 2]),
    "meta as numbers": put("meta", np.arange(3.0)),
    "meta that is no JSON": put("meta", np.frombuffer(b"{", np.uint8)),
    "meta that is a number": put("meta", np.frombuffer(b"12", np.uint8)),
    "meta nested deeply": put("meta", np.frombuffer(b"[" * 50_000, np.uint8)),
    "meta that is no UTF-8": put("meta", np.frombuffer(b'{"a": "\xff"}', np.uint8)),
    "a number of many digits": put("meta", np.frombuffer(b"1" * 9000, np.uint8)),
}
EXACT: dict[str, Change] = {
    "counts as float": put("all/positive", lambda x: x.astype(np.float64)),
    "counts of 32 bits": put("all/positive", lambda x: x.astype(np.int32)),
    "fewer bins": put("all/positive", lambda x: x[:, :-1]),
    "fewer blobs": put("all/images", lambda x: x[:-1]),
    "counts as one row": put("all/negative", lambda x: x.reshape(-1)),
    "zeros with two axes": put("all/zeros", lambda x: x[:, None]),
    "a negative count": at("all/positive", (1, 3), -1),
    "absmax NaN": at("all/absmax", 0, np.nan),
    "absmax infinite": at("all/absmax", 0, np.inf),
    "absmax negative": at("all/absmax", 0, -1.0),
    "absmax of another range": at("all/absmax", 0, 1000.0),
    "negative values of a ReLU": at("all/negative", (1, 3), 1),
    "more values than int64 can add up": put("all/positive", lambda x: np.full_like(x, 2**62)),
    "half above the whole": at("half/positive", (0, 3), 10**9),
    "half with other bins": at("half/absmax", 0, 1.0),
}
ONCE: dict[str, Change] = {
    "counts as float": put("all/positive", lambda x: x.astype(np.float64)),
    "counts with a sign": put("all/positive", lambda x: x.astype(np.int32)),
    "fewer counts": put("all/positive", lambda x: x[:-1]),
    "more counts": put("half/negative", lambda x: np.append(x, x[:1])),
    "counts with two axes": put("all/negative", lambda x: x[:, None]),
    "fewer blobs": put("all/images", lambda x: x[:-1]),
    "zeros with two axes": put("all/zeros", lambda x: x[:, None]),
    "bins -1": at("all/positive_bins", 0, -1),
    "more bins than there are": both(
        at("all/positive_bins", 0, FINE_BINS + 1),
        put("all/positive", lambda x: np.ones(FINE_BINS * 5, x.dtype)),
    ),
    "no bins": lambda arrays, head: arrays.pop("half/negative_bins"),
    "an exponent too large": at("all/exponents", 0, 129),
    "an exponent too small": at("half/exponents", 0, -101),
    "an exponent of another range": at("all/exponents", 0, 20),
    "a half with larger values": at("half/exponents", 0, 20),
    "a half above the whole": put("half/positive", lambda x: x + np.uint8(200)),
    "exponents as floats": put("all/exponents", lambda x: x.astype(np.float64)),
    "two passes in the head": in_head("kind", "exact"),
    "an unknown kind": in_head("kind", "three passes"),
    "no kind": lambda arrays, head: head.pop("kind"),
}


def layer(index: int, **fields: Any) -> Change:
    """Fields of one layer changed; None takes a field away."""

    def change(arrays: Content, head: dict[str, Any]) -> None:
        stored = head["meta"]["layers"][index]
        for key, value in fields.items():
            if value is None:
                del stored[key]
            else:
                stored[key] = value

    return change


def in_meta(key: str, value: Any) -> Change:
    return lambda arrays, head: head["meta"].update({key: value})


LAYERS: dict[str, Change] = {
    "no layers": in_meta("layers", []),
    "layers that are a mapping": in_meta("layers", {}),
    "layers that are numbers": in_meta("layers", [1, 2]),
    "a field is missing": layer(0, kind=None),
    "a field too many": layer(0, more=1),
    "a kind that is unknown": layer(0, kind="Deconvolution"),
    "a name that is a number": layer(0, name=3),
    "a layer twice": layer(1, name="conv1"),
    "rows 0": layer(0, rows=0),
    "rows true": layer(0, rows=True),
    "rows 2.0": layer(0, rows=7.0),
    "more rows than clips": layer(0, rows=10**9),
    "count -1": layer(0, count=-1),
    "kernel of one number": layer(0, kernel=[3]),
    "kernel of texts": layer(0, kernel=["3", "3"]),
    "kernel 0": layer(0, kernel=[0, 3]),
    "stride that is a number": layer(0, stride=1),
    "a group that the kind cannot have": layer(0, group=2),
    "first that is a number": layer(0, first=1),
    "a blob without statistics": layer(0, blob="nowhere"),
    "blobs that are texts": in_meta("blobs", ["abc"]),
    "blobs that are numbers": in_meta("blobs", [[1, 2]]),
    "blobs twice": in_meta("blobs", [["a", "b"], ["a", "c"]]),
    "inputs that are numbers": in_meta("inputs", [1]),
    "a fingerprint that is a number": in_meta("fingerprint", 3),
    "no source": lambda arrays, head: head["meta"].pop("source"),
    "clips negative": at("extra/absmax", 0, -1.0),
    "clips NaN": at("extra/absmax", 0, np.nan),
    "clips as float64": put("extra/absmax", lambda x: x.astype(np.float64)),
    "fewer clips": put("extra/mse/127/row", lambda x: x[:-1]),
    "clips beyond the weights": put("extra/mse/31/row", lambda x: x * 2),
    "clips missing": lambda arrays, head: arrays.pop("extra/mse/31/layer"),
    "arrays of nobody": put("extra/more", np.zeros(3)),
}


def in_run(key: str, value: Any) -> Change:
    return lambda arrays, head: head["meta"]["checkpoint"].update({key: value})


RUN: dict[str, Change] = {
    "ranges known as a number": in_run("ranges_known", 1),
    "a fingerprint that is a list": in_run("fingerprint", [1]),
    "a field too many": in_run("more", 1),
    "exact as a number": in_run("exact", 1),
    "one pass, though it is two": in_run("exact", False),
    "counted before the ranges are known": in_run("ranges_known", False),
    "no list of images": lambda arrays, head: arrays.pop("extra/counted"),
    "images as floats": put("extra/measured", lambda x: x.astype(np.float64)),
    "images with three columns": put("extra/measured", lambda x: np.c_[x, x[:, :1]]),
    "images with one axis": put("extra/measured", lambda x: x.reshape(-1)),
    "an image of batch -1": at("extra/measured", (0, 0), -1),
    "a checksum of 33 bits": at("extra/measured", (0, 1), 1 << 32),
    "another image in the second pass": at("extra/counted", (0, 1), 12345),
    "an image more": put("extra/counted", lambda x: np.r_[x, [[3, 1]]]),
    "an image less": put("extra/counted", lambda x: x[:-1]),
    "no image counted": put("extra/counted", lambda x: x[:0]),
    "another list of images": at("checksums", 0, 0),
    "more arrays": put("extra/more", np.zeros(3)),
}
