"""A graph and input shapes to a `Plan`: steps in order, and buffers that blobs share by lifetime.

A blob lives from the step that makes it to the last step that reads it; then its memory serves
another blob. Views (Flatten, Split, ...) and in-place layers share the memory of their bottom.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from int8calib.arrays import Array, Shape
from int8calib.caffe.layers.registry import FastPath, LayerType, find_type
from int8calib.caffe.network.graph import Blob, Graph, Layer
from int8calib.caffe.network.inputs import INPUT_TYPES
from int8calib.caffe.network.shapes import infer_shapes, require_weights


@dataclass(frozen=True, eq=False)
class Step:
    """One layer to run, and the blobs that nothing reads after it.

    `kind` is None for a data layer, whose tops are given; `kernel` is None where the type's
    plain function makes fresh arrays, or a view.
    """

    layer: Layer
    kind: LayerType | None
    kernel: FastPath | None
    dead: tuple[Blob, ...]


@dataclass(frozen=True, eq=False)
class Plan:
    """What a run needs: its steps, the array of every planned blob, and the blobs it keeps.

    Buffers belong to the plan, so one plan serves one thread at a time.
    """

    inputs: Mapping[str, Shape]
    kept: tuple[Blob, ...]
    steps: tuple[Step, ...]
    arrays: Mapping[Blob, Array]


class _Scratch:
    """Scratch memory that all kernels share, since only one runs at a time.

    The first round of planning only measures (`size`); the second hands out parts of one block.
    """

    def __init__(self, size: int | None = None) -> None:
        self.size = 0
        self._block = None if size is None else np.empty(size, np.float32)
        self._used = 0

    def start(self) -> None:
        """The kernel planned next may use the whole block."""
        self._used = 0

    def take(self, shape: Shape) -> Array:
        count = -(-prod(shape) // 16) * 16
        begin, self._used = self._used, self._used + count
        self.size = max(self.size, self._used)
        if self._block is None:
            return np.empty(shape, np.float32)
        return self._block[begin : begin + prod(shape)].reshape(shape)


def make_plan(
    graph: Graph, inputs: Mapping[str, Shape], wanted: Iterable[Blob], *, keep: bool = True
) -> Plan:
    """The plan that makes `wanted` from inputs of the given shapes, running only what is needed.

    With `keep` false the wanted blobs are only there to be listened to, and share memory as the
    others do. Raises `UnsupportedLayerError` for a needed layer of an unknown type, `ShapeError`
    where shapes do not fit, `WeightsError` where weights are missing.
    """
    wanted = tuple(dict.fromkeys(wanted))
    kept = wanted if keep else ()
    layers = graph.ancestors(wanted)
    shapes = infer_shapes(graph, inputs, layers)
    require_weights(graph, layers, shapes)
    owners = _memory_owners(layers, kept)
    dead = _deaths(layers, kept, owners)
    arrays = _allocate(layers, shapes, owners, dead)
    measure = _Scratch()
    _kernels(layers, shapes, measure)
    kernels = _kernels(layers, shapes, _Scratch(measure.size))
    family: dict[Blob, list[Blob]] = {}
    for blob, owner in owners.items():
        family.setdefault(owner, []).append(blob)
    steps = tuple(
        Step(layer, _kind(layer), kernel, tuple(b for owner in died for b in family[owner]))
        for layer, kernel, died in zip(layers, kernels, dead, strict=True)
    )
    needed = {top.name for step in steps if step.kind is None for top in step.layer.tops}
    return Plan({n: s for n, s in inputs.items() if n in needed}, kept, steps, arrays)


def _kind(layer: Layer) -> LayerType | None:
    return None if layer.type in INPUT_TYPES else find_type(layer.type)


def _kernels(
    layers: Sequence[Layer], shapes: Mapping[Blob, Shape], scratch: _Scratch
) -> list[FastPath | None]:
    """A kernel for each layer whose type has a planner."""
    kernels: list[FastPath | None] = []
    for layer in layers:
        kind = _kind(layer)
        scratch.start()
        if kind is None or kind.plan is None:
            kernels.append(None)
        else:
            bottoms = [shapes[bottom] for bottom in layer.bottoms]
            kernels.append(kind.plan(layer.params, layer.weights, bottoms, scratch.take))
    return kernels


def _memory_owners(layers: Sequence[Layer], kept: Sequence[Blob]) -> dict[Blob, Blob]:
    """For each blob the blob whose memory it uses: itself, or what it views or overwrites."""
    owners: dict[Blob, Blob] = {}
    writable: set[Blob] = set()
    last_read = {blob: i for i, layer in enumerate(layers) for blob in layer.bottoms}
    for i, layer in enumerate(layers):
        kind = _kind(layer)
        owners.update({top: top for top in layer.tops})
        if kind is None or not layer.bottoms:
            continue
        owner = owners[layer.bottoms[0]]
        if kind.view:
            owners.update(dict.fromkeys(layer.tops, owner))
        elif kind.plan is not None:
            family = {blob for blob, root in owners.items() if root == owner}
            unread = all(last_read.get(blob, -1) <= i for blob in family)
            if kind.inplace and owner in writable and unread and family.isdisjoint(kept):
                owners[layer.tops[0]] = owner
            else:
                writable.update(layer.tops)
    return owners


def _deaths(
    layers: Sequence[Layer], kept: Sequence[Blob], owners: Mapping[Blob, Blob]
) -> list[tuple[Blob, ...]]:
    """For each layer the memory owners that nothing reads after it has run."""
    last: dict[Blob, int] = {}
    for i, layer in enumerate(layers):
        for blob in (*layer.bottoms, *layer.tops):
            last[owners[blob]] = i
    kept_owners = {owners[blob] for blob in kept}
    dead: list[list[Blob]] = [[] for _ in layers]
    for owner, i in last.items():
        if owner not in kept_owners:
            dead[i].append(owner)
    return [tuple(blobs) for blobs in dead]


def _allocate(
    layers: Sequence[Layer],
    shapes: Mapping[Blob, Shape],
    owners: Mapping[Blob, Blob],
    dead: Sequence[Sequence[Blob]],
) -> dict[Blob, Array]:
    """An array for every blob that a kernel writes, memory reused once its blob is dead."""
    sizes: list[int] = []
    free: list[int] = []
    block_of: dict[Blob, int] = {}
    for layer, died in zip(layers, dead, strict=True):
        kind = _kind(layer)
        if kind is not None and kind.plan is not None:
            for top in layer.tops:
                if owners[top] == top:
                    block_of[top] = _take_block(prod(shapes[top]), sizes, free)
        free.extend(block_of[blob] for blob in died if blob in block_of)
    blocks = [np.empty(size, np.float32) for size in sizes]
    return {
        blob: blocks[block_of[owner]][: prod(shapes[blob])].reshape(shapes[blob])
        for blob, owner in owners.items()
        if owner in block_of
    }


def _take_block(size: int, sizes: list[int], free: list[int]) -> int:
    """The free block that fits best (the largest grows if none does), or a new one."""
    if not free:
        sizes.append(size)
        return len(sizes) - 1
    fitting = [block for block in free if sizes[block] >= size]
    block = min(fitting, key=sizes.__getitem__) if fitting else max(free, key=sizes.__getitem__)
    free.remove(block)
    sizes[block] = max(sizes[block], size)
    return block
