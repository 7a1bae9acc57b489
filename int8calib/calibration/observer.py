"""A calibrator for programs that run a network themselves: activations in, table out."""

from __future__ import annotations

import hashlib
import os
import threading
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from int8calib.arrays import Array, to_host
from int8calib.calibration.assemble import Blobs, Calibration
from int8calib.calibration.collected import (
    Collected,
    check_fingerprint,
    load_collected,
    save_collected,
)
from int8calib.calibration.executor import executor_fingerprint, float_activations
from int8calib.calibration.layers import QuantLayer
from int8calib.calibration.options import Options, checked_options
from int8calib.calibration.pipeline import checked_layers, make_table, prepare
from int8calib.calibration.statistics.checkpoint import CollectionState
from int8calib.calibration.statistics.counters import (
    ExactCounters,
    OnePassCounters,
    image_checksums,
)
from int8calib.calibration.statistics.ranges import measure_range
from int8calib.calibration.statistics.store import Statistics, merge_statistics
from int8calib.errors import OptionError, StatisticsError

_SAMPLES = 256
"""Values of a blob that tell one image from another, where no input is observed."""


@dataclass(frozen=True)
class _Elsewhere:
    """A network that another program runs."""

    layers: tuple[QuantLayer, ...]
    inputs: tuple[str, ...]
    source: str

    def run(self, inputs: Mapping[str, Array], blobs: Sequence[str], /) -> Mapping[str, Array]:
        raise OptionError("an Observer runs no network; give it activations with observe()")


