"""Where networks are compared that cannot run to their end, or are asked to end earlier.

The oracle is the same network with what cannot run cut out of its prototxt by hand.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import int8calib
from int8calib.analysis.samples import sample_outputs
from int8calib.caffe.network.graph import Blob
from int8calib.errors import ModelError, OptionError
from int8calib.evaluation.measures import BoxAgreement
from int8calib.evaluation.outputs import ComparedBlobs, Comparison, compared_blobs, needed_inputs
from int8calib.evaluation.records import compare
from int8calib.table.model import CalibrationTable, LayerScales
from tests.evaluation_cases import coarse_table, loader_of
from tests.generated import make_model

BODY = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 13 dim: 11 } } }
layer { name: "info" type: "Input" top: "info" input_param { shape { dim: 1 dim: 3 } } }
layer { name: "a" type: "Convolution" bottom: "data" top: "a"
  convolution_param { num_output: 5 kernel_size: 3 stride: 2 } }
layer { name: "bn" type: "BatchNorm" bottom: "a" top: "bn" }
layer { name: "relu" type: "ReLU" bottom: "bn" top: "bn" }
layer { name: "left" type: "Convolution" bottom: "bn" top: "left"
  convolution_param { num_output: 7 kernel_size: 3 } }
layer { name: "right" type: "Convolution" bottom: "bn" top: "right"
  convolution_param { num_output: 2 kernel_size: 1 } }
layer { name: "fc" type: "InnerProduct" bottom: "right" top: "fc"
  inner_product_param { num_output: 3 } }
"""
BLOCKED = """
layer { name: "decode" type: "NobodyKnowsThisType" bottom: "left" bottom: "info"
  bottom: "bn" top: "decode" }
layer { name: "behind" type: "Convolution" bottom: "decode" top: "behind"
  convolution_param { num_output: 2 kernel_size: 1 } }
layer { name: "end" type: "Softmax" bottom: "behind" top: "end" }
"""


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> tuple[int8calib.Net, int8calib.Net]:
    """The network with the part that cannot run, and with that cut out."""
    folder = tmp_path_factory.mktemp("cut")
    # What stands behind has weights too, made with `left` in place of what cannot run.
    behind = BLOCKED[BLOCKED.index('layer { name: "behind"') :].replace('"decode"', '"left"')
    _, weights = make_model(folder, BODY + behind)
    for name, text in (("cut", BODY), ("whole", BODY + BLOCKED)):
        (folder / f"{name}.prototxt").write_text(text)
    whole, cut = (
        int8calib.load_caffe(folder / f"{name}.prototxt", weights) for name in ("whole", "cut")
    )
    assert any(layer.name == "behind" and layer.weights for layer in whole.graph.layers)
    return whole, cut


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(5).normal(0, 60, (7, 3, 13, 11)).astype(np.float32)


@pytest.fixture(scope="module")
def table(nets: tuple[int8calib.Net, int8calib.Net]) -> CalibrationTable:
    """Rows for every layer, also for the one behind what cannot run, as another tool writes."""
    rows = coarse_table(nets[1], 0.3).layers
    return CalibrationTable((*rows, LayerScales("behind", np.full(2, 31.0, np.float32), 0.5)))


def without(table: CalibrationTable, *names: str) -> CalibrationTable:
    return replace(table, layers=tuple(row for row in table.layers if row.name not in names))


def test_a_tail_that_cannot_run_does_not_block_an_evaluation(
    nets: tuple[int8calib.Net, int8calib.Net], images: np.ndarray, table: CalibrationTable
) -> None:
    whole, cut = nets
    found = int8calib.evaluate(whole, table, loader_of(images))
    expected = int8calib.evaluate(cut, without(table, "behind"), loader_of(images))
    assert found.outputs == ("left", "fc")
    assert found.tables[0].blobs == expected.tables[0].blobs
    (note,) = found.notes
    assert "'decode' (NobodyKnowsThisType)" in note
    assert "left, fc" in note
    assert expected.notes == ()
    assert found.as_dict()["outputs"] == ["left", "fc"]
    assert found.as_dict()["notes"] == [note]


def test_nor_an_analysis_nor_samples(
    nets: tuple[int8calib.Net, int8calib.Net], images: np.ndarray, table: CalibrationTable
) -> None:
    whole, cut = nets
    found = int8calib.analyze(whole, table, loader_of(images))
    expected = int8calib.analyze(cut, without(table, "behind"), loader_of(images))
    assert found.layers == expected.layers
    assert found.left_out == ("behind",)
    assert found.outputs == ("left", "fc")
    assert found.notes[1:] == (
        "layer 'behind' cannot run and is not measured: layer 'decode' (NobodyKnowsThisType) is of "
        "a type that does not run",
    )
    samples = sample_outputs(whole, table, loader_of(images))
    assert set(samples) == {"a", "left", "right", "fc"}


def test_nor_a_report(
    nets: tuple[int8calib.Net, int8calib.Net], images: np.ndarray, table: CalibrationTable
) -> None:
    whole, _ = nets
    table = without(table, "behind")
    made = int8calib.report(
        whole,
        table,
        evaluation=int8calib.evaluate(whole, table, loader_of(images)),
        analysis=int8calib.analyze(whole, table, loader_of(images)),
    )
    notes = [item.text for item in made.advice if "NobodyKnowsThisType" in item.text]
    assert len(notes) == 1
    assert made.content.in_float == ("behind",)


