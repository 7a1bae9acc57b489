"""ncnn models run in the real runtime: PyPI's `ncnn` package, the extra `ncnn`."""

from __future__ import annotations

import os
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from int8calib.arrays import Array
from int8calib.complaints import complaints
from int8calib.errors import ModelError, OptionError
from int8calib.ncnn.model import NcnnModel
from int8calib.ncnn.param import NcnnLayer, format_param
from int8calib.ncnn.sound import check_bottoms, check_graph
from int8calib.ncnn.weights import write_weights

MOST_THREADS = 64
"""Threads that every machine can start; OpenMP ends the process where it cannot."""
_FAILED = re.compile(r"^layer load_(?:param|model) \d+ (.+) failed", re.M)
"""What ncnn prints of a layer that it cannot load."""
_SAME_BITS = frozenset(("Split", "Reshape", "Flatten", "Squeeze", "ExpandDims", "Noop"))
"""Types that hand their values on as they are."""


def import_ncnn() -> Any:
    """The `ncnn` package; raises `OptionError` that says how to install it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import ncnn
    except ImportError:
        raise OptionError(
            "the package ncnn is not installed; pip install 'int8calib[ncnn]'"
        ) from None
    return ncnn


class RuntimeNet:
    """One ncnn model, loaded into ncnn.

    Not safe to share between threads: the package holds the interpreter's lock while it computes.
    """

    def __init__(
        self, model: NcnnModel, *, threads: int = 1, float32: bool = False, exact: bool = False
    ) -> None:
        """Load the model.

        Parameters
        ----------
        model
            A float or INT8 model with weights.
        threads
            ncnn's threads for one image.
        float32
            Keep floats as float32 everywhere, as ncnn2table does. Otherwise ncnn's own defaults,
            as a program on this machine would get.
        exact
            As `float32`, and scale INT8 depthwise layers exactly: no packing.

        Raises
        ------
        OptionError
            Where the package is missing, or for more threads than a machine can start.
        ModelError
            Where ncnn does not load the model.
        """
        most = max(MOST_THREADS, os.cpu_count() or 1)
        if not 1 <= threads <= most:
            raise OptionError(f"threads {threads}: expected 1 to {most}")
        ncnn = import_ncnn()
        check_graph(model.layers, model.source)
        self._ncnn = ncnn
        self._net = ncnn.Net()
        option = self._net.opt
        option.num_threads = threads
        option.use_vulkan_compute = False
        option.lightmode = False
        if float32 or exact:
            option.use_fp16_packed = option.use_fp16_storage = False
            option.use_fp16_arithmetic = option.use_bf16_storage = False
        if exact:
            option.use_packing_layout = False
        self._load_structure(model)
        # Only from a file does ncnn tell whether it could load all weights.
        with tempfile.TemporaryDirectory() as folder:
            binary = Path(folder, "weights.bin")
            binary.write_bytes(write_weights(model.layers))
            code, said = complaints.alone(lambda: self._net.load_model(str(binary)))
        if code != 0:
            where = _FAILED.search(said)
            layer = f"layer {where[1]!r}" if where else "a layer"
            raise ModelError(f"{model.source}: ncnn cannot load the weights of {layer}")
        self._source = model.source
        self._layers = model.layers
        self._checked: set[tuple[object, ...]] = set()
        self._ids = read_as_ids(model.layers)
        self._place = {top: place for place, layer in enumerate(model.layers) for top in layer.tops}
        self.inputs = tuple(
            top for layer in model.layers if layer.type == "Input" for top in layer.tops
        )
        read = {bottom for layer in model.layers for bottom in layer.bottoms}
        self.outputs = tuple(top for layer in model.layers for top in layer.tops if top not in read)
        self.seconds = 0.0

    def _load_structure(self, model: NcnnModel) -> None:
        """Load what the layers are; raises `ModelError` that names a layer which ncnn refuses."""
        text = format_param(model.layers)
        code, said = complaints.alone(lambda: self._net.load_param_mem(text))
        if code == 0:
            return
        has = getattr(self._ncnn, "layer_to_index", lambda kind: 0)
        foreign = next((layer for layer in model.layers if has(layer.type) < 0), None)
        where = _FAILED.search(said)
        if foreign is not None:
            problem = (
                f"layer {foreign.name!r} is of type {foreign.type}, which ncnn "
                f"{getattr(self._ncnn, '__version__', '')} does not have"
            )
        elif where is not None:
            problem = f"ncnn refuses the parameters of layer {where[1]!r}"
        else:
            problem = "ncnn refuses the parameters of a layer"
        raise ModelError(f"{model.source}: {problem}")

    def run(self, inputs: Mapping[str, Array], blobs: Sequence[str]) -> dict[str, Array]:
        """Run one image.

        Parameters
        ----------
        inputs
            Each input blob's array, float32 (C, H, W), (H, W) or (W,): ncnn has no batch axis.
        blobs
            The blobs wanted.

        Returns
        -------
        dict
            Each blob as float32, as ncnn shapes it; of size 0 where it is empty, as a detector's
            output without detections. `seconds` is then the time that computing took.

        Raises
        ------
        ModelError
            For an input or blob that the model does not have, or that could not be computed.
        """
        kept, wanted = self._prepared(inputs, blobs)
        if self._key(kept, wanted) not in self._checked:
            self._walk(kept, wanted, None)
        extractor = self._extractor(kept)
        started = time.perf_counter()
        found = {blob: extractor.extract(blob) for blob in wanted}
        self.seconds = time.perf_counter() - started
        tops = {blob: self._array(blob, *each) for blob, each in found.items()}
        return {blob: tops[blob] for blob in blobs}

    def stream(
        self,
        inputs: Mapping[str, Array],
        blobs: Sequence[str],
        listener: Callable[[str, Array], None],
    ) -> None:
        """Run one image and hand out each blob as soon as it is there, so that few are held.

        Parameters
        ----------
        inputs, blobs
            As for `run`.
        listener
            Called as `listener(blob, array)`.

        Raises
        ------
        ModelError
            As `run`.
        """
        kept, wanted = self._prepared(inputs, blobs)
        if self._key(kept, wanted) not in self._checked:
            self._walk(kept, wanted, listener)
            return
        extractor = self._extractor(kept)
        for blob in wanted:
            listener(blob, self._array(blob, *extractor.extract(blob)))

    def _prepared(
        self, inputs: Mapping[str, Array], blobs: Sequence[str]
    ) -> tuple[dict[str, Array], tuple[str, ...]]:
        """The inputs as ncnn takes them, and the blobs in the order in which they are made.

        ncnn drops a blob once its reader ran, so an earlier one must not be asked for later.
        """
        kept = {name: np.ascontiguousarray(array, np.float32) for name, array in inputs.items()}
        for blob in blobs:
            if blob not in self._place:
                raise ModelError(f"{self._source}: blob {blob!r} is not in the model")
        return kept, tuple(sorted(dict.fromkeys(blobs), key=self._place.__getitem__))

    @staticmethod
    def _key(inputs: Mapping[str, Array], wanted: Sequence[str]) -> tuple[object, ...]:
        """What decides whether sizes fit: the shapes of the inputs, and how far they run."""
        return (tuple(wanted), *((name, array.shape) for name, array in inputs.items()))

    def _array(self, blob: str, code: int, mat: Any) -> Array:
        """A blob that was extracted; raises `ModelError` where it could not be."""
        if not _is_made(code, mat):
            raise ModelError(f"{self._source}: blob {blob!r} could not be computed")
        # An array of an empty Mat crashes the interpreter.
        return np.zeros(0, np.float32) if mat.dims == 0 else np.array(mat, np.float32)

    def _extractor(self, inputs: Mapping[str, Array]) -> Any:
        """What computes blobs of these inputs, each once; raises `ModelError` for a wrong name."""
        extractor = self._net.create_extractor()
        extractor.set_light_mode(True)
        for name, array in inputs.items():
            if name in self._ids:
                array = np.rint(array).astype(np.int32)
            # A Mat borrows numpy's memory without a reference, and layers may write into it.
            if extractor.input(name, self._ncnn.Mat(array).clone()) != 0:
                raise ModelError(f"{self._source}: the model has no input {name!r}")
        return extractor

    def _walk(
        self,
        inputs: Mapping[str, Array],
        wanted: Sequence[str],
        listener: Callable[[str, Array], None] | None,
    ) -> None:
        """Run layer by layer, each when its bottoms fit it: for the first inputs of a shape."""
        extractor = self._extractor(inputs)
        needed, seen = set(wanted), dict[str, tuple[int, ...]]()
        for layer in reversed(self._layers):
            if needed & set(layer.tops):
                needed.update(layer.bottoms)
        for layer in self._layers:
            if not needed & set(layer.tops):
                continue
            if layer.type == "Input" and not inputs.keys() >= set(layer.tops):
                raise ModelError(f"{self._source}: input {layer.tops[0]!r} is not given")
            bottoms = [self._computed(extractor, bottom, seen) for bottom in layer.bottoms]
            check_bottoms(layer, bottoms, self._source)
            for top in (top for top in layer.tops if top in wanted):
                self._computed(extractor, top, seen)
                if listener is not None:
                    listener(top, self._array(top, *extractor.extract(top)))
        self._checked.add(self._key(inputs, wanted))

    def _computed(
        self, extractor: Any, blob: str, seen: dict[str, tuple[int, ...]]
    ) -> tuple[int, ...]:
        """The extents of a blob that is computed now, which `seen` gets.

        Raises `ModelError` where it cannot be.
        """
        code, mat = extractor.extract(blob)
        if _is_made(code, mat):
            return seen.setdefault(blob, _extents(mat))
        maker = self._layers[self._place[blob]]
        sizes = (seen.get(bottom, ()) for bottom in maker.bottoms)
        shapes = ", ".join("x".join(map(str, extents)) for extents in sizes)
        raise ModelError(
            f"{self._source}: layer {maker.name!r} ({maker.type}) cannot be computed from a bottom "
            f"of {shapes}; is the input too small (--input-shape), or a parameter wrong?"
        )


def read_as_ids(layers: Sequence[NcnnLayer]) -> set[str]:
    """Return the blobs whose values an Embed takes for whole numbers of 32 bits."""
    ids: set[str] = set()
    for layer in reversed(layers):
        if layer.type == "Embed" or (layer.type in _SAME_BITS and ids & set(layer.tops)):
            ids.update(layer.bottoms[:1])
    return ids


def _is_made(code: int, mat: Any) -> bool:
    """Whether ncnn made a blob; some layers give one of negative sizes for too small a bottom."""
    return code == 0 and min(_extents(mat), default=0) >= 0


def _extents(mat: Any) -> tuple[int, ...]:
    """The extents of ncnn's blob, the outermost first."""
    named = ((), (mat.w,), (mat.h, mat.w), (mat.c, mat.h, mat.w), (mat.c, mat.d, mat.h, mat.w))
    return named[mat.dims]
