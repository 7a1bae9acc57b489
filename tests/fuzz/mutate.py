"""Damage to files: bytes, words of a text, values of JSON, fields of messages, arrays of an .npz."""

from __future__ import annotations

import io
import json
import random
import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
from google.protobuf.message import Message

from caffe_proto import NetParameter

NUMBERS = (
    *("0", "-1", "1", "2", "7", "64", "-3.5", "0.5", "1e-45", "1e38", "1e999", "nan", "-inf"),
    *("2147483647", "-2147483648", "4294967295", "4294967296", "9223372036854775807", "0x7fffffff"),
    *("1" * 30, "1" * 5000, "08", "1_000", "1e", "١", "true", "999999"),
)
WORDS = (
    *("layer", "layers", "name", "type", "bottom", "top", "dim", "shape", "foo", "pool", "MAX"),
    *("Convolution", "InnerProduct", "Pooling", "Softmax", "Odd", "Input", "Data", "ReLU", "LSTM"),
    *("convolution_param", "pooling_param", "kernel_size", "num_output", "group", "axis", "TEST"),
    *("conv1", "data", "c1", "_param_0", "null", "None", "[", "]", "{", "}", "<", ">", ",", ":"),
    *('"', "'", "\\", "#", "\0", "\n", "\t", "\x1b[2J", "é", "\u202e", "", " "),
)
INTEGERS = (0, 1, 2, 3, 32, 33, 65, 127, 128, 255, 256, 2**16, 2**31 - 1, 2**31, 2**32, 2**62)
OPTIONS = (
    *("axis: 2", "axis: -1", "axis: 9", "group: 5", "group: 0", "stride: 0", "pad: 7", "pad_h: 1"),
    *("kernel_size: 0", "kernel_size: 9", "kernel_h: 2", "dilation: 3", "global_pooling: true"),
    *(
        "num_output: 4294967295",
        "local_size: 4294967295",
        "pyramid_height: 40",
        "base: 0",
        "foo: 1",
    ),
    *(
        "pad_l: 1 pad_r: 2",
        "round_below: true",
        "relu6: true",
        "eps: -1",
        "eps: nan",
        "coeff: 1e38",
    ),
    *("transpose: true", "bias_term: false", "num_axes: 9", "end_axis: 9", "offset: 4294967295"),
    *("include { phase: TEST }", "exclude { phase: TEST }", 'top: "more"', 'bottom: "data"'),
    *("min_size: nan", "step: 0", "slice_point: 99", "order: 7", "shape { dim: -1 dim: -1 }"),
    *('type: "Softmax"', 'type: "Pooling"', 'type: "InnerProduct"', 'type: "DetectionOutput"'),
)
_PROTO_TOKEN = re.compile(r'"[^"\n]*"|[A-Za-z_]\w*|-?\d[\w.]*|\s+|.', re.DOTALL)
_TOKEN = re.compile(r"\s+|[A-Za-z_][\w./-]*|-?[\d.]+(?:[eE][+-]?\d+)?|.", re.DOTALL)


