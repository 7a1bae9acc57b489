"""Models that ncnn itself would crash on or answer wrong: refused before its runtime gets them."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from int8calib.errors import ModelError, ModelFileError, OptionError, TableError
from int8calib.ncnn.layout import blob_layout
from int8calib.ncnn.model import NcnnModel, load_model
from int8calib.ncnn.param import parse_param
from int8calib.ncnn.quantize import read_rows
from int8calib.ncnn.runtime import RuntimeNet

NET = """7767517
7 8
Input data 0 1 data 0=13 1=11 2=3
Convolution c1 1 1 data c1 0=5 1=3 4=1 5=1 6=135
Split s 1 2 c1 a b
PReLU p 1 1 a p 0=5
Concat cat 2 1 p b cat
InnerProduct fc 1 1 cat fc 0=7 1=1 2=10010
Softmax prob 1 1 fc prob
"""


def _model(text: str) -> NcnnModel:
    rng = np.random.default_rng(3)
    layers = parse_param(text, "m.param")
    filled = [
        tuple(rng.uniform(-1, 1, blob.size).astype(np.float32) for blob in blob_layout(layer))
        for layer in layers
    ]
    return NcnnModel(
        tuple(replace(la, weights=w) for la, w in zip(layers, filled, strict=True)), "m.param"
    )


def _run(text: str, shape: tuple[int, ...] = (3, 11, 13)) -> np.ndarray:
    pytest.importorskip("ncnn")
    net = RuntimeNet(_model(text))
    return net.run({"data": np.ones(shape, np.float32)}, ["prob"])["prob"]


def test_a_sound_model_runs() -> None:
    top = _run(NET)
    assert top.shape == (7,)
    assert top.sum() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("Concat cat 2 1 p b cat", "Concat cat 0 1 cat", "no bottom"),  # ncnn: segmentation fault
        ("Softmax prob 1 1 fc", "Softmax prob 1 1 prob", "no layer before it makes"),
        ("Softmax prob 1 1 fc prob", "Softmax prob 1 1 fc cat", "made by two layers"),
        ("p 0=5", "p 0=0", "cannot load"),  # ncnn: segmentation fault
        ("2=10010", "2=70", "10010 weights"),  # ncnn: another answer
        ("p 0=5", "p 0=4", "5 values"),
        ("Softmax prob 1 1 fc prob", "Slice prob 1 1 fc prob -23300=1,99", "slices of 99"),
        (
            "PReLU p 1 1 a p 0=5",
            "Pooling p 1 1 a p 1=50",
            "cannot be computed from a bottom of 5x11x13",
        ),
        ("0=5 1=3 4=1", "0=5 1=3 4=2147483647", "with its border"),  # ncnn: segmentation fault
        ("0=5 1=3 4=1", "0=5 1=3 4=100000", "with its border"),
    ],
)
def test_models_that_ncnn_misreads(old: str, new: str, said: str) -> None:
    assert old in NET
    with pytest.raises(ModelError, match=said):
        _run(NET.replace(old, new))


def test_inputs_that_do_not_fit_the_weights() -> None:
    with pytest.raises(ModelError, match="its bottom of shape 1x11x13 needs 45 weights"):
        _run(NET, (1, 11, 13))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("LSTM prob 1 1 data prob 0=5 1=340 2=0", "needs 260 input weights"),
        ("LSTM prob 1 1 data prob 0=5 1=1248 2=2 3=12", None),
        ("GRU prob 1 1 data prob 0=5 1=195", None),
        ("GRU prob 1 1 data prob 0=5 1=180", "needs 195 input weights"),
        ("RNN prob 1 1 data prob 0=5 1=130 2=2", None),
        ("RNN prob 1 1 data prob 0=5 1=120 2=2", "needs 130 input weights"),
        ("MultiHeadAttention prob 1 1 data prob 0=4 1=2 2=52 3=13 4=13", None),
        ("MultiHeadAttention prob 1 1 data prob 0=4 1=2 2=48 3=13 4=13", "52 query weights"),
        ("MultiHeadAttention prob 1 1 data prob 0=4 1=2 2=52 3=17 4=13", "keys of width 13"),
        ("MultiHeadAttention prob 2 1 a b prob 0=4 1=2 2=52 3=13 4=12", "values of width 13"),
    ],
)
def test_sequences_that_do_not_fit_the_weights(line: str, said: str | None) -> None:
    """ncnn would read beside the blob."""
    lines = ["7767517", "2 2", "Input data 0 1 data", line]
    if " a b " in line:
        lines[1:] = ["3 4", lines[2], "Split s 1 2 data a b", line]
    text = "\n".join(lines) + "\n"
    if said is None:
        assert np.isfinite(_run(text, (7, 13))).all()
        return
    with pytest.raises(ModelError, match=said):
        _run(text, (7, 13))


@pytest.mark.parametrize("threads", [0, -1, 99999])
def test_threads_that_no_machine_has(threads: int) -> None:
    with pytest.raises(OptionError, match=f"threads {threads}: expected 1 to"):
        RuntimeNet(_model(NET), threads=threads)


@pytest.mark.parametrize("count", ["6", "2147483647"])
def test_counts_of_blobs(count: str) -> None:
    with pytest.raises(ModelFileError, match="blobs announced"):
        parse_param(NET.replace("7 8\n", f"7 {count}\n"), "m.param")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("which", ["m.param", "m.bin"])
def test_files_without_an_end(tmp_path: Path, which: str) -> None:
    (tmp_path / "m.param").write_text(NET)
    (tmp_path / "m.bin").write_bytes(b"")
    (tmp_path / which).unlink()
    os.mkfifo(tmp_path / which)
    with pytest.raises(ModelFileError, match="it is a named pipe; expected a file"):
        load_model(tmp_path / "m.param", tmp_path / "m.bin")


@pytest.mark.parametrize("scale", ["nan", "inf", "-1", "0", "1_0", "\u0661", "1e999", "1e-46", "x"])
def test_bottom_scales_that_are_none(scale: str) -> None:
    with pytest.raises(TableError, match=r"t:2: row 'c1'"):
        read_rows(f"c1_param_0 2 3\nc1 {scale}\n", "t")


@pytest.mark.parametrize("scale", ["nan", "-1", "1_0", "-inf"])
def test_weight_scales_that_are_none(scale: str) -> None:
    with pytest.raises(TableError, match=r"t:1: row 'c1_param_0'"):
        read_rows(f"c1_param_0 2 {scale}\nc1 3\n", "t")


def test_dead_channels_stay() -> None:
    """ncnn's own tables write inf for them, others 0."""
    rows = read_rows("c1_param_0 2 inf 0\nc1 3\n", "t")
    assert rows.weights["c1_param_0"].tolist() == [2, np.inf, 0]


def test_a_number_of_many_digits_is_read_in_linear_time() -> None:
    started = time.process_time()
    with pytest.raises(TableError, match="holds what is no number"):
        read_rows(f"conv_param_0 {'7' * 300_000}x 1\n", "net.table")
    assert time.process_time() - started < 2
