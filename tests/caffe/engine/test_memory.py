"""The engine's shared buffers: never mixed up, on random networks, and few enough.

What a blob holds must not depend on who else reads it, on which layers work in place, on which
blobs are kept, or on what ran before.
"""

from __future__ import annotations

import gc
import tracemalloc
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from int8calib.caffe.engine.plan import Plan, make_plan
from int8calib.caffe.engine.run import Net, run_plan
from int8calib.caffe.network.graph import Blob, Graph
from tests.random_networks import Network, Row, networks


def run_twice(network: Network, plan: Plan, graph: Graph, wanted: set[Blob]) -> None:
    """Run both images through one plan and hold every wanted top to what is expected."""
    for image in network.images:
        given = image.copy()
        heard: list[tuple[str, str, np.ndarray]] = []

        def listen(layer, blob, top, heard=heard):
            if blob in wanted:
                heard.append((layer.name, blob.name, top.copy()))

        made = run_plan(plan, {"data": given}, listen)
        expected = network.expected(image)
        tops = [(layer.name, blob) for layer in graph.layers for blob in layer.tops]
        chosen = [place for place, (_, blob) in enumerate(tops) if blob in wanted]
        assert [entry[:2] for entry in heard] == [expected[place][:2] for place in chosen]
        for entry, place in zip(heard, chosen, strict=True):
            check(entry[2], expected[place])
        for place in chosen:
            if plan.kept:
                check(made[tops[place][1]], expected[place])
        np.testing.assert_array_equal(given, image)


def check(found: np.ndarray, expected: tuple[str, str, np.ndarray]) -> None:
    name, blob, value = expected
    np.testing.assert_allclose(
        found, value, rtol=1e-4, atol=1e-4 * abs(value).max(), err_msg=f"{name}: {blob}"
    )


thorough = settings(max_examples=120, deadline=None, derandomize=True, print_blob=False)


@thorough
@given(networks(), st.data())
def test_plans_give_what_copying_gives(network: Network, data: st.DataObject) -> None:
    graph = network.graph()
    every = [top for layer in graph.layers for top in layer.tops]
    wanted = set(data.draw(st.lists(st.sampled_from(every), min_size=1, max_size=3)))
    keep = data.draw(st.booleans())
    plan = make_plan(graph, {"data": network.images[0].shape}, wanted, keep=keep)
    run_twice(network, plan, graph, wanted)


@thorough
@given(networks(), st.data())
def test_forward_gives_what_copying_gives(network: Network, data: st.DataObject) -> None:
    graph = network.graph()
    net = Net(graph, {"data": network.images[0].shape})
    expected = network.expected(network.images[0])
    last = {blob: entry for entry in expected for blob in [entry[1]]}
    names = data.draw(st.lists(st.sampled_from(sorted(last)), min_size=1, max_size=3, unique=True))
    for _ in range(2):
        outputs = net.forward({"data": network.images[0]}, outputs=names)
        assert sorted(outputs) == sorted(names)
        for name in names:
            check(outputs[name], last[name])
    heard: list[tuple[str, str, np.ndarray]] = []
    net.forward(
        {"data": network.images[0]}, on_top=lambda *top: heard.append((*top[:2], top[2].copy()))
    )
    assert [entry[:2] for entry in heard] == [entry[:2] for entry in expected]
    for entry, value in zip(heard, expected, strict=True):
        check(entry[2], value)


def conv(bottom: str, top: str, channels: int = 2, num_output: int = 2) -> Row:
    weight = np.full((num_output, channels, 3, 3), 0.1, np.float32)
    return Row("Convolution", (bottom,), (top,), weight)


def chain(length: int, first: str = "data") -> list[Row]:
    names = [first, *(f"chain{i}" for i in range(length))]
    return [conv(names[i], names[i + 1]) for i in range(length)]


IMAGE = np.ones((7, 2, 3, 5), np.float32)
BLOCK = IMAGE.nbytes


def plan_of(*rows: Row, keep: bool = True, wanted: tuple[str, ...] = ()) -> tuple[Plan, Graph]:
    graph = Network(rows, (IMAGE,)).graph()
    blobs = [graph.last_version(name) for name in wanted] or graph.outputs
    return make_plan(graph, {"data": IMAGE.shape}, blobs, keep=keep), graph


def memory(plan: Plan) -> int:
    """Bytes of the buffers that blobs share."""

    def block(array: np.ndarray) -> np.ndarray:
        return array if array.base is None else block(array.base)

    blocks = {id(block(array)): block(array).nbytes for array in plan.arrays.values()}
    return sum(blocks.values())


