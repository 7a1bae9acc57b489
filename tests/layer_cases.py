"""What the layer tests share: cases, the OpenCV oracle, and the checks that each case goes through.

A case is one layer with its bottoms; `check` runs it both ways and compares with the oracle.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from google.protobuf import text_format

from caffe_proto import LayerParameter, caffe_pb2
from int8calib.arrays import Array, Shape
from int8calib.caffe.layers.registry import LayerType, find_type

Oracle = Callable[[LayerParameter, Sequence[Array], Sequence[Array]], Sequence[Any]]
Maker = Callable[[np.random.Generator, Shape], Any]


def normal(rng: np.random.Generator, shape: Shape) -> Any:
    """Values of both signs."""
    return rng.normal(0.2, 1.5, shape)


def positive(rng: np.random.Generator, shape: Shape) -> Any:
    """Values from 0.3 to 2."""
    return rng.uniform(0.3, 2.0, shape)


def by_type(cases: Iterable[Any]) -> dict[str, list[Any]]:
    """Cases by the first word of their names, the type: a test for each, not for each case."""
    found: dict[str, list[Any]] = {}
    for case in cases:
        found.setdefault(re.split(r"\W", str(case).replace("_", " "))[0], []).append(case)
    return found


@contextmanager
def named(case: object) -> Iterator[None]:
    """A block whose failure names the case."""
    try:
        yield
    except Exception as error:
        raise AssertionError(f"{case}: {error}") from error


def check_each(cases: Iterable[Any], check_case: Callable[..., None], *given: Any) -> None:
    """Call `check_case(case, *given)` for every case; a failure names its case."""
    for case in cases:
        with named(case):
            check_case(case, *given)


@dataclass(frozen=True)
class Case:
    """One layer to test.

    `options` is prototxt text inside `layer { }`, `bottoms` are shapes, `oracle` gives the tops
    expected (OpenCV's dnn by default), `makers` fill the bottoms one by one, `weight_makers` the
    blobs that the weights rule asks for (or those of the shapes in `blobs`), `tolerance` is
    relative to the largest expected value.
    """

    type: str
    options: str = ""
    bottoms: tuple[Shape, ...] = ((2, 5, 7, 11),)
    oracle: Oracle | None = None
    tops: int = 1
    makers: tuple[Maker, ...] = ()
    weight_makers: tuple[Maker, ...] = ()
    blobs: tuple[Shape, ...] | None = None
    tolerance: float = 2e-6
    dynamic: bool = False
    label: str = field(default="", compare=False)

    def __str__(self) -> str:
        words = self.label or self.options.replace("{", " ").replace("}", " ")
        return "-".join([self.type, *words.replace(":", "").split()[:9]])

    @property
    def kind(self) -> LayerType:
        return find_type(self.type)

    def message(self) -> LayerParameter:
        """The layer as the prototxt has it."""
        params = LayerParameter()
        text_format.Parse(self.options, params)
        params.name, params.type = "op", self.type
        params.bottom.extend(f"in{i}" for i in range(len(self.bottoms)))
        params.top.extend(f"out{i}" for i in range(self.tops))
        return params

    def arrays(self, seed: int) -> tuple[list[Array], list[Array]]:
        """Seeded weights and bottoms, none of which may be written to."""
        rng = np.random.default_rng(seed)
        rule = self.kind.weights
        shapes = self.blobs
        if shapes is None:
            shapes = tuple(rule(self.message(), self.bottoms)) if rule else ()
        weights = _fill(rng, shapes, self.weight_makers)
        return weights, _fill(rng, self.bottoms, self.makers)


def _fill(
    rng: np.random.Generator, shapes: Sequence[Shape], makers: Sequence[Maker]
) -> list[Array]:
    arrays = []
    for i, shape in enumerate(shapes):
        maker = makers[min(i, len(makers) - 1)] if makers else normal
        array = np.array(maker(rng, shape), np.float32, order="C")
        assert array.shape == shape, f"the maker gave {array.shape}, not {shape}"
        array.flags.writeable = False
        arrays.append(array)
    return arrays


def opencv(
    params: LayerParameter, weights: Sequence[Array], bottoms: Sequence[Array]
) -> list[Array]:
    """The first top of the layer according to OpenCV's dnn."""
    structure = caffe_pb2.NetParameter(name="one layer")
    for name, bottom in zip(params.bottom, bottoms, strict=True):
        structure.input.append(name)
        structure.input_shape.add().dim.extend(bottom.shape)
    structure.layer.add().CopyFrom(params)
    model = caffe_pb2.NetParameter(name="one layer")
    stored = model.layer.add(name=params.name, type=params.type)
    for weight in weights:
        blob = stored.blobs.add()
        blob.shape.dim.extend(weight.shape or (1,))
        blob.data.extend(weight.reshape(-1).tolist())
    prototxt = text_format.MessageToString(structure).encode()
    net = cv2.dnn.readNetFromCaffe(
        np.frombuffer(prototxt, np.uint8), np.frombuffer(model.SerializeToString(), np.uint8)
    )
    net.setPreferableBackend(cv2.dnn.DNN_BACKEND_OPENCV)
    net.enableFusion(False)
    net.enableWinograd(False)
    for name, bottom in zip(params.bottom, bottoms, strict=True):
        net.setInput(bottom, name)
    return [net.forward()]


def deviation(got: Array, expected: Any) -> float:
    """The largest difference, as a part of the largest expected value."""
    expected = np.asarray(expected)
    assert got.shape == expected.shape, f"{got.shape} instead of {expected.shape}"
    if not expected.size:
        return 0.0
    scale = max(float(np.abs(expected).max()), 1e-30)
    return float(np.abs(got.astype(np.float64) - expected).max()) / scale


def check(case: Case) -> float:
    """All checks of one case; returns its largest deviation from the oracle."""
    params = case.message()
    weights, bottoms = case.arrays(seed=7)
    tops = list(case.kind.run(params, weights, bottoms))
    _check_form(case, params, bottoms, tops)
    expected = list((case.oracle or opencv)(params, weights, bottoms))
    assert len(expected) == len(tops)
    worst = max(
        (deviation(top, wanted) for top, wanted in zip(tops, expected, strict=True)), default=0.0
    )
    assert worst <= case.tolerance, f"{worst:.3g} of the largest value away from the oracle"
    if case.kind.plan is not None:
        _check_plan(case, params, tops)
    return worst


def _check_form(
    case: Case, params: LayerParameter, bottoms: Sequence[Array], tops: Sequence[Array]
) -> None:
    """Shape rule, dtype, memory order, and memory of its own unless the type is a view."""
    shapes = list(case.kind.shape(params, [bottom.shape for bottom in bottoms]))
    if not case.dynamic:
        assert [top.shape for top in tops] == shapes
    for top in tops:
        assert isinstance(top, np.ndarray)
        assert top.dtype == np.float32
        assert top.flags.c_contiguous, "the top is not contiguous"
        shared = any(np.shares_memory(top, bottom) for bottom in bottoms)
        assert shared == case.kind.view, "a view copies, or another type does not"


def _check_plan(case: Case, params: LayerParameter, expected: Sequence[Array]) -> None:
    """The fast path agrees with the plain run, however dirty its buffers are."""
    assert case.kind.plan is not None
    scratch: list[Array] = []

    def buffer(shape: Shape) -> Array:
        scratch.append(np.empty(shape, np.float32))
        return scratch[-1]

    weights, bottoms = case.arrays(seed=7)
    _, others = case.arrays(seed=8)
    fast_path = case.kind.plan(params, weights, [bottom.shape for bottom in bottoms], buffer)
    tops = [np.full(top.shape, np.nan, np.float32) for top in expected]
    for images in (others, bottoms):
        for array in scratch:
            array.fill(np.nan)
        fast_path(images, tops)
    for top, wanted in zip(tops, expected, strict=True):
        apart = deviation(top, wanted)
        assert apart <= 1e-6, f"fast path and plain run are {apart:.3g} apart"
    if case.kind.inplace:
        written = bottoms[0].copy()
        fast_path([written, *bottoms[1:]], [written])
        np.testing.assert_array_equal(written, tops[0])
