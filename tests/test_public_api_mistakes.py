"""Mistakes that people make in Python end in an error of this package that says what is right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import int8calib as q
from tests.caffe.engine.test_engine import NET
from tests.generated import make_model

IMAGES = np.random.default_rng(5).normal(0, 50, (2, 3, 37, 29)).astype(np.float32)
BATCH = {"data": IMAGES}


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> q.Net:
    return q.load_caffe(*make_model(tmp_path_factory.mktemp("net"), NET))


@pytest.fixture(scope="module")
def table(net: q.Net) -> q.CalibrationTable:
    return q.calibrate(net, lambda: [BATCH]).table


LOADERS: dict[str, Any] = {
    "a list": [BATCH],
    "an iterator": iter([BATCH]),
    "nothing": None,
    "a function that returns nothing": lambda: None,
    "a function that returns a number": lambda: 5,
}


@pytest.mark.parametrize("what", LOADERS)
def test_a_loader_starts_a_pass(what: str, net: q.Net, table: q.CalibrationTable) -> None:
    calls: list[Callable[[Any], object]] = [
        lambda batches: q.calibrate(net, batches),
        lambda batches: q.evaluate(net, table, batches),
        lambda batches: q.analyze(net, table, batches),
        lambda batches: q.tune(net, batches),
    ]
    for call in calls:
        with pytest.raises(q.ImageError, match=r"batches.*such as lambda: batches"):
            call(LOADERS[what])


@pytest.mark.parametrize("wrong", ["net.table", None, 5, {"a": None}])
def test_a_table_is_read_first(wrong: Any, net: q.Net, tmp_path: Path) -> None:
    calls: list[Callable[[], object]] = [
        lambda: q.evaluate(net, wrong, lambda: [BATCH]),
        lambda: q.simulate(net, wrong),
        lambda: q.analyze(net, wrong, lambda: [BATCH]),
        lambda: q.write_table(tmp_path / "t.table", wrong),
    ]
    for call in calls:
        with pytest.raises(q.OptionError, match=r"the table is of type .*read_table"):
            call()


@pytest.mark.parametrize("inputs", [None, 5, [IMAGES], {1: IMAGES}])
def test_inputs_are_arrays_by_name(inputs: Any, net: q.Net) -> None:
    with pytest.raises(q.ImageError, match="a batch"):
        net.forward(inputs)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"exclude": "conv1"}, "exclude 'conv1'; expected a list"),
        ({"exclude": None}, "exclude None; expected a list"),
        ({"only": [1]}, r"only \[1\]; expected a list"),
        ({"weights": None}, "weights None; expected WeightOptions"),
        ({"layer_methods": "conv1=kl"}, "layer methods 'conv1=kl'; expected pairs"),
        ({"layer_methods": ("conv1", "kl")}, "layer methods .*; expected pairs"),
        ({"layer_methods": {"conv1": "kl"}}, "layer methods .*; expected pairs"),
    ],
)
def test_options_of_a_calibration(options: dict[str, Any], found: str) -> None:
    with pytest.raises(q.OptionError, match=found):
        q.Options(**options)


TYPES: dict[str, tuple[Callable[..., object], list[str]]] = {
    "True or False": (q.Options, ["fold_bn", "first_last_float", "all_blobs", "exact"]),
    "a number": (q.TuneOptions, ["more_work", "max_drop", "min_agreement", "validation"]),
    "a whole number of": (q.TuneOptions, ["images", "memory", "max_float_layers"]),
}


@pytest.mark.parametrize("value", ["no", "1", [], 1.5])
@pytest.mark.parametrize("expected", TYPES)
def test_a_value_of_another_type_is_never_taken_for_a_meaning(expected: str, value: Any) -> None:
    """The text "no" is true in Python, so BatchNorm would be folded."""
    make, names = TYPES[expected]
    for name in [] if (expected, value) == ("a number", 1.5) else names:
        with pytest.raises(
            q.OptionError, match=rf"{name.replace('_', '.')} .*; expected {expected}"
        ):
            make(**{name: value})


def test_flags_of_functions(net: q.Net, table: q.CalibrationTable) -> None:
    calls: list[Callable[[Any], object]] = [
        lambda flag: q.simulate(net, table, fold_bn=flag),
        lambda flag: q.evaluate(net, table, lambda: [BATCH], fold_bn=flag),
        lambda flag: q.analyze(net, table, lambda: [BATCH], fold_bn=flag),
        lambda flag: q.WeightOptions(any_dilation=flag),
        lambda flag: q.TuneOptions(change_model=flag),
    ]
    for call in calls:
        with pytest.raises(q.OptionError, match="'no'; expected True or False"):
            call("no")
    assert q.Options(fold_bn=np.bool_(False)).fold_bn == False  # type: ignore[arg-type] # noqa: E712
    with pytest.raises(q.OptionError, match="peak '255'; expected a number"):
        q.evaluate(net, table, lambda: [BATCH], peak="255")  # type: ignore[arg-type]
    with pytest.raises(q.OptionError, match="sensitivity_images -1; expected a whole number"):
        q.analyze(net, table, lambda: [BATCH], sensitivity_images=-1)


def test_an_observer_is_not_merged_with_itself() -> None:
    layer = q.QuantLayer("conv", "Convolution", "data", np.ones((2, 3, 1, 1)), reads_input=True)
    observer = q.Observer([layer])
    observer.observe(BATCH)
    with pytest.raises(q.StatisticsError, match="its images would count twice"):
        observer.merge(observer)
    assert observer.images == 2


def test_other_lists_of_names(tmp_path: Path) -> None:
    files = make_model(tmp_path, NET)
    calls: list[Callable[[], object]] = [
        lambda: q.WeightOptions(six_bit="conv1"),  # type: ignore[arg-type]
        lambda: q.TuneOptions(techniques="bias"),  # type: ignore[arg-type]
        lambda: q.load_caffe(*files, ignore_fields=None),  # type: ignore[arg-type]
    ]
    for call in calls:
        with pytest.raises(q.OptionError, match=r"expected a list of "):
            call()


@pytest.mark.parametrize("topk", [5, None, "abc", [1.5], []])
def test_accuracies_are_counted_by_whole_numbers(
    topk: Any, net: q.Net, table: q.CalibrationTable
) -> None:
    with pytest.raises(q.OptionError, match="top-k"):
        q.evaluate(net, table, lambda: [BATCH], topk=topk)


@pytest.mark.parametrize("labels", ["ab", [1.5, 2], [10**30, 1], [[1], [2]], ["1", "2"]])
def test_labels_are_class_indices(labels: Any, net: q.Net, table: q.CalibrationTable) -> None:
    with pytest.raises(q.Int8CalibError, match="label"):
        q.evaluate(net, table, lambda: [q.Labeled(BATCH, labels)])


@pytest.mark.parametrize("outputs", [[5], [None], "fc", 5])
def test_outputs_are_names(outputs: Any, net: q.Net, table: q.CalibrationTable) -> None:
    calls: list[Callable[[], object]] = [
        lambda: net.forward(BATCH, outputs=outputs),
        lambda: net.executor().run(BATCH, outputs),
        lambda: net.executor().needed_inputs(outputs),
        lambda: q.evaluate(net, table, lambda: [BATCH], outputs=outputs),
        lambda: q.analyze(net, table, lambda: [BATCH], outputs=outputs),
        lambda: q.TuneOptions(outputs=outputs),
    ]
    for call in calls:
        with pytest.raises(q.OptionError, match=r"expected a list of names of blobs"):
            call()


def test_names_may_come_one_by_one(net: q.Net) -> None:
    found = net.forward(BATCH, outputs=(name for name in ("fc", "dw")))
    assert list(found) == ["fc", "dw"]
    options = q.Options(exclude=(name for name in ("fc", "dw")))  # type: ignore[arg-type]
    assert options.exclude == ("fc", "dw")


MASKED = np.ma.masked_greater(IMAGES, 60)


@pytest.mark.parametrize("array", [MASKED, np.ma.array(IMAGES)])
def test_masks_are_not_lost(array: Any, net: q.Net, tmp_path: Path) -> None:
    """A mask that is dropped in silence counts values that were to be left out."""
    conv = q.QuantLayer("conv", "Convolution", "data", IMAGES[:, :, :3, :3], reads_input=True)
    observer = q.Observer([conv])
    scales = q.LayerScales("conv", np.ma.array([1.0, 2.0], mask=[1, 0]), 3.0)
    calls: list[Callable[[], object]] = [
        lambda: net.forward({"data": array}),
        lambda: q.calibrate(net, lambda: [{"data": array}]),
        lambda: observer.observe({"data": array}),
        lambda: q.Observer([replace(conv, weights=array[:, :, :3, :3])]).calibrate(),
        lambda: q.write_table(tmp_path / "t.table", q.CalibrationTable((scales,))),
    ]
    for call in calls:
        with pytest.raises(q.Int8CalibError, match=r"a masked array, .*; give x\.filled"):
            call()
    assert observer.images == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("shape", ["1,3,37,29", 5, (1.5, 3, 37, 29), None])
def test_shapes_are_whole_numbers(shape: Any, tmp_path: Path) -> None:
    files = make_model(tmp_path, NET)
    with pytest.raises(q.OptionError, match=r"'data' is given the shape .*such as \(1, 3, 224"):
        q.load_caffe(*files, input_shapes={"data": shape})


@pytest.mark.parametrize("threads", ["2", 1.5, 0])
def test_threads_are_a_whole_number(threads: Any, net: q.Net) -> None:
    with pytest.raises(q.OptionError, match=f"threads {threads}; expected 1 or more"):
        net.forward(BATCH, threads=threads)


def test_options_of_other_functions_and_files_of_a_model(net: q.Net, tmp_path: Path) -> None:
    one = tmp_path / "net"
    calls: dict[str, Callable[[], object]] = {
        "tuning of type dict; expected TuneOptions": lambda: q.tune(
            net,
            lambda: [BATCH],
            tuning={"images": 4},  # type: ignore[arg-type]
        ),
        "checkpoint of type str; expected a Checkpoint": lambda: q.calibrate(
            net,
            lambda: [BATCH],
            checkpoint="run.npz",  # type: ignore[arg-type]
        ),
        "would hold both prototxt and weights": lambda: q.write_model(net, one, str(one)),
        "are swapped: the prototxt comes first": lambda: q.write_model(
            net, tmp_path / "a.caffemodel", tmp_path / "a.prototxt"
        ),
    }
    for message, call in calls.items():
        with pytest.raises(q.Int8CalibError, match=message):
            call()
    assert not list(tmp_path.iterdir())
