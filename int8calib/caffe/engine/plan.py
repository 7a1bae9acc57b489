"""Plan how a graph runs on inputs of given shapes: its steps, and the buffers that blobs share.

A blob lives from the step that makes it to the last step that reads it; then its memory serves
another blob. Views (Flatten, Split, ...) and in-place layers share the memory of their bottom. The
bottoms of a Concat are made where they stand in its top, so that it has nothing to copy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from int8calib.arrays import Array, Shape
from int8calib.caffe.layers.registry import FastPath, LayerType, find_type
from int8calib.caffe.network.graph import Blob, Graph, Layer
from int8calib.caffe.network.inputs import INPUT_TYPES
from int8calib.caffe.network.layer_shapes import require_weights
from int8calib.caffe.network.shapes import infer_shapes
from int8calib.errors import ModelError
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

    def run_plain(self, source: str, weights: Sequence[Any], bottoms: Sequence[Any]) -> list[Any]:
        """Return what the type's plain function gives; a `ModelError` names `source` too."""
        if self.kind is None:
            return list(bottoms)
        try:
            return list(self.kind.run(self.layer.params, weights, bottoms))
        except ModelError as error:
            raise type(error)(f"{source}: {error}") from error.__cause__


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
    places = _joined_places(layers, shapes, owners, kept)
    dead = deaths(layers, kept, owners)
    arrays = _allocate(layers, shapes, owners, places, dead)
    measure = _ScratchBuffers()
    _fast_paths(layers, shapes, measure)
    fast_paths = _fast_paths(layers, shapes, _ScratchBuffers(measure.size))
    sharing: dict[Blob, list[Blob]] = {}
    for blob, owner in owners.items():
        sharing.setdefault(owner, []).append(blob)
    steps = []
    for layer, fast_path, owners_died in zip(layers, fast_paths, dead, strict=True):
        died = tuple(blob for owner in owners_died for blob in sharing[owner])
        if layer.bottoms and places.get(owners[layer.bottoms[0]], (None,))[0] in layer.tops:
            fast_path = _nothing_to_do
        steps.append(Step(layer, kind_of(layer), fast_path, died))
    return plan_of_steps(graph.source, inputs, kept, steps, arrays)


def plan_of_steps(
    source: str,
    inputs: Mapping[str, Shape],
    kept: tuple[Blob, ...],
    steps: Sequence[Step],
    arrays: Mapping[Blob, Array],
) -> Plan:
    """Return the plan of these steps, with those of the inputs that they read."""
    needed = {top.name for step in steps if step.kind is None for top in step.layer.tops}
    read = {name: shape for name, shape in inputs.items() if name in needed}
    return Plan(source, read, kept, tuple(steps), arrays)


def kind_of(layer: Layer) -> LayerType | None:
    """Return the type of a layer; None for a data layer, whose tops are given."""
    return None if layer.type in INPUT_TYPES else find_type(layer.type)


def _fast_paths(
    layers: Sequence[Layer], shapes: Mapping[Blob, Shape], scratch: _ScratchBuffers
) -> list[FastPath | None]:
    """The fast path of each layer whose type has a planner."""
    fast_paths: list[FastPath | None] = []
    for layer in layers:
        kind = kind_of(layer)
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
        kind = kind_of(layer)
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


def deaths(
    layers: Sequence[Layer], kept: Sequence[Blob], owners: Mapping[Blob, Blob]
) -> list[tuple[Blob, ...]]:
    """Return for each layer the memory owners that nothing reads after it has run."""
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


def _joined_places(
    layers: Sequence[Layer],
    shapes: Mapping[Blob, Shape],
    owners: Mapping[Blob, Blob],
    kept: Sequence[Blob],
) -> dict[Blob, tuple[Blob, int]]:
    """Where the bottoms of Concats are made: for each owner that of the top, and its first float.

    All bottoms of a Concat, or none: each has memory of its own that a fast path writes, and that
    nobody reads after the Concat.
    """
    made_by = {top: kind_of(layer) for layer in layers for top in layer.tops}
    last_read = {owners[blob]: i for i, layer in enumerate(layers) for blob in layer.bottoms}
    kept_owners = {owners[blob] for blob in kept}
    places: dict[Blob, tuple[Blob, int]] = {}
    for i, layer in enumerate(layers):
        kind = kind_of(layer)
        if kind is None or kind.joins is None:
            continue
        bottoms = [shapes[bottom] for bottom in layer.bottoms]
        parts = [owners[bottom] for bottom in layer.bottoms]
        apart = len(set(parts)) == len(parts) and not kept_owners.intersection(parts)
        if not apart or not kind.joins(layer.params, bottoms):
            continue
        if all(last_read[part] == i and _is_written(made_by[part]) for part in parts):
            first = 0
            for part, shape in zip(parts, bottoms, strict=True):
                places[part] = layer.tops[0], first
                first += prod(shape)
    return places


def _is_written(kind: LayerType | None) -> bool:
    """Whether a type's fast path writes its tops."""
    return kind is not None and kind.plan is not None


def _nothing_to_do(bottoms: Sequence[Array], tops: Sequence[Array]) -> None:
    """The fast path of a Concat whose bottoms were made in its top."""


def _allocate(
    layers: Sequence[Layer],
    shapes: Mapping[Blob, Shape],
    owners: Mapping[Blob, Blob],
    places: Mapping[Blob, tuple[Blob, int]],
    dead: Sequence[Sequence[Blob]],
) -> dict[Blob, Array]:
    """An array for every blob that a fast path writes, memory reused once its blob is dead."""
    sizes: list[int] = []
    free: list[int] = []
    block_of: dict[Blob, int] = {}

    def place(owner: Blob) -> tuple[Blob, int]:
        """The blob in whose memory an owner stands, and where."""
        first = 0
        while owner in places:
            owner, more = places[owner]
            first += more
        return owner, first

    for layer, died in zip(layers, dead, strict=True):
        if _is_written(kind_of(layer)):
            for top in layer.tops:
                whole = place(top)[0]
                if owners[top] == top and whole not in block_of:
                    block_of[whole] = _take_block(prod(shapes[whole]), sizes, free)
        free.extend(block_of[blob] for blob in died if blob in block_of)
    check_memory(sum(sizes), "the blobs of one batch")
    blocks = [np.empty(size, np.float32) for size in sizes]
    arrays = {}
    for blob, owner in owners.items():
        whole, first = place(owner)
        if whole in block_of:
            memory = blocks[block_of[whole]][first : first + prod(shapes[blob])]
            arrays[blob] = memory.reshape(shapes[blob])
    return arrays


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