def damaged_bytes(data: bytes, rng: random.Random, others: Sequence[bytes] = ()) -> bytes:
    """A few changes of single bytes and of stretches."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at = rng.randrange(len(changed) + 1)
        length = min(rng.choice((1, 1, 2, 4, 8, 64, 1000)), len(changed) - at)
        what = rng.randrange(7)
        if what == 0 and at < len(changed):
            changed[at] ^= 1 << rng.randrange(8)
        elif what == 1 and at < len(changed):
            changed[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, 0x0A, 0x2D))
        elif what == 2:
            changed[at : at + length] = rng.randbytes(length)
        elif what == 3:
            del changed[at : at + length]
        elif what == 4:
            changed[at:at] = changed[at : at + length] * rng.choice((1, 2, 30))
        elif what == 5:
            del changed[at:]
        elif others:
            other = rng.choice(others)
            begin = rng.randrange(len(other) + 1)
            changed[at : at + length] = other[begin : begin + length]
    return bytes(changed)


def damaged_text(data: bytes, rng: random.Random, others: Sequence[bytes] = ()) -> bytes:
    """Words, numbers and lines replaced, left out, doubled and exchanged."""
    if rng.random() < 0.15:
        return damaged_bytes(data, rng, others)
    tokens = _TOKEN.findall(data.decode("utf-8", "surrogateescape"))
    solid = [i for i, token in enumerate(tokens) if not token.isspace()] or [0]
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        if not tokens:
            break
        i = min(rng.choice(solid), len(tokens) - 1)
        stretch = slice(i, i + rng.choice((1, 1, 2, 5, 20)))
        what = rng.randrange(7)
        if what == 0 or (what == 1 and re.match(r"-?[\d.]", tokens[i])):
            tokens[i] = rng.choice(NUMBERS)
        elif what == 1:
            tokens[i] = rng.choice(WORDS)
        elif what == 2:
            tokens[i] = tokens[rng.choice(solid) % len(tokens)]
        elif what == 3:
            del tokens[stretch]
        elif what == 4:
            tokens[i:i] = tokens[stretch] * rng.choice((1, 1, 3, 100))
        elif what == 5:
            tokens.insert(i, rng.choice(WORDS))
        else:
            lines = "".join(tokens).splitlines(keepends=True)
            j, k = rng.randrange(len(lines)), rng.randrange(len(lines))
            lines[j], lines[k] = lines[k], lines[j]
            tokens = _TOKEN.findall("".join(lines))
    return "".join(tokens).encode("utf-8", "surrogateescape")


PAIR = b"\0WEIGHTS\0"
"""Stands between the two files of an ncnn model in the one file of a case."""
_NCNN_WORD = re.compile(r"(?<=[=,])-?[\d.e+-]+|(?<=\s)[\w/.-]+(?=\s)")
_NCNN_NUMBERS = (*map(str, INTEGERS), *("-1", "-233", "-2147483648", "-0.5", "1e38", "nan", "1e-9"))


def damaged_pair(data: bytes, rng: random.Random, others: Sequence[bytes] = ()) -> bytes:
    """An ncnn model: mostly other numbers and names in its structure, else damaged weights."""
    structure, weights = data.split(PAIR)
    if rng.random() < 0.2:
        return structure + PAIR + damaged_bytes(weights, rng)
    if rng.random() < 0.2:
        return damaged_text(structure, rng) + PAIR + weights
    text = structure.decode()
    begin = text.index("Input")
    for _ in range(rng.choice((1, 1, 2, 4))):
        words = list(_NCNN_WORD.finditer(text, begin))
        word = rng.choice(words)
        number = re.match(r"-?\d", word[0])
        new = rng.choice(_NCNN_NUMBERS) if number else rng.choice(words)[0]
        text = text[: word.start()] + new + text[word.end() :]
    return text.encode() + PAIR + weights


def damaged_prototxt(data: bytes, rng: random.Random, others: Sequence[bytes] = ()) -> bytes:
    """Mostly a text of valid form: other numbers, names, values, options, layers left out."""
    if rng.random() < 0.3:
        return damaged_text(data, rng, others)
    lines = data.decode("utf-8").splitlines(keepends=True)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        i = rng.randrange(len(lines))
        tokens = _PROTO_TOKEN.findall(lines[i])
        what = rng.randrange(8)
        if what == 0 and len(lines) > 2:
            del lines[i]
        elif what == 1:
            lines.insert(rng.randrange(len(lines)), lines[i])
        elif what == 2 and others:
            lines.insert(i, rng.choice(rng.choice(others).decode().splitlines(keepends=True)))
        elif what == 3:
            option = rng.choice(OPTIONS)
            at = lines[i].rfind("{") + 1
            lines[i] = f"{lines[i][:at]} {option} {lines[i][at:]}"
        elif tokens:
            pattern = rng.choice((r"-?\d", r"-?\d", '"', "[A-Z]", "[a-z]"))
            fitting = [j for j, token in enumerate(tokens) if re.match(pattern, token)]
            if fitting:
                j = rng.choice(fitting)
                tokens[j] = _replaced(tokens[j], tokens, rng)
                lines[i] = "".join(tokens)
    return "".join(lines).encode("utf-8", "surrogatepass")


def _replaced(token: str, others: Sequence[str], rng: random.Random) -> str:
    """Another token of the same form."""
    if re.match(r"-?\d", token):
        small = ("0", "1", "2", "3", "5", "16", "100")
        return rng.choice((*small, *small, *NUMBERS))
    if token.startswith('"'):
        quoted = [other for other in others if other.startswith('"')]
        return rng.choice((*quoted, *quoted, *(f'"{word}"' for word in WORDS if '"' not in word)))
    words = [other for other in others if re.match("[A-Za-z]", other)]
    return rng.choice((*words, *words, *(word for word in WORDS if word.isalnum())))


def damaged_json(data: bytes, rng: random.Random, others: Sequence[bytes] = ()) -> bytes:
    """Values of other types and sizes; sometimes the text itself."""
    if rng.random() < 0.2:
        return damaged_text(data, rng, others)
    try:
        root = [json.loads(data)]
    except ValueError:  # damaged before
        return damaged_bytes(data, rng, others)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        holder, key = _place(root, rng)
        value: Any = holder[key]
        choices: list[Any] = [
            *(None, True, False, 0, 1, -1, 0.5, -2.5, 2**31, 2**63, 10**400, 1e308, float("inf")),
            *(float("nan"), "", "x", "\ud800", "a\nb\x1b[2J", "é" * 300, [], {}, [1], [[]]),
            *({"a": 1}, [value], [value] * 3, value, "7"),
        ]
        chosen = rng.choice(choices)
        if rng.random() < 0.2 and isinstance(holder, dict):
            del holder[key]
        elif rng.random() < 0.1:
            for _ in range(rng.choice((5, 3000))):
                chosen = [chosen]
            holder[key] = chosen
        else:
            holder[key] = chosen
    return _dumped(root[0]).encode("utf-8", "surrogatepass")


def _dumped(value: Any) -> str:
    """JSON of any depth; Python's own writer stops at its recursion limit."""
    opened = 0
    while isinstance(value, list) and len(value) == 1:
        value, opened = value[0], opened + 1
    try:
        text = json.dumps(value)
    except (RecursionError, ValueError):
        text = "[" * 3000 + "]" * 3000
    return "[" * opened + text + "]" * opened


