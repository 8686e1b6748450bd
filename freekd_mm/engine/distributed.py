"""Several processes: the model in its wrapper, and CPUs, where mmengine asks for CUDA devices."""

from __future__ import annotations

import atexit
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import all_gather_object, get_world_size
from mmengine.model import BaseModel, is_model_wrapper
from torch.nn.parallel import DistributedDataParallel


def unwrapped_model(runner: Any) -> Any:
    """Returns the model of a runner without its wrapper for several processes."""
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def build_training_data(runner: Any) -> None:
    """Builds the training data loader of a runner if it is a config yet."""
    if isinstance(getattr(runner, '_train_dataloader', None), dict):
        by_rank = runner._randomness_cfg.get('diff_rank_seed', False)
        runner._train_dataloader = runner.build_dataloader(runner._train_dataloader, runner.seed, by_rank)


def has_whole_weights(runner: Any) -> bool:
    """Whether each process holds all weights of the model under their own names, as no sharded model does."""
    return isinstance(runner.model, (BaseModel, DistributedDataParallel))


def prepare_cpu_processes(cfg: Config) -> None:
    """Lets ``--launcher pytorch`` run on CPUs: joins the processes with gloo and wraps the model without devices."""
    # mmengine 0.10.7 sets a CUDA device for each process, and gives DDP and FSDP its number.
    if cfg.get('launcher') != 'pytorch' or get_device() != 'cpu':
        return
    if not dist.is_initialized():
        dist.init_process_group('gloo')
    if 'runner_type' not in cfg:
        unused = cfg.get('find_unused_parameters', False)
        defaults = {'broadcast_buffers': False, 'find_unused_parameters': unused}
        cfg.model_wrapper_cfg = _without_devices(cfg.get('model_wrapper_cfg'), 'MMDistributedDataParallel', defaults)
    elif cfg.get('strategy', {}).get('type') == 'FSDPStrategy':
        cfg.strategy.model_wrapper = _without_devices(cfg.strategy.get('model_wrapper'), 'MMFullyShardedDataParallel')


def _without_devices(wrapper: dict | None, kind: str, defaults: dict | None = None) -> dict[str, Any]:
    """Returns the wrapper's config without the device of each process, if it is the usual wrapper."""
    wrapper = {'type': kind, **(wrapper or {})}
    if wrapper['type'] == 'MMDistributedDataParallel':
        return {**(defaults or {}), **wrapper, 'device_ids': None}
    if wrapper['type'] == 'MMFullyShardedDataParallel':
        return {**wrapper, 'device_id': 'cpu'}
    return wrapper


def leave_process_group() -> None:
    """Ends the process of a finished run on CPUs; does nothing without a process group of gloo."""
    # The threads of gloo can outlive the interpreter, which then aborts with SIGABRT after the work is done. So what is
    # registered for the end runs here, and the interpreter's own end is left out.
    if not (dist.is_available() and dist.is_initialized() and 'gloo' in dist.get_backend()):
        return
    dist.destroy_process_group()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


KEY = 'freekd_mm/failure'
LENGTH = 2000


@contextmanager
def failing_together() -> Iterator[None]:
    """Tells the other processes about an error, or says which of them had an error first."""
    # When a process fails, the others only see a closed connection, and their messages cannot name the cause.
    try:
        yield
    except Exception as error:
        if get_world_size() == 1:
            raise
        own = f'process {dist.get_rank()} on {socket.gethostname()} failed: {type(error).__name__}: {error}'[:LENGTH]
        try:
            store: Any = dist.distributed_c10d._get_default_store()
            first = store.compare_set(KEY, '', own).decode()
        except Exception:  # the process that keeps the store may be gone: then this error has to do
            first = own
        if first != own:
            said = f'{first} (that was the first failure; this process then stopped as well)'
            raise RuntimeError(said) from error
        raise


def check_equal_steps(steps: int) -> None:
    """Raises an error on every process unless all have as many steps in an epoch: some would wait forever."""
    counts = all_gather_object(steps)
    if len(set(counts)) > 1:
        raise ValueError(
            f'train_dataloader should give every process the same number of batches, but gives {counts}: use a sampler '
            'with round_up=True, or drop_last=True'
        )
