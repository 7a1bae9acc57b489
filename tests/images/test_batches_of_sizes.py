"""Batches of inputs that differ in size, their checksums, and how far threads work ahead."""

from __future__ import annotations

import threading
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from int8calib.errors import ImageError, ShapeError
from int8calib.images import Preprocess, batches, batches_of_inputs, open_source
from int8calib.images.source import ImageSource
from int8calib.limits import MAX_AHEAD_BYTES

RNG = np.random.default_rng(59)
WIDTHS = [31, 31, 31, 17, 31, 23, 23, 23, 23, 23, 31]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eleven images of one height and the widths above."""
    for number, width in enumerate(WIDTHS):
        image = RNG.integers(0, 256, (13, width, 3), dtype=np.uint8)
        assert cv2.imwrite(str(tmp_path / f"{number:02}.png"), image)
    return tmp_path


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    ("batch_size", "expected"),
    [
        (1, [[i] for i in range(11)]),
        (2, [[0, 1], [2], [3], [4], [5], [6, 7], [8, 9], [10]]),
        (3, [[0, 1, 2], [3], [4], [5], [6, 7, 8], [9], [10]]),
        (11, [[0, 1, 2], [3], [4], [5, 6, 7, 8, 9], [10]]),
    ],
)
def test_a_batch_has_one_size(
    threads: int, batch_size: int, expected: list[list[int]], folder: Path
) -> None:
    source = open_source(folder)
    out = list(batches(source, Preprocess((3, 5, 7), resize="none"), batch_size, threads=threads))
    assert [list(batch.indices) for batch in out] == expected
    for batch in out:
        assert batch.names == tuple(f"{i:02}.png" for i in batch.indices)
        for i, blob, checksum in zip(batch.indices, batch.data, batch.checksums, strict=True):
            image = cv2.imread(str(folder / f"{i:02}.png"))
            values = image.transpose(2, 0, 1).astype(np.float32)
            np.testing.assert_array_equal(blob, values)
            assert checksum == zlib.crc32(values.tobytes())


@pytest.mark.parametrize("batch_size", [2, 3, 11])
def test_a_run_goes_on_after_any_batch(batch_size: int, folder: Path) -> None:
    (folder / "06.png").write_bytes(b"damaged")
    source, prepare = open_source(folder), Preprocess((3, 5, 7), resize="none")
    said: list[str] = []
    whole = list(batches(source, prepare, batch_size, report=said.append))
    for done, batch in enumerate(whole[:-1], start=1):
        rest = list(
            batches(source, prepare, batch_size, start=batch.next_start, report=said.append)
        )
        again = [i for each in rest for i in each.indices]
        assert again == [i for each in whole[done:] for i in each.indices]
    assert whole[-1].next_start == 11


def test_all_inputs_of_a_batch_have_one_size(folder: Path) -> None:
    infos = [np.full(3 if i < 9 else 2, i, np.float32) for i in range(11)]
    (folder / "info").mkdir()
    for i, info in enumerate(infos):
        np.save(folder / "info" / f"{i:02}.npy", info)
    images = open_source(folder, recursive=False)
    inputs: dict[str, Any] = {
        "data": (images, Preprocess((3, 5, 7), resize="none")),
        "info": (open_source(folder / "info"), (-1,)),
    }
    out = list(batches_of_inputs(inputs, 11))
    assert [list(b.indices) for b in out] == [[0, 1, 2], [3], [4], [5, 6, 7, 8], [9], [10]]
    first = out[0]
    both = zlib.crc32(infos[1].tobytes(), zlib.crc32(first.blobs["data"][1].tobytes()))
    assert first.checksums[1] == both


def test_free_axes_of_arrays(tmp_path: Path) -> None:
    shapes = [(3, 5, 7), (3, 11, 7), (3, 5, 7), (2, 5, 7)]
    for i, shape in enumerate(shapes):
        np.save(tmp_path / f"{i}.npy", np.full(shape, i))
    stream = batches(open_source(tmp_path), (3, -1, -1), 4)
    assert [next(stream).data.shape for _ in range(2)] == [(1, 3, 5, 7), (1, 3, 11, 7)]
    message = r"3\.npy: has the shape \(2, 5, 7\), input data takes \(3, -1, -1\) \(-1: any size\)"
    with pytest.raises(ImageError, match=message):
        list(stream)
    with pytest.raises(ImageError, match=r"1\.npy: has the shape \(3, 11, 7\)"):
        list(batches(open_source(tmp_path), (3, 5, -1)))


def test_sizes_are_checked_once_each(folder: Path) -> None:
    asked: list[dict[str, Any]] = []

    def check(shapes: Any) -> None:
        asked.append(dict(shapes))
        if shapes["data"][2] == 23:
            raise ShapeError("layer 'x': too odd")

    said: list[str] = []
    inputs: dict[str, Any] = {"data": (open_source(folder), Preprocess((3, 5, 7), resize="none"))}
    out = list(batches_of_inputs(inputs, 4, report=said.append, check_shapes=check))
    assert [i for batch in out for i in batch.indices] == [0, 1, 2, 3, 4, 10]
    assert asked == [{"data": (3, 13, width)} for width in (31, 17, 23)]
    assert said == [
        f"skipped: {i:02}.png: the network does not take its size (data 3x13x23): "
        "layer 'x': too odd"
        for i in range(5, 10)
    ]


class Large(ImageSource):
    """Blobs of 96 MiB each; counts those that are made and not yet taken."""

    preprocessed = True

    def __init__(self, count: int) -> None:
        super().__init__([str(i) for i in range(count)])
        self.made = 0
        self.lock = threading.Lock()

    def load(self, index: int, **_: Any) -> Any:
        with self.lock:
            self.made += 1
        # Not touched, so it takes no memory.
        return np.empty((3, 2048, 4096), np.float32)


def test_large_inputs_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zlib, "crc32", lambda data, value=0: 0)
    source = Large(23)
    fitting = MAX_AHEAD_BYTES // (96 << 20)
    for taken, batch in enumerate(batches(source, (3, 2048, 4096), threads=7), start=1):
        assert batch.indices == (taken - 1,)
        # At first, as many as there are threads; then the size is known.
        assert source.made - taken <= (6 if taken < 7 else fitting)
    assert source.made == 23
