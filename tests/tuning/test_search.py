"""The search: better than plain tables on fresh pictures, within its budget, honest about it."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from int8calib import TuneOptions, tune
from int8calib.caffe.engine.run import Net, load_caffe
from int8calib.caffe.export import write_model
from int8calib.caffe.requirements import requirements_from_graph
from int8calib.calibration.options import Options
from int8calib.calibration.pipeline import prepare, run_job
from int8calib.errors import ImageError, OptionError
from int8calib.simulation.build import simulate
from int8calib.table import check_table
from int8calib.tuning.candidates import Candidate
from int8calib.tuning.channels import channel_sensitivity
from int8calib.tuning.search import PLAIN, leave_float
from int8calib.tuning.validation import Validator
from tests.tuning_nets import batches, chain, demo_loader, demo_net, sqnr

IMAGES = 60


@pytest.fixture(scope="module")
def net() -> Net:
    return demo_net()


@pytest.fixture(scope="module")
def plain(net) -> dict[str, float]:
    """The SQNR of plain tables on pictures that nothing was fitted to."""
    fresh = demo_loader(60, seed=71)
    given = demo_loader(IMAGES)
    found = {}
    for method in ("kl", "aciq", "mse"):
        options = Options(method=method)
        table = run_job(prepare(net, options), lambda: [g.batch for g in given], options).table
        found[method] = sqnr(net, simulate(net, table), fresh)
    return found


def test_a_changed_model_loses_far_less_and_its_files_say_the_same(net, plain, tmp_path) -> None:
    found = tune(net, lambda: demo_loader(IMAGES), tuning=TuneOptions(change_model=True))
    assert found.changed
    assert found.chosen == "tuned"
    assert found.stopped is None
    fresh = demo_loader(60, seed=71)
    int8 = simulate(found.net, found.table)
    assert sqnr(net, int8, fresh) > max(plain.values()) + 4
    write_model(found.net, tmp_path / "n.prototxt", tmp_path / "n.caffemodel")
    again = load_caffe(tmp_path / "n.prototxt", tmp_path / "n.caffemodel")
    assert sqnr(net, again, fresh) > 20
    int8_again = simulate(again, found.table)
    one = fresh[0].batch
    out = net.graph.outputs[0].name
    assert np.array_equal(int8_again.forward(one)[out], int8.forward(one)[out])
    findings = check_table(found.table, requirements=requirements_from_graph(again.graph))
    assert [each for each in findings if each.severity == "error"] == []


def test_equalizing_is_worth_it(net, plain) -> None:
    fresh = demo_loader(60, seed=71)
    found = {}
    for techniques in ((), ("equalize",)):
        tuning = TuneOptions(change_model=True, techniques=techniques)
        done = tune(net, lambda: demo_loader(IMAGES), tuning=tuning)
        found[techniques] = sqnr(net, simulate(done.net, done.table), fresh)
    assert found[("equalize",)] > found[()] + 2


def test_a_table_alone_is_better_than_plain_ones(net, plain) -> None:
    found = tune(net, lambda: demo_loader(IMAGES))
    assert found.net is net
    assert not found.changed
    assert sqnr(net, simulate(net, found.table), demo_loader(60, seed=71)) > max(plain.values()) + 1
    assert [choice.layer for choice in found.choices] == [row.name for row in found.table.layers]
    assert all(choice.what and choice.why for choice in found.choices)
    assert [table.name for table in found.evidence.tables] == [*PLAIN, "tuned", "weights tuned"]
    assert found.images + found.evidence.images == IMAGES
    json.dumps(found.as_dict(), allow_nan=False)


def test_validation_images_are_never_tuned_on(net, monkeypatch) -> None:
    # Validation images choose between results, so here the tuned one wins whatever they say.
    monkeypatch.setattr("int8calib.tuning.search.lowest_sqnr", lambda r: float(r.name == "tuned"))
    seen = demo_loader(12)
    other = demo_loader(3, seed=1234)
    mixed = [other[i // 4] if i % 4 == 3 else each for i, each in enumerate(seen)]
    a, b = (tune(net, lambda given=given: given) for given in (seen, mixed))
    assert a.evidence.images == b.evidence.images == 3
    assert a.evidence.tables[0].blobs[0].sqnr != b.evidence.tables[0].blobs[0].sqnr
    for x, y in zip(a.table.layers, b.table.layers, strict=True):
        assert np.array_equal(x.weight_scales, y.weight_scales)
        assert x.bottom_scale == y.bottom_scale


def test_the_result_does_not_depend_on_workers(net) -> None:
    given = demo_loader(8)
    tuning = TuneOptions(change_model=True)
    a, b = (tune(net, lambda: given, Options(workers=workers), tuning) for workers in (1, 3))
    for x, y in zip(a.table.layers, b.table.layers, strict=True):
        assert np.array_equal(x.weight_scales, y.weight_scales)
        assert x.bottom_scale == y.bottom_scale
    for first, second in zip(a.net.graph.layers, b.net.graph.layers, strict=True):
        assert all(np.array_equal(v, w) for v, w in zip(first.weights, second.weights, strict=True))


def test_layers_stay_in_float_until_the_target_holds(net) -> None:
    given = demo_loader(24)
    free = tune(net, lambda: given, tuning=TuneOptions(min_agreement=0.0))
    assert free.target_met
    assert len(free.table.layers) == 18
    held = [each.batch for i, each in enumerate(given) if i % 4 == 3]
    assert free.evidence.images == len(held)
    bound = tune(
        net,
        lambda: [each.batch for each in given],
        replace(Options(), method="kl"),
        TuneOptions(max_drop=None, min_agreement=1.0, max_float_layers=2),
    )
    left = 18 - len(bound.table.layers)
    assert left <= 2
    assert [c.layer for c in bound.choices if c.what == "float"] == [
        c.layer for c in bound.choices[:left]
    ]
    int8 = simulate(net, bound.table)
    out = net.graph.outputs[0].name
    same = [net.forward(x)[out].argmax() == int8.forward(x)[out].argmax() for x in held]
    assert bound.target_met == all(same)


def test_greedy_stops_where_the_target_holds_and_at_the_limit(net) -> None:
    given = demo_loader(16, seed=5)
    options = Options(method="kl")
    table = run_job(prepare(net, options), lambda: [g.batch for g in given], options).table
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


def test_the_time_limit_leaves_the_best_so_far(net) -> None:
    given = demo_loader(IMAGES)
    started = time.monotonic()
    found = tune(net, lambda: given, tuning=TuneOptions(change_model=True, seconds=0.001))
    assert found.stopped == "time"
    assert time.monotonic() - started < 30
    assert len(found.table.layers) == 18
    assert "stopped" in found.notes[0]
    simulate(found.net, found.table).forward(given[0].batch)


def test_ctrl_c_leaves_what_was_tuned(net) -> None:
    given = demo_loader(12)
    settled = []

    def progress(stage: str, done: int, total: int) -> None:
        if stage == "layers":
            settled.append(done)
            if done == 7:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.5)

    assert threading.current_thread() is threading.main_thread()
    found = tune(net, lambda: given, tuning=TuneOptions(change_model=True), progress=progress)
    assert found.stopped == "interrupted"
    assert settled[-1] == 7
    assert found.changed
    tuned = [row.name for row in found.table.layers if row.evidence.method == "output error"]
    assert len(tuned) == 7
    assert len(found.table.layers) == 18
    simulate(found.net, found.table).forward(given[0].batch)


def test_ctrl_c_before_anything_is_known_is_raised(net) -> None:
    def progress(stage: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(net, lambda: demo_loader(8), progress=progress)


def test_targets_that_cannot_be_told_are_refused(net) -> None:
    plain_loader = [each.batch for each in demo_loader(8)]
    with pytest.raises(OptionError, match="labels"):
        tune(net, lambda: plain_loader, tuning=TuneOptions(max_drop=1.0))
    with pytest.raises(ImageError, match="two at least"):
        tune(net, lambda: plain_loader[:1])
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


def test_sensitivity_is_the_mean_squared_gradient_for_random_signs(tmp_path) -> None:
    """Of the layer before the scores: the sum of squared weights, found by differences."""
    net = chain(tmp_path)
    graph = prepare(net, Options()).executor.graph
    from int8calib.caffe.network.shapes import infer_shapes

    found = channel_sensitivity(graph, infer_shapes(graph, net.input_shapes))
    fc = next(layer for layer in graph.layers if layer.name == "fc")
    expected = [float((fc.weights[0][:, c].astype(float) ** 2).sum()) for c in range(13)]
    assert np.allclose(found[fc.bottoms[0]], expected, rtol=1e-5)
    assert all((value > 0).all() for value in found.values())


def test_a_net_without_class_scores_is_tuned_by_its_outputs(tmp_path) -> None:
    net = chain(tmp_path)
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


def test_ctrl_c_in_the_second_try_leaves_the_first(net) -> None:
    given = demo_loader(16)
    whole = tune(net, lambda: given)
    layers = []

    def progress(stage: str, done: int, total: int) -> None:
        if stage == "layers":
            layers.append(done)
            if len(layers) == 18 + 5:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.5)

    found = tune(net, lambda: given, progress=progress)
    assert found.stopped == "interrupted"
    judged = {table.name: table.blobs[0].sqnr for table in found.evidence.tables}
    assert found.chosen == max(judged, key=judged.__getitem__)
    assert {table.name for table in whole.evidence.tables} == {*judged, "weights tuned"}
