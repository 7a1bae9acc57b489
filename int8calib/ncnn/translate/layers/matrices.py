"""Products of matrices: MatMul, Gemm, and the attention of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import numpy as np

from int8calib.arrays import Array, Shape, namespace
from int8calib.errors import ShapeError, UnsupportedLayerError
from int8calib.ncnn.translate.layers.registry import ncnn_layer
from int8calib.ncnn.translate.options import Options


def _transposed(shape: Shape) -> Shape:
    return (*shape[:-2], shape[-1], shape[-2])


def _matmul_shapes(options: Options, bottoms: Sequence[Shape]) -> tuple[Shape, Shape]:
    """Both operands, the second not transposed, with as many axes."""
    if len(bottoms) != 2 or min(map(len, bottoms)) < 3:
        raise UnsupportedLayerError(f"bottoms {list(bottoms)}; two matrices are supported")
    ndim = max(map(len, bottoms))
    a, b = ((s[0], *(1,) * (ndim - len(s)), *s[1:]) for s in bottoms)
    return a, _transposed(b) if options.integer("transB") else b


def _matmul_shape(options: Options, bottoms: Sequence[Shape]) -> list[Shape]:
    a, b = _matmul_shapes(options, bottoms)
    try:
        outer = np.broadcast_shapes(a[:-2], b[:-2])
    except ValueError:
        outer = None
    if outer is None or a[-1] != b[-2]:
        raise ShapeError(f"matrices of {a} and {b} cannot be multiplied")
    return [(*outer, a[-2], b[-1])]


@ncnn_layer("MatMul", shape=_matmul_shape)
def matmul(options: Options, weights: Sequence[Array], bottoms: Sequence[Array]) -> list[Array]:
    """a @ b, or a @ b.T, over the two innermost axes. Source: ncnn's matmul.cpp."""
    ndim = max(bottom.ndim for bottom in bottoms)
    a, b = (x.reshape(len(x), *(1,) * (ndim - x.ndim), *x.shape[1:]) for x in bottoms)
    if options.integer("transB"):
        b = b.swapaxes(-1, -2)
    xp = namespace(a)
    return [xp.ascontiguousarray(xp.matmul(a, b))]


def _gemm_matrices(options: Options) -> list[Shape]:
    """The shapes of the stored matrices of A and B."""
    m, n, k = (options.integer(f"constant{name}") for name in "MNK")
    stored: list[Shape] = []
    if options.integer("constantA"):
        stored.append((k, m) if options.integer("transA") else (m, k))
    if options.integer("constantB"):
        stored.append((n, k) if options.integer("transB") else (k, n))
    return stored


def _gemm_weights(options: Options, bottoms: Sequence[Shape]) -> list[Shape]:
    blobs: list[Shape] = _gemm_matrices(options)
    kind = options.integer("constant_broadcast_type_C")
    if options.integer("constantC") and kind != -1:
        m, n = options.integer("constantM"), options.integer("constantN")
        blobs.append({0: (1,), 1: (m, 1), 2: (m, 1), 3: (m, n), 4: (1, n)}[kind])
    return blobs


def _gemm_product(options: Options, bottoms: Sequence[Shape]) -> tuple[Shape, Shape]:
    """The shapes of A and B, neither transposed."""
    for name in ("quantize_term", "output_N1M", "output_elempack", "output_elemtype"):
        if options.integer(name):
            raise UnsupportedLayerError(f"{name} {options.integer(name)} is not supported")
    given, stored = list(bottoms), _gemm_matrices(options)
    pair = []
    for name in "AB":
        shape = stored.pop(0) if options.integer(f"constant{name}") else given.pop(0)
        if len(shape) > 3:
            raise UnsupportedLayerError(f"a matrix of shape {shape} is not supported")
        pair.append(_transposed(shape) if options.integer(f"trans{name}") else shape)
    if given and options.integer("constantC"):
        raise ShapeError(f"{len(given)} bottoms are left over")
    return pair[0], pair[1]


def _gemm_shape(options: Options, bottoms: Sequence[Shape]) -> list[Shape]:
    a, b = _gemm_product(options, bottoms)
    if a[-1] != b[-2]:
        raise ShapeError(f"matrices of {a} and {b} cannot be multiplied")
    rows, columns = a[-2], b[-1]
    if options.integer("output_transpose"):
        rows, columns = columns, rows
    return [(bottoms[0][0], rows, columns)]


@ncnn_layer("Gemm", shape=_gemm_shape, weights=_gemm_weights)
def gemm(options: Options, weights: Sequence[Array], bottoms: Sequence[Array]) -> list[Array]:
    """alpha * (A @ B + beta * C), each a bottom or stored. Source: ncnn's gemm.cpp."""
    given, stored = list(bottoms), list(weights)
    pair = []
    for name in "AB":
        matrix = stored.pop(0) if options.integer(f"constant{name}") else given.pop(0)
        pair.append(matrix.swapaxes(-1, -2) if options.integer(f"trans{name}") else matrix)
    xp = namespace(bottoms[0])
    top = xp.matmul(pair[0], pair[1])
    rest = stored or given
    if rest:
        top = top + np.float32(options.number("beta")) * _spread(rest[0], top.shape, bool(stored))
    top = top * np.float32(options.number("alpha"))
    if options.integer("output_transpose"):
        top = top.swapaxes(-1, -2)
    return [xp.ascontiguousarray(top, np.float32)]


