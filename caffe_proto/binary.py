"""The arrays of a caffemodel or binaryproto file, by layer name, in float32.

The file is mapped, walked by its wire format, and each blob copied once into an aligned array.
So no float ever becomes a Python object, and memory peaks at the size of the weights. Of the
structure only names are read: forks use the same field numbers for different options, and the
prototxt says what the layers are.
"""

from __future__ import annotations

import mmap
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from caffe_proto.errors import CaffeFormatError, one_line
from caffe_proto.files import (
    HEAD,
    FilePath,
    file_name,
    holds_control_bytes,
    open_regular,
    refuse_foreign,
)
from caffe_proto.limits import (
    MAX_AXES,
    MAX_BLOBS,
    MAX_LAYERS,
    MAX_MODEL_BYTES,
    MAX_NAME,
    MAX_PIECES,
    MAX_VALUES,
    count_values,
)
from caffe_proto.wire import I32, I64, LEN, VARINT, Field, WireError, fields, varint

__all__ = ["Weights", "read_blob", "read_weights"]

Weights: TypeAlias = dict[str, tuple[NDArray[np.float32], ...]]
_Span: TypeAlias = tuple[int, int]


class _Form(NamedTuple):
    """The fields that matter in one generation of layers, by number."""

    name: int
    blobs: int
    nested: tuple[int, _Form] | None = None


_V0 = _Form(name=1, blobs=50)
_V1 = _Form(name=4, blobs=6, nested=(1, _V0))
_TODAY = _Form(name=1, blobs=7)
_LAYERS = {100: _TODAY, 2: _V1}  # NetParameter.layer and .layers
_NET_WIRES = {1: LEN, 2: LEN, 3: LEN, 5: VARINT, 6: LEN, 7: VARINT, 8: LEN, 100: LEN}
_WIRE_NAMES = {VARINT: "a number", I64: "8 bytes", LEN: "text or a message", I32: "4 bytes"}


def read_weights(path: FilePath) -> Weights:
    """Read the weights of a caffemodel of any age (V0, V1 or today's layers).

    Parameters
    ----------
    path
        The ``.caffemodel`` file.

    Returns
    -------
    dict
        Layer name -> blobs, in the file's order; layers without blobs are left out. Each blob is
        read-only float32 in its Caffe shape; one that carries the legacy num, channels, height
        and width is 4-d, and one that carries neither shape nor values is empty. Where a name
        stands twice, the last layer with blobs counts, as in Caffe.

    Raises
    ------
    CaffeFormatError
        The file is no caffemodel, is damaged or cut off, exceeds a limit of `caffe_proto.limits`,
        or a blob's shape does not fit its number of values.
    OSError
        The file cannot be opened.
    """
    data = _open(path, "a caffemodel", "; are the prototxt and the caffemodel swapped?")
    weights: Weights = {}
    layers = 0
    last = ""
    try:
        for field in fields(data, 0, len(data)):
            _expect(field, _NET_WIRES.get(field.number, field.wire))
            form = _LAYERS.get(field.number)
            if form:
                last, spans = _layer(data, field, form)
                layers += 1
                if layers > MAX_LAYERS:
                    raise WireError(f"more than {MAX_LAYERS} layers")
                if spans:
                    where = f"{file_name(path)}: layer {_shown(last)}, blob"
                    weights[last] = tuple(
                        _blob(data, span, f"{where} {i}") for i, span in enumerate(spans)
                    )
                _let_go(data, field)
    except WireError as error:
        after = f"damaged or cut off after layer {_shown(last)}"
        damage = after if layers else "not a caffemodel"
        raise CaffeFormatError(f"{file_name(path)}: {damage}: {error}") from None
    if not layers:
        raise CaffeFormatError(f"{file_name(path)}: not a caffemodel: it holds no layer")
    return weights


def read_blob(path: FilePath) -> NDArray[np.float32]:
    """Read the array of a ``.binaryproto`` file, such as a mean image.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    numpy.ndarray
        Read-only float32 in its Caffe shape; means are (1, C, H, W).

    Raises
    ------
    CaffeFormatError
        The file is no binaryproto, is damaged or cut off, exceeds a limit of
        `caffe_proto.limits`, or its shape does not fit its number of values.
    OSError
        The file cannot be opened.
    """
    data = _open(path, "a binaryproto")
    where = file_name(path)
    try:
        blob = _blob(data, (0, len(data)), where)
    except WireError as error:
        swapped = ""
        if bytes(data[:2]).startswith((b"\n", b"\xa2\x06")):  # a net's name, or a layer
            swapped = ", it looks like a caffemodel"
        raise CaffeFormatError(f"{where}: not a binaryproto{swapped}: {error}") from None
    if not blob.size:
        raise CaffeFormatError(f"{where}: not a binaryproto: it holds no values")
    return blob