def test_nor_a_tuning(nets: tuple[int8calib.Net, int8calib.Net], images: np.ndarray) -> None:
    whole, cut = nets
    options = int8calib.TuneOptions(validation=0.4)
    found, expected = (
        int8calib.tune(net, loader_of(images, batch=1), tuning=options) for net in (whole, cut)
    )
    assert found.evidence is not None
    assert expected.evidence is not None
    assert found.evidence.tables[0].blobs == expected.evidence.tables[0].blobs
    rows = {row.name: row for row in found.table.layers}
    assert set(rows) == {"a", "left", "right", "fc"}
    for row in expected.table.layers:
        assert rows[row.name].bottom_scale == row.bottom_scale
    assert any("NobodyKnowsThisType" in note for note in found.notes)


def test_what_cannot_run_reads_the_same_after_a_model_was_tuned(
    nets: tuple[int8calib.Net, int8calib.Net], images: np.ndarray
) -> None:
    options = int8calib.TuneOptions(
        validation=0.4, change_model=True, techniques=("equalize", "copies")
    )
    found = int8calib.tune(nets[0], loader_of(images, batch=1), tuning=options)
    names = [layer.name for layer in found.net.graph.layers]
    assert names[-3:] == ["decode", "behind", "end"]
    read = ["bn", "left"]
    before, after = (net.forward({"data": images}, outputs=read) for net in (nets[0], found.net))
    for name in read:
        np.testing.assert_allclose(after[name], before[name], rtol=1e-3, atol=1e-3)


def test_the_inputs_of_what_cannot_run_are_not_needed(
    nets: tuple[int8calib.Net, int8calib.Net],
) -> None:
    compared = compared_blobs(nets[0])
    assert needed_inputs(nets[0].graph, compared.blobs) == ("data",)


def test_outputs_may_be_named(
    nets: tuple[int8calib.Net, int8calib.Net], images: np.ndarray, table: CalibrationTable
) -> None:
    whole, _ = nets
    found = int8calib.evaluate(whole, table, loader_of(images), outputs=["fc", "bn"])
    assert found.outputs == ("fc", "bn#1")
    assert found.notes == ()
    simulated = int8calib.simulate(whole, table)
    for name, error in zip(("fc", "bn"), found.tables[0].blobs, strict=True):
        x, y = (
            net.forward({"data": images}, outputs=[name])[name].astype(float)
            for net in (whole, simulated)
        )
        assert error.sqnr == pytest.approx(10 * np.log10((x**2).sum() / ((x - y) ** 2).sum()))
    # One vector of scores is named, so classes are compared.
    scores = int8calib.evaluate(whole, table, loader_of(images), outputs=["fc"])
    assert scores.tables[0].agreement is not None
    analysis = int8calib.analyze(whole, table, loader_of(images), outputs=["fc"])
    assert {layer.name for layer in analysis.layers} == {"a", "right", "fc"}
    assert analysis.left_out == ("left", "behind")
    assert analysis.notes[-1] == "not measured, no compared blob needs it: left"


@pytest.mark.parametrize(
    ("outputs", "error", "words"),
    [
        (["nothing"], OptionError, "no layer makes such a blob"),
        (["data"], OptionError, "is an input"),
        (["end"], OptionError, r"'decode' \(NobodyKnowsThisType\).* left, fc"),
        ([], OptionError, "name a blob"),
        (["a"], ModelError, "gone once BatchNorm is folded"),
    ],
)
def test_other_names_are_refused(
    nets: tuple[int8calib.Net, int8calib.Net],
    images: np.ndarray,
    table: CalibrationTable,
    outputs: list[str],
    error: type[Exception],
    words: str,
) -> None:
    for run in (int8calib.evaluate, int8calib.analyze):
        with pytest.raises(error, match=words):
            run(nets[0], table, loader_of(images), outputs=outputs)


def test_where_nothing_can_run_the_error_says_why(tmp_path: Path) -> None:
    text = BODY.replace('"Convolution" bottom: "data"', '"Strange" bottom: "data"')
    make_model(tmp_path, BODY)
    (tmp_path / "net.prototxt").write_text(text)
    net = int8calib.load_caffe(tmp_path / "net.prototxt", tmp_path / "net.caffemodel")
    with pytest.raises(ModelError, match=r"nothing can be compared.*'a' \(Strange\)"):
        int8calib.evaluate(net, {}, loader_of(np.zeros((2, 3, 13, 11), np.float32)))


def test_blobs_whose_shape_depends_on_values_are_refused_by_name() -> None:
    blob = Blob("rois")
    compared = ComparedBlobs(None, (blob,), (), (blob,))
    tops = [{blob: np.zeros((rows, 5), np.float32)} for rows in (3, 2)]
    with pytest.raises(ModelError, match=r"'rois' has shape \(3, 5\) in float and \(2, 5\)"):
        compare(compared, tops, None, 1)


def test_detections_may_have_other_rows() -> None:
    blob = Blob("out")
    compared = ComparedBlobs(None, (), (blob,), (blob,))
    row = [0, 1, 0.9, 0.1, 0.1, 0.5, 0.5]
    tops = [{blob: np.array([row] * rows, np.float32)} for rows in (2, 1)]
    assert compare(compared, tops, None, 1).boxes == [[BoxAgreement(1, 2, 1)]]


@pytest.mark.parametrize("score", [-0.1, 1.5, float("nan"), "0.3", None])
def test_a_box_score_is_a_share(score: object) -> None:
    with pytest.raises(OptionError, match=r"box score .*: expected a number, 0 to 1"):
        Comparison(box_score=score)  # type: ignore[arg-type]
    assert Comparison(box_score=1).box_score == 1
