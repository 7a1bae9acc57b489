"""The search: better than plain tables on fresh pictures, within its budget, honest about it."""

from __future__ import annotations

import json
import signal
import threading
from dataclasses import replace

import numpy as np
import pytest

from int8calib import TuneOptions, tune
from int8calib.caffe.engine.run import Net, load_caffe
from int8calib.caffe.export import write_model
from int8calib.caffe.network.shapes import infer_shapes
from int8calib.caffe.requirements import requirements_from_graph
from int8calib.calibration.options import Options
from int8calib.calibration.pipeline import prepare
from int8calib.errors import ImageError, OptionError
from int8calib.simulation.build import simulate
from int8calib.table import check_table
from int8calib.tuning.candidates import Candidate
from int8calib.tuning.channels import channel_sensitivity
from int8calib.tuning.search import PLAIN, leave_float
from int8calib.tuning.validation import Validator
from tests.tuning_nets import (
    batches,
    chain,
    demo_loader,
    demo_net,
    labeled,
    plain_table,
    solved_by_layers,
    sqnr,
)

IMAGES, FRESH = 60, 40
"""Pictures for the demo net, and others that nothing is fitted to."""
SIZE = 48
"""Their height and width: enough for its layers, and faster than its own."""
ENOUGH = 45
"""Images from which on the outputs decide on thresholds here: the share of `IMAGES` tuned on."""
LAYERS = 7
"""Of the chain net, in INT8."""


@pytest.fixture(scope="module")
def net(tmp_path_factory) -> Net:
    return chain(tmp_path_factory.mktemp("chain"))


@pytest.fixture
def few_images_will_do(monkeypatch) -> None:
    monkeypatch.setattr("int8calib.tuning.execution.MIN_IMAGES", 1)


@pytest.fixture
def enough_images(monkeypatch) -> None:
    monkeypatch.setattr("int8calib.tuning.execution.MIN_IMAGES", ENOUGH)


@pytest.fixture(scope="module")
def plain() -> float:
    """The best SQNR of plain tables of the demo net, on pictures that nothing was fitted to."""
    net, fresh = demo_net(SIZE), demo_loader(FRESH, seed=71, size=SIZE)
    given = [each.batch for each in demo_loader(IMAGES, size=SIZE)]
    return max(
        sqnr(net, simulate(net, plain_table(net, given, method)), fresh)
        for method in ("kl", "aciq", "mse")
    )


@pytest.mark.usefixtures("enough_images", "few_columns")
@pytest.mark.long
def test_a_changed_model_loses_far_less_and_its_files_say_the_same(plain, tmp_path) -> None:
    net = demo_net(SIZE)
    given, fresh = demo_loader(IMAGES, size=SIZE), demo_loader(FRESH, seed=71, size=SIZE)
    found = tune(net, lambda: given, tuning=TuneOptions(change_model=True))
    assert found.changed
    assert found.chosen == "tuned"
    assert found.stopped is None
    assert found.images >= ENOUGH
    int8 = simulate(found.net, found.table)
    assert sqnr(net, int8, fresh) > plain + 4
    write_model(found.net, tmp_path / "n.prototxt", tmp_path / "n.caffemodel")
    again = load_caffe(tmp_path / "n.prototxt", tmp_path / "n.caffemodel")
    assert sqnr(net, again, fresh) > 20
    int8_again = simulate(again, found.table)
    one = fresh[0].batch
    out = net.graph.outputs[0].name
    assert np.array_equal(int8_again.forward(one)[out], int8.forward(one)[out])
    findings = check_table(found.table, requirements=requirements_from_graph(again.graph))
    assert [each for each in findings if each.severity == "error"] == []


@pytest.mark.usefixtures("enough_images")
@pytest.mark.long
def test_a_table_alone_is_better_than_plain_ones(plain) -> None:
    net = demo_net(SIZE)
    given, fresh = demo_loader(IMAGES, size=SIZE), demo_loader(FRESH, seed=71, size=SIZE)
    found = tune(net, lambda: given)
    assert found.net is net
    assert not found.changed
    reached = sqnr(net, simulate(net, found.table), fresh)
    assert reached > plain + 1
    assert [choice.layer for choice in found.choices] == [row.name for row in found.table.layers]
    assert all(choice.what and choice.why for choice in found.choices)
    assert [table.name for table in found.evidence.tables] == [*PLAIN, "tuned", "weights tuned"]
    assert found.images + found.evidence.images == IMAGES
    json.dumps(found.as_dict(), allow_nan=False)
    # Thresholds by the network's outputs are better than those by each layer's.
    by_layers = solved_by_layers(net, [each.batch for each in given])
    assert sqnr(net, simulate(net, by_layers), fresh) < reached


def test_equalizing_is_worth_it(net) -> None:
    given, fresh = batches(24), batches(40, seed=71)
    found = {}
    for techniques in ((), ("equalize",)):
        tuning = TuneOptions(change_model=True, techniques=techniques)
        done = tune(net, lambda: given, tuning=tuning)
        found[techniques] = sqnr(net, simulate(done.net, done.table), fresh)
    assert found[("equalize",)] > found[()] + 2


