"""Cluster: the Ray to run on, started here or joined, and how its processors are dealt out."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

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
    settings: dict[str, Any] = {'log_to_driver': False, 'logging_level': logging.ERROR}
    try:
        if address is None:
            os.environ.setdefault('RAY_USAGE_STATS_ENABLED', '0')
            # Of each worker that can be replaced, its native part says that this could fail.
            os.environ.setdefault('RAY_BACKEND_LOG_LEVEL', 'fatal')
            # The address keeps Ray from joining whatever cluster it finds on this machine.
            ray.init(
                address='local', include_dashboard=False,
                object_store_memory=None if store is None else max(store, _LEAST_STORE), **settings)
        else:
            ray.init(address=address, **settings)
    except (ConnectionError, RuntimeError, ValueError) as error:
        if address is None:
            raise
        raise ValueError(
            f'Invalid address {address}: there is no Ray cluster ({_first_line(error)}); start one, or leave out the'
            ' address.') from error
    try:
        yield
    finally:
        ray.shutdown()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
