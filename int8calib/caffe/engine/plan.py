"""Plan how a graph runs on inputs of given shapes: its steps, and the buffers that blobs share.

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
from int8calib.caffe.network.layer_shapes import require_weights
from int8calib.caffe.network.shapes import infer_shapes
from int8calib.limits import check_memory


@dataclass(frozen=True, eq=False)
class Step:
    """One layer to run.

    Attributes
    ----------
    layer : Layer
    kind : LayerType or None
        None for a data layer, whose tops are given.
    fast_path : FastPath or None
        What writes the tops into the plan's buffers; None where the type's plain function makes
        fresh arrays or a view.
    dead : tuple of Blob
        What nothing reads after this step.
    """

    layer: Layer
    kind: LayerType | None
    fast_path: FastPath | None
    dead: tuple[Blob, ...]


@dataclass(frozen=True, eq=False)
class Plan:
    """What a run needs. Buffers belong to the plan, so one plan serves one thread at a time.

    Attributes
    ----------
    source : str
        What messages call the network.
    inputs : mapping of str to Shape
        The inputs that are read.
    kept : tuple of Blob
        What a run returns.
    steps : tuple of Step
        In running order.
    arrays : mapping of Blob to Array
        The memory of each blob that a fast path writes, float32.
    """

    source: str
    inputs: Mapping[str, Shape]
    kept: tuple[Blob, ...]
    steps: tuple[Step, ...]
    arrays: Mapping[Blob, Array]


class _ScratchBuffers:
    """Scratch memory that all fast paths share, since only one runs at a time.

    The first round of planning only measures (`size`); the second hands out parts of one block.
    """

    def __init__(self, size: int | None = None) -> None:
        self.size = 0
        self._block = None if size is None else np.empty(size, np.float32)
        self._used = 0

    def start(self) -> None:
        """Let the fast path that is planned next use the whole block."""
        self._used = 0

    def buffer(self, shape: Shape) -> Array:
        """Return a part of the block that this fast path has not got yet; content undefined."""
        count = -(-prod(shape) // 16) * 16
        begin, self._used = self._used, self._used + count
        self.size = max(self.size, self._used)
        check_memory(self.size, "the scratch buffers of a layer")
        if self._block is None:
            return np.empty(shape, np.float32)
        return self._block[begin : begin + prod(shape)].reshape(shape)


def make_plan(
    graph: Graph, inputs: Mapping[str, Shape], wanted: Iterable[Blob], *, keep: bool = True
) -> Plan:
    """Plan the layers that the wanted blobs need.

    Parameters
    ----------
    graph : Graph
    inputs : mapping of str to Shape
        The shape of each input.
    wanted : iterable of Blob
        What to make.
    keep : bool
        Whether the wanted blobs last to the end of a run. If not, they are only there to be
        listened to, and share memory as the others do.

    Returns
    -------
    Plan

    Raises
    ------
    UnsupportedLayerError
        For a needed layer of an unknown type.
    ShapeError
        Where shapes do not fit, or the blobs are larger than the machine's memory.
    WeightsError
        Where weights are missing.
    """
    wanted = tuple(dict.fromkeys(wanted))
    kept = wanted if keep else ()
    layers = graph.ancestors(wanted)
    shapes = infer_shapes(graph, inputs, layers)
    require_weights(graph, layers, shapes)
    owners = _memory_owners(layers, kept)
    dead = _deaths(layers, kept, owners)
    arrays = _allocate(layers, shapes, owners, dead)
    measure = _ScratchBuffers()
    _fast_paths(layers, shapes, measure)
    fast_paths = _fast_paths(layers, shapes, _ScratchBuffers(measure.size))
    sharing: dict[Blob, list[Blob]] = {}
    for blob, owner in owners.items():
        sharing.setdefault(owner, []).append(blob)
    steps = []
    for layer, fast_path, owners_died in zip(layers, fast_paths, dead, strict=True):
        died = tuple(blob for owner in owners_died for blob in sharing[owner])
        steps.append(Step(layer, _kind(layer), fast_path, died))
    needed = {top.name for step in steps if step.kind is None for top in step.layer.tops}
    read = {name: shape for name, shape in inputs.items() if name in needed}
    return Plan(graph.source, read, kept, tuple(steps), arrays)


def _kind(layer: Layer) -> LayerType | None:
    return None if layer.type in INPUT_TYPES else find_type(layer.type)


def _fast_paths(
    layers: Sequence[Layer], shapes: Mapping[Blob, Shape], scratch: _ScratchBuffers
) -> list[FastPath | None]:
    """The fast path of each layer whose type has a planner."""
    fast_paths: list[FastPath | None] = []
    for layer in layers:
        kind = _kind(layer)
        scratch.start()
        if kind is None or kind.plan is None:
            fast_paths.append(None)
        else:
            bottoms = [shapes[bottom] for bottom in layer.bottoms]
            fast_paths.append(kind.plan(layer.params, layer.weights, bottoms, scratch.buffer))
    return fast_paths


def _memory_owners(layers: Sequence[Layer], kept: Sequence[Blob]) -> dict[Blob, Blob]:
    """For each blob the blob whose memory it uses: itself, or what it views or overwrites.

    A layer may overwrite its first bottom if the memory is the plan's own (`writable`), no later
    layer reads a blob that shares it (`unread`), and none of these blobs is kept.
    """
    owners: dict[Blob, Blob] = {}
    writable: set[Blob] = set()
    kept_blobs, kept_owners = frozenset(kept), set[Blob]()
    last_read = {blob: i for i, layer in enumerate(layers) for blob in layer.bottoms}
    read_until: dict[Blob, int] = {}
    for i, layer in enumerate(layers):
        kind = _kind(layer)
        made = {top: top for top in layer.tops}
        if kind is not None and layer.bottoms:
            owner = owners[layer.bottoms[0]]
            unread = read_until[owner] <= i
            if kind.view:
                made = dict.fromkeys(layer.tops, owner)
            elif kind.plan is None:
                pass
            elif kind.inplace and owner in writable and unread and owner not in kept_owners:
                made[layer.tops[0]] = owner
            else:
                writable.update(layer.tops)
        for top, owner in made.items():
            owners[top] = owner
            read_until[owner] = max(read_until.get(owner, -1), last_read.get(top, -1))
            if top in kept_blobs:
                kept_owners.add(owner)
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
    """An array for every blob that a fast path writes, memory reused once its blob is dead."""
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
    check_memory(sum(sizes), "the blobs of one batch")
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
