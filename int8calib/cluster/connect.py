"""Clusters that answer, with the same versions everywhere."""

from __future__ import annotations

import logging
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from int8calib.errors import ImageError, OptionError
from int8calib.limits import MAX_WORKERS

START_SECONDS = 30
"""How long a scheduler may take to answer, and a first worker to come."""


@contextmanager
def open_cluster(address: str) -> Iterator[Any]:
    """Connect to a scheduler until the block ends.

    Parameters
    ----------
    address : str
        Of a scheduler, such as ``tcp://10.0.0.1:8786``, or ``local:N``: N processes on this
        machine, which end with the block.

    Returns
    -------
    context manager of dask.distributed.Client

    Raises
    ------
    OptionError
        Where the package is missing, nothing answers, or the address means nothing.
    """
    distributed = dask_distributed()
    kind, colon, count = address.partition(":")
    with _silent():
        if kind == "local":
            number = int(count) if count.isascii() and count.isdigit() and len(count) < 9 else 0
            if not colon or not 1 <= number <= MAX_WORKERS:
                raise OptionError(
                    f"--cluster {address}: expected local:N, N from 1 to {MAX_WORKERS}"
                )
            cluster = distributed.LocalCluster(
                n_workers=number,
                threads_per_worker=1,
                dashboard_address="127.0.0.1:0",
                silence_logs=logging.CRITICAL,
                memory_limit=0,
            )
            with cluster, distributed.Client(cluster) as client:
                yield client
            return
        try:
            client = distributed.Client(address, timeout=START_SECONDS)
        except (OSError, ValueError, TimeoutError) as error:
            reason = str(error).split(" after ")[0] or type(error).__name__
            raise OptionError(
                f"--cluster {address}: no scheduler answers ({reason}); start one with "
                "`dask scheduler`, and give the address that it prints"
            ) from None
        with client:
            yield client


@contextmanager
def _silent() -> Iterator[None]:
    """Leave out what Dask logs: what matters is raised."""
    # Dask gives both a level of their own.
    loggers = [logging.getLogger(name) for name in ("distributed", "distributed.client")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def dask_distributed() -> Any:
    """Return the package; raises `OptionError` where it is missing."""
    try:
        import distributed
    except ImportError:
        raise OptionError(
            "a cluster needs the package distributed; pip install 'int8calib[dask]'"
        ) from None
    return distributed


def software() -> dict[str, str]:
    """The versions that a result depends on, of this process."""
    import numpy as np

    import int8calib

    return {"int8calib": int8calib.__version__, "numpy": np.__version__}


def this_worker() -> str:
    """What messages call the worker that runs this task."""
    try:
        return f"worker {dask_distributed().get_worker().address} on {platform.node()}"
    except ValueError:
        return f"worker on {platform.node()}"


def check_software(expected: dict[str, str], found: dict[str, str], where: str) -> None:
    """Raise `OptionError` where a worker has other versions than the client."""
    for name, version in expected.items():
        if found[name] != version:
            raise OptionError(
                f"{where} has {name} {found[name]}, and this machine {version}; a cluster needs "
                "the same versions everywhere"
            )


def unreadable(worker: str, place: str, reason: str) -> ImageError:
    """Return the error of a worker that has no access to an image, by path or URL."""
    return ImageError(
        f"{place}: {worker} cannot read it: {reason}; put the images where every worker finds "
        "them under this name, or send them (--send-images)"
    )
