"""ncnn weight files (`.bin`), read and written byte for byte.

Little endian, no header: the blobs of all layers in file order, nothing between them. A *tagged*
blob begins with a flag that says how its values are stored and is padded to 4 bytes, a *raw* one
is plain float32 (source: ncnn, src/modelbin.cpp and each layer's load_model).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from int8calib.errors import ModelFileError
from int8calib.ncnn.layout import Blob, blob_layout
from int8calib.ncnn.param import NcnnLayer
from int8calib.ncnn.schema import is_known_type

FLOAT16, INT8, FLOAT32_SCALED = 0x01306B47, 0x000D4B38, 0x0002C056
_FLAGS = frozenset((0, FLOAT16, INT8, FLOAT32_SCALED))
_SMALLEST = np.float32(1e-30)
_TABLE = 256
"""Float values in front of a blob of 8-bit indices (old k-means files)."""

Values: TypeAlias = NDArray[Any]


def read_weights(layers: Sequence[NcnnLayer], data: bytes, name: str) -> tuple[NcnnLayer, ...]:
    """The layers with their blobs from `data`, the content of the `.bin` called `name`.

    Returns
    -------
    tuple of NcnnLayer
        `weights` in the order of `blob_layout`, flat, in the type they are stored in; old k-means
        blobs become float32.

    Raises
    ------
    ModelFileError
        `name: layer ...` where the file ends too early, holds no such blob, or is of another
        model: bytes are left over, and a blob begins with no flag that is known.

    Warns
    -----
    UserWarning
        Where bytes are left over, which ncnn ignores.
    """
    loaded, place, unknown = [], 0, ""
    for number, layer in enumerate(layers):
        arrays = []
        for blob in blob_layout(layer):
            flag = data[place : place + 4]
            if blob.tagged and int.from_bytes(flag, "little") not in _FLAGS:
                unknown = unknown or layer.name
            try:
                array, place = _read_blob(data, place, blob)
            except ValueError as error:
                foreign = _of_unknown_types(layers[:number])
                raise ModelFileError(f"{name}: layer {layer.name!r}: {error}{foreign}") from None
            arrays.append(array)
        loaded.append(replace(layer, weights=tuple(arrays)))
    if place != len(data) and unknown:
        raise ModelFileError(
            f"{name}: layer {unknown!r} begins with no flag that is known, and "
            f"{len(data) - place} bytes follow the last layer; give the .bin of this .param"
            f"{_of_unknown_types(layers)}"
        )
    if place != len(data):
        warnings.warn(
            f"{name}: {len(data) - place} bytes follow the last layer's weights, as if the "
            "structure file belonged to another model",
            stacklevel=2,
        )
    return tuple(loaded)


def _of_unknown_types(layers: Sequence[NcnnLayer]) -> str:
    """The end of an error: layers that ncnn does not have are taken to have no weights."""
    foreign = [layer for layer in layers if not is_known_type(layer.type)]
    if not foreign:
        return ""
    first = foreign[0]
    return f" (layer {first.name!r} is of type {first.type}, whose weights are not known)"


def _read_blob(data: bytes, place: int, blob: Blob) -> tuple[Values, int]:
    """One blob and the place behind it; raises `ValueError` where the file ends before."""

    def values(dtype: str, count: int) -> Values:
        nonlocal place
        size = count * np.dtype(dtype).itemsize
        if size > len(data) - place:
            raise ValueError(
                f"the file ends within {blob.name}: {size} bytes are needed, {len(data) - place} "
                "are left"
            )
        array = np.frombuffer(data, dtype, count, place)
        place += size + -size % 4
        return array

    if not blob.tagged:
        return values("<f4", blob.size), place
    flag = int(values("<u4", 1)[0])
    if flag in (0, FLOAT32_SCALED):
        return values("<f4", blob.size), place
    if flag == FLOAT16:
        return values("<f2", blob.size), place
    if flag == INT8:
        return values("i1", blob.size), place
    table = values("<f4", _TABLE)
    return table[values("u1", blob.size)], place


def write_weights(layers: Sequence[NcnnLayer]) -> bytes:
    """The content of a `.bin`; raises `ModelFileError` for weights that do not fit the layers."""
    parts: list[bytes] = []
    for layer in layers:
        layout = blob_layout(layer)
        if [blob.size for blob in layout] != [len(array) for array in layer.weights]:
            raise ModelFileError(
                f"layer {layer.name!r} ({layer.type}): blobs of "
                f"{[len(array) for array in layer.weights]} values; its parameters ask for "
                f"{[blob.size for blob in layout]}"
            )
        for blob, array in zip(layout, layer.weights, strict=True):
            parts += _blob_bytes(blob, array)
    return b"".join(parts)


def _blob_bytes(blob: Blob, array: Values) -> Iterator[bytes]:
    if not blob.tagged:
        yield np.ascontiguousarray(array, "<f4").tobytes()
        return
    flag, dtype = {"f": (0, "<f4"), "e": (FLOAT16, "<f2"), "b": (INT8, "i1")}[array.dtype.char]
    yield flag.to_bytes(4, "little")
    data = np.ascontiguousarray(array, dtype).tobytes()
    yield data + bytes(-len(data) % 4)


def to_float16(values: Values) -> NDArray[np.float16]:
    """float16 as ncnn's tools write it on x86, bit for bit.

    Rounded to the nearest even, but for the last `len % 4` values: their mantissa is cut off,
    subnormals become 0 and what is too large infinite (source: ncnn, src/mat.cpp,
    cast_float32_to_float16, and float32_to_float16 in src/mat.h).
    """
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    tail = len(values) - len(values) % 4
    bits = np.ascontiguousarray(values[tail:], np.float32).view(np.uint32).astype(np.int64)
    sign, exponent, mantissa = bits >> 31 << 15, (bits >> 23 & 0xFF) - 112, bits >> 13 & 0x3FF
    cut = sign | exponent << 10 | mantissa
    cut = np.where(exponent >= 31, sign | 0x7C00, np.where(exponent <= 0, sign, cut))
    nan = (bits >> 23 & 0xFF == 0xFF) & (bits & 0x7FFFFF != 0)
    half[tail:] = np.where(nan, sign | 0x7E00, cut).astype(np.uint16).view(np.float16)
    return half


def store_weights(layers: Iterable[NcnnLayer], *, half: bool) -> tuple[NcnnLayer, ...]:
    """The layers with float weights as ncnn's tools save them, as float16 if `half`."""
    return tuple(replace(layer, weights=tuple(_stored_blobs(layer, half=half))) for layer in layers)


def _stored_blobs(layer: NcnnLayer, *, half: bool) -> Iterable[NDArray[Any]]:
    """Float blobs as ncnn's tools save them: |x| < 1e-30 as 0, tagged ones as float16 if `half`."""
    for blob, array in zip(blob_layout(layer), layer.weights, strict=True):
        if array.dtype == np.int8:
            yield array
            continue
        values = np.asarray(array, np.float32)
        if blob.tagged and half:
            yield to_float16(values)
        else:
            tiny = (np.abs(values) < _SMALLEST) & (values != 0)
            yield np.where(tiny, np.float32(0), values) if tiny.any() else values