def _open(path: FilePath, wanted: str, text_hint: str = "") -> memoryview:
    """Map the file into memory and refuse what is recognizably something else."""
    with open_regular(path, pipes=True) as file:
        try:
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except (ValueError, OSError):  # nothing to map: an empty file, or a pipe
            data = memoryview(file.read(MAX_MODEL_BYTES + 1))
    head = bytes(data[:HEAD])
    refuse_foreign(path, head, wanted)
    if not holds_control_bytes(head):
        raise CaffeFormatError(f"{file_name(path)}: not {wanted}: it is text{text_hint}")
    if len(data) > MAX_MODEL_BYTES:
        raise CaffeFormatError(f"{file_name(path)}: not {wanted}: 2 GiB or larger")
    return data


def _shown(name: str) -> str:
    """A layer's name in a message."""
    return one_line(repr(name), MAX_NAME)


def _let_go(data: memoryview, field: Field) -> None:
    """Unmap the pages of a field that has been read, so that they do not count as memory in use."""
    if isinstance(data.obj, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        start = field.start - field.start % mmap.PAGESIZE
        data.obj.madvise(mmap.MADV_DONTNEED, start, field.stop - start)


def _layer(data: memoryview, layer: Field, form: _Form) -> tuple[str, list[_Span]]:
    """Return the layer's name and where its blobs lie."""
    name = ""
    spans: list[_Span] = []
    for field in fields(data, layer.start, layer.stop):
        if field.number == form.name:
            _expect(field, LEN)
            name = str(data[field.start : field.stop], "utf-8", "backslashreplace")
        elif field.number == form.blobs:
            _expect(field, LEN)
            spans.append((field.start, field.stop))
            if len(spans) > MAX_BLOBS:
                raise WireError(f"a layer has more than {MAX_BLOBS} blobs")
        elif form.nested and field.number == form.nested[0]:
            _expect(field, LEN)
            nested_name, nested_spans = _layer(data, field, form.nested[1])
            name = nested_name or name
            spans += nested_spans
    return name, spans


def _blob(data: memoryview, span: _Span, where: str) -> NDArray[np.float32]:
    """Copy one BlobProto into an array."""
    floats: list[NDArray[np.float32]] = []
    doubles: list[NDArray[np.float64]] = []
    legacy: dict[int, int] = {}  # field number (1 to 4) -> extent
    shape: list[int] | None = None
    for field in fields(data, *span):
        if field.number <= 4:
            _expect(field, VARINT)
            legacy[field.number] = _int64(varint(data, field.start, field.stop)[0])
        elif field.number == 5:
            _expect(field, LEN, I32)
            _few(floats)
            floats.append(_numbers(data, field, np.dtype("<f4")))
        elif field.number == 7:
            _expect(field, LEN)
            shape = [*(shape or []), *_dims(data, field)][: MAX_AXES + 1]
        elif field.number == 8:
            _expect(field, LEN, I64)
            _few(doubles)
            doubles.append(_numbers(data, field, np.dtype("<f8")))
    parts = doubles or floats  # in Caffe, too, double values win
    size = sum(part.size for part in parts)
    if legacy:
        shape = [legacy.get(number, 0) for number in (1, 2, 3, 4)]
    elif shape is None:
        shape = [size]
    if len(shape) > MAX_AXES:
        raise CaffeFormatError(f"{where}: more than {MAX_AXES} axes")
    if count_values(shape) != size:
        text = "x".join(map(str, shape)) or "()"
        limit = "" if size <= MAX_VALUES else f" (at most {MAX_VALUES} are possible)"
        raise CaffeFormatError(f"{where}: the shape {text} does not fit {size} values{limit}")
    values = np.empty(shape, np.float32)
    with np.errstate(over="ignore"):  # a double beyond float32 becomes inf, as in Caffe
        np.concatenate([np.empty(0, np.float32), *parts], out=values.reshape(-1), casting="unsafe")
    values.flags.writeable = False
    return values


def _few(pieces: list[NDArray[Any]]) -> None:
    if len(pieces) >= MAX_PIECES:
        raise WireError(f"values in more than {MAX_PIECES} pieces")


def _expect(field: Field, *wires: int) -> None:
    if field.wire not in wires:
        raise WireError(f"field {field.number} is stored as {_WIRE_NAMES[field.wire]}")


def _numbers(data: memoryview, field: Field, dtype: np.dtype[Any]) -> NDArray[Any]:
    """View the numbers of a field, packed or each behind its own key."""
    width = dtype.itemsize
    size = field.stop - field.start
    if field.wire != LEN:
        count = (size + 1) // (width + 1)
        keyed: NDArray[Any] = np.ndarray((count,), dtype, data, field.start, (width + 1,))
        return keyed
    if size % width:
        raise WireError(f"{size} bytes of packed numbers are no multiple of {width}")
    packed: NDArray[Any] = np.ndarray((size // width,), dtype, data, field.start)
    return packed


def _dims(data: memoryview, shape: Field) -> list[int]:
    """Read a BlobShape."""
    dims: list[int] = []
    for field in fields(data, shape.start, shape.stop):
        if field.number == 1:
            _expect(field, VARINT, LEN)
            at = field.start
            while at < field.stop and len(dims) <= MAX_AXES:
                value, at = varint(data, at, field.stop)
                dims.append(_int64(value))
    return dims


def _int64(value: int) -> int:
    """Give a 64-bit number its sign back."""
    return value - (1 << 64) if value >> 63 else value
