"""Somebody else's framework as an executor: plain loops here, held against what they compute."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import int8calib
from int8calib import Options
from int8calib.calibration.layers import QuantLayer
from int8calib.errors import ImageError, OptionError, StatisticsError
from int8calib.table.ncnn import write as ncnn_text
from tests.caffe.engine.test_engine import NET
from tests.generated import make_model

RNG = np.random.default_rng(31)
FIRST = RNG.normal(0, 1, (5, 3, 2, 2)).astype(np.float32)
SECOND = RNG.normal(0, 1, (7, 5 * 6 * 4)).astype(np.float32)
IMAGES = RNG.normal(0, 60, (11, 3, 7, 5)).astype(np.float32)


def convolve(image: np.ndarray) -> np.ndarray:
    """A 2x2 convolution of one image, by index arithmetic."""
    _, height, width = image.shape
    top = np.zeros((5, height - 1, width - 1), np.float32)
    for y in range(height - 1):
        for x in range(width - 1):
            window = image[:, y : y + 2, x : x + 2]
            for o in range(5):
                top[o, y, x] = (window * FIRST[o]).sum()
    return top


class Loops:
    """A convolution, a ReLU and a fully connected layer; `change` spoils what it gives."""

    def __init__(self, change: Any = None) -> None:
        self.layers = (
            QuantLayer("conv", "Convolution", "image", FIRST, reads_input=True, first=True),
            QuantLayer("fc", "InnerProduct", "relu", lambda: SECOND, rows=7, last=True),
        )
        self.inputs = ["image"]
        self._change = change
        self._running = threading.Lock()

    def run(self, inputs: Mapping[str, np.ndarray], blobs: Sequence[str]) -> dict[str, Any]:
        assert self._running.acquire(blocking=False), "two threads at a time"
        try:
            images = inputs["image"]
            assert images.dtype == np.float32
            relu = np.stack([np.maximum(convolve(image), 0) for image in images])
            tops = {"image": images, "relu": relu}
            return tops if self._change is None else self._change(tops)
        finally:
            self._running.release()


def loader(batch: int = 2, images: np.ndarray = IMAGES) -> Iterator[dict[str, np.ndarray]]:
    for start in range(0, len(images), batch):
        yield {"image": images[start : start + batch]}


@pytest.mark.parametrize("workers", [1, 3])
def test_scales_are_those_of_the_values_that_the_loops_give(workers: int) -> None:
    options = Options(method="minmax", workers=workers, cache_bytes=0)
    table = int8calib.calibrate(Loops(), loader, options).table
    relu = np.stack([np.maximum(convolve(image), 0) for image in IMAGES])
    conv, fc = table.layers
    assert conv.bottom_scale == pytest.approx(127 / np.abs(IMAGES).max(), rel=1e-6)
    assert fc.bottom_scale == pytest.approx(127 / relu.max(), rel=1e-6)
    np.testing.assert_allclose(conv.weight_scales, 127 / np.abs(FIRST).max(axis=(1, 2, 3)), 1e-6)
    np.testing.assert_allclose(fc.weight_scales, 127 / np.abs(SECOND).max(axis=1), 1e-6)


@pytest.mark.parametrize("dtype", [np.float64, np.float16])
def test_activations_of_any_float_type(dtype: Any) -> None:
    given = Loops(lambda tops: {name: top.astype(dtype) for name, top in tops.items()})
    expected = Loops(lambda tops: {n: t.astype(dtype).astype(np.float32) for n, t in tops.items()})
    texts = {ncnn_text(int8calib.calibrate(each, loader).table) for each in (given, expected)}
    assert len(texts) == 1


def test_a_nets_executor_called_in_one_piece_gives_the_nets_table(tmp_path: Path) -> None:
    net = int8calib.load_caffe(*make_model(tmp_path, NET))
    images = RNG.normal(0, 60, (5, 3, 37, 29))
    streaming = net.executor()

    class Plain:
        layers, inputs, run = streaming.layers, streaming.inputs, streaming.run

    results = [
        int8calib.calibrate(each, lambda: [{"data": images[:3]}, {"data": images[3:]}])
        for each in (net, streaming, Plain())
    ]
    assert len({ncnn_text(result.table) for result in results}) == 1
    # float64, as here, gives what float32 gives.
    single = images.astype(np.float32)
    again = int8calib.calibrate(net, lambda: [{"data": image[None]} for image in single])
    assert ncnn_text(again.table) == ncnn_text(results[0].table)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tops: {"image": tops["image"]}, "the network: gave no blob 'relu'; it gave image"),
        (
            lambda tops: tops | {"relu": tops["relu"].tolist()},
            "blob 'relu': list; expected a numpy",
        ),
        (lambda tops: tops | {"relu": tops["relu"].astype(int)}, "blob 'relu': of type int64"),
        (lambda tops: tops | {"relu": tops["relu"] * np.nan}, "blob 'relu': .* NaN"),
        (lambda tops: tops | {"relu": tops["relu"][:0]}, "blob 'relu': .* at least one value"),
    ],
)
def test_what_is_no_activation_is_refused_by_blob(change: Any, message: str) -> None:
    with pytest.raises(StatisticsError, match=message):
        int8calib.calibrate(Loops(change), loader)


def test_inputs_are_checked_before_the_network_runs() -> None:
    with pytest.raises(ImageError, match=r"the network: input 'image' is not given; .* has data"):
        int8calib.calibrate(Loops(), lambda: [{"data": IMAGES}])
    with pytest.raises(ImageError, match="'more' is no input; the inputs are image"):
        int8calib.calibrate(Loops(), lambda: [{"image": IMAGES, "more": IMAGES}])


@pytest.mark.parametrize("thing", [3, None, "net.prototxt", object()])
def test_what_is_no_executor_is_refused(thing: Any) -> None:
    with pytest.raises(OptionError, match="is no executor: it has no layers, inputs, run"):
        int8calib.calibrate(thing, loader)


def test_all_blobs_need_their_names() -> None:
    with pytest.raises(OptionError, match="does not say which blobs it has"):
        int8calib.calibrate(Loops(), loader, Options(all_blobs=True))
    executor = Loops()
    executor.blobs = {"image": "image", "relu": "relu"}  # type: ignore[attr-defined]
    table = int8calib.calibrate(executor, loader, Options(all_blobs=True)).table
    assert set(table.blob_scales) == {"image", "relu"}


@pytest.mark.parametrize("exact", [True, False])
def test_a_run_that_was_killed_goes_on(tmp_path: Path, exact: bool) -> None:
    def killed() -> Iterator[dict[str, np.ndarray]]:
        for number, batch in enumerate(loader(1)):
            if number == 6:
                raise KeyboardInterrupt
            yield batch

    def counting() -> Iterator[dict[str, np.ndarray]]:
        yield from loader(1)

    checkpoint = int8calib.Checkpoint(tmp_path / "run.npz", {"model": 1}, every=0)
    options = Options(workers=1, exact=exact, cache_bytes=0)
    with pytest.raises(KeyboardInterrupt):
        int8calib.calibrate(Loops(), killed, options, checkpoint=checkpoint)
    kept = checkpoint.load()
    assert kept is not None
    assert sorted(kept.measured if exact else kept.counted) == list(range(6))
    runs: list[int] = []
    noting = Loops(lambda tops: runs.append(len(tops["image"])) or tops)
    done = int8calib.calibrate(noting, counting, options, checkpoint=checkpoint)
    assert len(runs) == (11 - 6) + (11 if exact else 0)
    expected = int8calib.calibrate(Loops(), lambda: loader(1), options)
    assert ncnn_text(done.table) == ncnn_text(expected.table)
    checkpoint.remove()
    assert not (tmp_path / "run.npz").exists()


def test_a_checkpoint_knows_its_network(tmp_path: Path) -> None:
    int8calib.calibrate(Loops(), loader, checkpoint=int8calib.Checkpoint(tmp_path / "run.npz"))
    again = int8calib.Checkpoint(tmp_path / "run.npz")
    int8calib.calibrate(Loops(), loader, checkpoint=again)
    other = Loops()
    other.layers = (replace(other.layers[0], weights=2 * FIRST), *other.layers[1:])
    with pytest.raises(OptionError, match=r"another job \(its network differs\)"):
        int8calib.calibrate(other, loader, checkpoint=int8calib.Checkpoint(tmp_path / "run.npz"))
    named = Loops()
    named.fingerprint = "mine, version 2"  # type: ignore[attr-defined]
    with pytest.raises(OptionError, match=r"another job \(its network differs\)"):
        int8calib.calibrate(named, loader, checkpoint=int8calib.Checkpoint(tmp_path / "run.npz"))


@pytest.mark.parametrize("given", [None, [IMAGES]])
def test_what_a_run_gives_is_a_mapping(given: Any) -> None:
    kind = type(given).__name__
    with pytest.raises(StatisticsError, match=rf"run\(\) gave {kind}; expected a mapping of blobs"):
        int8calib.calibrate(Loops(lambda tops: given), loader)


@pytest.mark.parametrize("inputs", ["image", None, 5])
def test_inputs_of_an_executor_are_names(inputs: Any) -> None:
    """A text is a row of characters, each of which would count as the name of an input."""
    network = Loops()
    network.inputs = inputs
    with pytest.raises(OptionError, match=r"Loops: inputs is .*; expected the names of"):
        int8calib.calibrate(network, loader)
