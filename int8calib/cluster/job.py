"""A network on the workers of a cluster, and work that is done on it.

Dask hands out the tasks, repeats those of workers that die, and moves data. A chunk's result
depends on its images alone and is taken once, so that nothing is counted twice.
"""

from __future__ import annotations

import hashlib
import itertools
import pickle
import threading
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from int8calib.cluster.connect import (
    START_SECONDS,
    check_software,
    dask_distributed,
    software,
    this_worker,
)
from int8calib.errors import Int8CalibError, OptionError
from int8calib.workers import single_threaded_blas

Result = TypeVar("Result")

WAITING = 2
"""Chunks of each thread of the cluster that are under way: one runs, one waits."""


class ClusterJob:
    """A network on the workers of a cluster, and work that is done on it.

    Parameters
    ----------
    client : dask.distributed.Client
    network : object
        What the work is done on. It travels once to each worker, as bytes.

    Raises
    ------
    OptionError
        Where there are no workers, their versions differ from those here, and for a network that
        cannot travel.
    """

    def __init__(self, client: Any, network: Any) -> None:
        distributed = dask_distributed()
        if not isinstance(client, distributed.Client) or client.asynchronous:
            raise OptionError(
                f"cluster is of type {type(client).__name__}; expected a dask.distributed.Client"
            )
        self._client = client
        self._software = software()
        content = _pickled(network, "the network")
        self._digest = hashlib.sha256(content).hexdigest()
        with _told():
            try:
                client.wait_for_workers(1, timeout=START_SECONDS)
            except TimeoutError:
                raise OptionError(
                    f"the cluster {client.scheduler.address} has no workers; start some with "
                    f"`dask worker {client.scheduler.address}`"
                ) from None
            for address, found in client.run(software, on_error="return").items():
                if isinstance(found, ModuleNotFoundError):
                    raise found
                if isinstance(found, dict):  # else it is just dying; each task asks once more
                    check_software(self._software, found, f"worker {address}")
            # A task, not scattered: the scheduler can hand it out again whoever dies.
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Sending large graph", UserWarning)
                self._content = client.submit(
                    _content, content, key=f"int8calib-network-{uuid.uuid4().hex}", pure=False
                )

    @property
    def threads(self) -> int:
        """How many chunks the cluster runs at a time."""
        threads: int = sum(self._client.nthreads().values())
        return max(1, threads)

    def run(
        self,
        work: Callable[[Any, Any], tuple[Result, list[str]]],
        chunks: Iterable[Any],
        take: Callable[[int, Result], None],
    ) -> list[str]:
        """Do `work(network, chunk)` on every chunk.

        Parameters
        ----------
        work : callable
            A function that can be imported, or a partial of one. It returns a result and lines on
            images that were skipped.
        chunks : iterable
            Taken one by one as the workers need them.
        take : callable
            Hears each chunk's number and result once, in any order.

        Returns
        -------
        list of str
            The lines, in the order of the chunks.

        Raises
        ------
        Int8CalibError
            What the work raised, where a chunk kills its workers, and where the cluster is lost.
        """
        name = f"int8calib-{uuid.uuid4().hex}"
        numbers: dict[str, int] = {}
        lines: dict[int, list[str]] = {}
        waiting = enumerate(chunks)
        under_way = dask_distributed().as_completed()
        futures: dict[str, Any] = {}

        def submit(count: int) -> None:
            for number, chunk in itertools.islice(waiting, max(0, count)):
                future = self._client.submit(
                    _run_chunk,
                    work,
                    self._content,
                    self._digest,
                    self._software,
                    _pickled(chunk, "a batch"),
                    key=f"{name}-{number}",
                    pure=False,
                )
                numbers[future.key], futures[future.key] = number, future
                under_way.add(future)

        with _told():
            try:
                submit(WAITING * self.threads)
                for future in under_way:
                    result, told = future.result()
                    lines[numbers[future.key]] = told
                    take(numbers[future.key], result)
                    futures.pop(future.key).release()
                    del future, result
                    submit(WAITING * self.threads - len(futures))
            except BaseException:
                with suppress(OSError, TimeoutError):
                    self._client.cancel(list(futures.values()), force=True)
                raise
        return [line for number in sorted(lines) for line in lines[number]]


def _pickled(value: Any, what: str) -> bytes:
    """Return `value` as bytes, from which it comes whole: arrays aligned, nothing shared."""
    import cloudpickle

    try:
        content: bytes = cloudpickle.dumps(value)
    except (TypeError, ValueError, AttributeError, pickle.PicklingError) as error:
        raise OptionError(
            f"{what} cannot be sent to a cluster: {error}; it must be picklable"
        ) from None
    return content


@contextmanager
def _told() -> Iterator[None]:
    """Turn what Dask raises for a cluster that fails into one line."""
    from concurrent.futures import CancelledError

    distributed = dask_distributed()
    try:
        yield
    except distributed.KilledWorker as error:
        raise Int8CalibError(
            f"{error.allowed_failures + 1} workers died running the same images; each needs more "
            "memory, or fewer threads (dask worker --nthreads 1)"
        ) from None
    except (CancelledError, distributed.comm.CommClosedError):
        raise Int8CalibError(
            "the cluster was lost: its scheduler ended, or cannot be reached; run again"
        ) from None
    except ModuleNotFoundError as error:
        raise OptionError(
            f"a worker has no module {error.name}; a cluster needs the same version of int8calib "
            "everywhere"
        ) from None


_loaded: dict[str, Any] = {}
_loading = threading.Lock()


def _content(content: bytes) -> bytes:
    """The task whose result each worker keeps, and gets from another one."""
    return content


def _run_chunk(
    work: Callable[[Any, Any], Any],
    content: bytes,
    digest: str,
    expected: dict[str, str],
    chunk: bytes,
) -> Any:
    """Run one task, on a worker."""
    check_software(expected, software(), this_worker())  # it may have come late
    with _loading:
        if digest not in _loaded:
            network = pickle.loads(content)
            _loaded.clear()  # of a run before this one
            _loaded[digest] = network
        network = _loaded[digest]
    with single_threaded_blas():
        return work(network, pickle.loads(chunk))
