"""Means as users give them: numbers, numpy files, Caffe's binary blobs."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from int8calib.errors import ImageError, OptionError
from int8calib.images import Preprocess, read_mean

RNG = np.random.default_rng(8)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (["104", "117", "123"], [104, 117, 123]),
        ("104,117,123", [104, 117, 123]),
        ("103.94, 116.78 123.68", [103.94, 116.78, 123.68]),
        ((104, 117.5, 123), [104, 117.5, 123]),
        (127.5, [127.5]),
        (0, [0]),
        ("-1e2", [-100]),
        (["0"], [0]),
    ],
)
def test_numbers(spec: Any, expected: list[float]) -> None:
    mean = read_mean(spec)
    assert mean.dtype == np.float32
    np.testing.assert_array_equal(mean, np.array(expected, np.float32))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("1,2", "expected 1 or 3 numbers, found 2"),
        ([1, 2, 3, 4], "expected 1 or 3 numbers, found 4"),
        ([], "found 0"),
        ("mean.txt", "mean 'mean.txt': expected 1 or 3 numbers, or one .npy"),
        (["a.npy", "b.npy"], "expected 1 or 3 numbers, or one .npy"),
    ],
)
def test_what_is_no_mean(spec: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        read_mean(spec)


@pytest.mark.parametrize(
    ("stored", "read"),
    [
        ((3,), (3,)),
        ((1, 3), (3,)),
        ((3, 1, 1), (3, 1, 1)),
        ((3, 11, 13), (3, 11, 13)),
        ((1, 3, 11, 13), (3, 11, 13)),
        ((1, 1, 11, 13), (1, 11, 13)),
        ((1, 11, 13), (1, 11, 13)),
        ((11, 13), (11, 13)),
    ],
)
def test_npy(tmp_path: Path, stored: tuple[int, ...], read: tuple[int, ...]) -> None:
    array = RNG.normal(110, 9, stored)
    np.save(tmp_path / "mean.NPY.npy", array)
    for spec in (tmp_path / "mean.NPY.npy", [str(tmp_path / "mean.NPY.npy")]):
        mean = read_mean(spec)
        assert mean.dtype == np.float32
        np.testing.assert_array_equal(mean, array.reshape(read).astype(np.float32))


def binaryproto(values: NDArray[np.float32], *, legacy: bool) -> bytes:
    """A BlobProto by hand: field 5 packed floats; 1..4 the legacy shape, or 7 the new one."""

    def varint(number: int) -> bytes:
        head = b""
        while number > 127:
            head += bytes([number & 127 | 128])
            number >>= 7
        return head + bytes([number])

    data = b"".join(struct.pack("<f", value) for value in values.ravel())
    message = b"\x2a" + varint(len(data)) + data
    if legacy:
        return (
            b"".join(
                bytes([(field + 1) << 3]) + varint(size) for field, size in enumerate(values.shape)
            )
            + message
        )
    dims = b"".join(varint(size) for size in values.shape)
    shape = b"\x0a" + varint(len(dims)) + dims
    return message + b"\x3a" + varint(len(shape)) + shape


@pytest.mark.parametrize("legacy", [True, False])
def test_binaryproto(tmp_path: Path, legacy: bool) -> None:
    array = RNG.normal(110, 9, (1, 3, 11, 13)).astype(np.float32)
    path = tmp_path / "mean.binaryproto"
    path.write_bytes(binaryproto(array, legacy=legacy))
    mean = read_mean(path)
    assert mean.dtype == np.float32
    np.testing.assert_array_equal(mean, array[0])
    # What Caffe cuts out of a mean of 11x13 for a crop of 8x8: rows 1..8, columns 2..9.
    blob = Preprocess((3, 8, 8), mean=mean)(np.zeros((8, 8, 3), np.uint8))
    np.testing.assert_array_equal(blob, -array[0, :, 1:9, 2:10])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("mean.npy", b"no array"),
        ("mean.npy", b""),
        ("mean.binaryproto", b"<!DOCTYPE html>"),
        ("mean.binaryproto", binaryproto(np.ones((1, 3, 5, 7), np.float32), legacy=True)[:-3]),
    ],
)
def test_damaged_files(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ImageError, match=rf"{name}: cannot be read as a mean: ") as caught:
        read_mean(tmp_path / name)
    assert str(caught.value).count(name) == 1
    assert "\n" not in str(caught.value)


def test_files_that_hold_no_mean(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"gone\.npy: cannot be read as a mean: No such file"):
        read_mean(tmp_path / "gone.npy")
    np.save(tmp_path / "a.npy", np.ones((2, 3, 5, 7)))
    with pytest.raises(ImageError, match=r"a\.npy: .*not \(2, 3, 5, 7\)"):
        read_mean(tmp_path / "a.npy")
    np.save(tmp_path / "b.npy", np.array(["x"]))
    with pytest.raises(
        ImageError, match=r"b\.npy: cannot be read as a mean: holds <U1, not numbers"
    ):
        read_mean(tmp_path / "b.npy")


def test_real_mean_file(shared: Path) -> None:
    path = shared / "models" / "cgo_cifar10" / "mean.npy"
    stored = np.load(path)
    prepare = Preprocess((3, 32, 32), mean=read_mean(path), norm=0.017)
    blob = prepare(np.full((32, 32, 3), 200, np.uint8))
    cut = stored[:, 112:144, 112:144].astype(np.float32)
    np.testing.assert_array_equal(blob, (np.float32(200) - cut) * np.float32(0.017))
