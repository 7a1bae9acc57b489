"""Files that block, ask for more than there is, or hold nonsense: an error, in time and memory."""

from __future__ import annotations

import io
import os
import socket
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from int8calib.errors import ImageError
from int8calib.images import Preprocess, UnreadableImageError, batches, open_source, read_mean
from int8calib.limits import MAX_ARRAY_VALUES, MAX_IMAGE_BYTES

RNG = np.random.default_rng(47)


def special(path: Path, kind: str) -> None:
    """A file that is none: reading it would block for ever, or never end."""
    if kind == "folder":
        path.mkdir()
    elif kind == "named pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        # The name of a socket must be short.
        here = Path.cwd()
        os.chdir(path.parent)
        try:
            with socket.socket(socket.AF_UNIX) as unix:
                unix.bind(path.name)
        finally:
            os.chdir(here)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such files")
@pytest.mark.parametrize("kind", ["folder", "named pipe", "socket", "device"])
@pytest.mark.parametrize("suffix", [".jpg", ".npy", ".npz", ".binaryproto"])
def test_what_is_no_regular_file_is_not_read(tmp_path: Path, kind: str, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    special(path, kind)
    message = rf"x\{suffix}: cannot be read.*: it is a {kind}; expected a file"
    if suffix != ".binaryproto" and kind != "folder":
        with pytest.raises(ImageError, match=message):
            open_source(path).load(0)
    if suffix in (".npy", ".binaryproto"):
        with pytest.raises(ImageError, match=message):
            read_mean(path)


def npy(header: bytes, values: bytes = b"", version: int = 1) -> bytes:
    length = struct.pack("<H" if version == 1 else "<I", len(header))
    return b"\x93NUMPY" + bytes([version, 0]) + length + header + values


def described(descr: str, shape: str, order: str = "False") -> bytes:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n".encode()


FLOATS = np.arange(12, dtype="<f4").tobytes()
DAMAGED = {
    "cut off": npy(described("'<f4'", "(3, 2, 2)"), FLOATS[:-1]),
    "one terabyte": npy(described("'<f4'", "(3, 400000, 300000)"), FLOATS),
    "overflow": npy(described("'<f4'", f"({2**62}, {2**62}, {2**62})"), FLOATS),
    "wraps to 12": npy(described("'<f4'", f"({2**32 + 3}, {2**32}, 4)"), FLOATS),
    "negative": npy(described("'<f4'", "(-3, -2, 2)"), FLOATS),
    "minus one": npy(described("'<f4'", "(3, -1)"), FLOATS),
    "zero": npy(described("'<f4'", "(0, 3, 2, 2)"), FLOATS),
    "a million rows of none": npy(described("'<f4'", "(1000000000000, 0)"), FLOATS),
    "65 axes": npy(described("'<f4'", f"({'1, ' * 65})"), FLOATS),
    "objects": npy(described("'|O'", "(3, 2, 2)"), FLOATS),
    "text": npy(described("'<U1'", "(3, 2, 2)"), FLOATS),
    "complex": npy(described("'<c8'", "(3, 2)"), FLOATS),
    "dates": npy(described("'<M8[s]'", "(3, 2)"), FLOATS),
    "fields": npy(described("[('a', '<f4')]", "(3, 2, 2)"), FLOATS),
    "no type": npy(described("'<f4711'", "(3, 2, 2)"), FLOATS),
    "a type of text": npy(described("'<S99999999999999999999'", "(3, 2, 2)"), FLOATS),
    "a type that is a number": npy(described("17", "(3, 2, 2)"), FLOATS),
    "shape of floats": npy(described("'<f4'", "(3.0, 2, 2)"), FLOATS),
    "shape of text": npy(described("'<f4'", "'3, 2, 2'"), FLOATS),
    "a number": npy(b"17\n", FLOATS),
    "nested": npy(b"(" * 5000 + b")" * 5000, FLOATS),
    "long": npy(described("'<f4'", "(3, 2, 2)") + b" " * 20_000, FLOATS, version=2),
    "digits": npy(described("'<f4'", f"({'9' * 6000},)"), FLOATS),
    "no text": npy(bytes(range(128, 228)), FLOATS),
    "code": npy(b"__import__('os').abort()\n", FLOATS),
    "length of 4 GiB": b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + described("'<f4'", "(3,)"),
    "version": b"\x93NUMPY\x09\x00" + npy(described("'<f4'", "(3, 2, 2)"), FLOATS)[8:],
    "magic only": b"\x93NUMPY",
    "nothing": b"",
    "pickle": b"\x80\x04\x95" + bytes(20),
    "infinite": npy(described("'<f4'", "(3,)"), np.array([1, np.inf, 2], "<f4").tobytes()),
    "nan": npy(described("'<f8'", "(3,)"), np.array([1, np.nan, 2], "<f8").tobytes()),
    "beyond float32": npy(described("'<f8'", "(3,)"), np.array([1, 1e39, 2], "<f8").tobytes()),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_arrays(tmp_path: Path, kind: str) -> None:
    (tmp_path / "x.npy").write_bytes(DAMAGED[kind])
    with pytest.raises(UnreadableImageError, match=r"x\.npy") as caught:
        open_source(tmp_path / "x.npy").load(0)
    mean = pytest.raises(ImageError, match=r"x\.npy: (cannot be read as a mean|holds values)")
    with mean as of_mean:
        read_mean(tmp_path / "x.npy")
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("data.npy", DAMAGED[kind])
    with pytest.raises(ImageError, match=r"x\.npz") as of_archive:
        open_source(tmp_path / "x.npz").load(0)
    for error in (caught, of_mean, of_archive):
        assert str(error.value).isprintable()
        assert len(str(error.value)) <= 500


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [">f4", "<f8", ">i2", "u1", "<f2"])
def test_whole_arrays_of_any_layout(tmp_path: Path, order: Any, dtype: str) -> None:
    array = np.asarray(RNG.integers(0, 99, (5, 3, 7, 11)).astype(dtype), order=order)
    np.save(tmp_path / "x.npy", array)
    np.savez(tmp_path / "x.npz", data=array)
    for name in ("x.npy", "x.npz"):
        source = open_source(tmp_path / name)
        assert len(source) == 5
        for row in (4, 0, 2):
            expected = np.load(tmp_path / "x.npy")[row].astype(np.float32)
            np.testing.assert_array_equal(source.load(row), expected)
    np.save(tmp_path / "one.npy", array[1])
    np.testing.assert_array_equal(open_source(tmp_path / "one.npy").load(0), array[1])


def test_arrays_that_ask_for_memory(tmp_path: Path) -> None:
    # A hole in the file stands for the values, so that the file is as long as its header says.
    side = 200_003
    with (tmp_path / "hole.npy").open("wb") as file:
        file.write(npy(described("'<f4'", f"(3, {side}, {side})")))
        file.truncate(file.tell() + 12 * side * side)
    message = rf"hole\.npy: .* {3 * side * side} values; at most {MAX_ARRAY_VALUES} are read"
    with pytest.raises(UnreadableImageError, match=message):
        open_source(tmp_path / "hole.npy").load(0)
    with (tmp_path / "rows.npy").open("wb") as file:
        file.write(npy(described("'|u1'", f"({10**9 + 7}, 1)")))
        file.truncate(file.tell() + 10**9 + 7)
    with pytest.raises(ImageError, match=r"rows\.npy: holds 1000000007 inputs; at most 10000000"):
        open_source(tmp_path / "rows.npy")
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        header = npy(described("'|u1'", "(1, 3, 100, 10000000)"))
        archive.writestr("data.npy", header + bytes(1 << 20))
    with pytest.raises(ImageError, match=r"bomb\.npz: data: is cut off: its header declares uint8"):
        open_source(tmp_path / "bomb.npz")


@pytest.mark.parametrize("change", ["password", "method", "crc", "no directory", "two", "empty"])
def test_damaged_archives(tmp_path: Path, change: str) -> None:
    held = io.BytesIO()
    np.savez_compressed(held, data=RNG.random((2, 3, 5, 7)))
    content = bytearray(held.getvalue())
    central = content.index(b"PK\x01\x02")
    if change == "password":
        content[6] |= 1
        content[central + 8] |= 1
    elif change == "method":
        content[8:10] = content[central + 10 : central + 12] = b"\x63\x00"
    elif change == "crc":
        content[200] ^= 0xFF
    elif change == "no directory":
        del content[central:]
    elif change == "two":
        content = bytearray(b"PK\x05\x06" + bytes(18))
    else:
        content = bytearray()
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(ImageError, match=r"x\.npz: ") as caught:
        open_source(tmp_path / "x.npz")
    assert str(caught.value).isprintable()


LONG = "n" * 300


@pytest.mark.parametrize("name", [LONG, f"{LONG}.png", f"{LONG}.npy", f"{LONG}.txt", "a\0b.png"])
def test_names_that_the_system_refuses(tmp_path: Path, name: str) -> None:
    with pytest.raises(ImageError, match=r"cannot be read: ") as caught:
        open_source(tmp_path / name)
    assert len(str(caught.value)) <= 500
    assert str(caught.value).isprintable()
    with pytest.raises(ImageError, match="cannot be read as a mean: "):
        read_mean(str(tmp_path / name).removesuffix(".npy") + ".npy")


def test_names_are_printed_as_one_line(tmp_path: Path) -> None:
    name = "a\x1b[31m\nred\u202e.png"
    (tmp_path / name).write_bytes(b"no image")
    said: list[str] = []
    with pytest.raises(ImageError, match=r"a\\x1b\[31m\\nred\\u202e\.png: not an image"):
        list(batches(open_source(tmp_path), Preprocess((3, 5, 7)), report=said.append))
    assert said[0].isprintable()
    np.save(tmp_path / f"{name}.npy", np.zeros((1, 2, 5, 7)))
    stream = batches(open_source(tmp_path / f"{name}.npy"), (3, 5, 7))
    with pytest.raises(ImageError, match=r"a\\x1b\[31m\\nred\\u202e\.png\.npy\[0\]: has the shape"):
        next(stream)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "x.jpg").open("wb") as file:
        file.truncate(MAX_IMAGE_BYTES + 1)
    with pytest.raises(UnreadableImageError, match=rf"more than {MAX_IMAGE_BYTES} bytes"):
        open_source(tmp_path / "x.jpg").load(0)


@pytest.mark.skipif(sys.platform != "linux", reason="measures memory as Linux does")
def test_many_large_images_need_the_memory_of_one(tmp_path: Path) -> None:
    # A small file that declares 45 million pixels: 134 MB once decoded.
    jpeg = cv2.imencode(".jpg", RNG.integers(0, 256, (41, 53, 3), dtype=np.uint8))[1].tobytes()
    at = jpeg.index(b"\xff\xc0") + 5
    for i in range(4):
        content = jpeg[:at] + struct.pack(">HH", 7_079, 6_287) + jpeg[at + 4 :]
        (tmp_path / f"{i}.jpg").write_bytes(content)
    code = (
        "import re, sys\n"
        "from int8calib.images import Preprocess, batches, open_source\n"
        "source = open_source(sys.argv[1])\n"
        "stream = batches(source, Preprocess((3, 5, 7)), 2, threads=4)\n"
        "print(sum(len(batch) for batch in stream))\n"
        # A process's ru_maxrss may be that of the one that started it.
        "print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    images, kilobytes = map(int, done.stdout.split())
    assert images == 4
    # One is being decoded while another is resized; four at a time would need 630 MB.
    assert kilobytes < 500_000
