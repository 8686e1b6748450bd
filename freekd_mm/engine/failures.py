"""Processes of one run fail together: each ends with the error of the process that failed first."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from mmengine.dist import all_gather_object, get_world_size

KEY = 'freekd_mm/failure'
LENGTH = 2000


class OtherProcessError(RuntimeError):
    """Another process of the run failed first."""


@contextmanager
def failing_together() -> Iterator[None]:
    """Tells the other processes about an error, or says which of them had an error first.

    When a process fails, the others only see a closed connection, and their messages cannot name the cause.
    """
    try:
        yield
    except Exception as error:
        first = _first_failure(error)
        if first is not None:
            raise OtherProcessError(
                f'{first} (that was the first failure; this process then stopped as well)'
            ) from error
        raise


def _first_failure(error: Exception) -> str | None:
    """Returns what another process said before, or stores this error for the others."""
    if get_world_size() == 1:
        return None
    own = f'process {dist.get_rank()} on {socket.gethostname()} failed: {type(error).__name__}: {error}'[:LENGTH]
    try:
        store: Any = dist.distributed_c10d._get_default_store()
        said = store.compare_set(KEY, '', own).decode()
    except Exception:  # the process that keeps the store may be gone: then this error has to do
        return None
    return said if said != own else None


def check_equal_steps(steps: int) -> None:
    """Raises an error on every process unless all have as many steps in an epoch: some would wait forever."""
    counts = all_gather_object(steps)
    if len(set(counts)) > 1:
        raise ValueError(
            f'train_dataloader should give every process the same number of batches, but gives {counts}: use a sampler '
            'with round_up=True, or drop_last=True'
        )
