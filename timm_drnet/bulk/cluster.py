"""Cluster: the Ray to run on, started here or joined, and how its processors are dealt out."""

import logging
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from ..data.pixels import first_line

_LEAST_STORE = 256 * 2**20


@dataclass(frozen=True)
class Plan:
    """How the processors are dealt out."""

    workers: int
    """Processes that classify."""
    decoders: int
    """Processes that only decode, one core each; with 0, the workers decode."""
    threads: int
    """Cores of each worker."""
    num_cpus: float
    """The same as Ray counts them: less than 1 where workers share a core."""
    num_gpus: float
    """Accelerators of each worker."""


def plan_workers(
        cpus: float,
        gpus: float,
        workers: int | None = None,
        num_gpus: float | None = None,
        decoders: int | None = None,
) -> Plan:
    """Deal out the processors of a cluster.

    Args:
        cpus: Number of cores.
        gpus: Number of accelerators.
        workers: Processes that classify; None for as many as there are cores, or accelerators to go round.
        num_gpus: Accelerators of each; None for 1 if the cluster has any.
        decoders: Processes that only decode; None for the remaining cores with accelerators, else none.

    Returns:
        The plan.

    Raises:
        ValueError: If there are not as many.
    """
    if num_gpus is None:
        num_gpus = 1 if gpus else 0
    if num_gpus > gpus:
        raise ValueError(f'Invalid num_gpus {num_gpus:g}: the cluster has {gpus:g}; use no more, or 0.')
    if workers is None:
        workers = max(1, int(gpus / num_gpus) if num_gpus else int(cpus) - (decoders or 0))
    if workers * num_gpus > gpus:
        raise ValueError(
            f'Invalid workers {workers}: with {num_gpus:g} accelerators each they need {workers * num_gpus:g}, and the'
            f' cluster has {gpus:g}; use fewer.')
    if decoders is None:
        decoders = max(0, int(cpus) - workers) if num_gpus else 0
    share = (cpus - decoders) / workers
    if share <= 0:
        raise ValueError(f'Invalid decoders {decoders}: the workers need some of the {cpus:g} cores; use fewer.')
    threads = max(1, int(share))
    # Ray takes fractions only below 1; its smallest part is 0.0001.
    return Plan(workers, decoders, threads, threads if share >= 1 else int(share * 1e4) / 1e4, num_gpus)


def import_ray() -> Any:
    """Ray with its data library.

    Raises:
        ImportError: If it is not installed.
    """
    try:
        import ray.data
    except ImportError as error:
        raise ImportError(f'Bulk classification needs Ray Data ({error}): pip install "timm-drnet[ray]"') from error
    return ray


@contextmanager
def ray_cluster(address: str | None, store: int | None) -> Iterator[None]:
    """A Ray that is connected, and shut down in the end if it was started or joined here.

    Args:
        address: Of a cluster to join, as `ray.init` takes it. None for a Ray on this machine alone: the one that this
            process is connected to already, or else a new one.
        store: Bytes of a new Ray's object store; None for Ray's default.

    Raises:
        ValueError: If there is no cluster at the address, or this process is connected already.
    """
    ray = import_ray()
    if ray.is_initialized():
        if address is not None:
            raise ValueError(f'Invalid address {address}: this process has a Ray already; call ray.shutdown() first.')
        yield
        return
    settings: dict[str, Any] = {'address': address, 'log_to_driver': False, 'logging_level': logging.ERROR}
    try:
        if address is None:
            os.environ.setdefault('RAY_USAGE_STATS_ENABLED', '0')
            settings |= {
                # The address keeps Ray from joining whatever cluster it finds on this machine.
                'address': 'local', 'include_dashboard': False,
                'object_store_memory': None if store is None else max(store, _LEAST_STORE)}
        # Of each worker that can be replaced, Ray's native part says that this could fail.
        os.environ.setdefault('RAY_BACKEND_LOG_LEVEL', 'fatal')
        with _without_note_of_log_level(), _own_sigterm():
            ray.init(**settings)
    except (ConnectionError, RuntimeError, ValueError) as error:
        if address is None:
            raise
        raise ValueError(
            f'Invalid address {address}: there is no Ray cluster ({first_line(error)}); start one, or leave out the'
            ' address.') from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep what this process does at SIGTERM: Ray's native part would print a stack and abort."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


@contextmanager
def _without_note_of_log_level() -> Iterator[None]:
    """Hold back what is written to stderr, and let it out without the line that tells which log level is in use.

    Ray's native part writes that line because there is one, past Python, so nothing else keeps it back.
    """
    try:
        stderr = os.dup(2)
    except OSError:  # it is closed
        yield
        return
    with tempfile.TemporaryFile() as held, os.fdopen(stderr, 'wb') as out:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(out.fileno(), 2)
            held.seek(0)
            with suppress(OSError):  # nobody reads it any more
                out.writelines(line for line in held if b'Set ray log level' not in line)
                out.flush()
