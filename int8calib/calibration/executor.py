"""What runs a network for a calibration: any framework that gives the blobs asked for."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeAlias, TypeVar, runtime_checkable

import numpy as np

from int8calib.arrays import MASKED, Array, is_array, is_masked
from int8calib.calibration.layers import QuantLayer
from int8calib.device import device_of
from int8calib.errors import ImageError, StatisticsError
from int8calib.workers import Batch, single_threaded_blas

Listener: TypeAlias = Callable[[str, Array], None]
"""Called as `listener(blob, array)`; the array holds until it returns."""
Runner: TypeAlias = Callable[[Batch, Listener], None]
"""Runs one batch, and hands each blob that is wanted to the listener as soon as it is there."""


class Executor(Protocol):
    """A network that somebody runs: its layers, its inputs, and its blobs for a batch.

    An executor has at least `layers`, `inputs` and `run`.

    Attributes
    ----------
    layers : sequence of QuantLayer
        The layers that can be INT8, in running order.
    inputs : collection of str
        The names of the inputs, which are the keys of their blobs too.
    source : str, optional
        What messages call the network, the name of its file for example.
    blobs : mapping of str to str, optional
        Every blob by name, with its key. They differ where layers work in place: then the key is
        that of the blob as it is in the end. For the table formats that go by blob.
    blocked : mapping of str to str, optional
        Layers that could be INT8, but something stands in their way: name to what, in words. They
        stay in float.
    warnings : sequence of str, optional
        What to mind of the network, for the report.
    needed_inputs : callable, optional
        ``needed_inputs(blobs)`` gives the inputs that these blobs depend on, a tuple of str; all
        inputs otherwise.
    weight_rows : mapping of str to float32 (rows,), optional
        Weight scales that the table shall hold besides, of layers that are INT8 without a scale
        of their bottom, by the key of the row; see `CalibrationTable`.
    facts : mapping of str to JSON values, optional
        What the report of a table shall say of the network.
    fingerprint : str, optional
        What differs between any two networks, a hash for example: a checkpoint goes on only where
        it is the same. By default it is made from `layers` and their weights.
    runner : callable, optional
        As in `StreamingExecutor`.
    device : Device, optional
        The GPU that runs it, which has one batch at a time; None for the CPU.
    """

    @property
    def layers(self) -> Sequence[QuantLayer]:
        """The layers that can be INT8, in running order."""

    @property
    def inputs(self) -> Collection[str]:
        """The names of the inputs, which are the keys of their blobs too."""

    def run(self, inputs: Batch, blobs: Sequence[str], /) -> Mapping[str, Array]:
        """Run one batch; called by one thread at a time.

        Parameters
        ----------
        inputs : mapping of str to float32 (N, ...)
            The batch by input.
        blobs : sequence of str
            The keys of the blobs to return.

        Returns
        -------
        mapping of str to float array (N, ...)
            These blobs by key, of any float type; numpy's arrays, or CuPy's.
        """


@runtime_checkable
class StreamingExecutor(Protocol):
    """An executor that hands out blobs one at a time, without a copy, in several threads."""

    def runner(self, blobs: Sequence[str], /) -> Runner:
        """Return what runs batches in one thread, for the blobs of these keys.

        Each thread takes one of its own. They run at the same time, with one BLAS thread each.
        """


E = TypeVar("E", bound=Executor)
E_co = TypeVar("E_co", bound=Executor, covariant=True)


class Network(Protocol[E_co]):
    """Something that gives an executor of itself, such as a Caffe net."""

    def executor(self, *, fold_bn: bool = True) -> E_co:
        """Return the executor, with BatchNorm folded into the layers before it or not."""


def source_of(executor: Executor) -> str:
    """What messages call the network."""
    return str(getattr(executor, "source", "the network"))


def layers_fingerprint(layers: Sequence[QuantLayer]) -> str:
    """Return a hash of layers and their weights."""
    digest = hashlib.sha256()
    for layer in layers:
        digest.update(repr((layer.name, layer.kind, layer.blob, layer.rows, layer.group)).encode())
        clips = layer.known_clips
        weights = clips.absmax if clips is not None else layer.weight_rows()
        digest.update(np.ascontiguousarray(weights, "<f4").data)
    return digest.hexdigest()


def executor_fingerprint(executor: Executor) -> dict[str, str]:
    """Return what tells a run from another: a hash of the network, and a GPU, which rounds so."""
    known = getattr(executor, "fingerprint", None)
    network = layers_fingerprint(executor.layers) if known is None else str(known)
    return {"network": network, **device_fingerprint(executor)}


def device_fingerprint(executor: Executor) -> dict[str, str]:
    """Return the kind of device that runs the network; nothing for the CPU.

    What GPUs compute differs from what the CPU does by rounding, so one run takes one of both.
    """
    device = device_of(executor)
    return {} if device is None else {"device": device.name.partition(":")[0]}


def float_activations(top: Any, blob: str) -> Array:
    """Return activations of any float type as float32; `StatisticsError` for anything else."""
    if is_masked(top):
        raise StatisticsError(f"blob {blob!r}: {MASKED}")
    if not is_array(top) or top.dtype.kind != "f":
        kind = f"of type {top.dtype}" if is_array(top) else type(top).__name__
        raise StatisticsError(f"blob {blob!r}: {kind}; expected a numpy array of float values")
    with np.errstate(over="ignore"):
        activations: Array = top.astype(np.float32, copy=False)
    return activations


def needed_inputs(executor: Executor, blobs: Sequence[str]) -> tuple[str, ...]:
    """Return the inputs that the blobs of these keys depend on, or all where it is not known."""
    needed = getattr(executor, "needed_inputs", None)
    return tuple(executor.inputs) if needed is None else needed(blobs)


def input_check(executor: Executor, blobs: Sequence[str]) -> Callable[[Batch], None]:
    """Return a check of batches.

    It raises `ImageError` for a batch that lacks an input which `blobs` need, or has an unknown
    one.
    """
    source, known, needed = source_of(executor), executor.inputs, needed_inputs(executor, blobs)

    def check(batch: Batch) -> None:
        for name in needed:
            if name not in batch:
                given = ", ".join(batch)
                raise ImageError(f"{source}: input {name!r} is not given; the batch has {given}")
        for name in batch:
            if name not in known:
                raise ImageError(
                    f"{source}: {name!r} is no input; the inputs are {', '.join(known)}"
                )

    return check


@contextmanager
def runners(executor: Executor, blobs: Sequence[str]) -> Iterator[Callable[[], Runner]]:
    """Give a function that makes a `Runner` for each thread of a block.

    An executor without runners of its own is run by one thread at a time.
    """
    if isinstance(executor, StreamingExecutor):
        streaming = executor
        with single_threaded_blas():
            yield lambda: streaming.runner(blobs)
        return
    one_at_a_time = threading.Lock()

    def run(batch: Batch, listener: Listener) -> None:
        with one_at_a_time:
            tops = executor.run(batch, blobs)
        if not isinstance(tops, Mapping):
            raise StatisticsError(
                f"{source_of(executor)}: run() gave {type(tops).__name__}; expected a mapping of "
                "blobs to arrays"
            )
        for blob in blobs:
            if blob not in tops:
                given = ", ".join(map(str, tops)) or "none"
                raise StatisticsError(
                    f"{source_of(executor)}: gave no blob {blob!r}; it gave {given}"
                )
            listener(blob, float_activations(tops[blob], blob))

    yield lambda: run