@pytest.mark.parametrize(
    ("rows", "blocks"),
    [
        # A convolution reads one buffer and writes another; what it read is free then.
        (chain(2), 2),
        (chain(7), 2),
        # Layers that can work in place take no buffer, nor do views.
        ([*chain(1), Row("ReLU", ("chain0",), ("a",)), Row("Power", ("a",), ("b",))], 1),
        ([*chain(1), Row("Split", ("chain0",), ("a", "b")), Row("Eltwise", ("a", "b"), ("c",))], 2),
        # The input is not the engine's to write, so the first ReLU needs a buffer.
        ([Row("ReLU", ("data",), ("a",)), Row("ReLU", ("a",), ("b",))], 1),
        # A top that nothing reads is free at once; of the two halves each grows to a whole block.
        (
            [
                Row("Slice", ("data",), ("a", "nobody reads this")),
                conv("a", "b", 1),
                *chain(4, "b"),
            ],
            2,
        ),
        # The block that fits best: blocks of 3 and 1 are free when 1, then 3 are needed.
        (
            [
                conv("data", "wide", num_output=6),
                conv("data", "narrow"),
                Row("Concat", ("wide", "narrow"), ("all",)),
                conv("all", "a", 8, 2),
                conv("all", "b", 8, 6),
                Row("Concat", ("a", "b"), ("end",)),
            ],
            8,
        ),
        # Where none fits the largest grows: 3 to 5, and 4, of what was joined, to 6.
        (
            [
                conv("data", "narrow"),
                conv("data", "wide", num_output=6),
                Row("Concat", ("wide", "narrow"), ("all",)),
                conv("all", "a", 8, 10),
                conv("all", "b", 8, 2),
                Row("Concat", ("a", "b"), ("end",)),
            ],
            12,
        ),
    ],
)
def test_blobs_share_memory(rows: list[Row], blocks: float) -> None:
    plan, _ = plan_of(*rows, wanted=(rows[-1].tops[0],))
    assert memory(plan) == blocks * BLOCK


BRANCHES = [
    conv("data", "a", num_output=6),
    Row("ReLU", ("a",), ("a",)),
    conv("data", "b"),
    Row("Concat", ("a", "b"), ("all",)),
    conv("all", "c", 8),
    Row("Concat", ("all", "c"), ("end",)),
]


@pytest.mark.parametrize(
    ("rows", "batch", "channels"),
    [
        # One image: what is joined is made in place, all the way.
        (BRANCHES, 1, 10),
        # Several images of a bottom are not neighbors in the top. Blocks of 6, 2 and 8 channels are
        # there when the first Concat is done; `end` makes 10 of the first.
        (BRANCHES, 7, 10 + 2 + 8),
        # The second Concat reads `a` too, so the first one copies: `a` and `all` are in `end`.
        ([*BRANCHES[:4], Row("ReLU", ("all",), ("all",)), Row("Concat", ("a", "all"), ("end",))],
         1, 2 + 14),
        # One bottom twice has one memory.
        ([*BRANCHES[:2], Row("Concat", ("a", "a"), ("end",))], 1, 6 + 12),
    ],
)  # fmt: skip
def test_what_is_joined_is_made_in_place(rows: list[Row], batch: int, channels: int) -> None:
    graph = Network(rows, (IMAGE[:batch],)).graph()
    plan = make_plan(graph, {"data": IMAGE[:batch].shape}, graph.outputs)
    assert memory(plan) == channels * BLOCK // 7 * batch // 2


def test_what_is_only_listened_to_shares_memory_too() -> None:
    rows = chain(7)
    tops = tuple(row.tops[0] for row in rows)
    assert memory(plan_of(*rows, wanted=tops)[0]) == 7 * BLOCK
    assert memory(plan_of(*rows, wanted=tops, keep=False)[0]) == 2 * BLOCK


def allocated(*rows: Row) -> int:
    """Bytes of all arrays made in planning: buffers of blobs, and scratch memory."""
    graph = Network(rows, (IMAGE,)).graph()
    tracemalloc.start()
    plan = make_plan(graph, {"data": IMAGE.shape}, graph.outputs)
    traces = tracemalloc.take_snapshot().traces
    tracemalloc.stop()
    assert len(plan.steps) == 1 + len(rows)
    return sum(trace.size for trace in traces if trace.domain == np.lib.tracemalloc_domain)


def test_scratch_memory_is_shared_by_all_layers() -> None:
    few = allocated(*chain(3))
    assert few > 2 * BLOCK
    assert allocated(*chain(30)) == few


def test_layers_in_place_and_views_take_no_memory() -> None:
    first = Row("ReLU", ("data",), ("a",))
    assert allocated(first) == BLOCK
    assert allocated(first, Row("Power", ("a",), ("b",)), Row("Flatten", ("b",), ("c",))) == BLOCK
    halves = [Row("ReLU", (half,), (f"{half}r",)) for half in ("a", "b")]
    assert allocated(Row("Slice", ("data",), ("a", "b")), *halves) == BLOCK


def test_tops_of_plain_functions_are_let_go() -> None:
    rows = [Row("Softmax", (name,), (f"{name}s",)) for name in ("data", "datas", "datass")]
    plan, _ = plan_of(*rows)
    alive: list[weakref.ref] = []

    def listen(layer, blob, top):
        if layer.name != "data":
            alive.append(weakref.ref(top))
        gc.collect()
        assert sum(ref() is not None for ref in alive) <= 2

    gc.freeze()  # what was there before need not be looked through each time
    try:
        run_plan(plan, {"data": IMAGE}, listen)
    finally:
        gc.unfreeze()
    assert len(alive) == 3