def _spread(c: Array, product: Shape, stored: bool) -> Array:
    """C so that it broadcasts: a vector as long as the rows is one value a row."""
    if stored or c.ndim > 2:
        return c
    rows = c.shape[-1] == product[-2] and c.shape[-1] != 1
    return c[:, :, None] if rows else c[:, None, :]


def _attention_parts(options: Options, bottoms: Sequence[Shape]) -> list[int]:
    """Which bottoms are query, key, value and mask."""
    masked = options.integer("attn_mask")
    for name in ("kv_cache", "quantize_term"):
        if options.integer(name):
            raise UnsupportedLayerError(f"{name} {options.integer(name)} is not supported")
    count = len(bottoms) - (1 if masked else 0)
    parts = {1: [0, 0, 0], 2: [0, 1, 1], 3: [0, 1, 2]}.get(count)
    if parts is None or any(len(bottoms[i]) != 3 for i in parts):
        raise ShapeError(f"bottoms {list(bottoms)}; expected query, key and value (N, H, W)")
    return [*parts, count] if masked else parts


def _attention_sizes(options: Options) -> tuple[int, int, int, int]:
    """The widths of the heads together, of queries, keys and values."""
    embed, heads = options.integer("embed_dim"), options.integer("num_heads")
    if embed < 1 or heads < 1 or embed % heads:
        raise ShapeError(f"embed_dim {embed} does not divide into {heads} heads")
    query = options.integer("weight_data_size") // embed
    return embed, query, options.integer("kdim"), options.integer("vdim")


def _attention_weights(options: Options, bottoms: Sequence[Shape]) -> list[Shape]:
    embed, *widths = _attention_sizes(options)
    blobs: list[Shape] = []
    for width in widths:
        blobs += [(embed, width), (embed,)]
    return [*blobs, (widths[0], embed), (widths[0],)]


def _attention_shape(options: Options, bottoms: Sequence[Shape]) -> list[Shape]:
    parts = _attention_parts(options, bottoms)
    _, *widths = _attention_sizes(options)
    for part, width in zip(parts, widths, strict=False):
        if bottoms[part][2] != width:
            raise ShapeError(f"bottom {bottoms[part]} has rows of {bottoms[part][2]}, not {width}")
    return [(*bottoms[0][:2], widths[0])]


@ncnn_layer("MultiHeadAttention", shape=_attention_shape, weights=_attention_weights)
def attention(options: Options, weights: Sequence[Array], bottoms: Sequence[Array]) -> list[Array]:
    """softmax(q @ k.T * scale + mask) @ v in each head, between products with weights.

    Source: ncnn's multiheadattention.cpp.
    """
    parts = [bottoms[i] for i in _attention_parts(options, [x.shape for x in bottoms])]
    heads, embed = options.integer("num_heads"), options.integer("embed_dim")
    pairs = zip(parts, weights[0:6:2], weights[1:6:2], strict=False)
    q, k, v = (_by_head(x @ weight.T + bias, heads) for x, weight, bias in pairs)
    scale = 1 / sqrt(embed // heads)
    if options.given("scale"):
        scale = options.number("scale")
    xp = namespace(q)
    scores = xp.matmul(q * np.float32(scale), k.swapaxes(-1, -2))
    if len(parts) > 3:
        mask = parts[3]
        scores = scores + (mask if mask.ndim == 4 else mask[:, None])
    joined = xp.matmul(_shares(scores), v).transpose(0, 2, 1, 3)
    joined = joined.reshape(*joined.shape[:2], embed)
    return [xp.ascontiguousarray(joined @ weights[6].T + weights[7], np.float32)]


def _by_head(x: Array, heads: int) -> Array:
    """(N, rows, heads * width) as (N, heads, rows, width)."""
    split: Array = x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)
    return split


def _sdpa_shape(options: Options, bottoms: Sequence[Shape]) -> list[Shape]:
    for name in ("kv_cache", "int8_scale_term"):
        if options.integer(name):
            raise UnsupportedLayerError(f"{name} {options.integer(name)} is not supported")
    count = 4 if options.integer("attn_mask") else 3
    if len(bottoms) != count or any(len(shape) != 4 for shape in bottoms[:3]):
        raise ShapeError(f"bottoms {list(bottoms)}; expected query, key and value of heads")
    q, k, v = bottoms[:3]
    if q[3] != k[3] or k[1:3] != v[1:3] or q[1] % k[1]:
        raise ShapeError(f"query {q}, key {k} and value {v} do not go together")
    return [(*q[:3], v[3])]


@ncnn_layer("SDPA", shape=_sdpa_shape)
def sdpa(options: Options, weights: Sequence[Array], bottoms: Sequence[Array]) -> list[Array]:
    """softmax(q @ k.T * scale + mask) @ v in each head; several heads may share a key and a value.

    Source: ncnn's sdpa.cpp.
    """
    q, k, v = bottoms[:3]
    scale = options.number("scale") or 1 / sqrt(q.shape[-1])
    xp = namespace(q)
    k, v = (x.repeat(q.shape[1] // x.shape[1], axis=1) for x in (k, v))
    scores = xp.matmul(q * np.float32(scale), k.swapaxes(-1, -2))
    if options.integer("attn_mask"):
        mask = bottoms[3]
        scores = scores + (mask if mask.ndim == 4 else mask[:, None])
    return [xp.ascontiguousarray(xp.matmul(_shares(scores), v), np.float32)]


def _shares(scores: Array) -> Array:
    """The softmax along the last axis."""
    exponentials = namespace(scores).exp(scores - scores.max(axis=-1, keepdims=True))
    shares: Array = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return shares
