"""Tables made by hypothesis, and ncnn's table reader rebuilt naively on the C library."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st

from int8calib.table import BottomEvidence, CalibrationTable, LayerScales

LIBC = ctypes.CDLL(None)


def layer(
    name: str, weights: Sequence[float], bottom: float, dead: tuple[int, ...] = ()
) -> LayerScales:
    return LayerScales(name, np.array(weights, np.float32), bottom, dead_channels=dead)


def table(*layers: LayerScales) -> CalibrationTable:
    return CalibrationTable(layers)


def naive_ncnn_read(data: bytes) -> tuple[dict[bytes, list[float]], dict[bytes, list[float]]]:
    """(weight rows, blob rows) as ncnn2int8 sees them: fgets, strtok on spaces, sscanf."""
    weights: dict[bytes, list[float]] = {}
    blobs: dict[bytes, list[float]] = {}
    for line in data.split(b"\n")[: data.count(b"\n") + (not data.endswith(b"\n"))]:
        fields = [field for field in line.split(b"\r")[0].split(b" ") if field]
        if not fields:
            break
        key = ctypes.create_string_buffer(256)
        LIBC.sscanf(ctypes.c_char_p(fields[0]), b"%255s", key)
        scale = ctypes.c_float(1.0)
        scales = []
        for field in fields[1:]:
            LIBC.sscanf(ctypes.c_char_p(field), b"%f", ctypes.byref(scale))
            scales.append(scale.value)
        (weights if b"_param_" in key.value else blobs)[key.value] = scales
    return weights, blobs


# Every positive finite 32-bit float, subnormal ones too.
float32_scales = st.floats(
    min_value=2**-149, max_value=float(np.finfo(np.float32).max), width=32, allow_subnormal=True
)
names = (
    st.text(
        st.characters(codec="utf-8", exclude_categories=("Zs", "Zl", "Zp", "Cc", "Cs")),
        min_size=1,
        max_size=60,
    )
    .filter(lambda name: len(name.encode()) <= 247 and "_param_" not in name)
    .filter(lambda name: "\ufeff" not in name)
)


@st.composite
def layer_scales(draw: st.DrawFn, name: str) -> LayerScales:
    weights = draw(st.lists(float32_scales, min_size=1, max_size=7))
    dead = draw(st.sets(st.integers(0, len(weights) - 1)))
    for channel in dead:
        weights[channel] = 1.0
    bottom = float(draw(float32_scales))
    return layer(name, weights, bottom, tuple(sorted(dead)))


@st.composite
def tables(draw: st.DrawFn) -> CalibrationTable:
    chosen = draw(st.lists(names, min_size=1, max_size=5, unique=True))
    return table(*(draw(layer_scales(name)) for name in chosen))


any_floats = st.floats(allow_nan=True, allow_infinity=True)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)  # fmt: skip
evidences = st.builds(
    BottomEvidence,
    blob=st.text(max_size=9),
    method=st.text(max_size=5),
    absmax=any_floats,
    threshold=any_floats,
    bin=st.none() | st.integers(0, 2047),
    clipped=any_floats,
    spread=st.none() | any_floats,
)


@st.composite
def any_tables(draw: st.DrawFn) -> CalibrationTable:
    """Tables with everything in them, sensible or not."""
    layers = []
    for name in draw(st.lists(st.text(max_size=9), max_size=4, unique=True)):
        dtype, floats = draw(
            st.sampled_from([("float32", st.floats(width=32)), ("float64", st.floats())])
        )
        values = draw(st.lists(floats, max_size=5))
        layers.append(
            LayerScales(
                name,
                np.array(values, dtype),
                draw(any_floats),
                draw(st.none() | evidences),
                tuple(sorted(draw(st.sets(st.integers(0, len(values) - 1)))) if values else ()),
            )
        )
    blobs = draw(st.dictionaries(st.text(max_size=9), any_floats, max_size=4))
    meta = draw(st.dictionaries(st.text(max_size=9), json_values, max_size=3))
    return CalibrationTable(tuple(layers), blobs, meta)


def bits(value: float) -> bytes:
    """A float as its 64 bits, so that NaN equals NaN and -0 differs from 0."""
    return np.float64(value).tobytes() if value == value else b"nan"


def same_rows(a: CalibrationTable, b: CalibrationTable) -> bool:
    """Names, order, types and every bit of the scales."""
    return [
        (x.name, x.weight_scales.dtype, x.weight_scales.tolist(), bits(x.bottom_scale))
        for x in a.layers
    ] == [
        (x.name, x.weight_scales.dtype, x.weight_scales.tolist(), bits(x.bottom_scale))
        for x in b.layers
    ]