@pytest.mark.usefixtures("few_images_will_do", "few_columns")
def test_validation_images_are_never_tuned_on(net, monkeypatch) -> None:
    # Validation images choose between results, so here the tuned one wins whatever they say.
    monkeypatch.setattr("int8calib.tuning.search.closeness", lambda r: float(r.name == "tuned"))
    seen = batches(12)
    other = batches(3, seed=1234)
    mixed = [other[i // 4] if i % 4 == 3 else each for i, each in enumerate(seen)]
    tuning = TuneOptions(change_model=True)
    a, b = (tune(net, lambda given=given: given, tuning=tuning) for given in (seen, mixed))
    assert a.chosen == b.chosen == "tuned"
    assert a.evidence.images == b.evidence.images == 3
    assert a.evidence.tables[0].blobs[0].sqnr != b.evidence.tables[0].blobs[0].sqnr
    assert_same(a, b)


@pytest.mark.usefixtures("few_images_will_do", "few_columns")
@pytest.mark.long
def test_the_result_does_not_depend_on_workers(net) -> None:
    given = batches(16)
    tuning = TuneOptions(change_model=True, more_work=0.5)
    a, b = (tune(net, lambda: given, Options(workers=workers), tuning) for workers in (1, 3))
    assert a.changed
    assert_same(a, b)


def assert_same(a, b) -> None:
    """Two results, to the last bit."""
    for x, y in zip(a.table.layers, b.table.layers, strict=True):
        assert np.array_equal(x.weight_scales, y.weight_scales)
        assert x.bottom_scale == y.bottom_scale
    for first, second in zip(a.net.graph.layers, b.net.graph.layers, strict=True):
        assert all(np.array_equal(v, w) for v, w in zip(first.weights, second.weights, strict=True))


def test_the_layers_that_cost_most_stay_in_float(net) -> None:
    given = batches(12)
    held = given[3::4]
    tuned_on = [each for i, each in enumerate(given) if i % 4 != 3]
    free = tune(net, lambda: given, tuning=TuneOptions(min_agreement=0.0))
    assert free.target_met
    assert len(free.table.layers) == LAYERS
    assert free.evidence.images == len(held)
    # INT8 gains no 50 points, so as many layers are left as may be.
    out_of_reach = TuneOptions(max_drop=-50.0, max_float_layers=2)
    bound = tune(net, lambda: labeled(net, given), tuning=out_of_reach)
    assert not bound.target_met
    left = [choice.layer for choice in bound.choices if choice.what == "float"]
    kept = {row.name for row in bound.table.layers}
    assert kept == {row.name for row in free.table.layers} - set(left)
    cost = {}
    for row in free.table.layers:
        alone = simulate(net, replace(free.table, layers=(row,)))
        cost[row.name] = sum(
            float(np.square(alone.forward(x)["prob"] - net.forward(x)["prob"]).sum())
            for x in tuned_on
        )
    assert left == sorted(cost, key=cost.__getitem__, reverse=True)[:2]
    names = [result.name for result in bound.evidence.tables]
    assert names[-2:] == [f"{free.chosen}, {count} in float" for count in (1, 2)]
    assert bound.chosen == names[-1]


def test_a_target_is_met_where_validation_images_keep_their_class(net) -> None:
    given = batches(12)
    found = tune(net, lambda: given, tuning=TuneOptions(min_agreement=1.0, max_float_layers=0))
    int8 = simulate(net, found.table)
    out = net.graph.outputs[0].name
    same = [net.forward(x)[out].argmax() == int8.forward(x)[out].argmax() for x in given[3::4]]
    assert found.target_met == all(same)


def test_greedy_stops_where_the_target_holds_and_at_the_limit() -> None:
    net, given = demo_net(), demo_loader(16, seed=5)
    table = plain_table(net, [g.batch for g in given], "kl")
    spoiled = replace(
        table,
        layers=tuple(
            replace(row, bottom_scale=row.bottom_scale * 40)
            if row.name in ("conv2", "conv5")
            else row
            for row in table.layers
        ),
    )
    validator = Validator(net, given, scores=None, workers=2)
    ranked = ["conv5", "conv2", "conv1", "conv8"]

    def left(**target):
        tried = []

        def validate(candidate: Candidate):
            tried.append(candidate.float_layers)
            return validator({candidate.name: simulate(net, candidate.table)})

        best = Candidate(net, spoiled, "spoiled")
        return leave_float(best, ranked, TuneOptions(**target), validate), tried

    found, tried = left(min_agreement=0.9)
    assert tried == [("conv5",), ("conv5", "conv2")]
    assert found.target_met
    assert found.float_layers == tried[-1]
    assert [result.agreement.value >= 0.9 for result in found.evaluation.tables] == [False, True]
    assert [row.name for row in found.table.layers] == [
        row.name for row in table.layers if row.name not in tried[-1]
    ]
    found, tried = left(min_agreement=0.9, max_float_layers=1)
    assert tried == [("conv5",)]
    assert not found.target_met
    assert left(max_drop=10.0)[0].float_layers == ("conv5", "conv2")


def test_the_time_limit_leaves_the_best_so_far(net, monkeypatch) -> None:
    """By a clock that stands still until the third layer is solved."""
    given = batches(12)
    now = 0.0
    monkeypatch.setattr("int8calib.tuning.search.time.monotonic", lambda: now)

    def progress(stage: str, done: int, total: int) -> None:
        nonlocal now
        if stage == "layers" and done == 3:
            now = 11.0

    tuning = TuneOptions(change_model=True, seconds=10)
    found = tune(net, lambda: given, tuning=tuning, progress=progress)
    assert found.stopped == "time"
    assert_partly_tuned(found, 3)
    assert f"3 of {LAYERS} layers" in found.notes[0]
    simulate(found.net, found.table).forward(given[0])
    now = 0.0
    assert tune(net, lambda: given, tuning=replace(tuning, seconds=12)).stopped is None


def assert_partly_tuned(found, count: int) -> None:
    assert found.changed
    methods = [row.evidence.method for row in found.table.layers]
    assert methods == ["output error"] * count + ["mse"] * (LAYERS - count)


def interrupt(stage_wanted: str, count: int):
    """Progress that sends Ctrl-C on the call of this number of one stage."""
    assert threading.current_thread() is threading.main_thread()
    calls = []

    def progress(stage: str, done: int, total: int) -> None:
        if stage == stage_wanted:
            calls.append(done)
            if len(calls) == count:
                signal.raise_signal(signal.SIGINT)

    return progress, calls


def test_ctrl_c_leaves_what_was_tuned(net) -> None:
    given = batches(12)
    progress, solved = interrupt("layers", 5)
    found = tune(net, lambda: given, tuning=TuneOptions(change_model=True), progress=progress)
    assert found.stopped == "interrupted"
    assert solved == [1, 2, 3, 4, 5]
    assert_partly_tuned(found, 5)
    assert [table.name for table in found.evidence.tables] == list(PLAIN)
    simulate(found.net, found.table).forward(given[0])


def test_ctrl_c_in_the_second_try_leaves_the_first(net) -> None:
    given = batches(12)
    progress, solved = interrupt("layers", LAYERS + 2)
    found = tune(net, lambda: given, progress=progress)
    assert found.stopped == "interrupted"
    assert solved == [*range(1, LAYERS + 1), 1, 2]
    judged = {table.name: table.blobs[0].sqnr for table in found.evidence.tables}
    assert [*judged] == [*PLAIN, "tuned"]
    assert found.chosen == max(judged, key=judged.__getitem__)


def test_ctrl_c_before_anything_is_known_is_raised(net) -> None:
    def progress(stage: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(net, lambda: batches(8), progress=progress)


def test_targets_that_cannot_be_told_are_refused(net) -> None:
    given = batches(8)
    with pytest.raises(OptionError, match="labels"):
        tune(net, lambda: given, tuning=TuneOptions(max_drop=1.0))
    with pytest.raises(ImageError, match="two at least"):
        tune(net, lambda: given[:1])
    for wrong in (
        {"min_agreement": 1.5},
        {"max_float_layers": -1},
        {"techniques": ("magic",)},
        {"images": 1},
        {"seconds": 0.0},
        {"validation": 1.0},
        {"max_drop": 101.0},
        {"more_work": -0.1},
    ):
        with pytest.raises(OptionError):
            TuneOptions(**wrong)


def test_sensitivity_is_the_mean_squared_gradient_for_random_signs(net) -> None:
    """Of the layer before the scores: the sum of squared weights, found by differences."""
    graph = prepare(net, Options()).executor.graph
    found = channel_sensitivity(graph, infer_shapes(graph, net.input_shapes))
    fc = next(layer for layer in graph.layers if layer.name == "fc")
    expected = [float((fc.weights[0][:, c].astype(float) ** 2).sum()) for c in range(13)]
    assert np.allclose(found[fc.bottoms[0]], expected, rtol=1e-5)
    assert all((value > 0).all() for value in found.values())


def test_a_net_without_class_scores_is_tuned_by_its_outputs(net) -> None:
    graph = net.graph
    headless = replace(
        graph,
        layers=tuple(layer for layer in graph.layers if layer.name not in ("gap", "fc", "prob")),
        outputs=tuple(top for layer in graph.layers if layer.name == "re" for top in layer.tops),
    )
    found = tune(
        Net(headless, net.input_shapes), lambda: batches(9), tuning=TuneOptions(change_model=True)
    )
    assert found.evidence.tables[0].agreement is None
    best = {table.name: table.blobs[0].sqnr for table in found.evidence.tables}
    assert max(best, key=best.__getitem__) == found.chosen
