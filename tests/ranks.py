"""Processes that find each other, as under torchrun: forks, which have imported everything."""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any, Callable

import torch.distributed as dist
from toy_runs import exit_code, in_child

Worker = Callable[[int, Path], None]
SECONDS = 120


def processes(folder: Path, action: Callable[[], Any], count: int = 2) -> list[tuple[int, str]]:
    """Runs an action in forks that find each other, as under torchrun.

    Returns:
        Exit status and output of each. A process that hangs is killed, its status is then -9.
    """
    folder.mkdir(exist_ok=True)
    # As under torchrun: what the processes tell each other is kept outside of them.
    store = dist.TCPStore('127.0.0.1', 0, is_master=True, wait_for_workers=False)
    children = []
    for rank in range(count):
        log = folder / f'output{rank}'
        log.unlink(missing_ok=True)
        children.append(in_child(log, partial(_in_group, action, rank, count, store.port)))
    deadline = time.monotonic() + SECONDS
    statuses: dict[int, int] = {}
    while len(statuses) < count:
        for child in children:
            if child not in statuses:
                done, status = os.waitpid(child, os.WNOHANG)
                if done:
                    statuses[child] = exit_code(status)
                elif time.monotonic() > deadline:
                    os.kill(child, signal.SIGKILL)
        time.sleep(0.02)
    return [(statuses[child], (folder / f'output{rank}').read_text()) for rank, child in enumerate(children)]


def _in_group(action: Callable[[], Any], rank: int, count: int, port: int) -> None:
    os.environ.update({'RANK': str(rank), 'LOCAL_RANK': str(rank), 'WORLD_SIZE': str(count)})
    os.environ.update({'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port)})
    os.environ.update({'TORCHELASTIC_USE_AGENT_STORE': 'True', 'TORCHELASTIC_RESTART_COUNT': '0'})
    action()


def run_two_ranks(worker: Worker, folder: Path) -> None:
    """Runs ``worker(rank, folder)`` in two processes of one gloo group; an error in one of them is raised here."""
    for status, output in processes(folder, partial(_rank, worker, folder)):
        assert status == 0, output


def _rank(worker: Worker, folder: Path) -> None:
    dist.init_process_group('gloo')
    worker(dist.get_rank(), folder)
    dist.barrier()