class Observer:
    """Counts activations that another program computes, and makes the table of them.

    Threads may call `observe` at the same time. The memory it takes, about 1 MB for each blob,
    does not grow with the images.

    Parameters
    ----------
    layers : iterable of QuantLayer
        The layers that can be INT8, in running order.
    options : Options, optional
        Those of the calibration.
    exact : bool
        Whether to count the very bins of ncnn2table, for which all images must be observed twice,
        with `next_pass` in between. Otherwise bins are finer, and their range grows.
    source : str
        What messages call the network.
    **changes
        Fields of `Options` that differ from `options`, such as ``method="kl"``.

    Attributes
    ----------
    options : Options
        Those of the calibration, `changes` included.

    Raises
    ------
    OptionError
        For an unknown field, and values that mean nothing.
    ModelError
        Without layers.

    Examples
    --------
    >>> import numpy as np
    >>> import int8calib
    >>> weights = np.ones((4, 3, 1, 1))
    >>> conv = int8calib.QuantLayer("conv", "Convolution", "data", weights, reads_input=True)
    >>> observer = int8calib.Observer([conv], method="minmax")
    >>> observer.observe({"data": np.linspace(-2, 1, 12).reshape(1, 3, 2, 2)})
    >>> observer.calibrate().table.layers[0].bottom_scale
    63.5
    """

    def __init__(
        self,
        layers: Iterable[QuantLayer],
        options: Options | None = None,
        *,
        exact: bool = False,
        source: str = "the network",
        **changes: Any,
    ) -> None:
        known = [field.name for field in fields(Options)]
        for name in changes:
            if name not in known:
                raise OptionError(f"unknown option {name!r}; expected one of {', '.join(known)}")
        self.options = replace(checked_options(options), **changes)
        layers = checked_layers(layers, source)
        inputs = dict.fromkeys(layer.blob for layer in layers if layer.reads_input)
        self._network = _Elsewhere(layers, tuple(inputs), source)
        self._job = prepare(self._network, self.options)
        self._blobs = self._job.blobs
        self._lock = threading.Lock()
        self._start(CollectionState(exact=exact))

    def _start(self, state: CollectionState) -> None:
        """Go on from a state."""
        self._state = state
        self._measured: Statistics | None = None
        self._counters: OnePassCounters | ExactCounters | None = None
        if not state.exact:
            self._counters = OnePassCounters(self._blobs)
        elif state.ranges_known:
            self._counters = ExactCounters(state.ranges)

    @property
    def blobs(self) -> tuple[str, ...]:
        """The blobs that `observe` needs: those that layers read which become INT8."""
        return tuple(self._blobs)

    def observe(self, activations: Mapping[str, Any]) -> None:
        """Count one batch.

        Parameters
        ----------
        activations : mapping of str to float array (N, ...)
            The blobs that the layers read, by name, of N images; of any float type. Arrays of
            CuPy are counted on the current GPU. Others are passed over.

        Raises
        ------
        StatisticsError
            Where a blob is missing, is no array of floats, or holds NaN or infinity. Nothing of
            the batch is counted then.
        """
        if not isinstance(activations, Mapping):
            raise StatisticsError(
                f"activations of type {type(activations).__name__}; expected a mapping of blobs to "
                "arrays"
            )
        arrays = {}
        for blob in self._blobs:
            if blob not in activations:
                reader = next(layer.name for layer in self._network.layers if layer.blob == blob)
                raise StatisticsError(
                    f"blob {blob!r}, which layer {reader!r} reads, is not given; given are "
                    f"{', '.join(map(str, activations)) or 'none'}"
                )
            arrays[blob] = float_activations(activations[blob], blob)
        ranges = [(blob, measure_range(array, blob)) for blob, array in arrays.items()]
        checksums = self._checksums(arrays)
        if self._counters is not None:
            self._counters.check(ranges)
            for blob, array in arrays.items():
                self._counters.add(checksums, blob, array)
        with self._lock:
            if self._counters is None:
                self._state.add_ranges(len(self._state.measured), checksums, ranges)
            else:
                self._state.counted[len(self._state.counted)] = checksums

    def _checksums(self, arrays: Mapping[str, Array]) -> tuple[int, ...]:
        """A checksum of each image: of its inputs, or of some of its activations."""
        inputs = {blob: arrays[blob] for blob in self._network.inputs if blob in arrays}
        if inputs:
            return image_checksums(inputs)
        images = len(next(iter(arrays.values())))
        checksums = [0] * images
        for blob in sorted(arrays):
            if len(arrays[blob]) == images:
                flat = arrays[blob].reshape(images, -1)
                some = flat[:, :: max(1, flat.shape[1] // _SAMPLES)]
                for i, row in enumerate(np.ascontiguousarray(to_host(some))):
                    checksums[i] = zlib.crc32(row.data, checksums[i])
        return tuple(checksums)

    def next_pass(self) -> None:
        """End the first of two passes: the same images come again.

        Raises
        ------
        OptionError
            For an observer that is not `exact`, or that is in its second pass.
        StatisticsError
            Before the first image.
        """
        if not self._state.exact or self._counters is not None:
            raise OptionError("there is no further pass; exact=True takes two")
        if not self._state.measured:
            raise StatisticsError("there are no images; observe some before next_pass()")
        measured = self._state.statistics(self._blobs)
        self._state.ranges_known = True
        self._start(self._state)
        self._measured = measured

    @property
    def images(self) -> int:
        """How many images the current pass has seen."""
        counted = self._state.measured if self._counters is None else self._state.counted
        return sum(map(len, counted.values()))

    @property
    def statistics(self) -> Statistics:
        """Ranges and histograms of what was observed so far."""
        with self._lock:
            counters = self._counters
            state = self._state.snapshot() if counters is None else counters.add_to(self._state)
            return state.statistics(self._blobs)

    def calibrate(self, meta: Mapping[str, Any] = MappingProxyType({})) -> Calibration:
        """Return the table, as `int8calib.calibrate` does; more may be observed afterwards.

        Parameters
        ----------
        meta : mapping
            JSON values for the report.

        Returns
        -------
        Calibration
            The table, the statistics behind it, and warnings.

        Raises
        ------
        StatisticsError
            Where nothing was observed, or the two passes of `exact` saw different images.
        """
        if self._state.exact and self._counters is None:
            raise StatisticsError("the first of two passes; call next_pass(), observe() all again")
        if not self._state.counted:
            raise StatisticsError("there are no images; observe some before calibrate()")
        statistics = self.statistics
        before = self._measured
        if before is not None and not np.array_equal(before.checksums, statistics.checksums):
            raise StatisticsError(
                f"the second pass saw other images than the first ({statistics.images} and "
                f"{before.images}); observe the same ones"
            )
        return make_table(self._job, statistics, self.options, meta)

    def merge(self, other: Observer) -> None:
        """Add what another observer of the same network saw of other images.

        Parameters
        ----------
        other : Observer

        Raises
        ------
        StatisticsError
            For another network, and where one takes two passes and the other one.
        """
        if not isinstance(other, Observer):
            raise StatisticsError(
                f"{type(other).__name__} cannot be merged; expected another Observer"
            )
        if other is self:
            raise StatisticsError("an observer with itself: its images would count twice")
        self._check_same(other._fingerprint(), "the other observer")
        self._take(merge_statistics([self.statistics, other.statistics]))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write what was observed, as `int8calib collect` does.

        Parameters
        ----------
        path : path
            The file, .npz: for `load`, and for `int8calib merge`, `thresholds` and `report`.

        Raises
        ------
        OutputError
            Where it cannot be written.
        """
        blobs = Blobs({blob: blob for blob in self._blobs}, frozenset(self._network.inputs))
        save_collected(
            path,
            Collected(
                self.statistics,
                self._network.layers,
                blobs,
                self._network.source,
                self._fingerprint(),
            ),
        )

    def load(self, path: str | os.PathLike[str]) -> None:
        """Go on from what `save` wrote, in place of what was observed so far.

        Parameters
        ----------
        path : path
            The file.

        Raises
        ------
        StatisticsError
            For another network, statistics of another kind, or a damaged file.
        """
        stored = load_collected(path)
        self._check_same(stored.fingerprint, str(Path(path)))
        if stored.statistics.histograms and stored.statistics.one_pass == self._state.exact:
            kind = "one pass" if stored.statistics.one_pass else "two passes"
            raise StatisticsError(f"{path}: statistics of {kind}; this observer takes another")
        self._take(stored.statistics)

    def _take(self, statistics: Statistics) -> None:
        """Go on from statistics."""
        state = CollectionState(
            dict(statistics.ranges),
            dict(statistics.histograms),
            dict(statistics.halves),
            ranges_known=self._state.exact and bool(statistics.histograms),
            exact=self._state.exact,
        )
        done = state.counted if statistics.histograms else state.measured
        if statistics.checksums.size:
            done[0] = tuple(statistics.checksums.tolist())
        with self._lock:
            before = self._measured
            self._start(state)
            self._measured = before

    def _fingerprint(self) -> dict[str, Any]:
        """What tells one network from another."""
        names = hashlib.sha256(repr(self._blobs).encode()).hexdigest()
        return {**executor_fingerprint(self._network), "blobs": names}

    def _check_same(self, theirs: Mapping[str, Any], name: str) -> None:
        check_fingerprint(self._fingerprint(), theirs, "this observer", name)