def _place(root: list[Any], rng: random.Random) -> tuple[Any, Any]:
    """A container and a key in it, anywhere in the tree; the top is rare."""
    holder: Any = root
    key: Any = 0
    while True:
        value = holder[key]
        if not isinstance(value, (dict, list)) or not value or rng.random() < 0.1:
            return holder, key
        holder, key = value, rng.choice(list(value)) if isinstance(value, dict) else 0
        if isinstance(holder, list):
            key = rng.randrange(len(holder))


def damaged_message(kind: type[Message]) -> Callable[..., bytes]:
    """Damage for a file that is a protobuf message of a type, of valid form but for its values."""

    def damage(data: bytes, rng: random.Random, others: Sequence[bytes] = ()) -> bytes:
        if rng.random() < 0.4:
            return damaged_bytes(data, rng, others)
        message: Any = kind.FromString(data)
        blobs = [message]
        if isinstance(message, NetParameter):
            blobs = [blob for layer in message.layer for blob in layer.blobs]
            layer = rng.choice(message.layer)
            if rng.random() < 0.2:
                layer.name = rng.choice((*WORDS, "x" * 9999)).replace("\0", "") or "?"
            elif rng.random() < 0.2 and layer.blobs:
                del layer.blobs[rng.randrange(len(layer.blobs)) :]
            elif rng.random() < 0.1:
                message.layer.extend([layer] * rng.choice((1, 40)))
        for _ in range(rng.choice((1, 1, 2))):
            _damage_blob(rng.choice(blobs), rng)
        return bytes(message.SerializePartialToString())

    return damage


def _damage_blob(blob: Any, rng: random.Random) -> None:
    what = rng.randrange(6)
    if what == 0:
        blob.shape.dim.extend([rng.choice(INTEGERS)] * rng.choice((1, 2, 31, 70)))
    elif what == 1 and blob.shape.dim:
        blob.shape.dim[rng.randrange(len(blob.shape.dim))] = rng.choice((*INTEGERS, -1, -(2**63)))
    elif what == 2:
        blob.num = rng.choice((0, 1, -1, 2**31 - 1))
        blob.channels = rng.choice((0, 3, 2**31 - 1))
    elif what == 3 and blob.data:
        del blob.data[rng.randrange(len(blob.data)) :]
    elif what == 4 and blob.data:
        blob.data[rng.randrange(len(blob.data))] = rng.choice((float("nan"), float("inf"), -3e38))
    else:
        blob.double_data.extend([1.0, 1e308])


def damaged_npz(data: bytes, rng: random.Random, others: Sequence[bytes] = ()) -> bytes:
    """Arrays of other values, types and shapes in a valid archive; sometimes its bytes."""
    if rng.random() < 0.4:
        return damaged_bytes(data, rng, others)
    arrays = dict(_arrays_of(data))
    for _ in range(rng.choice((1, 1, 2))):
        name = rng.choice(list(arrays))
        arrays[rng.choice((name, name, name, "odd", *arrays))] = _damaged_array(arrays[name], rng)
        if rng.random() < 0.1:
            del arrays[rng.choice(list(arrays))]
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


@cache
def _arrays_of(whole: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(whole)) as archive:
        return {name: archive[name] for name in archive.files}


def _damaged_array(array: np.ndarray, rng: random.Random) -> np.ndarray:
    what = rng.randrange(7)
    array = array.copy()
    if array.dtype == np.uint8 and array.ndim == 1 and array.size and rng.random() < 0.7:
        text = array.tobytes()  # the JSON head of statistics
        damage = damaged_json if text[:1] == b"{" else damaged_bytes
        return np.frombuffer(damage(text, rng), np.uint8)
    if what == 0 and array.dtype.kind not in "SU":  # texts are no numbers
        with np.errstate(all="ignore"):  # large counts become infinite in float16
            return array.astype(
                rng.choice(("f2", "f4", "f8", "i1", "u8", "?", "c8", "S3", "U3", ">i8"))
            )
    if what == 1:
        return array.reshape(-1)
    if what == 2:
        return array[..., None]
    if what == 3:
        return array[: rng.randrange(len(array) + 1)] if array.ndim else array[None]
    if what == 4 and array.size:
        value = rng.choice((0, 1, -1, 2**62, float("nan"), float("inf"), -1e300))
        with np.errstate(all="ignore"):
            array.reshape(-1)[rng.randrange(array.size)] = np.array(value).astype(array.dtype)
        return array
    if what == 5:
        return np.concatenate([array, array]) if array.ndim else array
    return np.zeros(rng.choice(((), (0,), (3, 0), (1, 1, 1, 1, 1, 1, 1))), array.dtype)
