"""A calibration from beginning to end: a network and images to a table with its evidence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any, Generic, overload

from int8calib.arrays import Array
from int8calib.calibration.assemble import Blobs, Calibration, assemble, select_layers
from int8calib.calibration.executor import E, E_co, Executor, Network, needed_inputs, source_of
from int8calib.calibration.layers import QuantLayer
from int8calib.calibration.options import Options, checked_options
from int8calib.calibration.selection import blocked_warnings
from int8calib.calibration.statistics.checkpoint import Checkpoint
from int8calib.calibration.statistics.collect import collect_statistics
from int8calib.calibration.statistics.store import Statistics
from int8calib.device import device_of
from int8calib.errors import ModelError, OptionError
from int8calib.workers import Loader, Progress, start_pass

__all__ = ["Calibration", "Job", "Options", "calibrate", "make_table", "prepare", "run_job"]


@dataclass(frozen=True, eq=False)
class Job(Generic[E_co]):
    """What a calibration will do.

    Attributes
    ----------
    executor : Executor
        What runs.
    candidates : tuple of QuantLayer
        All layers that could get rows.
    layers : tuple of QuantLayer
        Those that the options choose.
    inputs : tuple of str
        The inputs to give.
    blobs : tuple of str
        The keys of the blobs to observe.
    named : Blobs
        Every blob of the network.
    blocked : mapping of str to str
        Layers that stay in float, with what stands in their way.
    warnings : tuple of str
        What to mind of the network.
    weight_rows : mapping of str to float32 (rows,)
        Weight scales of layers that are INT8 without a scale of their bottom.
    """

    executor: E_co
    candidates: tuple[QuantLayer, ...]
    layers: tuple[QuantLayer, ...]
    inputs: tuple[str, ...]
    blobs: tuple[str, ...]
    named: Blobs
    blocked: Mapping[str, str]
    warnings: tuple[str, ...]
    weight_rows: Mapping[str, Array] = field(default_factory=dict)


@overload
def prepare(network: Network[E], options: Options) -> Job[E]: ...
@overload
def prepare(network: E, options: Options) -> Job[E]: ...
def prepare(network: Any, options: Options) -> Job[Any]:
    """Return what `calibrate` would do.

    Parameters
    ----------
    network : Executor, or something that gives one
        As for `calibrate`.
    options : Options

    Raises
    ------
    ModelError
        Where nothing can be quantized.
    OptionError
        For a pattern without a layer, and for something that is no executor and gives none.
    """
    executor = _executor_of(network, checked_options(options))
    source = source_of(executor)
    candidates = checked_layers(executor.layers, source)
    weight_rows = dict(getattr(executor, "weight_rows", {}))
    if not candidates and not weight_rows:
        raise ModelError(
            f"{source}: has no Convolution or InnerProduct layer, so there is nothing to calibrate"
        )
    blocked = dict(getattr(executor, "blocked", {}))
    layers = select_layers(candidates, options, blocked, weight_rows)
    for layer in layers:
        if layer.known_clips is None and not callable(layer.weights):
            layer.weight_rows()  # says what is wrong with them before any image runs
    named = Blobs(dict(getattr(executor, "blobs", {})), frozenset(executor.inputs))
    wanted = [layer.blob for layer in layers]
    if options.all_blobs:
        if not named.keys:
            raise OptionError(f"{source}: does not say which blobs it has; leave all_blobs out")
        wanted += named.keys.values()
    blobs = tuple(dict.fromkeys(wanted))
    return Job(
        executor,
        candidates,
        layers,
        needed_inputs(executor, blobs) if blobs else tuple(executor.inputs),
        blobs,
        named,
        blocked,
        (*getattr(executor, "warnings", ()), *blocked_warnings(blocked, options)),
        weight_rows,
    )


def checked_layers(layers: Iterable[QuantLayer], source: str) -> tuple[QuantLayer, ...]:
    """Return the layers of a network as a tuple.

    Parameters
    ----------
    layers : iterable of QuantLayer
        What an executor has, or a caller gave.
    source : str
        How errors call the network.

    Raises
    ------
    OptionError
        For what is no `QuantLayer`.
    ModelError
        For two layers of one name, which is the key of their rows in a table.
    """
    if not isinstance(layers, Iterable):
        raise OptionError(f"layers of type {type(layers).__name__}; expected a list of QuantLayer")
    found, names = tuple(layers), set[str]()
    for layer in found:
        if not isinstance(layer, QuantLayer):
            raise OptionError(f"a layer of type {type(layer).__name__}; expected a QuantLayer")
        if layer.name in names:
            raise ModelError(f"{source}: two layers are called {layer.name!r}; rename one")
        names.add(layer.name)
    return found


def _executor_of(network: Any, options: Options) -> Executor:
    """`network` where it is an executor, else the one that it gives."""
    if callable(getattr(network, "executor", None)):
        network = network.executor(fold_bn=options.fold_bn)
    missing = [name for name in ("layers", "inputs", "run") if not hasattr(network, name)]
    if missing:
        raise OptionError(
            f"{type(network).__name__} is no executor: it has no {', '.join(missing)}; give a net "
            "of load_caffe, or an object with layers, inputs and run(inputs, blobs)"
        )
    if isinstance(network.inputs, str) or not isinstance(network.inputs, Iterable):
        raise OptionError(
            f"{type(network).__name__}: inputs is {network.inputs!r}; expected the names of the "
            "network's inputs, such as ['data']"
        )
    executor: Executor = network
    return executor


def calibrate(
    network: Network[Executor] | Executor,
    batches: Loader,
    options: Options | None = None,
    *,
    total: int = 0,
    progress: Progress | None = None,
    meta: Mapping[str, Any] = MappingProxyType({}),
    checkpoint: Checkpoint | None = None,
    cluster: Any = None,
) -> Calibration:
    """Calibrate a network over images.

    Parameters
    ----------
    network : Net or Executor
        A net of `load_caffe`, or anything with ``layers``, ``inputs`` and
        ``run(inputs, blobs)``; see `Executor`.
    batches : callable
        ``batches()`` starts a pass: an iterable of ``{input: float (N, ...)}``, preprocessed. With
        `options.exact` it may be called twice and must give the same each time.
    options : Options, optional
    total : int
        The number of images, for `progress`; 0 where unknown.
    progress : callable, optional
        Called as ``progress(stage, done, total)``, in images.
    meta : mapping
        JSON values for the report.
    checkpoint : Checkpoint, optional
        A file that is written now and then; if it is there, the run goes on from it and counts
        nothing twice, for example ``Checkpoint("run.npz")``. `Checkpoint.remove` deletes it
        afterwards.
    cluster : dask.distributed.Client, optional
        Where the images run instead of on this machine (extra dask); the result is the same.

    Returns
    -------
    Calibration
        The table, the statistics behind it, and warnings.

    Raises
    ------
    ModelError
        For a network without layers to quantize.
    StatisticsError
        For activations that are NaN or infinite.
    ImageError
        Where there are no images, or others than in the `checkpoint`.
    OptionError
        For the `checkpoint` of another network, or of the CPU for a network on a GPU, a pattern
        without a layer, something that is no executor and gives none, and a `cluster` that cannot
        be used.
    """
    options = checked_options(options)
    job = prepare(network, options)
    return run_job(
        job,
        batches,
        options,
        total=total,
        progress=progress,
        meta=meta,
        checkpoint=checkpoint,
        cluster=cluster,
    )


def run_job(
    job: Job[Executor],
    batches: Loader,
    options: Options,
    *,
    total: int = 0,
    progress: Progress | None = None,
    meta: Mapping[str, Any] = MappingProxyType({}),
    checkpoint: Checkpoint | None = None,
    cluster: Any = None,
) -> Calibration:
    """Do what `calibrate` does for a job that is prepared; it may go on from a `checkpoint`."""
    if checkpoint is not None and not isinstance(checkpoint, Checkpoint):
        raise OptionError(
            f"checkpoint of type {type(checkpoint).__name__}; expected a Checkpoint, such as "
            'int8calib.Checkpoint("run.npz")'
        )
    if cluster is not None:
        from int8calib.calibration.statistics.cluster import collect_on_cluster

        if checkpoint is not None:
            raise OptionError("checkpoint: a run on a cluster has none; leave it out")
        if device_of(job.executor) is not None:
            raise OptionError("cluster: it runs on its CPUs; give a network without a device")
        statistics = collect_on_cluster(
            cluster,
            job.executor,
            batches,
            job.blobs,
            exact=options.two_passes,
            total=total,
            progress=progress,
        )
        return make_table(job, statistics, options, meta)
    statistics = collect_statistics(
        job.executor,
        partial(start_pass, batches),
        job.blobs,
        exact=options.two_passes,
        workers=options.workers,
        cache_bytes=options.cache_bytes,
        total=total,
        progress=progress,
        checkpoint=checkpoint,
    )
    return make_table(job, statistics, options, meta)


def make_table(
    job: Job[Executor],
    statistics: Statistics,
    options: Options,
    meta: Mapping[str, Any] = MappingProxyType({}),
) -> Calibration:
    """Return the table of a job from statistics of its blobs; `assemble` tells the rest."""
    device = device_of(job.executor)
    facts = dict(getattr(job.executor, "facts", {}))
    if device is not None:
        facts["device"] = {"name": device.name, "hardware": device.hardware}
    meta = {**facts, **meta}
    return assemble(
        job.candidates,
        statistics,
        options,
        source=source_of(job.executor),
        blobs=job.named,
        meta=meta,
        blocked=job.blocked,
        warnings=job.warnings,
        weight_rows=job.weight_rows,
    )
