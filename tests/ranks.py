"""Two gloo processes for tests of parts that need no runner."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Callable

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

Worker = Callable[[int, Path], None]


def run_two_ranks(worker: Worker, folder: Path) -> None:
    """Runs ``worker(rank, folder)`` in two fresh processes of one group; an error in one of them is raised here.

    Args:
        worker: A function at the top of its module.
        folder: Where the processes find each other, and leave their results.
    """
    mp.spawn(_rank, (worker, folder), nprocs=2)


def _rank(rank: int, worker: Worker, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2)
    worker(rank, folder)
    dist.barrier()
    # The threads of gloo can outlive the interpreter, which then aborts.
    os._exit(0)
